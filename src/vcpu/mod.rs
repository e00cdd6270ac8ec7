//! A vCPU and its thread: the run loop, what happens on an exit, and how the vCPU is stopped and paused.
//!
//! Only its own thread runs a vCPU. Others ask through a [`Gate`] and signal the thread until it has answered: a
//! signal that arrives just before KVM_RUN is lost, so one is not enough. What a vCPU's state is, its thread is asked too,
//! while it is still.

pub mod coalesced;
pub mod counters;
pub mod exit;
pub mod registers;
pub mod stop;

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use devices::bus::{Bus, Hint};
use kvm_ioctls::VcpuFd;
use nix::time::ClockId;
use nix::unistd::gettid;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::sandbox;
use crate::vcpu::coalesced::Coalesced;
use crate::vcpu::counters::{Cause, Counters, Timed};
use crate::vcpu::exit::{Ending, Space, VcpuExit};
use crate::vcpu::stop::{Exit, ExitRequest};

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;
const HOLD: u8 = 3;
/// How long an unanswered signal is waited for before the next.
const PATIENCE: Duration = Duration::from_micros(500);
/// How long a vCPU may take to answer: one that does not is in a device that waits for the host.
pub const LONGEST_STEP: Duration = Duration::from_secs(5);

/// What the machine wants of a vCPU, and whether the vCPU has complied.
#[derive(Default)]
struct Gate {
    wanted: AtomicU8,
    posture: Mutex<Posture>,
    changed: Condvar,
    /// The thread's id, once it has begun.
    thread: AtomicI32,
}

/// What a vCPU's thread is at.
#[derive(Default)]
struct Posture {
    /// It does not run the guest, and answers.
    still: bool,
    /// It will not run the guest again.
    ended: bool,
    question: Option<Question>,
}

/// What a vCPU that is still is to be asked.
type Question = Box<dyn FnOnce(&VcpuFd) + Send>;

impl Gate {
    fn posture(&self) -> MutexGuard<'_, Posture> {
        self.posture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the vCPU what to do.
    fn want(&self, wanted: u8) {
        // Under the lock, so that a paused vCPU cannot miss it between looking and waiting.
        let _posture = self.posture();
        self.wanted.store(wanted, Ordering::Release);
        self.changed.notify_all();
    }

