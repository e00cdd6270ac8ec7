//! The sandbox around a machine: what kite takes from itself before the guest's first instruction, so that a guest that
//! takes over the process has taken over nothing.
//!
//! Everything that has a path or needs a right is opened first, by one thread. Then the process forks ([`fork()`]):
//! the machine is built in the VM process, in namespaces of its own, which locks itself in ([`VmProcess::lock`]) when the
//! guest is loaded; the [`Supervisor`] is the process that the user started, and gives up what it does not need for that.
//! Threads that start from then on confine themselves further ([`Entry`]), the main thread last ([`close`]).

pub mod cgroup;
mod channel;
mod cleanup;
pub mod control;
mod file_proxy;
mod fork;
mod landlock;
mod privileges;
mod read_only;
mod root;
mod seccomp;
mod shares;
mod supervisor;
mod vm_process;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use ::landlock::{AccessFs, Scope};
use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;

use crate::host::atomic_file;
use crate::host::confinement::Confinement;
use crate::host::terminal;
use crate::host::thread;
pub use crate::host::thread::{Entry, ThreadKind as Thread};
use crate::spec::sandbox::{Layer, Mode, SandboxSpec, without as left_out};
use channel::FromVm;
pub use channel::{Answer, Question, Questions};
pub use cleanup::{Chores, Cleanup};
pub(crate) use fork::reset;
use fork::{Apart, Forked};
pub use seccomp::{Needs, listing as calls};
pub use supervisor::{ProcessEnd, Supervisor};
pub use vm_process::VmProcess;

/// The descriptors that kite was started with, beside the standard streams.
pub struct InheritedFds(Vec<RawFd>);

impl InheritedFds {
    /// Lists them; to be called before anything is opened.
    pub fn now() -> Self {
        Self(privileges::inherited())
    }
}

/// Which process this is, once kite has forked.
pub enum Fork<T> {
    /// The supervisor, which the user started.
    Supervisor(Box<Supervisor>),
    /// The VM process, which is kite's only one where there is no fork, and what it has or came to.
    Vm(T),
}

/// Forks this process, which has one thread, if there is to be a sandbox, a group or a control socket. The machine and what it uses are put
/// into the group before they go on; the supervisor takes over the `cleanup`.
///
/// # Errors
/// The host has no process or thread left, or refuses the group.
pub fn fork(
    options: SandboxSpec,
    inherited: InheritedFds,
    cleanup: &mut Cleanup,
) -> anyhow::Result<Fork<VmProcess>> {
    thread::confine_by(confine);
    terminal::leave_by(leave_terminal);
    let mut lacks = Lacks::new(options);
    if !options.splits() && cleanup.group.is_none() && cleanup.control.is_none() {
        cleanup.watch()?;
        let apart = Apart { user: false, others: false, all_users: true };
        return Ok(Fork::Vm(VmProcess::new(options, inherited, apart, lacks, None)));
    }
    let ready = |vm| cleanup.place(vm).and_then(|()| supervisor::take_signals());
    match fork::fork(options.wants(Layer::Namespaces), ready)? {
        Forked::Supervisor(signals, vm, inbox) => {
            let cleanup = std::mem::take(cleanup);
            let supervisor = Supervisor::new(options, inherited, cleanup, signals, vm, inbox);
            Ok(Fork::Supervisor(Box::new(supervisor)))
        }
        Forked::Vm(apart, refusal, end) => {
            channel::connect(end);
            atomic_file::send_to(Box::new(send_file));
            let questions = cleanup.control.as_ref().and_then(|_| Questions::of_this_process());
            cleanup.leave();
            if let Some(refusal) = refusal {
                lacks.add(Layer::Namespaces, why_no_namespaces(refusal, apart));
            }
            Ok(Fork::Vm(VmProcess::new(options, inherited, apart, lacks, questions)))
        }
    }
}

/// Takes from the monitor of a container, which has one thread and reads what its guest says, what it does not need: rights, what
/// programs could give of them, and all files but those of the container's `folder` and the kernel's own of processes. A layer
/// that the host does not allow is missing here as it is around the machine, which says so.
pub fn confine_monitor(folder: BorrowedFd<'_>) {
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    let restrict = || -> anyhow::Result<()> {
        let processes = File::open("/proc").context("cannot open /proc")?;
        let folders = [(folder, landlock::writes() | reads), (processes.as_fd(), reads)];
        landlock::restrict(&folders, Scope::AbstractUnixSocket.into())
    };
    let _ = no_new_privs().and_then(|()| privileges::drop_capabilities(0, false)).and_then(|()| restrict());
}

