//! One turn of a handshake, done by a blocking thread: it asks for volumes, whose locks are held during commits.

use super::exports::{Client, ExportPlace, ExportTable, ExportView};
use super::status::StatusContext;
use crate::volume::OpenVolume;
use rok_nbd::server::{Handshake, Negotiated, Outcome, RequestRules};
use std::sync::Arc;

/// What the connection goes on with.
pub(super) struct HandshakeTurn {
    pub handshake: Box<Handshake>,
    /// Bytes of the input that were taken.
    pub consumed: usize,
    /// To be sent in any case.
    pub output: Vec<u8>,
    pub next: NextStep,
}

/// How the connection goes on once the output is sent.
pub(super) enum NextStep {
    /// Receive more.
    Receive,
    /// Go on with the rest of the input.
    Repeat,
    /// Close.
    Close,
    /// Serve requests.
    Serve(Session),
}

/// What requests of a connection are served by.
pub(super) struct Session {
    pub volume: OpenVolume,
    /// Its place among the connections that have the volume open.
    pub _place: ExportPlace,
    pub rules: RequestRules,
    /// The metadata contexts that the client chose, in the order of their ids.
    pub contexts: Vec<StatusContext>,
}

/// Takes a turn.
pub(super) fn advance(
    mut handshake: Box<Handshake>,
    input: &[u8],
    table: &Arc<ExportTable>,
    client: &Client,
) -> HandshakeTurn {
    let view = ExportView::new(table, client);
    if table.is_closing() {
        handshake.shut_down();
    }
    let mut output = Vec::new();
    let progress = handshake.advance(input, &mut output, &view);
    let next = match progress.outcome {
        Outcome::NeedMore => NextStep::Receive,
        Outcome::SendFirst => NextStep::Repeat,
        Outcome::Close(reason) => {
            tracing::debug!(?reason, "a handshake ended");
            NextStep::Close
        }
        Outcome::Transmission(negotiated) => begin(&negotiated, view),
    };
    HandshakeTurn { handshake, consumed: progress.consumed, output, next }
}

fn begin(negotiated: &Negotiated, view: ExportView<'_>) -> NextStep {
    let rules = negotiated.rules();
    let contexts: Option<Vec<_>> = negotiated.contexts.iter().map(StatusContext::named).collect();
    let contexts = contexts.expect("only contexts that there are can be chosen");
    // The handshake ends in the very call in which it found the export.
    view.into_found().map_or(NextStep::Close, |found| {
        NextStep::Serve(Session { volume: found.volume, _place: found.place, rules, contexts })
    })
}