    fn wait<'a>(&self, posture: MutexGuard<'a, Posture>) -> MutexGuard<'a, Posture> {
        self.changed.wait(posture).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::wait`], but not for long.
    fn wait_a_little<'a>(&self, posture: MutexGuard<'a, Posture>) -> MutexGuard<'a, Posture> {
        self.changed.wait_timeout(posture, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A vCPU: what its thread owns.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    shared: Shared,
    gate: Arc<Gate>,
    /// Where the last accesses went, to ports and to memory.
    hints: [Hint; 2],
    /// What counts the exits, if anybody wants to know.
    counters: Option<Arc<Counters>>,
}

/// What the vCPUs of a machine share.
#[derive(Clone)]
pub struct Shared {
    /// What answers at I/O ports.
    pub ports: Arc<Bus>,
    /// What answers at memory addresses that are not RAM.
    pub mmio: Arc<Bus>,
    /// Writes that made no exit of their own.
    pub coalesced: Arc<Coalesced>,
    /// How to stop the machine.
    pub exit: Arc<ExitRequest>,
}

impl Vcpu {
    /// The vCPU `index`, whose registers are set.
    pub fn new(index: u32, fd: VcpuFd, shared: Shared) -> Self {
        Self::under(&Switch::default(), index, fd, shared)
    }

    /// The same, which `switch` stops while it runs on its owner's thread.
    pub fn under(switch: &Switch, index: u32, fd: VcpuFd, shared: Shared) -> Self {
        Self { index, fd, shared, gate: switch.0.clone(), hints: Default::default(), counters: None }
    }

    /// Has its exits counted and timed by `counters`.
    pub fn counted_by(self, counters: Option<Arc<Counters>>) -> Self {
        Self { counters, ..self }
    }

    /// The vCPU's descriptor. What the last exit was about is completed at the next KVM_RUN.
    pub fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Starts the vCPU on a thread of its own, where it is held until it is [released](VcpuThread::release).
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(mut self) -> anyhow::Result<VcpuThread> {
        handle_signal()?;
        let gate = self.gate.clone();
        gate.wanted.store(HOLD, Ordering::Release);
        let name = format!("vcpu{}", self.index);
        let entry = sandbox::Entry::new();
        let run = move || {
            entry.confine(sandbox::Thread::Vcpu);
            self.gate.thread.store(gettid().as_raw(), Ordering::Release);
            if let Some(counters) = &self.counters {
                counters.enter();
            }
            self.run();
            self.gate.posture().still = true;
            self.gate.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(run);
        Ok(VcpuThread { gate, thread: Some(thread.context("cannot start a vCPU's thread")?) })
    }

    /// Runs the guest on this thread until it or somebody else stops it.
    pub fn run(&mut self) {
        loop {
            let step = match self.gate.wanted.load(Ordering::Acquire) {
                RUN => self.step(),
                PAUSE => self.wait(),
                HOLD => {
                    self.rest(false);
                    Step::Interrupted
                }
                _ => return,
            };
            if step == Step::Ended {
                // The state that it ended in may be asked for.
                return self.rest(true);
            }
        }
    }

    /// Runs the guest until its next exit, and carries that out.
    #[inline(always)]
    fn step(&mut self) -> Step {
        let reason = exit::enter(&mut self.fd);
        let Shared { ports, mmio, coalesced, .. } = &self.shared;
        coalesced.carry_out(ports, mmio);
        if self.counters.is_some() { self.answer_timed(reason) } else { self.answer(reason) }
    }

    /// Does what the guest has left for.
    #[inline(always)]
    fn answer(&mut self, reason: exit::Reason) -> Step {
        let Shared { ports, mmio, .. } = &self.shared;
        let [port, memory] = &mut self.hints;
        match exit::left(&mut self.fd, reason) {
            VcpuExit::Access { space, address, write, data } => {
                match (space, write) {
                    (Space::Port, true) => ports.write_near(port, address, data),
                    (Space::Port, false) => ports.read_near(port, address, data),
                    (Space::Memory, true) => mmio.write_near(memory, address, data),
                    (Space::Memory, false) => mmio.read_near(memory, address, data),
                }
                Step::Exited
            }
            VcpuExit::Interrupted => Step::Interrupted,
            VcpuExit::Ended(ending) => self.ended(ending),
        }
    }

    /// The same, counted and timed. A function of its own, so that it costs one look where nobody wants it.
    #[inline(never)]
    fn answer_timed(&mut self, reason: exit::Reason) -> Step {
        let timed = Timed::begin(Cause::of(&exit::left(&mut self.fd, reason)));
        let step = self.answer(reason);
        if let Some(counters) = &self.counters {
            counters.end(timed);
        }
        step
    }

    #[cold]
    #[inline(never)]
    fn ended(&self, ending: Ending) -> Step {
        self.shared.exit.request(reason(self.index, ending, &self.fd));
        Step::Ended
    }

    /// Stays still until told otherwise.
    #[inline(never)]
    fn wait(&mut self) -> Step {
        if self.settle() == Step::Ended {
            return Step::Ended;
        }
        self.rest(false);
        Step::Interrupted
    }

    /// Stays still and answers until it is to run on, which one that has `ended` does not, or to stop.
    fn rest(&self, ended: bool) {
        let mut posture = self.gate.posture();
        (posture.still, posture.ended) = (true, ended);
        self.gate.changed.notify_all();
        loop {
            if let Some(question) = posture.question.take() {
                question(&self.fd);
            }
            match self.gate.wanted.load(Ordering::Acquire) {
                RUN if !ended => break,
                STOP => break,
                _ => posture = self.gate.wait(posture),
            }
        }
        posture.still = false;
        self.gate.changed.notify_all();
    }

    /// Completes the access that the last exit was about, without running the guest on: KVM does so at the next entry,
    /// and until then the registers are those of before the instruction (KVM API, "KVM_RUN"). What is left of that
    /// instruction, an access's part in the next page or a string's next element, comes as exits of its own.
    fn settle(&mut self) -> Step {
        self.fd.set_kvm_immediate_exit(1);
        let step = loop {
            let step = self.step();
            if step != Step::Exited {
                break step;
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        step
    }
}

/// Stops a vCPU that runs on its owner's thread before its next entry, and lets it run again. A device may hold it: what
/// the guest does to that device is then the last thing it does.
#[derive(Clone, Default)]
pub struct Switch(Arc<Gate>);

impl Switch {
    /// [`Vcpu::run`] returns before it enters the guest again.
    pub fn stop(&self) {
        self.0.want(STOP);
    }

    /// [`Vcpu::run`] may enter the guest again.
    pub fn go(&self) {
        self.0.want(RUN);
    }
}

/// Makes the signal that a vCPU's thread is sent interrupt KVM_RUN, and do nothing else.
///
/// # Errors
/// The host refuses a handler.
pub fn handle_signal() -> anyhow::Result<()> {
    register_signal_handler(SIGRTMIN(), interrupted).context("cannot handle the vCPUs' signal")
}

/// How a run of the guest came back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// By an access, which has been carried out.
    Exited,
    /// Without one.
    Interrupted,
    /// For good; the reason has been told.
    Ended,
}

/// The stack of a vCPU's thread in bytes; the host gives what is touched of it.
const STACK: usize = 256 << 10;

/// The signal's only work is to make KVM_RUN return.
extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Why this exit ends the machine.
fn reason(index: u32, ending: Ending, vcpu: &VcpuFd) -> Exit {
    Exit::Crash(match ending {
        Ending::Shutdown => return Exit::TripleFault { vcpu: index },
        Ending::InternalError(suberror) => {
            let what = match suberror {
                1 => "an instruction that KVM cannot emulate".to_owned(),
                2 => "exceptions while delivering exceptions".to_owned(),
                3 => "an exit while an event was delivered".to_owned(),
                other => format!("KVM internal error {other}"),
            };
            let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
            format!("{what}, on vCPU {index} at rip {rip:#x}")
        }
        Ending::FailEntry(reason, cpu) => {
            format!("the processor refused to enter vCPU {index}: hardware reason {reason:#x} on CPU {cpu}")
        }
        Ending::MemoryFault(gpa) => format!("vCPU {index} touched memory the host cannot give, at {gpa:#x}"),
        Ending::Failed(errno) => {
            let error = anyhow!(io::Error::from_raw_os_error(errno));
            return Exit::Failed(error.context(format!("cannot run vCPU {index}")));
        }
        Ending::Other(reason) => format!("vCPU {index} left the guest in an unknown way: KVM exit {reason}"),
    })
}

/// A vCPU's thread. Dropping it stops the vCPU.
pub struct VcpuThread {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Signals the thread until the vCPU is still, or the time is over. Answers whether it is still.
    fn settled(&self, until: Instant) -> bool {
        let Some(thread) = &self.thread else { return true };
        let mut posture = self.gate.posture();
        while !posture.still && Instant::now() < until {
            // Fails only for a thread that is gone, which has set `still`.
            let _ = thread.kill(SIGRTMIN());
            posture = self.gate.wait_a_little(posture);
        }
        posture.still
    }

    /// Waits until the vCPU, which was asked to stop, has ended, or the time is over. Answers whether it has ended; if not,
    /// its thread keeps what it uses, and ends with the process.
    fn end(&mut self, until: Instant) -> bool {
        let settled = self.settled(until);
        if let Some(thread) = self.thread.take().filter(|_| settled) {
            // The panic hook has told of a panic and ended the process.
            let _ = thread.join();
        }
        settled
    }

    /// Lets a vCPU that is held begin.
    pub fn release(&self) {
        self.gate.want(RUN);
    }

    /// Lets a paused vCPU go on, and waits until it does.
    fn resume(&self) {
        self.gate.want(RUN);
        let mut posture = self.gate.posture();
        while posture.still && !posture.ended {
            posture = self.gate.wait_a_little(posture);
        }
    }

    /// Asks the vCPU, which is paused or has ended, something that only its own thread may look at; nothing if it runs.
    pub fn ask<T: Send + 'static>(&self, question: impl FnOnce(&VcpuFd) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        {
            let mut posture = self.gate.posture();
            if !posture.still {
                return None;
            }
            // Whoever asks waits for the answer.
            posture.question = Some(Box::new(move |fd| _ = answer.send(question(fd))));
            self.gate.changed.notify_all();
        }
        answered.recv().ok()
    }

    /// How much processor time the vCPU has used, guest and host; none that cannot be told.
    pub fn cpu_time(&self) -> Duration {
        let thread = self.gate.thread.load(Ordering::Acquire);
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
        self.gate.want(STOP);
        self.end(Instant::now() + LONGEST_STEP);
    }
}

/// Pauses every vCPU. Answers whether all are still, their pending accesses completed, or one did not answer in time.
pub fn pause(vcpus: &[VcpuThread]) -> bool {
    let until = Instant::now() + LONGEST_STEP;
    vcpus.iter().for_each(|vcpu| vcpu.gate.want(PAUSE));
    vcpus.iter().all(|vcpu| vcpu.settled(until))
}

/// Stops every vCPU. Answers whether all threads have ended, or one did not answer in time.
pub fn stop(mut vcpus: Vec<VcpuThread>) -> bool {
    let until = Instant::now() + LONGEST_STEP;
    vcpus.iter().for_each(|vcpu| vcpu.gate.want(STOP));
    let mut ended = true;
    vcpus.iter_mut().for_each(|vcpu| ended &= vcpu.end(until));
    ended
}

/// Resumes what [`pause`] paused.
pub fn resume(vcpus: &[VcpuThread]) {
    vcpus.iter().for_each(VcpuThread::resume);
}
