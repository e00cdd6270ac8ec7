//! A process on its way to a container's program: what it does between fork(2) and execve(2).
#![expect(
    unsafe_code,
    reason = "a child gives up rights before it becomes the program, which has no safe interface"
)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};

use super::super::child::{end_of, lead_session};
use super::super::root::OPEN_FILES;
use crate::spec::container::{Capabilities, ProcessSpec};
use crate::spec::wire::End;

/// The version of capset(2)'s structures with 64 bits of capabilities.
const VERSION_3: u32 = 0x2008_0522;
/// The umask of a container whose document names none.
const UMASK: u32 = 0o022;

/// A call of mount(2).
pub(super) struct MountCall {
    pub source: Option<CString>,
    pub at: CString,
    pub kind: Option<CString>,
    pub flags: u64,
    pub data: Option<CString>,
}

impl MountCall {
    /// Makes it; neither allocates nor locks.
    pub fn make(&self) -> io::Result<()> {
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |it| it.as_ptr());
        let (source, kind, data) = (pointer(&self.source), pointer(&self.kind), pointer(&self.data));
        // SAFETY: each is none or ends with a NUL, and outlives the call.
        let made = unsafe { libc::mount(source, self.at.as_ptr(), kind, self.flags, data.cast()) };
        if made == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Mounts a file that is open as `file` over what is at `at`.
pub(super) fn mount_tree(file: &OwnedFd, at: &Path) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    let (clone, move_empty) = (libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32, 4);
    let (none, flags) = (c"".as_ptr(), clone | libc::AT_EMPTY_PATH as u32);
    // SAFETY: the name ends with a NUL and outlives the call.
    let tree = Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), none, flags) })?;
    // SAFETY: the kernel has just made it, and nothing else knows it.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as RawFd) };
    // SAFETY: both names end with a NUL and outlive the call.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), none, libc::AT_FDCWD, at.as_ptr(), move_empty)
    };
    Ok(Errno::result(moved).map(drop)?)
}

/// Has the child make these mounts, each of which needs the PID namespace that it is in, or follows one that does.
pub(super) fn mount_before(command: &mut Command, calls: Vec<MountCall>) {
    let mount = move || calls.iter().try_for_each(MountCall::make);
    // SAFETY: between fork and exec the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe { command.pre_exec(mount) };
}

/// Has the child lead a session, with the terminal if there is one, and be who `spec` says, with what that allows it.
pub(super) fn become_process(command: &mut Command, spec: &ProcessSpec, terminal: bool) {
    let spec = spec.clone();
    let groups: Vec<Gid> = spec.groups.iter().copied().map(Gid::from_raw).collect();
    let score = spec.oom_score.map(|score| score.to_string());
    let become_it = move || -> io::Result<()> {
        lead_session(terminal)?;
        if let Some(score) = &score {
            File::options().write(true).open("/proc/self/oom_score_adj")?.write_all(score.as_bytes())?;
        }
        for limit in &spec.limits {
            // The kernel refuses more open files than it allows any process (fs.nr_open).
            let most = if limit.resource == libc::RLIMIT_NOFILE { OPEN_FILES.1 } else { u64::MAX };
            let value = libc::rlimit { rlim_cur: limit.soft.min(most), rlim_max: limit.hard.min(most) };
            // SAFETY: the structure is read and outlives the call.
            Errno::result(unsafe { libc::setrlimit(limit.resource, &raw const value) })?;
        }
        umask(Mode::from_bits_truncate(spec.umask.unwrap_or(UMASK)));
        if let Some(sets) = &spec.capabilities {
            bound(sets.bounding)?;
        }
        setgroups(&groups)?;
        setgid(Gid::from_raw(spec.gid))?;
        if spec.capabilities.is_some() {
            prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
        }
        setuid(Uid::from_raw(spec.uid))?;
        if let Some(sets) = &spec.capabilities {
            take(sets)?;
        }
        if spec.no_new_privileges {
            set_no_new_privs()?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe { command.pre_exec(become_it) };
}

fn prctl(option: libc::c_int, first: u64, second: u64) -> nix::Result<i32> {
    // SAFETY: these options take numbers.
    Errno::result(unsafe { libc::prctl(option, first, second, 0, 0) })
}

/// Leaves no capability to be had but these.
fn bound(kept: u64) -> nix::Result<()> {
    for capability in 0..64 {
        // What the kernel does not know ends the list.
        match prctl(libc::PR_CAPBSET_READ, capability, 0) {
            Ok(0) => {}
            Ok(_) if kept & 1 << capability != 0 => {}
            Ok(_) => _ = prctl(libc::PR_CAPBSET_DROP, capability, 0)?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// Takes these capabilities, as far as the kernel knows them, and no others.
fn take(sets: &Capabilities) -> nix::Result<()> {
    let known = (0..64)
        .take_while(|bit| prctl(libc::PR_CAPBSET_READ, *bit, 0).is_ok())
        .fold(0, |all, bit| all | 1 << bit);
    let [effective, permitted, inheritable] =
        [sets.effective, sets.permitted, sets.inheritable].map(|it| it & known);
    let half = |set: u64, high: bool| if high { (set >> 32) as u32 } else { set as u32 };
    let header = [VERSION_3, 0];
    let data = [false, true]
        .map(|high| [half(effective & permitted, high), half(permitted, high), half(inheritable, high)]);
    // SAFETY: the header and two structures of three words are read and outlive the call (capset(2)).
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    for bit in (0..64).filter(|bit| sets.ambient & known & permitted & inheritable & 1 << bit != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, bit)?;
    }
    Ok(())
}

/// Waits until a child has ended, which is then there to be reaped.
pub(super) fn wait() -> nix::Result<()> {
    // SAFETY: the structure is integers and pointers, all of which may be zero.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is written and outlives the call.
    Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT) })
        .map(drop)
}

/// Reaps a child that has ended, any or this one: which, and how; nothing if there is none.
pub(super) fn reap(pid: Option<Pid>) -> Option<(Pid, End)> {
    let mut status = 0;
    let pid = pid.map_or(-1, Pid::as_raw);
    // SAFETY: the status is written and outlives the call.
    let pid = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (Pid::from_raw(pid), end_of(status)))
}

/// A descriptor of a process (pidfd_open(2)), by which its namespaces are joined whatever is mounted at `/proc`.
pub(super) fn descriptor(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: takes two numbers and gives a new file descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just made it, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal of any number, real-time ones too.
pub(super) fn send_signal(pid: Pid, signal: i32) {
    // SAFETY: takes two numbers. A process that has ended needs no signal.
    unsafe { libc::kill(pid.as_raw(), signal) };
}
