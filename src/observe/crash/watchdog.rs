//! Whether a guest still lives: looked at now and then from outside, at no cost to its vCPUs while they run.
//!
//! A vCPU that has halted with its interrupts off is woken by nothing but an NMI or another vCPU. If all have, the guest
//! is dead for ever. A guest that only waits uses processor time at every tick of its timers, and how much tells idling
//! from work.

use std::time::{Duration, Instant};

use super::panic::{self, Stand};
use crate::vcpu::registers::VcpuRegisters;
use crate::vcpu::stop::{Exit, Panic};
use crate::vm::machine::Running;

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
/// How often its vCPUs are to be found as a panic leaves them, in a row, if there are no symbols to tell more.
const ALIKE: u32 = 5;
/// How often they are to be found otherwise until nothing will come of it, unless the guest prints again.
const OTHERWISE: u32 = 3;
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

/// A guest that is looked after.
trait Guest {
    /// How much processor time its vCPUs have used.
    fn cpu_time(&self) -> Duration;
    /// What its vCPUs are at.
    fn examine(&self) -> Vec<Option<VcpuRegisters>>;
    /// What its kernel has reported of a panic.
    fn panic(&self) -> Panic;
    /// Whether its vCPUs stand as a panic leaves them.
    fn stand(&self) -> Stand;
}

impl Guest for Running {
    fn cpu_time(&self) -> Duration {
        self.cpu_time()
    }

    fn examine(&self) -> Vec<Option<VcpuRegisters>> {
        let _paused = self.pause_vcpus();
        self.states()
    }

    fn panic(&self) -> Panic {
        self.exit().panic()
    }

    fn stand(&self) -> Stand {
        let _paused = self.pause_vcpus();
        panic::stand(self.ram().memory(), &self.states())
    }
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
    alike: u32,
    /// Looks that found them otherwise since the guest last printed.
    otherwise: u32,
    patience: Duration,
    examined: Instant,
}

impl Watch {
    /// For a machine that starts now, and that may be idle for `idle_timeout` at most.
    pub fn new(idle_timeout: Option<Duration>) -> Self {
        Self::starting(Instant::now(), idle_timeout)
    }

    fn starting(now: Instant, idle_timeout: Option<Duration>) -> Self {
        Self {
            idle_timeout,
            looked: now,
            cpu_time: Duration::ZERO,
            output: 0,
            printed: now,
            active: now,
            panicked: None,
            alike: 0,
            otherwise: 0,
            patience: INTERVAL,
            examined: now,
        }
    }

    /// Looks at the guest, which has printed `output` bytes in all, and `panic_seen` a panic among them. To be called about
    /// every [`INTERVAL`]; calls that come sooner do nothing.
    pub fn check(&mut self, running: &Running, output: u64, panic_seen: bool) -> Verdict {
        self.check_at(Instant::now(), running, output, panic_seen)
    }

