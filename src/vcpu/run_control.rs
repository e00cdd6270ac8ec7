//! How others pause, ask and stop a vCPU, which only its own thread runs.
//!
//! They say what they want in a [`RunControl`] and signal the thread until it has answered: a signal that arrives just
//! before KVM_RUN is lost, so one is not enough. The thread answers questions about the vCPU's state while it is paused.

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use nix::time::ClockId;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use crate::host::lock::lock;

pub(super) const RUN: u8 = 0;
pub(super) const PAUSE: u8 = 1;
pub(super) const STOP: u8 = 2;
pub(super) const HOLD: u8 = 3;
/// How long an unanswered signal is waited for before the next.
const PATIENCE: Duration = Duration::from_micros(500);
/// How long a vCPU may take to answer: one that does not is in a device that waits for the host.
pub const LONGEST_STEP: Duration = Duration::from_secs(5);

/// What the machine wants of a vCPU, and whether the vCPU complies.
#[derive(Default)]
pub(super) struct RunControl {
    pub wanted: AtomicU8,
    state: Mutex<RunState>,
    changed: Condvar,
    /// The thread's id, once it has begun.
    pub thread: AtomicI32,
}

/// What a vCPU's thread does.
#[derive(Default)]
struct RunState {
    /// It does not run the guest, and answers.
    paused: bool,
    /// It does not run the guest again.
    ended: bool,
    question: Option<Question>,
}

/// What a paused vCPU's thread is asked.
type Question = Box<dyn FnOnce(&VcpuFd) + Send>;

impl RunControl {
    fn state(&self) -> MutexGuard<'_, RunState> {
        lock(&self.state)
    }

    /// Says what the vCPU is wanted to do.
    pub fn want(&self, wanted: u8) {
        // Under the lock, so that a paused vCPU cannot miss it between looking and waiting.
        let _state = self.state();
        self.wanted.store(wanted, Ordering::Release);
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, RunState>) -> MutexGuard<'a, RunState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::wait`], but not for long.
    fn wait_a_little<'a>(&self, state: MutexGuard<'a, RunState>) -> MutexGuard<'a, RunState> {
        self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Parks the vCPU's thread, which answers questions, until the vCPU is wanted to run on, which one that has `ended`
    /// does not, or to stop.
    pub fn park(&self, fd: &VcpuFd, ended: bool) {
        let mut state = self.state();
        (state.paused, state.ended) = (true, ended);
        self.changed.notify_all();
        loop {
            if let Some(question) = state.question.take() {
                question(fd);
            }
            match self.wanted.load(Ordering::Acquire) {
                RUN if !ended => break,
                STOP => break,
                _ => state = self.wait(state),
            }
        }
        state.paused = false;
        self.changed.notify_all();
    }

    /// Marks the vCPU as one that does not run, as its thread ends.
    pub fn finish(&self) {
        self.state().paused = true;
        self.changed.notify_all();
    }
}

/// A vCPU's thread. Dropping it stops the vCPU.
pub struct VcpuThread {
    control: Arc<RunControl>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    pub(super) fn new(control: Arc<RunControl>, thread: JoinHandle<()>) -> Self {
        Self { control, thread: Some(thread) }
    }

    /// Signals the thread until the vCPU is paused, or the time is over. Answers whether it is paused.
    fn is_paused_by(&self, until: Instant) -> bool {
        let Some(thread) = &self.thread else { return true };
        let mut state = self.control.state();
        while !state.paused && Instant::now() < until {
            // Fails only for a thread that is gone, which has set `paused`.
            let _ = thread.kill(SIGRTMIN());
            state = self.control.wait_a_little(state);
        }
        state.paused
    }

    /// Waits until the vCPU, which was asked to stop, has ended, or the time is over. Answers whether it has ended; if not,
    /// its thread keeps what it uses, and ends with the process.
    fn end(&mut self, until: Instant) -> bool {
        let ended = self.is_paused_by(until);
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            // The panic hook has reported a panic and ended the process.
            let _ = thread.join();
        }
        ended
    }

    /// Lets a vCPU that is held begin.
    pub fn release(&self) {
        self.control.want(RUN);
    }

    /// Lets a paused vCPU go on, and waits until it does.
    fn resume(&self) {
        self.control.want(RUN);
        let mut state = self.control.state();
        while state.paused && !state.ended {
            state = self.control.wait_a_little(state);
        }
    }

    /// Asks the vCPU, which is paused or has ended, something that only its own thread may look at; nothing if it runs.
    pub fn ask<T: Send + 'static>(&self, question: impl FnOnce(&VcpuFd) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        {
            let mut state = self.control.state();
            if !state.paused {
                return None;
            }
            // The asking thread waits for the answer.
            state.question = Some(Box::new(move |fd| _ = answer.send(question(fd))));
            self.control.changed.notify_all();
        }
        answered.recv().ok()
    }

    /// How much processor time the vCPU has used, guest and host; none where that cannot be read.
    pub fn cpu_time(&self) -> Duration {
        let thread = self.control.thread.load(Ordering::Acquire);
        // A thread's own clock (Linux `include/linux/posix-timers.h`, MAKE_THREAD_CPUCLOCK of CPUCLOCK_SCHED).
        let clock = ClockId::from_raw(!thread << 3 | 4 | 2);
        match thread {
            0 => Duration::ZERO,
            _ => clock.now().map_or(Duration::ZERO, Duration::from),
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.control.want(STOP);
        self.end(Instant::now() + LONGEST_STEP);
    }
}

/// vCPUs that are paused for as long as this lives.
#[must_use = "the vCPUs run on when it is dropped"]
pub struct PausedVcpus<'a> {
    vcpus: &'a [VcpuThread],
    complete: bool,
}

impl PausedVcpus<'_> {
    /// Whether all are paused, their pending accesses completed; else one did not answer in time.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Leaves the vCPUs paused, to be stopped.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for PausedVcpus<'_> {
    fn drop(&mut self) {
        self.vcpus.iter().for_each(VcpuThread::resume);
    }
}

/// Pauses every vCPU.
pub fn pause(vcpus: &[VcpuThread]) -> PausedVcpus<'_> {
    let until = Instant::now() + LONGEST_STEP;
    vcpus.iter().for_each(|vcpu| vcpu.control.want(PAUSE));
    let complete = vcpus.iter().all(|vcpu| vcpu.is_paused_by(until));
    PausedVcpus { vcpus, complete }
}

/// Stops every vCPU. Answers whether all threads have ended, or one did not answer in time.
pub fn stop(mut vcpus: Vec<VcpuThread>) -> bool {
    let until = Instant::now() + LONGEST_STEP;
    vcpus.iter().for_each(|vcpu| vcpu.control.want(STOP));
    let mut ended = true;
    vcpus.iter_mut().for_each(|vcpu| ended &= vcpu.end(until));
    ended
}
