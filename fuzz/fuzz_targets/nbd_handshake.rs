//! The server's handshake, fed with any bytes in any pieces: it never panics, takes no byte twice, and what it does
//! does not depend on how the bytes were cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_nbd::server::{Export, ExportFeatures, Exports, FindError, Handshake, HandshakeBounds, Outcome, TlsOffer};

/// Two exports, one of them read-only, and one that is refused.
struct Catalog;

impl Exports for Catalog {
    fn list(&self) -> Vec<String> {
        vec!["vol1".to_owned(), "frozen".to_owned()]
    }

    fn find(&self, name: &str) -> Result<Export, FindError> {
        let features = ExportFeatures { is_read_only: name == "frozen", has_flush: true, ..ExportFeatures::default() };
        match name {
            "" | "vol1" | "frozen" => {
                let mut export = Export::new(if name.is_empty() { "vol1" } else { name }, 1 << 30, features);
                export.contexts = vec!["base:allocation".to_owned(), "qemu:allocation-depth".to_owned()];
                Ok(export)
            }
            "forbidden" => Err(FindError::Forbidden),
            _ => Err(FindError::Unknown),
        }
    }

    fn has_context(&self, export: &Export, name: &str) -> bool {
        export.contexts.iter().any(|context| context == name) || name.starts_with("rok:diff:")
    }
}

/// What came of the input: all output, how much was taken, and how it stands.
fn run(input: &[u8], piece_size: usize) -> (Vec<u8>, usize, Outcome) {
    let mut handshake = Handshake::new(HandshakeBounds::default(), TlsOffer::Allowed);
    let (mut sent, mut output) = (Vec::new(), Vec::new());
    let mut outcome = handshake.advance(&[], &mut output, &Catalog).outcome;
    let mut consumed = 0;
    while consumed < input.len() && matches!(outcome, Outcome::NeedMore | Outcome::SendFirst | Outcome::StartTls) {
        sent.append(&mut output);
        if outcome == Outcome::StartTls {
            // What follows would come out of TLS.
            handshake.tls_started();
        }
        let size = piece_size.min(input.len() - consumed);
        let progress = handshake.advance(&input[consumed..consumed + size], &mut output, &Catalog);
        assert!(progress.consumed <= size);
        assert!(progress.consumed > 0 || !matches!(progress.outcome, Outcome::NeedMore), "it goes on");
        consumed += progress.consumed;
        outcome = progress.outcome;
    }
    sent.append(&mut output);
    (sent, consumed, outcome)
}

fuzz_target!(|input: &[u8]| {
    let whole = run(input, usize::MAX);
    let piece_size = usize::from(input.first().copied().unwrap_or(0) % 16) + 1;
    assert_eq!(run(input, piece_size), whole, "pieces of {piece_size}");
    if let Outcome::Transmission(negotiated) = &whole.2 {
        // The rules can be made of whatever was negotiated.
        assert!(negotiated.rules().payload_size_bytes_max() > 0);
    }
});
