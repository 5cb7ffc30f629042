//! Requests of any bytes, judged by rules of any kind: never a panic, what passes lies in the export, and the stream
//! stays in step.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_nbd::client::Reply;
use rok_nbd::server::{Export, ExportFeatures, ReadReply, Refusal, RequestRules};
use rok_nbd::{BlockSizes, ReplyForm, Request, RequestKind, StatusExtent, limits};

/// What the first bytes of an input say of the connection.
fn rules(setting: u8, size: u8) -> RequestRules {
    let form = [ReplyForm::Simple, ReplyForm::Structured, ReplyForm::Extended][usize::from(setting % 3)];
    let bit = |bit: u8| setting >> bit & 1 == 1;
    let features = ExportFeatures {
        is_read_only: bit(2),
        has_flush: bit(3),
        has_fua: bit(4),
        has_trim: bit(5),
        has_write_zeroes: bit(6),
        has_fast_zero: bit(7),
        has_cache: bit(5),
        is_multi_connection_safe: true,
        is_rotational: false,
    };
    let size_bytes = match size {
        255 => u64::MAX,
        size => 1 << (size % 64),
    };
    let mut export = Export::new("any", size_bytes, features);
    if bit(3) {
        export.block_sizes = BlockSizes::new(4096, 4096, 1 << 25).expect("legal sizes");
    }
    let context_count = if form == ReplyForm::Simple { 0 } else { usize::from(size % 4) };
    RequestRules::new(&export, form, context_count)
}

/// Deals with one request; how many bytes of the input belong to it, or nothing if the stream ends.
fn serve(input: &[u8], rules: &RequestRules) -> Option<usize> {
    let request = Request::parse(input, rules.request_form()).ok()??;
    let front = rules.request_form().size();
    assert_eq!(request.encode(), &input[..front]);
    let mut output = Vec::new();
    let to = rules.reply_to(&request);
    match rules.check(&request) {
        Err(Refusal::Close) => {
            assert!(request.payload_size_bytes() > u64::from(limits::DRAIN_SIZE_MAX));
            return None;
        }
        Err(Refusal::Answer { error, message, drain_size_bytes }) => {
            assert_eq!(u64::from(drain_size_bytes), request.payload_size_bytes());
            to.append_error(&mut output, error, message);
            check_reply(&output);
            return Some(front.saturating_add(usize::try_from(drain_size_bytes).ok()?));
        }
        Ok(()) => {}
    }
    let payload_size = usize::try_from(request.payload_size_bytes()).ok()?;
    match request.kind {
        RequestKind::Disconnect => return None,
        RequestKind::BlockStatus => {
            let payload = input.get(front..front + payload_size)?;
            match rules.status_request(&request, payload) {
                Ok(asked) => {
                    assert!(asked.size_bytes > 0 && !asked.context_ids.is_empty());
                    let extents = [(1, 3), (asked.size_bytes - 1, 0)].into_iter().filter(|(size, _)| *size > 0);
                    for (index, id) in asked.context_ids.iter().enumerate() {
                        let extents = extents.clone().map(|(size_bytes, status)| StatusExtent { size_bytes, status });
                        to.append_status(&mut output, *id, extents, index + 1 == asked.context_ids.len());
                    }
                }
                Err((error, message)) => to.append_error(&mut output, error, message),
            }
        }
        RequestKind::Read => {
            assert!(request.length <= u64::from(rules.payload_size_bytes_max()));
            if rules.reply_form() == ReplyForm::Simple || request.length == 0 {
                output.extend_from_slice(to.read(&request).as_bytes());
            } else {
                let mut reply = ReadReply::new(rules.reply_form(), &request);
                output.extend_from_slice(reply.hole(reply.remaining_size_bytes()).expect("whole").as_bytes());
            }
        }
        _ => output.extend_from_slice(to.success().as_bytes()),
    }
    check_reply(&output);
    Some(front + payload_size)
}

/// A client understands what the server says.
fn check_reply(output: &[u8]) {
    let (reply, size) = Reply::parse(output).expect("in step").expect("whole");
    if let Reply::Chunk(chunk) = reply {
        let end = size + usize::try_from(chunk.payload_size_bytes).expect("fits");
        assert!(end <= output.len());
        if chunk.kind.is_error() {
            chunk.error(&output[size..end]).expect("well formed");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let [setting, size, stream @ ..] = input else { return };
    let rules = rules(*setting, *size);
    let mut rest = stream;
    while let Some(taken) = serve(rest, &rules) {
        let Some(next) = rest.get(taken..) else { break };
        rest = next;
    }
});
