//! One process becomes two: the machine's, in namespaces of its own, and the one outside that was started by the user
//! (clone(2), user_namespaces(7), pid_namespaces(7)).
#![expect(unsafe_code, reason = "clone(2) as fork(2), into namespaces, has no safe interface")]

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getegid, geteuid};

/// The namespaces beside the user's.
const OTHERS: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// All of them.
const ALL: i32 = libc::CLONE_NEWUSER | OTHERS;

/// How the machine's process differs from the one outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Apart {
    /// It is in a user namespace of its own.
    pub user: bool,
    /// It is in the other five, too.
    pub others: bool,
    /// Every user of the host is a user there.
    pub all_users: bool,
}

/// What the two have of each other.
pub(super) enum Halves {
    /// The process that the user has started: the machine's, and what it has to tell.
    Outside(Pid, [PipeReader; 2]),
    /// The machine's process: how it is, why not better, and where to tell.
    Inside(Apart, Option<Errno>, [PipeWriter; 2]),
}

/// Splits the process, which has one thread; into namespaces if they are `wanted`. Either ends with the other.
///
/// # Errors
/// The host has no process left.
pub(super) fn split(wanted: bool) -> anyhow::Result<Halves> {
    let (news, tell) = io::pipe().context("cannot make a pipe")?;
    let (post, send) = io::pipe().context("cannot make a pipe")?;
    let (go, start) = io::pipe().context("cannot make a pipe")?;
    let (child, flags, refusal) = clone_as_allowed(wanted).context("cannot start a process")?;
    match child {
        Some(child) => {
            drop((go, tell, send));
            let all_users = flags & libc::CLONE_NEWUSER != 0
                && name_users(child).inspect_err(|_| {
                    // It waits, and ends unheard.
                    let _ = kill(child, Signal::SIGKILL);
                    let _ = waitpid(child, None);
                })?;
            // One that is gone is waited for like any other.
            let _ = (&start).write_all(&[u8::from(all_users)]);
            // Left open: the machine's process sees by it whether this one is there.
            std::mem::forget(start);
            Ok(Halves::Outside(child, [news, post]))
        }
        None => {
            drop((news, post, start));
            let all_users = begin(go)?;
            let (user, others) = (flags & libc::CLONE_NEWUSER != 0, flags & OTHERS != 0);
            Ok(Halves::Inside(Apart { user, others, all_users }, refusal, [tell, send]))
        }
    }
}

/// Waits until the one outside is ready; ends with it from there on.
fn begin(mut go: PipeReader) -> anyhow::Result<bool> {
    set_pdeathsig(Signal::SIGKILL).context("cannot follow the process outside")?;
    let mut all_users = [0];
    go.read_exact(&mut all_users).context("the process outside has gone")?;
    Ok(all_users[0] != 0)
}

/// Into as many namespaces as the host allows: all, all but the user's, none. Answers how many that are, and what stood
/// in the way of more.
fn clone_as_allowed(wanted: bool) -> nix::Result<(Option<Pid>, i32, Option<Errno>)> {
    let mut refusal = None;
    for flags in [ALL, OTHERS].into_iter().filter(|_| wanted) {
        match clone(flags) {
            Ok(child) => return Ok((child, flags, refusal)),
            Err(error) => _ = refusal.get_or_insert(error),
        }
    }
    Ok((clone(0)?, 0, refusal))
}

/// fork(2), into namespaces.
fn clone(flags: i32) -> nix::Result<Option<Pid>> {
    let mut thread: *mut libc::c_int = std::ptr::null_mut();
    // Where the C library keeps the thread's id, which fork(2) has the kernel renew. A kernel that does not tell lets it
    // be, and what is left then is a number that nothing here looks at.
    // SAFETY: writes a pointer.
    let told = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut thread) } == 0 && !thread.is_null();
    let renew = if told { libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID } else { 0 };
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

/// Says who is who in the user namespace of `child`: everybody is who they are here, if this process may say so, or else
/// this user is. Answers whether everybody is.
fn name_users(child: Pid) -> anyhow::Result<bool> {
    let file = |name: &str| PathBuf::from(format!("/proc/{child}/{name}"));
    let maps = ["uid_map", "gid_map"];
    if geteuid().is_root() {
        let named = maps.iter().try_for_each(|map| {
            let ours = fs::read_to_string(format!("/proc/self/{map}"))?;
            fs::write(file(map), everybody(&ours))
        });
        if named.is_ok() {
            return Ok(true);
        }
    }
    let name = |map: &str, text: String| {
        fs::write(file(map), text).with_context(|| format!("cannot write /proc/{child}/{map}"))
    };
    // A user who may leave no group may not have others forget it either (user_namespaces(7)).
    name("setgroups", "deny".to_owned())?;
    let (user, group) = (geteuid(), getegid());
    // One of the two may be named already.
    let named = fs::read_to_string(file("uid_map")).unwrap_or_default();
    if named.is_empty() {
        name("uid_map", format!("{user} {user} 1\n"))?;
    }
    name("gid_map", format!("{group} {group} 1\n"))?;
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
