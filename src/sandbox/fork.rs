//! kite becomes two processes: the supervisor, which the user started, and the VM process, in namespaces of its own
//! (clone(2), user_namespaces(7), pid_namespaces(7)).
#![expect(unsafe_code, reason = "clone(2) as fork(2), into namespaces, has no safe interface")]

use std::fs;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getegid, geteuid};

use super::channel::{self, Inbox, ToVm, VmEnd};
use crate::host::exit_code;

/// The namespaces beside the user's and the network's, which takes as long as all of them and is made later.
const OTHERS: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// All of them.
const ALL: i32 = libc::CLONE_NEWUSER | OTHERS;

/// How the VM process differs from the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Apart {
    /// It is in a user namespace of its own.
    pub user: bool,
    /// It is in others, too, and may make one of networks.
    pub others: bool,
    /// Every user of the host is a user there.
    pub all_users: bool,
}

/// What each of the two processes has of the other.
pub(super) enum Forked<T> {
    /// The supervisor: what it has got ready, the VM process, and what that sends.
    Supervisor(T, Pid, Inbox),
    /// The VM process: how it is, why not better, and the way to the supervisor.
    Vm(Apart, Option<Errno>, VmEnd),
}

/// Forks this process, which has one thread; into namespaces if they are `wanted`. The supervisor gets `ready` for the VM
/// process before that does anything, so that of the two only one reports what the host lacks. Either ends with the other.
///
/// # Errors
/// The host has no process left, or `ready` fails.
pub(super) fn fork<T>(
    wanted: bool,
    ready: impl FnOnce(Pid) -> anyhow::Result<T>,
) -> anyhow::Result<Forked<T>> {
    let (supervisor, vm) = channel::pair()?;
    // Ignored, as kite may have been started with it, it would have the kernel drop the VM process's exit status.
    reset(Signal::SIGCHLD)?;
    let Cloned { child, flags, refusal } = clone_as_allowed(wanted).context("cannot start a process")?;
    match child {
        Some((child, all_users)) => {
            drop(vm);
            let ready = ready(child).inspect_err(|_| end(child))?;
            let inbox = Inbox::new(supervisor);
            inbox.reply(&ToVm::Begin { all_users });
            Ok(Forked::Supervisor(ready, child, inbox))
        }
        None => {
            drop(supervisor);
            set_pdeathsig(Signal::SIGKILL).context("cannot follow the supervisor")?;
            if vm.is_alone() {
                // It has gone before that: no signal comes any more, and there is no one to say it to.
                std::process::exit(exit_code::FAILED.into());
            }
            let all_users = vm.wait_to_begin()?;
            let (user, others) = (flags & libc::CLONE_NEWUSER != 0, flags & OTHERS != 0);
            let apart = Apart { user, others, all_users };
            Ok(Forked::Vm(apart, refusal, vm))
        }
    }
}

/// Has a signal do what it does by default.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn reset(signal: Signal) -> anyhow::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the action is the default one, no function of ours.
    unsafe { sigaction(signal, &default) }.map(drop).with_context(|| format!("cannot reset {signal}"))
}

/// What has become of a process.
struct Cloned {
    /// For the one that there was, the new one, and whether every user of the host is a user there.
    child: Option<(Pid, bool)>,
    /// The namespaces of the new one.
    flags: i32,
    /// What stood in the way of more.
    refusal: Option<Errno>,
}

/// Into as many namespaces as the host allows: all, all but the user's, none.
fn clone_as_allowed(wanted: bool) -> nix::Result<Cloned> {
    let mut refusal = None;
    for flags in [ALL, OTHERS].into_iter().filter(|_| wanted) {
        let cloned = clone(flags).and_then(|child| {
            let Some(child) = child else { return Ok(None) };
            let named = if flags & libc::CLONE_NEWUSER != 0 { name_users(child) } else { Ok(true) };
            named.map(|all_users| Some((child, all_users))).inspect_err(|_| end(child))
        });
        match cloned {
            Ok(child) => return Ok(Cloned { child, flags, refusal }),
            Err(error) => _ = refusal.get_or_insert(error),
        }
    }
    let child = clone(0)?.map(|child| (child, true));
    Ok(Cloned { child, flags: 0, refusal })
}

/// Ends a process that waits, and so ends unheard.
fn end(child: Pid) {
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
}

/// fork(2), into namespaces.
fn clone(flags: i32) -> nix::Result<Option<Pid>> {
    let mut thread: *mut libc::c_int = std::ptr::null_mut();
    // Where the C library has the thread's id, which fork(2) has the kernel renew. Where the kernel does not say where that
    // is, the old id stays, which nothing here looks at.
    // SAFETY: writes a pointer.
    let known = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut thread) } == 0 && !thread.is_null();
    let renew = if known { libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID } else { 0 };
    let flags = libc::c_long::from(flags | renew | libc::SIGCHLD);
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of everything, and as this process has one thread, no
    // lock in it is another's. The id is written where it was.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, null, null, thread, null) };
    match Errno::result(child)? {
        0 => Ok(None),
        child => Ok(Some(Pid::from_raw(child as i32))),
    }
}

/// Maps the users of the user namespace of `child`: everybody is who they are here, if this process may say so, or else
/// this user is. Answers whether everybody is.
fn name_users(child: Pid) -> nix::Result<bool> {
    let name = |file: &str, text: &str| {
        let written = fs::write(format!("/proc/{child}/{file}"), text);
        written.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    if geteuid().is_root() {
        let named = ["uid_map", "gid_map"].into_iter().try_for_each(|map| {
            let ours = fs::read_to_string(format!("/proc/self/{map}")).map_err(|_| Errno::ENOENT)?;
            name(map, &everybody(&ours))
        });
        if named.is_ok() {
            return Ok(true);
        }
    }
    // A user who may leave no group may not have others forget it either (user_namespaces(7)).
    name("setgroups", "deny")?;
    let (user, group) = (geteuid(), getegid());
    // One of the two may be named already.
    let named = fs::read_to_string(format!("/proc/{child}/uid_map")).unwrap_or_default();
    if named.is_empty() {
        name("uid_map", &format!("{user} {user} 1\n"))?;
    }
    name("gid_map", &format!("{group} {group} 1\n"))?;
    Ok(false)
}

/// From a map of this namespace (inside, outside, count, a line each) the one that makes a namespace in it the same.
fn everybody(map: &str) -> String {
    let lines = map.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (first, count) = (words.next()?, words.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_who_they_are_here() {
        assert_eq!(everybody("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(everybody("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(everybody(""), "");
    }
}