/// Has kite end by `signal` if this is the VM process of two; answers whether it is, and then has to end.
pub(crate) fn end_by(signal: i32) -> bool {
    channel::send(&FromVm::EndBy(signal)).is_some_and(|sent| sent.is_ok())
}

/// Has the supervisor write a file.
fn send_file(index: u8, content: OwnedFd) -> io::Result<()> {
    let sent = channel::send(&FromVm::File { index, content });
    sent.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
}

/// Has the terminal restored, as this process is about to end. Makes two system calls, and may be called in a signal's
/// handler.
pub(crate) fn leave_terminal() {
    channel::restore_terminal_in_handler();
    supervisor::restore_terminal();
}

fn no_new_privs() -> anyhow::Result<()> {
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
}

/// The layers that this host does not allow, and why.
struct Lacks {
    options: SandboxSpec,
    list: Vec<(Layer, String)>,
}

impl Lacks {
    fn new(options: SandboxSpec) -> Self {
        Self { options, list: Vec::new() }
    }

    fn add(&mut self, layer: Layer, why: String) {
        self.list.push((layer, why));
    }

    /// Locks, if that is wanted.
    fn try_layer(&mut self, layer: Layer, lock: impl FnOnce() -> anyhow::Result<()>) {
        if self.options.wants(layer)
            && let Err(error) = lock()
        {
            self.add(layer, format!("{error:#}"));
        }
    }

    /// A line each.
    ///
    /// # Errors
    /// There are some, and none is allowed.
    fn answer(&self) -> anyhow::Result<Vec<String>> {
        let lacks: Vec<_> = self
            .list
            .iter()
            .map(|(layer, why)| format!("no sandbox layer {}: {why}", layer.name()))
            .collect();
        if self.options.mode != Mode::Require || lacks.is_empty() {
            return Ok(lacks);
        }
        let lacking = |layer| self.list.iter().any(|it| it.0 == layer);
        let without = Layer::ALL.into_iter().filter(|layer| {
            !self.options.wants(*layer) || lacking(*layer) || layer.needs().is_some_and(lacking)
        });
        bail!(
            "the sandbox is required, and this host allows it in part: {}; or leave that out with \
             --sandbox=require,{}",
            lacks.join("; "),
            left_out(&without.collect::<Vec<_>>())
        )
    }
}

/// Capabilities that root's threads keep which serve folders (capabilities(7)): CAP_DAC_READ_SEARCH, to read them.
const READ: u64 = 1 << 2;
/// The capabilities that such threads of this process keep.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Confines the main thread, once all others are started and confined: then the guest may begin.
///
/// # Errors
/// The host has no thread left.
pub fn close() -> anyhow::Result<()> {
    close_as(Thread::Main)
}

fn close_as(kind: Thread) -> anyhow::Result<()> {
    thread::start_gathered()?;
    confine(kind);
    Ok(())
}

fn confine(thread: Thread) {
    let kept = KEPT.load(Ordering::Relaxed);
    let needed = match thread {
        Thread::Share => kept,
        Thread::ReadOnlyShare => kept & READ,
        _ => 0,
    };
    if needed != kept {
        privileges::set_capabilities(needed).expect("a thread may give up what it has");
    }
    seccomp::confine(thread);
}

/// Why not all namespaces could be had, and what to do.
fn why_no_namespaces(refusal: Errno, apart: Apart) -> String {
    why_not(if apart.others { "no user namespace" } else { "none" }, refusal)
}

/// Which namespaces the kernel refuses, why, and what to do.
fn why_not(what: &str, refusal: Errno) -> String {
    let why = match refusal {
        Errno::ENOSPC | Errno::EUSERS => {
            "there are as many as the host allows; sysctl -w user.max_user_namespaces=15000".to_owned()
        }
        _ => Confinement::here().told(),
    };
    format!("{what} ({}): {why}", refusal.desc())
}

/// A refusal with the reason for it: namespaces can be had where there is no right to do anything in them.
fn with_confinement(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(Errno::EPERM | Errno::EACCES) => anyhow!("{error:#}; {}", Confinement::here().told()),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::sandbox::parse;

    #[test]
    fn what_require_says_to_leave_out_is_an_option() {
        for layer in Layer::ALL {
            let options = parse("require,no-rlimits").unwrap();
            let mut lacks = Lacks::new(options);
            lacks.add(layer, "why".to_owned());
            let said = lacks.answer().unwrap_err().to_string();
            let (_, option) = said.split_once("--sandbox=").unwrap();
            let without = parse(option).unwrap_or_else(|error| panic!("{option}: {error}"));
            assert!(!without.wants(layer) && !without.wants(Layer::Rlimits), "{option}");
        }
    }
}
