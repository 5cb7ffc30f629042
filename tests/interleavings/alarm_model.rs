//! Threads that put messages into a lane's mailbox and raise its alarm, as `Mailbox::send` does.

use crate::lane::Alarm;
use crate::locks::Mutex;
use shuttle::thread;
use std::sync::Arc;

const SENDERS: u64 = 3;
const MESSAGES: u64 = 2;

#[derive(Default)]
struct Mailbox {
    alarm: Alarm,
    messages: Mutex<Vec<u64>>,
}

impl Mailbox {
    fn take(&self) -> usize {
        std::mem::take(&mut *self.messages.lock()).len()
    }
}

/// Ends when the lane has all messages; where a wake-up is lost nobody goes on.
fn model(lane: fn(&Mailbox) -> usize) {
    let mailbox = Arc::new(Mailbox::default());
    let senders = (0..SENDERS).map(|sender| {
        let mailbox = Arc::clone(&mailbox);
        thread::spawn(move || {
            for message in 0..MESSAGES {
                mailbox.messages.lock().push(sender * MESSAGES + message);
                mailbox.alarm.raise();
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let mut left = usize::try_from(SENDERS * MESSAGES).expect("few");
    while left > 0 {
        mailbox.alarm.sleep();
        left -= lane(&mailbox);
    }
    for sender in senders {
        sender.join().expect("a sender panics only with the run");
    }
}

pub fn every_message_is_seen() {
    model(|mailbox| {
        mailbox.alarm.lower();
        mailbox.take()
    });
}

pub fn alarms_are_lowered_late() {
    model(|mailbox| {
        let taken = mailbox.take();
        mailbox.alarm.lower();
        taken
    });
}
