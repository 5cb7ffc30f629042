//! The command `diff`.

use clap::Args;

use super::client::Client;
use super::failure::Outcome;
use super::output::Output;
use super::table::Table;
use crate::daemon::diff_resource::{Diff, DiffKind, DiffRange};
use crate::volume::Reference;

#[derive(Debug, Args)]
#[command(
    after_help = "Each block of 4 KiB whose content differs is told of. One that was written again with what it held \
    before may be told of too. A volume in use is compared while it changes. It takes time by what was written between the \
    two, not by their size."
)]
pub(super) struct DiffArguments {
    /// What was before: a snapshot like vol1@7, or a volume
    #[arg(value_name = "A")]
    from: Reference,
    /// What is there now: a snapshot like vol1@latest, or a volume
    #[arg(value_name = "B")]
    to: Reference,
    /// Print how many bytes are only in B, only in A, and were written since; this is the default
    #[arg(long, conflicts_with = "map")]
    summary: bool,
    /// Print each range that differs: offset, length and kind (added, removed, rewritten), in bytes
    #[arg(long)]
    map: bool,
}

/// `diff A B`.
pub(super) fn run(arguments: &DiffArguments, client: &Client, output: &Output) -> Outcome<()> {
    let mut pages = Pages::new(arguments);
    let mut sum = pages.next(client)?;
    let is_streamed = arguments.map && !output.is_json();
    let mut last = Vec::new();
    let mut page = std::mem::take(&mut sum.ranges);
    loop {
        for range in page {
            range.append_to(&mut last);
        }
        if is_streamed {
            // The last one may go on in the next page.
            let kept = last.pop();
            output.lines(&last.iter().map(line).collect::<String>())?;
            last = kept.into_iter().collect();
        }
        if pages.offset.is_none() {
            break;
        }
        let further = pages.next(client)?;
        sum.added += further.added;
        sum.removed += further.removed;
        sum.rewritten += further.rewritten;
        page = further.ranges;
    }
    sum.next_offset = None;
    if is_streamed {
        return Ok(output.lines(&last.iter().map(line).collect::<String>())?);
    }
    sum.ranges = last;
    let size = |bytes: u64| output.size(bytes);
    let fields = vec![
        ("Only in B", size(sum.added)),
        ("Only in A", size(sum.removed)),
        ("Rewritten", size(sum.rewritten)),
        ("Changed", size(sum.added + sum.removed + sum.rewritten)),
    ];
    Ok(output.one(&sum, &Table::of_fields(&sum.to, fields))?)
}

fn line(range: &DiffRange) -> String {
    let kind = match range.kind {
        DiffKind::Added => "added",
        DiffKind::Removed => "removed",
        DiffKind::Rewritten => "rewritten",
    };
    format!("{} {} {kind}\n", range.offset, range.length)
}

/// The pages of an answer, one request each.
struct Pages {
    from: String,
    to: String,
    is_summary: bool,
    /// Where the next one begins; `None` if there is none.
    offset: Option<u64>,
}

impl Pages {
    fn new(arguments: &DiffArguments) -> Self {
        let (from, to) = (arguments.from.to_string(), arguments.to.to_string());
        Self { from, to, is_summary: arguments.summary || !arguments.map, offset: Some(0) }
    }

    fn next(&mut self, client: &Client) -> Outcome<Diff> {
        // A time holds a plus at most, which means a blank in a query.
        let escape = |text: &str| text.replace('+', "%2B");
        let (from, to, offset) = (escape(&self.from), escape(&self.to), self.offset.unwrap_or_default());
        let path = format!("/v1/diff?from={from}&to={to}&offset={offset}&summary={}", self.is_summary);
        let page: Diff = client.get(&path, Some(&format!("{} {}", self.from, self.to)))?;
        // From now on exactly these, whatever snapshots are made meanwhile.
        (self.from, self.to, self.offset) = (page.from.clone(), page.to.clone(), page.next_offset);
        Ok(page)
    }
}
