//! One turn of a handshake, done by a blocking thread: it asks for volumes, whose locks are held during commits, and TLS
//! signs and verifies.

use super::exports::{Client, ExportTable, ExportView};
use super::settings::NbdLimits;
use super::status::StatusContext;
use super::target::{ExportTarget, Found};
use super::tls::TlsStream;
use super::users::ConnectionPlace;
use rok_nbd::server::{Handshake, HandshakeBounds, Negotiated, Outcome, RequestRules};
use std::sync::Arc;

/// A client that chooses an export.
pub(super) struct Negotiation {
    handshake: Handshake,
    client: Client,
    pub tls: Option<Box<TlsStream>>,
}

impl Negotiation {
    pub(super) fn new(client: Client, limits: &NbdLimits) -> Self {
        let bounds =
            HandshakeBounds { option_count_max: limits.options_max, option_size_bytes_max: limits.option_bytes_max };
        Self { handshake: Handshake::new(bounds, client.settings.tls), client, tls: None }
    }
}

/// What the connection goes on with.
pub(super) struct HandshakeTurn {
    pub negotiation: Box<Negotiation>,
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
    pub target: ExportTarget,
    /// Whether the client was told that it cannot write.
    pub is_read_only: bool,
    /// Its place among the connections that have the export open; a device's is not here.
    pub _place: Option<ConnectionPlace>,
    pub rules: RequestRules,
    /// The metadata contexts that the client chose, in the order of their ids.
    pub contexts: Vec<StatusContext>,
}

impl HandshakeTurn {
    /// Judges by the policies of now, on the lane, before the client is served: who has changed one ends the connections that
    /// the lane serves, and one whose handshake was with a thread is none of these. Such a client is not answered.
    pub(super) fn judged_again(mut self, table: &ExportTable) -> Self {
        if let NextStep::Serve(session) = &self.next
            && let Some(open) = session.target.volume()
        {
            let id = open.volume().id();
            if !table.may_serve(id, session.is_read_only, &self.negotiation.client) {
                tracing::info!(volume = %id, "a client is refused: the export was changed while it chose it");
                self.next = NextStep::Close;
                self.output.clear();
            }
        }
        self
    }
}

/// Takes a turn.
pub(super) fn advance(mut negotiation: Box<Negotiation>, input: &[u8], table: &Arc<ExportTable>) -> HandshakeTurn {
    let mut output = Vec::new();
    let mut rest = input;
    let next = loop {
        if let Some(next) = negotiation.step(&mut rest, &mut output, table) {
            break next;
        }
    };
    HandshakeTurn { negotiation, consumed: input.len() - rest.len(), output, next }
}

impl Negotiation {
    /// A step on one level: TLS, or the options in it. `None` if the next step can follow at once.
    fn step(&mut self, rest: &mut &[u8], output: &mut Vec<u8>, table: &Arc<ExportTable>) -> Option<NextStep> {
        if let Some(tls) = &mut self.tls {
            let received = tls.receive(std::mem::take(rest));
            tls.take_output(output);
            if let Err(error) = received {
                tracing::debug!(%error, "a TLS handshake failed");
                return Some(NextStep::Close);
            }
            if tls.is_handshaking() {
                return Some(if tls.is_closed { NextStep::Close } else { NextStep::Receive });
            }
            if !self.client.is_encrypted {
                self.client.is_encrypted = true;
                self.client.peer.subjects = tls.subjects();
            }
        }
        let view = ExportView::new(table, &self.client);
        if table.is_closing() {
            self.handshake.shut_down();
        }
        let outcome = match &mut self.tls {
            None => {
                let progress = self.handshake.advance(rest, output, &view);
                *rest = &rest[progress.consumed..];
                progress.outcome
            }
            Some(tls) => {
                let mut answer = Vec::new();
                let progress = self.handshake.advance(&tls.plain, &mut answer, &view);
                tls.plain.drain(..progress.consumed);
                tls.send(&answer);
                tls.take_output(output);
                progress.outcome
            }
        };
        match outcome {
            Outcome::NeedMore if self.tls.as_ref().is_some_and(|tls| tls.is_closed) => Some(NextStep::Close),
            Outcome::NeedMore => Some(NextStep::Receive),
            Outcome::SendFirst => Some(NextStep::Repeat),
            Outcome::Close(reason) => {
                tracing::debug!(?reason, "a handshake ended");
                Some(NextStep::Close)
            }
            Outcome::Transmission(negotiated) => Some(begin(&negotiated, view)),
            Outcome::StartTls => match table.tls.as_ref().map(|authority| authority.accept()) {
                Some(Ok(tls)) => {
                    self.tls = Some(Box::new(tls));
                    self.handshake.tls_started();
                    None
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection was closed");
                    Some(NextStep::Close)
                }
                None => unreachable!("a listener that offers TLS has certificates"),
            },
        }
    }
}

fn begin(negotiated: &Negotiated, view: ExportView<'_>) -> NextStep {
    let rules = negotiated.rules();
    // The handshake ends in the very call in which it found the export.
    view.into_found(&negotiated.contexts).map_or(NextStep::Close, |(found, contexts)| {
        let Found { target, place, is_read_only, .. } = found;
        NextStep::Serve(Session { target, is_read_only, _place: Some(place), rules, contexts })
    })
}
