//! What commands print: data on stdout in the format that was asked for, messages on stderr.

use std::io::{self, Write as _};

use clap_complete::Shell;
use serde::Serialize;

use super::arguments::{Format, Global};
use super::failure::tell;
use super::size::format_size;
use super::table::Table;

/// How this command prints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    format: Format,
    is_quiet: bool,
    has_header: bool,
    has_exact_bytes: bool,
}

impl Output {
    /// As the options say.
    pub(super) fn new(global: &Global) -> Self {
        Self {
            format: if global.json { Format::Json } else { global.output },
            is_quiet: global.quiet,
            has_header: !global.no_header,
            has_exact_bytes: global.bytes,
        }
    }

    /// Whether data, and so errors too, are JSON.
    pub(super) fn is_json(self) -> bool {
        matches!(self.format, Format::Json | Format::Jsonl)
    }

    /// A size as text.
    pub(super) fn size(self, bytes: u64) -> String {
        if self.has_exact_bytes { bytes.to_string() } else { format_size(bytes) }
    }

    /// Tells the user something that is no data.
    pub(super) fn message(self, text: &str) {
        if !self.is_quiet {
            tell(text);
        }
    }

    /// Prints a list: `answer` as JSON, its `items` as lines of JSON, or the table.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(super) fn list(self, answer: &impl Serialize, items: &[impl Serialize], table: &Table) -> io::Result<()> {
        match self.format {
            Format::Json => self.json(answer),
            Format::Jsonl => items.iter().try_for_each(|item| self.json(item)),
            Format::Table | Format::Plain => self.table(table),
        }
    }

    /// Prints one thing: as JSON, or the table.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(super) fn one(self, answer: &impl Serialize, table: &Table) -> io::Result<()> {
        if self.is_json() { self.json(answer) } else { self.table(table) }
    }

    /// Prints what a command changed: as JSON, or the name of what it changed and nothing else.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(super) fn reference(self, answer: &impl Serialize, reference: &str) -> io::Result<()> {
        if self.is_json() { self.json(answer) } else { self.lines(&format!("{reference}\n")) }
    }

    /// Prints the completion script of `command`.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(super) fn completion(self, shell: Shell, command: &mut clap::Command) -> io::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(shell, command, "rok-blk", &mut script);
        write_all(&script)
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// If stdout does not take it.
    pub(super) fn lines(self, text: &str) -> io::Result<()> {
        write_all(text.as_bytes())
    }

    fn json(self, value: &impl Serialize) -> io::Result<()> {
        let mut text = match self.format {
            Format::Json => serde_json::to_string_pretty(value)?,
            _ => serde_json::to_string(value)?,
        };
        text.push('\n');
        self.lines(&text)
    }

    fn table(self, table: &Table) -> io::Result<()> {
        let text = match self.format {
            _ if self.is_quiet => table.references(),
            Format::Plain => table.plain(),
            _ => table.aligned(self.has_header),
        };
        self.lines(&text)
    }
}

fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
