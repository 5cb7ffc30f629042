//! What each block of a volume may hold: the writes that no later one has replaced which must still be there. That is one
//! that was acknowledged, or, where power is lost, one that was acknowledged before an acknowledged flush was sent.
//!
//! Time is counted in events. A write is noted before it is sent and acknowledged after its reply came, so that a
//! write noted later than another one's acknowledgement really came later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::stamp::Value;

/// What a history is to outlive.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Blow {
    /// The server's end.
    #[default]
    Kill,
    /// The machine's.
    PowerLoss,
}

/// The writes to a volume, all its connections together.
#[derive(Default)]
pub struct History {
    blow: Blow,
    now: u64,
    blocks: BTreeMap<u64, Vec<Write>>,
    /// Touched since the last comparison.
    unverified: BTreeSet<u64>,
    /// While a snapshot is being made: what each block may hold in it.
    snapshot: Option<SnapshotValues>,
}

/// What blocks of a snapshot may hold; a block that is not there has zeros.
pub type SnapshotValues = BTreeMap<u64, Vec<Value>>;

/// When a write was noted; names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(u64);

#[derive(Clone, Copy, Debug)]
struct Write {
    value: Value,
    submitted: Moment,
    acknowledged: Option<Moment>,
}

/// What no block had before.
const UNTOUCHED: Write = Write { value: Value::Zeros, submitted: Moment(0), acknowledged: Some(Moment(0)) };

impl History {
    /// Notes that a write is about to be sent.
    pub fn submit(&mut self, blocks: Range<u64>, value: Value) -> Moment {
        let submitted = self.tick();
        if let Some(snapshot) = &mut self.snapshot {
            for block in blocks.clone() {
                snapshot.entry(block).or_insert_with(|| vec![UNTOUCHED.value]).push(value);
            }
        }
        for block in blocks {
            let writes = self.blocks.entry(block).or_insert_with(|| vec![UNTOUCHED]);
            writes.push(Write { value, submitted, acknowledged: None });
            self.unverified.insert(block);
        }
        submitted
    }

    /// An empty history.
    pub fn that_outlives(blow: Blow) -> Self {
        Self { blow, ..Self::default() }
    }

    /// Notes that the write of `submitted` was acknowledged, by itself or (`is_flushed`, FUA) as its own flush: if it must stay,
    /// what was acknowledged before it was sent is gone.
    pub fn acknowledge(&mut self, blocks: Range<u64>, submitted: Moment, is_flushed: bool) {
        let now = self.tick();
        for block in blocks {
            let writes = self.blocks.get_mut(&block).expect("the write was noted");
            let write = writes.iter_mut().find(|write| write.submitted == submitted).expect("it was noted here");
            write.acknowledged = Some(now);
            if is_flushed || self.blow == Blow::Kill {
                replace_before(writes, submitted);
            }
        }
    }

    /// Notes that a snapshot is about to be asked for: it has what was acknowledged before, flushed or not.
    pub fn begin_snapshot(&mut self) {
        let values = self.blocks.iter().map(|(block, writes)| {
            let is_replaced = |write: &Write| {
                let later = writes.iter().filter(|other| other.acknowledged.is_some());
                later.map(|other| other.submitted).any(|moment| write.acknowledged.is_some_and(|end| end < moment))
            };
            (*block, writes.iter().filter(|write| !is_replaced(write)).map(|write| write.value).collect())
        });
        self.snapshot = Some(values.collect());
    }

    /// What blocks may hold in the snapshot that was begun last: that, and whatever was sent since.
    pub fn end_snapshot(&mut self) -> SnapshotValues {
        self.snapshot.take().expect("one was begun")
    }

    /// Notes that a flush is about to be sent.
    pub fn submit_flush(&mut self) -> Moment {
        self.tick()
    }

    /// Notes that the flush of `submitted` was acknowledged: what was acknowledged before it was sent must stay.
    pub fn acknowledge_flush(&mut self, submitted: Moment) {
        if self.blow == Blow::Kill {
            return;
        }
        for block in &self.unverified {
            let writes = self.blocks.get_mut(block).expect("it was touched");
            let covered = writes.iter().filter(|write| write.acknowledged.is_some_and(|moment| moment < submitted));
            if let Some(last) = covered.map(|write| write.submitted).max() {
                replace_before(writes, last);
            }
        }
    }

    /// Compares what was read of a block, while nothing is in flight, with what it may hold; from then on it must
    /// hold just that.
    ///
    /// # Errors
    /// What it should hold.
    pub fn settle(&mut self, block: u64, found: Option<Value>) -> Result<(), String> {
        let now = self.tick();
        let writes = self.blocks.entry(block).or_insert_with(|| vec![UNTOUCHED]);
        let Some(value) = found.filter(|found| writes.iter().any(|write| write.value == *found)) else {
            return Err(format!("block {block} holds {found:?}, which is none of {writes:#?}"));
        };
        *writes = vec![Write { value, submitted: now, acknowledged: Some(now) }];
        self.unverified.remove(&block);
        Ok(())
    }

