//! Whether a guest still lives: looked at now and then from outside, at no cost to its vCPUs while they run.
//!
//! A vCPU that has halted with its interrupts off is woken by nothing but an NMI or another vCPU. If all have, the guest
//! is dead for ever. A guest that only waits uses processor time at every tick of its timers, and how much tells idling
//! from work.

use std::time::{Duration, Instant};

use crate::exit::{Exit, Panic};
use crate::machine::Running;

/// How often to look.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// With less than this used of a processor, in thousandths, the vCPUs may all have halted for ever. Halted, they use none;
/// looking at them makes them use some.
const STILL: u32 = 5;
/// With less than this used, in thousandths, a guest is idle: a kernel's ticks, a thousand a second, take half as much.
const IDLE: u32 = 50;
/// A guest that is found alive though it uses no time is looked at again after twice as long, up to this.
const PATIENCE: Duration = Duration::from_secs(16);
/// How long a kernel that has panicked has printed nothing before it is taken to have printed all it will.
const QUIET: Duration = Duration::from_millis(1500);
/// How long it may print.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What became of the guest.
#[derive(Debug)]
pub enum Verdict {
    /// It lives, or may.
    Alive,
    /// It is dead, and the machine is to stop for this reason.
    Dead(Exit),
    /// It has neither run nor printed for as long as it may.
    Idle,
}

/// Looks after one machine.
#[derive(Debug)]
pub struct Watch {
    idle_timeout: Option<Duration>,
    looked: Instant,
    cpu_time: Duration,
    output: u64,
    /// When it last printed, and when it last printed or worked.
    printed: Instant,
    active: Instant,
    /// When a panic was first heard of.
    panicked: Option<Instant>,
    /// Looks that found vCPUs as a panic leaves them, in a row.
    stopped: u32,
    patience: Duration,
    examined: Instant,
}

impl Watch {
    /// For a machine that starts now, and that may be idle for `idle_timeout` at most.
    pub fn new(idle_timeout: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            idle_timeout,
            looked: now,
            cpu_time: Duration::ZERO,
            output: 0,
            printed: now,
            active: now,
            panicked: None,
            stopped: 0,
            patience: INTERVAL,
            examined: now,
        }
    }

    /// Looks at the guest, which has printed `output` bytes in all, and `panic_seen` a panic among them. To be called about
    /// every [`INTERVAL`]; calls that come sooner do nothing.
    pub fn check(&mut self, running: &Running, output: u64, panic_seen: bool) -> Verdict {
        let now = Instant::now();
        let elapsed = now - self.looked;
        if elapsed < INTERVAL / 2 {
            return Verdict::Alive;
        }
        let cpu_time = running.cpu_time();
        let used = cpu_time.saturating_sub(self.cpu_time);
        let printed = self.output != output;
        (self.looked, self.cpu_time, self.output) = (now, cpu_time, output);
        if printed {
            self.printed = now;
        }
        let is_less = |thousandths| used < elapsed * thousandths / 1000;
        if printed || !is_less(IDLE) {
            self.active = now;
        }
        if !is_less(STILL) {
            self.patience = INTERVAL;
        }
        if let Some(verdict) = self.after_panic(running, panic_seen, now) {
            return verdict;
        }
        if is_less(STILL) && now - self.examined >= self.patience && self.are_all_dead(running, now) {
            return Verdict::Dead(match self.panicked {
                Some(_) => Exit::Panicked,
                None => Exit::Crash("every vCPU has halted with interrupts off".to_owned()),
            });
        }
        match self.idle_timeout {
            Some(timeout) if now - self.active >= timeout => Verdict::Idle,
            _ => Verdict::Alive,
        }
    }

    /// A kernel that has panicked, and neither resets the machine nor runs another kernel, is to end once it has printed
    /// what it has to. Told by its driver it has panicked; told by its text it has if its vCPUs bear that out: a program
    /// can print such text too.
    fn after_panic(&mut self, running: &Running, panic_seen: bool, now: Instant) -> Option<Verdict> {
        let told = match running.exit().panic() {
            Panic::Told => true,
            Panic::None if panic_seen => false,
            _ => return None,
        };
        let since = *self.panicked.get_or_insert(now);
        let quiet = now - self.printed >= QUIET || now - since >= LAST_WORDS;
        if !quiet {
            return None;
        }
        if !told {
            self.stopped = if self.looks_panicked(running) { self.stopped + 1 } else { 0 };
        }
        (told || self.stopped >= 2).then_some(Verdict::Dead(Exit::Panicked))
    }

    /// Whether all vCPUs but one are dead, and that one is in the kernel and does not wait: it spins, until it is reset.
    fn looks_panicked(&mut self, running: &Running) -> bool {
        running.pause();
        let states = running.states();
        running.resume();
        self.cpu_time = running.cpu_time();
        let mut alive = states.iter().filter(|it| !it.as_ref().is_some_and(super::State::is_dead));
        match (alive.next(), alive.next()) {
            (None, _) => true,
            (Some(Some(one)), None) => !one.is_user() && one.activity == super::Activity::Runs,
            _ => false,
        }
    }

    fn are_all_dead(&mut self, running: &Running, now: Instant) -> bool {
        running.pause();
        let dead = running.states().iter().all(|it| it.as_ref().is_some_and(super::State::is_dead));
        running.resume();
        (self.examined, self.cpu_time) = (now, running.cpu_time());
        self.patience = PATIENCE.min(2 * self.patience);
        dead
    }
}
