//! How lanes are woken, from the library's source, with an event in the place of the kernel's.

#[path = "../../src/lane/raised.rs"]
pub mod raised;

use raised::Raised;
use shuttle::sync::{Condvar, Mutex};

const POISONED: &str = "nobody panics with it";

/// What the kernel's eventfd is to a lane's alarm.
#[derive(Default)]
struct Event(Mutex<u64>, Condvar);

/// An alarm of one lane.
#[derive(Default)]
pub struct Alarm {
    event: Event,
    raised: Raised,
}

impl Alarm {
    pub fn raise(&self) {
        if self.raised.raise() {
            *self.event.0.lock().expect(POISONED) += 1;
            self.event.1.notify_one();
        }
    }

    /// Sleeps until the event was written since this was called last. The alarm is still raised then.
    pub fn sleep(&self) {
        let mut count = self.event.0.lock().expect(POISONED);
        while *count == 0 {
            count = self.event.1.wait(count).expect(POISONED);
        }
        *count = 0;
    }

    pub fn lower(&self) {
        self.raised.lower();
    }
}
