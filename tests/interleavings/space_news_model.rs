//! Writes that look for space, find none and wait for news of it, while others give blocks back.

use crate::lane::Alarm;
use crate::locks::Mutex;
use crate::pool::space_news::SpaceNews;
use shuttle::thread;
use std::sync::Arc;

const LANES: usize = 2;
/// Blocks that each lane wants, one after the other; as many are given back.
const WANTED: u64 = 2;

#[derive(Default)]
struct Machine {
    free: Mutex<u64>,
    news: SpaceNews,
    alarms: [Alarm; LANES],
}

impl Machine {
    fn take_block(&self) -> bool {
        let mut free = self.free.lock();
        let is_there = *free > 0;
        *free -= u64::from(is_there);
        is_there
    }

    fn give_back(&self) {
        *self.free.lock() += 1;
        if self.news.tell() {
            self.alarms.iter().for_each(Alarm::raise);
        }
    }

    /// Sleeps until there is other news than was `seen`.
    fn wait(&self, lane: usize, seen: u64) {
        self.news.begin_waiting();
        while self.news.number() == seen {
            self.alarms[lane].sleep();
            self.alarms[lane].lower();
        }
        self.news.end_waiting();
    }
}

fn lane_that_asks_early(machine: &Machine, lane: usize) {
    for _ in 0..WANTED {
        loop {
            let seen = machine.news.number();
            if machine.take_block() {
                break;
            }
            machine.wait(lane, seen);
        }
    }
}

fn lane_that_asks_late(machine: &Machine, lane: usize) {
    for _ in 0..WANTED {
        while !machine.take_block() {
            machine.wait(lane, machine.news.number());
        }
    }
}

/// Ends when each lane has its blocks; where one misses the news nobody goes on.
fn model(lane: fn(&Machine, usize)) {
    let machine = Arc::new(Machine::default());
    let lanes = (0..LANES).map(|number| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || lane(&machine, number))
    });
    let lanes: Vec<_> = lanes.collect();
    for _ in lanes.iter().flat_map(|_| 0..WANTED) {
        machine.give_back();
    }
    for lane in lanes {
        lane.join().expect("a lane panics only with the run");
    }
    assert!(!machine.news.has_waiting());
}

pub fn no_news_is_missed() {
    model(lane_that_asks_early);
}

pub fn news_are_asked_for_late() {
    model(lane_that_asks_late);
}
