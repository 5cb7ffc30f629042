//! The client's side, fed with any bytes of a server: never a panic, and no memory from a length that was not checked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_nbd::client::{Handshake, Outcome, ReadContent, Reply};
use rok_nbd::{CommandFlags, Request, RequestForm, RequestKind};

fn negotiate(wish: u8, input: &[u8]) {
    let mut handshake = Handshake::new();
    let mut output = Vec::new();
    handshake.advance(b"NBDMAGICIHAVEOPT\0\x03", &mut output);
    match wish {
        0 => handshake.list(&mut output),
        1 => handshake.info("vol1", &mut output).expect("a short name"),
        2 => handshake.go("vol1", &mut output).expect("a short name"),
        3 => handshake.export_name("vol1", &mut output).expect("a short name"),
        4 => handshake.set_contexts("vol1", &["base:allocation"], &mut output).expect("short names"),
        5 => handshake.request_extended_headers(&mut output),
        _ => handshake.request_structured_replies(&mut output),
    }
    let progress = handshake.advance(input, &mut output);
    assert!(progress.consumed <= input.len());
    if progress.outcome == Outcome::NeedMore {
        assert_eq!(progress.consumed, input.len());
    }
}

fn receive(mut input: &[u8]) {
    let (form, flags, kind) = (RequestForm::Compact, CommandFlags::NONE, RequestKind::Read);
    let mut content = ReadContent::new(&Request { form, flags, kind, cookie: 0, offset: 4096, length: 65_536 });
    while let Ok(Some((reply, size))) = Reply::parse(input) {
        input = &input[size..];
        let Reply::Chunk(header) = reply else { continue };
        let Some((payload, rest)) =
            usize::try_from(header.payload_size_bytes).ok().and_then(|len| input.split_at_checked(len))
        else {
            return;
        };
        if let Ok(extent) = header.extent(payload)
            && let Ok(position) = content.accept(extent)
        {
            assert!(position + usize::try_from(extent.size_bytes).expect("fits") <= 65_536);
        }
        assert!(header.error(payload).is_err() || header.kind.is_error());
        if let Ok(chunk) = header.status(payload) {
            assert!(chunk.extents.iter().all(|extent| extent.size_bytes > 0));
        }
        input = rest;
    }
}

fuzz_target!(|input: &[u8]| {
    let [wish, rest @ ..] = input else { return };
    negotiate(wish % 7, rest);
    receive(rest);
});
