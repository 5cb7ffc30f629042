//! The program `rok-blk`: everything is in the library, see `src/cli/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rok_blk::cli::main()
}
