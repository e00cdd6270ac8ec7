//! A vCPU and its thread: the run loop, what happens on an exit, and how the vCPU is stopped and paused.
//!
//! Only its own thread runs a vCPU. Others ask through a [`Gate`] and signal the thread until it has answered: a
//! signal that arrives just before KVM_RUN is lost, so one is not enough. What a vCPU's state is, its thread is asked too,
//! while it is still.

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::time::ClockId;
use nix::unistd::gettid;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::coalesced::Coalesced;
use crate::exit::{Exit, ExitRequest};
use crate::sandbox;

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;
const HOLD: u8 = 3;
/// How long an unanswered signal is waited for before the next.
const PATIENCE: Duration = Duration::from_micros(500);

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
        Self { index, fd, shared, gate: Arc::default() }
    }

    /// Starts the vCPU on a thread of its own, where it is held until it is [released](VcpuThread::release).
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(mut self) -> anyhow::Result<VcpuThread> {
        register_signal_handler(SIGRTMIN(), interrupted).context("cannot handle the vCPUs' signal")?;
        let gate = self.gate.clone();
        gate.wanted.store(HOLD, Ordering::Release);
        let name = format!("vcpu{}", self.index);
        let entry = sandbox::Entry::new();
        let run = move || {
            entry.confine(sandbox::Thread::Vcpu);
            self.gate.thread.store(gettid().as_raw(), Ordering::Release);
            self.run();
            self.gate.posture().still = true;
            self.gate.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(run);
        Ok(VcpuThread { gate, thread: Some(thread.context("cannot start a vCPU's thread")?) })
    }

    /// Runs the guest until it or somebody else stops it.
    fn run(&mut self) {
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
    fn step(&mut self) -> Step {
        let Shared { ports, mmio, coalesced, exit } = &self.shared;
        let result = self.fd.run();
        coalesced.carry_out(ports, mmio);
        match result {
            Ok(VcpuExit::IoOut(port, data)) => ports.write(port.into(), data),
            Ok(VcpuExit::IoIn(port, data)) => ports.read(port.into(), data),
            Ok(VcpuExit::MmioWrite(addr, data)) => mmio.write(addr, data),
            Ok(VcpuExit::MmioRead(addr, data)) => mmio.read(addr, data),
            Ok(other) => {
                let reason = reason(self.index, &other);
                let reason = reason.unwrap_or_else(|| Exit::Crash(self.internal_error()));
                self.shared.exit.request(reason);
                return Step::Ended;
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Step::Interrupted,
            Err(error) => {
                exit.request(Exit::Failed(anyhow!(error).context(format!("cannot run vCPU {}", self.index))));
                return Step::Ended;
            }
        }
        Step::Exited
    }

    /// Stays still until told otherwise.
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

    /// What KVM says of an internal error (KVM API, KVM_EXIT_INTERNAL_ERROR).
    #[expect(unsafe_code, reason = "the exit's details are in a C union")]
    fn internal_error(&mut self) -> String {
        // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, so this is the member that KVM filled in, and it is plain data.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let what = match suberror {
            1 => "an instruction that KVM cannot emulate".to_owned(),
            2 => "exceptions while delivering exceptions".to_owned(),
            3 => "an exit while an event was delivered".to_owned(),
            other => format!("KVM internal error {other}"),
        };
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        format!("{what}, on vCPU {} at rip {rip:#x}", self.index)
    }
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

/// Why this exit ends the machine; nothing for an internal error, whose details are elsewhere.
fn reason(index: u32, exit: &VcpuExit<'_>) -> Option<Exit> {
    Some(match exit {
        VcpuExit::Shutdown => Exit::TripleFault { vcpu: index },
        VcpuExit::InternalError => return None,
        VcpuExit::FailEntry(reason, cpu) => Exit::Crash(format!(
            "the processor refused to enter vCPU {index}: hardware reason {reason:#x} on CPU {cpu}"
        )),
        VcpuExit::MemoryFault { gpa, .. } => {
            Exit::Crash(format!("vCPU {index} touched memory the host cannot give, at {gpa:#x}"))
        }
        other => Exit::Crash(format!("vCPU {index} left the guest in an unknown way: {other:?}")),
    })
}

/// A vCPU's thread. Dropping it stops the vCPU.
pub struct VcpuThread {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Tells the vCPU what to do; [`Self::settled`] waits until it is still.
    fn want(&self, wanted: u8) {
        // Under the lock, so that a paused vCPU cannot miss it between looking and waiting.
        let _posture = self.gate.posture();
        self.gate.wanted.store(wanted, Ordering::Release);
        self.gate.changed.notify_all();
    }

    /// Signals the thread until the vCPU is still.
    fn settled(&self) {
        let Some(thread) = &self.thread else { return };
        let mut posture = self.gate.posture();
        while !posture.still {
            // Fails only for a thread that is gone, which has set `still`.
            let _ = thread.kill(SIGRTMIN());
            posture = self.gate.wait_a_little(posture);
        }
    }

    /// Lets a vCPU that is held begin.
    pub fn release(&self) {
        self.want(RUN);
    }

    /// Lets a paused vCPU go on, and waits until it does.
    fn resume(&self) {
        self.want(RUN);
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
        self.want(STOP);
        self.settled();
        if let Some(thread) = self.thread.take() {
            // The panic hook has told of a panic and ended the process.
            let _ = thread.join();
        }
    }
}

/// Pauses every vCPU; returns once all are still, their pending accesses completed.
pub fn pause(vcpus: &[VcpuThread]) {
    vcpus.iter().for_each(|vcpu| vcpu.want(PAUSE));
    vcpus.iter().for_each(VcpuThread::settled);
}

/// Stops every vCPU; returns once all threads have ended.
pub fn stop(vcpus: Vec<VcpuThread>) {
    vcpus.iter().for_each(|vcpu| vcpu.want(STOP));
    drop(vcpus);
}

/// Resumes what [`pause`] paused.
pub fn resume(vcpus: &[VcpuThread]) {
    vcpus.iter().for_each(VcpuThread::resume);
}