    /// Runs of neighbouring blocks that were touched since they were last compared, none longer than `count_max`.
    pub fn unverified_runs(&self, count_max: u64) -> Vec<Range<u64>> {
        runs(self.unverified.iter().copied(), count_max)
    }

    /// Runs of neighbouring blocks that were ever touched, none longer than `count_max`.
    pub fn touched_runs(&self, count_max: u64) -> Vec<Range<u64>> {
        runs(self.blocks.keys().copied(), count_max)
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        Moment(self.now)
    }
}

/// Forgets what was acknowledged before the write of `submitted`, which must stay, was sent.
fn replace_before(writes: &mut Vec<Write>, submitted: Moment) {
    writes.retain(|write| {
        write.submitted == submitted || write.acknowledged.is_none_or(|acknowledged| acknowledged > submitted)
    });
}

fn runs(blocks: impl Iterator<Item = u64>, count_max: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.end == block && run.end - run.start < count_max => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Value = Value::Stamp { client: 1, sequence: 1 };
    const B: Value = Value::Stamp { client: 2, sequence: 1 };

    #[test]
    fn an_acknowledged_write_may_not_be_lost() {
        let mut history = History::default();
        let moment = history.submit(4..6, A);
        history.acknowledge(4..6, moment, false);

        history.settle(4, Some(Value::Zeros)).expect_err("the write is lost");
        history.settle(4, None).expect_err("it is torn");
        history.settle(4, Some(A)).expect("it is there");
    }

    #[test]
    fn a_write_in_flight_may_be_there_or_not_and_then_stays_so() {
        let mut history = History::default();
        history.submit(4..5, A);
        history.submit(5..6, A);

        history.settle(4, Some(Value::Zeros)).expect("it did not arrive");
        history.settle(4, Some(A)).expect_err("it was not there before");
        history.settle(5, Some(A)).expect("it arrived");
        history.settle(5, Some(Value::Zeros)).expect_err("it was there before");
    }

    #[test]
    fn of_concurrent_acknowledged_writes_either_may_be_the_last() {
        for found in [A, B] {
            let mut history = History::default();
            let (first, second) = (history.submit(0..1, A), history.submit(0..1, B));
            history.acknowledge(0..1, second, false);
            history.acknowledge(0..1, first, false);
            history.settle(0, Some(Value::Zeros)).expect_err("both replaced it");
            history.settle(0, Some(found)).expect("they were concurrent");
        }
    }

    #[test]
    fn a_later_acknowledged_write_replaces_an_earlier_one() {
        let mut history = History::default();
        let first = history.submit(0..1, A);
        history.acknowledge(0..1, first, false);
        let second = history.submit(0..1, B);
        history.acknowledge(0..1, second, false);

        history.settle(0, Some(A)).expect_err("it came before");
        history.settle(0, Some(B)).expect("it came last");
    }

    #[test]
    fn a_power_loss_takes_what_no_flush_covers() {
        for (is_flushed, may_be_lost) in [(false, true), (true, false)] {
            let mut history = History::that_outlives(Blow::PowerLoss);
            let moment = history.submit(0..1, A);
            history.acknowledge(0..1, moment, is_flushed);
            assert_eq!(history.settle(0, Some(Value::Zeros)).is_ok(), may_be_lost);
        }
        for (acknowledged_first, may_be_lost) in [(false, true), (true, false)] {
            let mut history = History::that_outlives(Blow::PowerLoss);
            let moment = history.submit(0..1, A);
            let flush = if acknowledged_first {
                history.acknowledge(0..1, moment, false);
                history.submit_flush()
            } else {
                let flush = history.submit_flush();
                history.acknowledge(0..1, moment, false);
                flush
            };
            let later = history.submit(0..1, B);
            history.acknowledge(0..1, later, false);
            history.acknowledge_flush(flush);
            assert_eq!(history.settle(0, Some(Value::Zeros)).is_ok(), may_be_lost);
            history.settle(0, Some(if may_be_lost { Value::Zeros } else { B })).expect("not covered: there or not");
        }
    }

    #[test]
    fn a_snapshot_has_what_was_acknowledged_before_and_perhaps_what_came_meanwhile() {
        const C: Value = Value::Stamp { client: 3, sequence: 1 };
        let mut history = History::that_outlives(Blow::PowerLoss);
        let first = history.submit(0..1, A);
        history.acknowledge(0..1, first, false);
        let second = history.submit(0..1, B);
        history.submit(1..2, B);
        history.begin_snapshot();
        history.acknowledge(0..1, second, true);
        history.submit(2..3, C);
        let values = history.end_snapshot();
        history.submit(0..3, A);
        assert_eq!(values, BTreeMap::from([(0, vec![A, B]), (1, vec![Value::Zeros, B]), (2, vec![Value::Zeros, C])]));
    }

    #[test]
    fn runs_are_neighbours_and_bounded() {
        let mut history = History::default();
        history.submit(3..8, A);
        history.submit(10..11, A);
        assert_eq!(history.unverified_runs(4), [3..7, 7..8, 10..11]);
        history.settle(3, Some(A)).expect("it is there");
        assert_eq!(history.unverified_runs(9), [4..8, 10..11]);
        assert_eq!(history.touched_runs(9), [3..8, 10..11]);
    }
}
