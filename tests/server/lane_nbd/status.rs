//! Block status, cache and extended headers over lanes.

use super::*;
use rok_blk::format::snapshot::Annotations;
use rok_blk::pool::NewSnapshot;
use rok_nbd::StatusExtent;
use rok_nbd::client::StatusChunk;

const BASE: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
/// `base:allocation` of what is not mapped: a hole that reads as zeros.
const HOLE: u64 = 3;

impl Client {
    fn with_contexts(running: &Running, form: ReplyForm, contexts: &[&str]) -> Self {
        Self::negotiate(&running.socket, "vol1", form, contexts)
            .expect("the server answers")
            .expect("there is an export")
    }

    /// Sends a BLOCK_STATUS; what each context says, or the error.
    fn status(&mut self, flags: CommandFlags, range: (u64, u64)) -> Result<Vec<StatusChunk>, WireError> {
        let (offset, length) = range;
        let request =
            Request { form: self.request_form(), flags, kind: RequestKind::BlockStatus, cookie: 99, offset, length };
        self.stream.write_all(&request.encode()).expect("the server reads");
        let mut chunks = Vec::new();
        loop {
            let mut head = self.take(16).expect("the server answers");
            while Reply::parse(&head).expect("in step").is_none() {
                head.extend(self.take(4).expect("the server answers"));
            }
            let Some((Reply::Chunk(header), _)) = Reply::parse(&head).expect("in step") else { panic!("no chunk") };
            assert_eq!((header.cookie, header.request_offset.unwrap_or(offset)), (99, offset));
            let payload = self.take(header.payload_size_bytes).expect("the server answers");
            if header.kind.is_error() {
                return Err(header.error(&payload).expect("an error chunk").error);
            }
            chunks.push(header.status(&payload).expect("a status chunk"));
            if header.is_done {
                return Ok(chunks);
            }
        }
    }
}

fn extents(runs: &[(u64, u64)]) -> Vec<StatusExtent> {
    runs.iter().map(|(size_bytes, status)| StatusExtent { size_bytes: *size_bytes, status: *status }).collect()
}

#[test]
fn block_status_tells_to_the_block_what_is_mapped() {
    let (world, running) = World::create(128 * MIB);
    let mut client = Client::with_contexts(&running, ReplyForm::Structured, &[DEPTH, BASE]);
    client.write(MIB + 4096, &pattern(1, 8192)).expect("a write");
    client.write(200 * MIB, &pattern(2, 4096)).expect("a write");
    client.call(RequestKind::Trim, CommandFlags::NONE, (MIB + 8192, 4096), &[]).expect("a trim");
    let check = |client: &mut Client| {
        let chunks = client.status(CommandFlags::NONE, (0, VOLUME_BYTES)).expect("an answer");
        let rest = VOLUME_BYTES - 200 * MIB - 4096;
        let between = 199 * MIB - 8192;
        let depths = [(MIB + 4096, 0), (4096, 1), (between, 0), (4096, 1), (rest, 0)];
        let states = depths.map(|(size, depth)| (size, if depth == 0 { HOLE } else { 0 }));
        let expected = [(1, extents(&depths)), (2, extents(&states))];
        let told: Vec<_> = chunks.into_iter().map(|chunk| (chunk.context_id, chunk.extents)).collect();
        assert_eq!(told, expected);
    };
    check(&mut client);
    client.flush().expect("a flush");
    drop(client);
    running.end();
    // Now all of it is in stored leaves.
    let running = world.open();
    let mut client = Client::with_contexts(&running, ReplyForm::Extended, &[DEPTH, BASE]);
    check(&mut client);
    client.call(RequestKind::Cache, CommandFlags::NONE, (0, 128 << 20), &[]).expect("a hint");
    check(&mut client);
    running.end();
}