    fn check_at(&mut self, now: Instant, guest: &dyn Guest, output: u64, panic_seen: bool) -> Verdict {
        let elapsed = now - self.looked;
        if elapsed < INTERVAL / 2 {
            return Verdict::Alive;
        }
        let cpu_time = guest.cpu_time();
        let used = cpu_time.saturating_sub(self.cpu_time);
        let printed = self.output != output;
        (self.looked, self.cpu_time, self.output) = (now, cpu_time, output);
        if printed {
            (self.printed, self.otherwise) = (now, 0);
        }
        let is_less = |thousandths| used < elapsed * thousandths / 1000;
        if printed || !is_less(IDLE) {
            self.active = now;
        }
        if !is_less(STILL) {
            self.patience = INTERVAL;
        }
        if let Some(verdict) = self.after_panic(guest, panic_seen, now) {
            return verdict;
        }
        if is_less(STILL) && now - self.examined >= self.patience && self.are_all_dead(guest, now) {
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
    fn after_panic(&mut self, guest: &dyn Guest, panic_seen: bool, now: Instant) -> Option<Verdict> {
        let told = match guest.panic() {
            Panic::Told => true,
            Panic::None if panic_seen => false,
            _ => {
                self.panicked = None;
                return None;
            }
        };
        let since = *self.panicked.get_or_insert(now);
        let quiet = now - self.printed >= QUIET || now - since >= LAST_WORDS;
        if !quiet {
            return None;
        }
        if told {
            return Some(Verdict::Dead(Exit::Panicked));
        }
        if self.otherwise == OTHERWISE {
            return None;
        }
        let stand = guest.stand();
        self.cpu_time = guest.cpu_time();
        match stand {
            Stand::Otherwise => (self.alike, self.otherwise) = (0, self.otherwise + 1),
            Stand::Alike => self.alike += 1,
            Stand::Panicked => self.alike = ALIKE,
        }
        (self.alike >= ALIKE).then_some(Verdict::Dead(Exit::Panicked))
    }

    fn are_all_dead(&mut self, guest: &dyn Guest, now: Instant) -> bool {
        let dead = guest.examine().iter().all(|it| it.as_ref().is_some_and(VcpuRegisters::is_dead));
        (self.examined, self.cpu_time) = (now, guest.cpu_time());
        self.patience = PATIENCE.min(2 * self.patience);
        dead
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::vcpu::registers::Activity;

    /// A guest that uses so many thousandths of a processor, with vCPUs in these states.
    struct Made {
        load: Cell<u32>,
        time: Cell<Duration>,
        states: Vec<VcpuRegisters>,
        panic: Panic,
        stand: Stand,
        examined: Cell<u32>,
    }

    impl Guest for Made {
        fn cpu_time(&self) -> Duration {
            self.time.get()
        }

        fn examine(&self) -> Vec<Option<VcpuRegisters>> {
            self.examined.set(self.examined.get() + 1);
            self.states.iter().cloned().map(Some).collect()
        }

        fn panic(&self) -> Panic {
            self.panic
        }

        fn stand(&self) -> Stand {
            self.examined.set(self.examined.get() + 1);
            self.stand
        }
    }

    fn state(activity: Activity, rflags: u64) -> VcpuRegisters {
        let regs = kvm_bindings::kvm_regs { rflags, ..Default::default() };
        VcpuRegisters { regs, sregs: Default::default(), activity, can_be_woken: false }
    }

    fn dead() -> VcpuRegisters {
        state(Activity::Halted, 2)
    }

    fn waiting() -> VcpuRegisters {
        state(Activity::Halted, 0x202)
    }

    fn made(load: u32, states: Vec<VcpuRegisters>) -> Made {
        Made {
            load: load.into(),
            time: Cell::default(),
            states,
            panic: Panic::None,
            stand: Stand::Otherwise,
            examined: Cell::default(),
        }
    }

    /// Looks every second, for `seconds` or until there is a verdict, at a guest that prints as `output` says; returns
    /// the verdict, and after how many seconds.
    fn watch(
        guest: &Made,
        timeout: Option<Duration>,
        seconds: u64,
        output: impl Fn(u64) -> (u64, bool),
    ) -> (Verdict, u64) {
        let start = Instant::now();
        let mut watch = Watch::starting(start, timeout);
        for second in 1..=seconds {
            guest.time.set(guest.time.get() + Duration::from_millis(guest.load.get().into()));
            let (printed, panic) = output(second);
            match watch.check_at(start + Duration::from_secs(second), guest, printed, panic) {
                Verdict::Alive => {}
                verdict => return (verdict, second),
            }
        }
        (Verdict::Alive, seconds)
    }

    fn silent(_: u64) -> (u64, bool) {
        (0, false)
    }

    #[test]
    fn a_guest_whose_vcpus_have_all_halted_with_interrupts_off_is_dead() {
        let guest = made(0, vec![dead(), state(Activity::NotStarted, 2)]);
        let (verdict, after) = watch(&guest, None, 100, silent);
        assert!(matches!(verdict, Verdict::Dead(Exit::Crash(_))), "{verdict:?}");
        assert_eq!(after, 1);
    }

    #[test]
    fn one_vcpu_that_can_go_on_keeps_a_guest_alive() {
        let woken = VcpuRegisters { can_be_woken: true, ..dead() };
        for other in [waiting(), state(Activity::Runs, 2), woken] {
            let guest = made(0, vec![dead(), other, dead()]);
            assert!(matches!(watch(&guest, None, 600, silent).0, Verdict::Alive));
            assert!(guest.examined.get() < 60, "looked at {} times in ten minutes", guest.examined.get());
        }
    }

    #[test]
    fn a_guest_that_runs_is_not_disturbed() {
        let guest = made(20, vec![dead()]);
        assert!(matches!(watch(&guest, None, 600, silent).0, Verdict::Alive));
        assert_eq!(guest.examined.get(), 0);
    }

    #[test]
    fn a_guest_is_idle_once_it_has_neither_run_nor_printed_for_so_long() {
        let timeout = Some(Duration::from_secs(30));
        let (verdict, after) = watch(&made(20, vec![waiting()]), timeout, 100, silent);
        assert!(matches!(verdict, Verdict::Idle) && after == 30, "{verdict:?} {after}");
        let (verdict, after) =
            watch(&made(20, vec![waiting()]), timeout, 100, |second| (second.min(50), false));
        assert!(matches!(verdict, Verdict::Idle) && after == 80, "{verdict:?} {after}");
        assert!(matches!(watch(&made(60, vec![waiting()]), timeout, 100, silent).0, Verdict::Alive));
        assert!(matches!(watch(&made(20, vec![waiting()]), None, 100, silent).0, Verdict::Alive));
    }

    #[test]
    fn a_panic_that_was_told_ends_the_guest_once_it_is_silent() {
        let mut guest = made(1000, vec![state(Activity::Runs, 0x202)]);
        guest.panic = Panic::Told;
        let (verdict, after) = watch(&guest, None, 100, |second| (second.min(5), false));
        assert!(matches!(verdict, Verdict::Dead(Exit::Panicked)) && after == 7, "{verdict:?} {after}");
        let (verdict, after) = watch(&guest, None, 100, |second| (second, false));
        assert!(matches!(verdict, Verdict::Dead(Exit::Panicked)) && after == 31, "{verdict:?} {after}");
        guest.panic = Panic::CrashKernel;
        assert!(matches!(watch(&guest, None, 100, |_| (7, true)).0, Verdict::Alive));
    }

    #[test]
    fn a_panic_that_was_printed_counts_if_the_vcpus_bear_it_out() {
        let printed = |_| (7, true);
        let mut guest = made(1000, vec![state(Activity::Runs, 0x202)]);
        for (stand, expected) in [(Stand::Panicked, 3), (Stand::Alike, 7)] {
            guest.stand = stand;
            let (verdict, after) = watch(&guest, None, 100, printed);
            assert!(
                matches!(verdict, Verdict::Dead(Exit::Panicked)) && after == expected,
                "{verdict:?} {after}"
            );
        }
        guest.stand = Stand::Otherwise;
        guest.examined.set(0);
        assert!(matches!(watch(&guest, None, 100, printed).0, Verdict::Alive));
        assert_eq!(guest.examined.get(), OTHERWISE, "it has printed nothing since");
        let (verdict, _) = watch(&made(0, vec![dead(), dead()]), None, 100, printed);
        assert!(matches!(verdict, Verdict::Dead(Exit::Panicked)), "{verdict:?}");
    }
}
