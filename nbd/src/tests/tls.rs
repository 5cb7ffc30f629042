//! STARTTLS: each rule, one test.

use super::catalog::{Talk, catalog, info_data, meta_data, option};
use crate::server::{CloseReason, FindError, Handshake, HandshakeBounds, Outcome, TlsOffer};
use crate::{OptionError, OptionKind, ReplyForm};

const FLAGS: [u8; 4] = [0, 0, 0, 3];
const STARTTLS: u32 = 5;

fn talk(tls: TlsOffer) -> Talk {
    let mut talk = Talk { handshake: Handshake::new(HandshakeBounds::default(), tls), catalog: catalog() };
    talk.say(&FLAGS);
    talk
}

/// Starts TLS; what follows the option is not taken.
fn start(talk: &mut Talk) {
    let (output, progress) = talk.say(&[option(STARTTLS, &[]).as_slice(), b"\x16\x03\x01"].concat());
    assert_eq!((progress.consumed, progress.outcome), (16, Outcome::StartTls));
    assert!(super::catalog::option_replies(&output)[0].is_ack(OptionKind::StartTls));
    talk.handshake.tls_started();
}

#[test]
fn starttls_is_acknowledged_and_what_follows_is_left_to_tls() {
    for tls in [TlsOffer::Allowed, TlsOffer::Required] {
        let mut talk = talk(tls);
        start(&mut talk);
        talk.go(&info_data(b"vol1", &[]));
    }
}

#[test]
fn starttls_that_is_not_offered_is_unsupported() {
    assert!(talk(TlsOffer::Off).ask(STARTTLS, &[])[0].is_error(OptionKind::StartTls, OptionError::Unsupported));
}

#[test]
fn starttls_with_data_or_a_second_time_is_invalid() {
    let mut talk = talk(TlsOffer::Allowed);
    assert!(talk.ask(STARTTLS, b"x")[0].is_error(OptionKind::StartTls, OptionError::Invalid));
    start(&mut talk);
    assert!(talk.ask(STARTTLS, &[])[0].is_error(OptionKind::StartTls, OptionError::Invalid));
    talk.go(&info_data(b"vol1", &[]));
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_before() {
    for number in [3, 6, 7, 8, 9, 10, 11, 99] {
        let data = match number {
            6 | 7 => info_data(b"vol1", &[]),
            9 | 10 => meta_data(b"vol1", &[]),
            _ => Vec::new(),
        };
        let mut talk = talk(TlsOffer::Required);
        let replies = talk.ask(number, &data);
        assert_eq!(replies.len(), 1);
        assert!(replies[0].is_error(OptionKind::from_number(number), OptionError::TlsRequired), "{number}");
        start(&mut talk);
        talk.go(&info_data(b"vol1", &[]));
    }
    let (output, progress) = talk(TlsOffer::Required).say(&option(1, b"vol1"));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::NoExport(FindError::TlsRequired)));
    assert!(output.is_empty());
    let (_, progress) = talk(TlsOffer::Required).say(&option(2, &[]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::Aborted));
}

/// CVE-2021-3716: what somebody put in front of STARTTLS survived it.
#[test]
fn what_was_negotiated_in_clear_is_forgotten() {
    for form in [8, 11] {
        let mut talk = talk(TlsOffer::Allowed);
        talk.ask(form, &[]);
        talk.ask(10, &meta_data(b"vol1", &[b"base:allocation"]));
        start(&mut talk);
        let negotiated = talk.go(&info_data(b"vol1", &[])).1;
        assert_eq!((negotiated.reply_form, negotiated.contexts.len()), (ReplyForm::Simple, 0));
    }
}

#[test]
fn client_without_fixed_newstyle_cannot_start_tls() {
    let mut talk =
        Talk { handshake: Handshake::new(HandshakeBounds::default(), TlsOffer::Allowed), catalog: catalog() };
    talk.say(&[0, 0, 0, 2]);
    let (_, progress) = talk.say(&option(STARTTLS, &[]));
    assert_eq!(progress.outcome, Outcome::Close(CloseReason::NotFixedNewstyle(OptionKind::StartTls)));
}