#[test]
fn block_status_of_any_bytes_begins_and_ends_with_them() {
    let (_world, running) = World::create(128 * MIB);
    let mut client = Client::with_contexts(&running, ReplyForm::Structured, &[BASE]);
    client.write(4096, &[7; 100]).expect("a write");
    let mut told = |range| client.status(CommandFlags::NONE, range).map(|mut chunks| chunks.remove(0).extents);
    assert_eq!(told((1000, 10_000)), Ok(extents(&[(3096, HOLE), (4096, 0), (2808, HOLE)])));
    assert_eq!(told((4097, 1)), Ok(extents(&[(1, 0)])));
    assert_eq!(told((VOLUME_BYTES - 1, 1)), Ok(extents(&[(1, HOLE)])));
    for range in [(0, 0), (VOLUME_BYTES, 1), (VOLUME_BYTES - 1, 2), (u64::MAX - 5, 5)] {
        assert_eq!(told(range), Err(WireError::Invalid), "{range:?}");
    }
    running.end();
}

#[test]
fn block_status_for_one_extent_gets_one() {
    let (_world, running) = World::create(128 * MIB);
    let mut client = Client::with_contexts(&running, ReplyForm::Structured, &[BASE]);
    client.write(8192, &[7; 4096]).expect("a write");
    let chunks = client.status(CommandFlags::REQ_ONE, (0, MIB)).expect("an answer");
    assert_eq!(chunks[0].extents, extents(&[(8192, HOLE)]));
    running.end();
}

#[test]
fn block_status_of_a_fragmented_volume_ends_early_and_goes_on_where_it_ended() {
    let (_world, running) = World::create(512 * MIB);
    let mut client = Client::with_contexts(&running, ReplyForm::Structured, &[BASE]);
    // Every second block of 136 MiB: more runs than one answer has.
    const COUNT: u64 = 17_408;
    let mut waiting = 0;
    for index in 0..COUNT {
        client.send(RequestKind::Write, CommandFlags::NONE, (index * 8192, 4096), &[7; 4096]);
        waiting += 1;
        if waiting == 64 || index + 1 == COUNT {
            (0..waiting).for_each(|_| client.receive().1.map(drop).expect("a write"));
            waiting = 0;
        }
    }
    let (mut at, mut runs, mut answers) = (0, 0, 0);
    while at < COUNT * 8192 {
        for extent in &client.status(CommandFlags::NONE, (at, COUNT * 8192 - at)).expect("an answer")[0].extents {
            assert_eq!((extent.size_bytes, extent.status), (4096, if at % 8192 == 0 { 0 } else { HOLE }), "at {at}");
            at += extent.size_bytes;
            runs += 1;
        }
        answers += 1;
    }
    assert_eq!((at, runs), (COUNT * 8192, 2 * COUNT));
    assert!((2..10).contains(&answers), "{answers} answers");
    running.end();
}

/// Makes a snapshot of vol1; its volume and number.
pub(super) fn snapshot(running: &Running) -> (Uuid, u64) {
    let volumes = running.server.volumes();
    let (id, volume) = (Uuid::new_v4(), volumes.find("vol1").expect("it is there").id);
    let annotations = Annotations::default();
    let new = NewSnapshot { id, volume, created_at_ms: 0, time_ms: 0, expires_at: 0, annotations };
    (volume, volumes.snapshot(vec![new]).expect("a snapshot")[0].number)
}

#[test]
fn block_status_of_a_diff_context_goes_on_where_it_ended_and_keeps_its_snapshot() {
    let (_world, running) = World::create(512 * MIB);
    let mut writer = running.connect();
    writer.write(0, &[1; 4096]).expect("a write");
    let id = snapshot(&running);
    // Every second block of 40 MiB: more runs than one answer has.
    const COUNT: u64 = 5120;
    for index in 0..COUNT {
        writer.write(index * 8192, &[7; 4096]).expect("a write");
    }
    let contexts = ["rok:diff:vol1@9", BASE, "rok:diff:", "rok:diff:vol1@1", "rok:diff:vol1"];
    for form in [ReplyForm::Structured, ReplyForm::Extended] {
        let mut client = Client::with_contexts(&running, form, &contexts);
        let (mut at, mut answers) = (0, 0);
        while at < COUNT * 8192 {
            let chunks = client.status(CommandFlags::NONE, (at, VOLUME_BYTES - at)).expect("an answer");
            assert_eq!(chunks.iter().map(|chunk| chunk.context_id).collect::<Vec<_>>(), [1, 2]);
            for extent in &chunks[1].extents {
                let is_last = at + extent.size_bytes == VOLUME_BYTES;
                assert!(extent.size_bytes == 4096 || is_last, "{extent:?} at {at}");
                assert_eq!(extent.status, u64::from(at % 8192 == 0), "at {at}");
                at += extent.size_bytes;
            }
            answers += 1;
        }
        assert!((2..10).contains(&answers), "{answers} answers");
        let one = client.status(CommandFlags::REQ_ONE, (4096, 8192)).expect("an answer");
        assert_eq!(one[1].extents, extents(&[(4096, 0)]));
        let removed = running.server.volumes().remove_snapshots(&[id]);
        assert_eq!(removed.expect_err("a client compares with it").kind(), ErrorKind::Busy);
    }
    running.end();
}

