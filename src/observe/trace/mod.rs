//! When a boot came to what: kite's own phases, and the guest's as seen from outside, with the exits until then. Nothing
//! in the guest is changed for it.

mod events;
mod milestones;
mod samples;

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::host::phases::Phases;
use crate::observe::stats::{Counts, Stats};

pub use milestones::Milestones;
pub use samples::Samples;

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

/// When the guest came to a mark, and how its exits stood.
#[derive(Clone, Debug)]
struct Moment {
    at: Instant,
    counts: Counts,
}

/// Where it is noted. Any thread may, at next to no cost: the marks of a guest only once it is watched.
pub struct Timeline {
    begun: Instant,
    phases: Phases,
    stats: OnceLock<Arc<Stats>>,
    moments: [OnceLock<Moment>; Mark::ALL.len()],
}

impl Deref for Timeline {
    type Target = Phases;

    fn deref(&self) -> &Phases {
        &self.phases
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Timeline {
    /// Of a process that began then.
    pub fn new(begun: Instant) -> Self {
        Self { begun, phases: Phases::default(), stats: OnceLock::new(), moments: Default::default() }
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
    fn marks_of_a_guest_that_nobody_watches_are_not_noted() {
        let timeline = Timeline::default();
        timeline.mark(Mark::Init);
        assert!(timeline.moment(Mark::Init).is_none() && !timeline.is_watched());
    }
}
