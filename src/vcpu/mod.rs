//! A vCPU and its thread: the run loop, what happens on an exit, and how the vCPU is stopped and paused.
//!
//! Only its own thread runs a vCPU; others reach it through [`run_control`].

pub mod coalesced;
pub mod counters;
pub mod exit;
pub mod registers;
pub mod run_control;
pub mod state;
pub mod stop;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, anyhow};
use devices::bus::{Bus, Hint};
use kvm_ioctls::VcpuFd;
use nix::unistd::gettid;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::host::thread::{ThreadKind, spawn};
use crate::vcpu::coalesced::Coalesced;
use crate::vcpu::counters::{Cause, Counters, Timed};
use crate::vcpu::exit::{Ending, Space, VcpuExit};
use crate::vcpu::run_control::{HOLD, PAUSE, RUN, RunControl, STOP};
pub use crate::vcpu::run_control::{LONGEST_STEP, PausedVcpus, VcpuThread, pause, stop};
use crate::vcpu::stop::{Exit, ExitRequest};

/// A vCPU: what its thread owns.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    shared: Shared,
    control: Arc<RunControl>,
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
        Self::under(&StopHandle::default(), index, fd, shared)
    }

    /// The same, which `handle` stops while it runs on its owner's thread.
    pub fn under(handle: &StopHandle, index: u32, fd: VcpuFd, shared: Shared) -> Self {
        Self { index, fd, shared, control: handle.0.clone(), hints: Default::default(), counters: None }
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
        let control = self.control.clone();
        control.wanted.store(HOLD, Ordering::Release);
        let name = format!("vcpu{}", self.index);
        let run = move || {
            self.control.thread.store(gettid().as_raw(), Ordering::Release);
            if let Some(counters) = &self.counters {
                counters.enter();
            }
            self.run();
            self.control.finish();
        };
        Ok(VcpuThread::new(control, spawn(&name, STACK, ThreadKind::Vcpu, run)?))
    }

    /// Runs the guest on this thread until it or another thread stops it.
    pub fn run(&mut self) {
        loop {
            let step = match self.control.wanted.load(Ordering::Acquire) {
                RUN => self.step(),
                PAUSE => self.pause(),
                HOLD => {
                    self.control.park(&self.fd, false);
                    Step::Interrupted
                }
                _ => return,
            };
            if step == Step::Ended {
                // The state that it ended in may be asked for.
                return self.control.park(&self.fd, true);
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

    /// The same, counted and timed. A function of its own, so that it costs one look where it is off.
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

    /// Pauses until the vCPU is wanted to run on or to stop.
    #[inline(never)]
    fn pause(&mut self) -> Step {
        if self.complete_access() == Step::Ended {
            return Step::Ended;
        }
        self.control.park(&self.fd, false);
        Step::Interrupted
    }

    /// Completes the access that the last exit was about, without running the guest on: KVM does so at the next entry,
    /// and until then the registers are those of before the instruction (KVM API, "KVM_RUN"). What is left of that
    /// instruction, an access's part in the next page or a string's next element, comes as exits of its own.
    fn complete_access(&mut self) -> Step {
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
pub struct StopHandle(Arc<RunControl>);

impl StopHandle {
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
    /// For good; the reason has been reported.
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
