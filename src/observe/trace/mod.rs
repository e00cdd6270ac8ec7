//! When a boot came to what: kite's own phases, and the guest's as seen from outside, with the exits until then. Nothing
//! in the guest is changed for it.

mod events;
mod milestones;
mod samples;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::stats::{Counts, Stats};

pub use milestones::{Milestones, OWN_INIT};
pub use samples::Samples;

/// No more phases of kite's are kept: a guest that reboots for ever makes more and more.
const PHASES: usize = 128;

/// What a guest comes to, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Its first byte on a console.
    FirstOutput,
    /// The kernel's first line.
    Kernel,
    /// The kernel has started the first process.
    Init,
    /// The command is about to be started.
    CommandStart,
    /// The command's first byte on one of its outputs.
    CommandOutput,
    /// The command has ended.
    CommandEnd,
    /// The machine stops.
    Exit,
}

impl Mark {
    const ALL: [Self; 7] = [
        Self::FirstOutput,
        Self::Kernel,
        Self::Init,
        Self::CommandStart,
        Self::CommandOutput,
        Self::CommandEnd,
        Self::Exit,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::FirstOutput => "first output",
            Self::Kernel => "start_kernel",
            Self::Init => "init",
            Self::CommandStart => "command start",
            Self::CommandOutput => "command's first output",
            Self::CommandEnd => "command end",
            Self::Exit => "exit",
        }
    }
}

/// Something of kite's that took time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Phase {
    name: &'static str,
    thread: String,
    start: Instant,
    end: Instant,
}

/// When the guest came to a mark, and how its exits stood.
#[derive(Clone, Debug)]
struct Moment {
    at: Instant,
    counts: Counts,
}

/// Where it is noted. Any thread may, at next to no cost: the marks of a guest only once it is watched.
pub struct Timeline {
    begun: Instant,
    phases: Mutex<Vec<Phase>>,
    stats: OnceLock<Arc<Stats>>,
    moments: [OnceLock<Moment>; Mark::ALL.len()],
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Timeline {
    /// Of a process that began then.
    pub fn new(begun: Instant) -> Self {
        Self { begun, phases: Mutex::default(), stats: OnceLock::new(), moments: Default::default() }
    }

    /// Does a part of kite's work, and notes how long that took.
    pub fn phase<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.note(name, start);
        result
    }

    /// Notes that a part of kite's work began then and is done.
    pub fn note(&self, name: &'static str, start: Instant) {
        let thread = std::thread::current().name().unwrap_or("main").to_owned();
        let mut phases = self.phases();
        if phases.len() < PHASES {
            phases.push(Phase { name, thread, start, end: Instant::now() });
        }
    }

    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's marks are to be noted from now on, with its exits. Only of the first machine.
    pub fn watch(&self, stats: Arc<Stats>) {
        let _ = self.stats.set(stats);
    }

    /// Whether marks are noted.
    pub fn is_watched(&self) -> bool {
        self.stats.get().is_some()
    }

    /// The guest has come to this; only the first time counts.
    pub fn mark(&self, mark: Mark) {
        let moment = &self.moments[mark as usize];
        if let Some(stats) = self.stats.get().filter(|_| moment.get().is_none()) {
            let _ = moment.set(Moment { at: Instant::now(), counts: stats.counts() });
        }
    }

    fn moment(&self, mark: Mark) -> Option<&Moment> {
        self.moments[mark as usize].get()
    }

    /// How long after the start.
    fn since(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The timeline of a guest with one vCPU, which has been entered.
    pub(super) fn watched() -> Timeline {
        let timeline = Timeline::default();
        let stats = Stats::without_kvm(1, Arc::default(), Arc::default());
        stats.counters(0).unwrap().enter();
        timeline.watch(Arc::new(stats));
        timeline
    }

    #[test]
    fn phases_are_noted_with_their_threads_and_no_more_than_there_is_room_for() {
        let timeline = Timeline::default();
        assert_eq!(timeline.phase("one", || 7), 7);
        for _ in 0..2 * PHASES {
            timeline.phase("more", || ());
        }
        let phases = timeline.phases();
        assert_eq!((phases.len(), phases[0].name), (PHASES, "one"));
        assert_eq!(phases[0].thread, std::thread::current().name().unwrap());
        assert!(phases[0].start <= phases[0].end && phases[0].end <= phases[1].start);
    }

    #[test]
    fn marks_of_a_guest_that_nobody_watches_are_not_noted() {
        let timeline = Timeline::default();
        timeline.mark(Mark::Init);
        assert!(timeline.moment(Mark::Init).is_none() && !timeline.is_watched());
    }
}
