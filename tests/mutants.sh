#!/usr/bin/env bash
# Changes pool, volume, format and crypto in small ways, one at a time, and finds out whether a test of the library or of the
# simulation fails. The mutants are those of `cargo mutants`; tests/mutants compiles them all at once and chooses one when the
# tests run. Of the files for commit, recovery, reclaim and crypto all must be found, of the rest 85 % of 500.
#
#   tests/mutants.sh    ROK_MUTANT_MINUTES=60 says how long; it goes on where it ended last, with what was not killed
#                       ROK_MUTANT_GROUPS='commit recovery reclaim crypto rest' says which
#
# What is known of each is in docs/mutants.tsv, and why some cannot be found in tests/mutants/equivalent.tsv. Closes on
# "N passed, N failed, N skipped": one for each group, and a failure for each reason that is none.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo mutants --version >/dev/null 2>&1; then
  echo "mutants: there is no cargo-mutants; get it with: cargo install --locked cargo-mutants@27.1.0" >&2
  exit 1
fi
# The same place each time, so that the compiler knows it again.
work=$PWD/target/mutants
rm -rf "$work/project"
mkdir -p "$work/project"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$work/project"
cargo mutants --list --json --no-shuffle --file 'src/pool/**' --file 'src/volume/**' --file 'src/format/**' --file 'src/crypto/**' \
  --exclude '**/*_tests.rs' --exclude '**/tests/**' >"$work/list.json"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --quiet --example mutants
exec "$CARGO_TARGET_DIR/debug/examples/mutants" "$work/list.json" "$work/project" "$work/copy" docs/mutants.tsv tests/mutants/equivalent.tsv
