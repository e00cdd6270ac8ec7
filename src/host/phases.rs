//! The phases of kite's own work: what took how long, on which thread.

use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crate::host::lock::lock;

/// The most phases that are recorded: a guest that reboots for ever makes more and more.
pub const PHASES: usize = 128;

/// A part of kite's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What is done.
    pub name: &'static str,
    /// The name of the thread that does it.
    pub thread: String,
    /// When it begins.
    pub start: Instant,
    /// When it ends.
    pub end: Instant,
}

/// A record of phases that any thread adds to.
#[derive(Debug, Default)]
pub struct Phases(Mutex<Vec<Phase>>);

impl Phases {
    /// Does `work`, and records how long that takes.
    pub fn phase<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.note(name, start);
        result
    }

    /// Records a phase that begins at `start` and ends now.
    pub fn note(&self, name: &'static str, start: Instant) {
        let thread = thread::current().name().unwrap_or("main").to_owned();
        let mut phases = lock(&self.0);
        if phases.len() < PHASES {
            phases.push(Phase { name, thread, start, end: Instant::now() });
        }
    }

    /// All that are recorded, in the order of their ends.
    pub fn list(&self) -> Vec<Phase> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_their_threads_and_a_bound() {
        let phases = Phases::default();
        assert_eq!(phases.phase("one", || 7), 7);
        for _ in 0..2 * PHASES {
            phases.phase("more", || ());
        }
        let list = phases.list();
        assert_eq!((list.len(), list[0].name), (PHASES, "one"));
        assert_eq!(list[0].thread, thread::current().name().unwrap());
        assert!(list[0].start <= list[0].end && list[0].end <= list[1].start);
    }
}