#[test]
fn a_connection_has_a_bounded_number_of_diff_contexts() {
    let (_world, running) = World::create(128 * MIB);
    let names: Vec<String> = (0..6).map(|_| format!("rok:diff:vol1@{}", snapshot(&running).1)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = Client::with_contexts(&running, ReplyForm::Structured, &names);

    let told = client.status(CommandFlags::NONE, (0, VOLUME_BYTES)).expect("an answer");

    assert_eq!(told.iter().map(|chunk| chunk.context_id).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(told.iter().all(|chunk| chunk.extents == extents(&[(VOLUME_BYTES, 0)])), "{told:?}");
    running.end();
}

#[test]
fn block_status_without_a_context_is_invalid() {
    let (_world, running) = World::create(128 * MIB);
    for form in [ReplyForm::Structured, ReplyForm::Extended] {
        let mut client = Client::with_contexts(&running, form, &[]);
        assert_eq!(client.status(CommandFlags::NONE, (0, 4096)), Err(WireError::Invalid));
        assert_eq!(client.read(0, 1), Ok(vec![0]), "in step");
    }
    running.end();
}

#[test]
fn requests_with_extended_headers_do_what_the_short_ones_do() {
    let (_world, running) = World::create(128 * MIB);
    let mut client = Client::with_contexts(&running, ReplyForm::Extended, &[BASE]);
    let data = pattern(5, 100_000);
    client.write(12_345, &data).expect("a write");
    assert!(client.read(12_345, 100_000).expect("a read") == data);
    client.flush().expect("a flush");
    let flags = CommandFlags::FAST_ZERO;
    client.call(RequestKind::WriteZeroes, flags, (0, 200_000), &[]).expect("zeros");
    assert!(client.read(12_345, 100_000).expect("a read").iter().all(|byte| *byte == 0));
    assert_eq!(client.read(VOLUME_BYTES, 1), Err(WireError::Invalid));
    assert_eq!(client.call(RequestKind::Unknown(77), CommandFlags::NONE, (0, 0), &[]), Err(WireError::Invalid));
    let refused = client.call(RequestKind::Trim, CommandFlags::PAYLOAD_LEN, (0, 5), b"12345");
    assert_eq!(refused, Err(WireError::Invalid));
    // More than a compact request can say.
    let (form, kind) = (RequestForm::Extended, RequestKind::WriteZeroes);
    let large = Request { form, flags, kind, cookie: 7777, offset: 0, length: 1 << 40 };
    client.stream.write_all(&large.encode()).expect("the server reads");
    assert_eq!(client.receive(), (7777, Err(WireError::NoSpace)));
    running.end();
}

/// A client that asks for as many contexts and statuses as it may, without reading, is held back and hurts nobody.
#[test]
fn flood_of_block_status_without_reading_is_held_back() {
    let (_world, running) = World::create(128 * MIB);
    let mut flood = Client::with_contexts(&running, ReplyForm::Structured, &[BASE, DEPTH]);
    let (form, flags, kind) = (RequestForm::Compact, CommandFlags::NONE, RequestKind::BlockStatus);
    let one = Request { form, flags, kind, cookie: 1, offset: 0, length: VOLUME_BYTES }.encode();
    let many = one.repeat(10_000);
    flood.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a live socket");
    // It stops reading at some point, or has read all.
    let _sent = flood.stream.write(&many).expect("the server reads some");
    let mut other = running.connect();
    other.write(0, &[1; 4096]).expect("a write");
    assert_eq!(other.read(0, 4096), Ok(vec![1; 4096]));
    drop(flood);
    running.end();
}
