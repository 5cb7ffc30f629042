//! The locks of `parking_lot`, as far as the engine uses them, made of the scheduler's.

pub use shuttle::sync::RwLockReadGuard;
use shuttle::sync::{MutexGuard, RwLockWriteGuard};

const POISONED: &str = "a thread that panics ends the run";

/// Only one has it.
#[derive(Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Nobody has it.
    pub fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    /// Waits until nobody has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect(POISONED)
    }
}

/// Several read, or one writes.
#[derive(Default)]
pub struct RwLock<T>(shuttle::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// Waits until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().expect(POISONED)
    }

    /// Waits until nobody has it.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().expect(POISONED)
    }
}
