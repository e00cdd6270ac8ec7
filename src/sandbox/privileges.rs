//! What a process was started with, given up: capabilities(7), the environment, descriptors, and what it may
//! use of the host without end.
#![expect(
    unsafe_code,
    reason = "prctl(2) and capset(2) as needed here, and the environment, have no safe interface"
)]

use std::fs;
use std::os::fd::RawFd;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The version of capset(2)'s structures with 64 bits of capabilities.
const VERSION_3: u32 = 0x2008_0522;
/// For root as for anybody else: no capability comes with the user's number, with a program or by itself, nor does this
/// change (capabilities(7), "The securebits flags").
const SECURE: libc::c_ulong = 0b1110_1111;
/// But for root's capabilities to go and come back with a file's owner (setfsuid(2)), where it has some.
const SECURE_BUT_FOR_OWNERS: libc::c_ulong = 0b1110_0011;
/// More capabilities than there are.
const MOST: libc::c_ulong = 64;

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> nix::Result<libc::c_int> {
    // SAFETY: these options take numbers.
    Errno::result(unsafe { libc::prctl(option, argument, 0, 0, 0) })
}

/// Gives up every capability of this thread but those that are `needed`, and what new ones could come from. `for_owners`, those
/// follow the one whom files are changed for.
///
/// # Errors
/// The kernel refuses.
pub(super) fn drop_capabilities(needed: u64, for_owners: bool) -> anyhow::Result<()> {
    // Until there is none of that number. Who has none has none to drop from this set either.
    let _ = (0..MOST).try_for_each(|capability| prctl(libc::PR_CAPBSET_DROP, capability).map(drop));
    let _ = prctl(libc::PR_SET_SECUREBITS, if for_owners { SECURE_BUT_FOR_OWNERS } else { SECURE });
    let permitted = permitted().context("cannot read capabilities")?;
    set_capabilities(needed & permitted).context("cannot give up capabilities")
}

/// The thread's permitted capabilities.
fn permitted() -> nix::Result<u64> {
    let mut header = [VERSION_3, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: reads and writes the header, and writes the sets.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })?;
    Ok(u64::from(sets[4]) << 32 | u64::from(sets[1]))
}

/// Makes these the thread's permitted and effective capabilities.
///
/// # Errors
/// It does not have them.
pub(super) fn set_capabilities(capabilities: u64) -> nix::Result<()> {
    let header = [VERSION_3, 0];
    let [low, high] = [capabilities as u32, (capabilities >> 32) as u32];
    // Effective, permitted and inheritable, the lower half of each and then the upper.
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: reads the header and the sets.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

/// No core dump, no more open files than now, no process but so many `threads`, if they are counted for this user
/// namespace alone.
///
/// # Errors
/// The kernel refuses.
pub(super) fn limit(threads: Option<u64>) -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot forbid core dumps")?;
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files).context("cannot limit open files")?;
    if let Some(threads) = threads {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).context("cannot read the limit of processes")?;
        let most = threads.min(soft).min(hard);
        setrlimit(Resource::RLIMIT_NPROC, most, most).context("cannot limit processes")?;
    }
    Ok(())
}

/// The descriptors that kite was started with, beside the standard streams, which no program that kite starts gets from here
/// on. It is asked before anything is opened.
pub(super) fn inherited() -> Vec<RawFd> {
    let Ok(folder) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let names = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = names.filter(|number| *number > 2).collect();
    // The last is the folder's own, which is closed by now.
    // SAFETY: takes numbers.
    let closes = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) } >= 0;
    numbers.into_iter().filter(closes).collect()
}

/// Closes them, and leaves no program the standard streams.
pub(super) fn close(inherited: &[RawFd]) {
    for number in inherited {
        // SAFETY: nothing in this program knows these descriptors, which were there before it.
        unsafe { libc::close(*number) };
    }
    let [stdin, stdout, stderr] =
        [&std::io::stdin() as &dyn std::os::fd::AsFd, &std::io::stdout(), &std::io::stderr()];
    for stream in [stdin, stdout, stderr] {
        let _ = fcntl(stream.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// Empties the environment, and wipes what it said. This process has one thread.
pub(super) fn clear_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: no other thread reads it, and nothing has a part of it: the standard library copies what it is asked for.
    // Each entry is a string of this process' own memory, which it may write.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
        libc::clearenv();
    }
}
