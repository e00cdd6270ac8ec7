//! The sandbox around a machine: what kite takes from itself before the guest's first instruction, so that a guest that
//! takes over the process has taken over nothing.
//!
//! Everything that has a path or needs a right is opened first, by one thread. Then the process is split ([`split()`]):
//! the machine's half is built in namespaces of its own, and locks itself in ([`Inside::lock`]) when the guest is loaded;
//! the half outside ([`Outside`]) stays what the user has started, and gives up what it does not need for that. Threads that
//! start from then on confine themselves further ([`Entry`]), the main thread last ([`close`]).

pub mod cgroup;
mod landlock;
mod news;
mod options;
mod outside;
pub mod post;
mod privileges;
mod read_only;
mod root;
mod seccomp;
mod shares;
mod split;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ::landlock::{Access, Scope};
use anyhow::{Context, anyhow, bail};
use devices::virtio::fs::Share;
use nix::errno::Errno;
use nix::sys::utsname::uname;
use nix::unistd::{Pid, geteuid};

use crate::host::confinement::Confinement;
use news::News;
pub use options::{Layer, Mode, Options, parse};
pub use outside::{Chores, End, Outside};
pub use seccomp::{Needs, Thread, listing as calls};
pub(crate) use split::reset;
use split::{Apart, Go, Halves};

/// The descriptors that whoever started kite has left open for it.
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// To be called before anything is opened.
    pub fn now() -> Self {
        Self(privileges::inherited())
    }
}

/// Which half of kite this process is.
pub enum Side {
    /// The one that the user has started, with what it has inherited.
    Outside(Outside, Inherited),
    /// The machine's.
    Inside(Inside),
}

/// The machine's process on its way into the sandbox.
pub struct Inside {
    options: Options,
    apart: Apart,
    inherited: Inherited,
    lacks: Lacks,
    /// The folders shared with the guest, and whether they may be changed.
    shares: Vec<(OwnedFd, bool)>,
    /// The process outside, which is to be ready first.
    go: Option<Go>,
    locked: bool,
}

/// Splits this process, which has one thread; in two if there is to be a sandbox, or `apart`. The machine's process is
/// handed to `place` before it does anything.
///
/// # Errors
/// The host has no process left, or `place` fails.
pub fn split(
    options: Options,
    apart: bool,
    inherited: Inherited,
    place: impl FnOnce(Pid) -> anyhow::Result<()>,
) -> anyhow::Result<Side> {
    let inside = |apart, inherited, lacks, go| {
        Side::Inside(Inside { options, apart, inherited, lacks, shares: Vec::new(), go, locked: false })
    };
    let mut lacks = Lacks::new(options);
    if options.mode == Mode::None && !apart {
        let whole = Apart { user: false, others: false, all_users: true };
        return Ok(inside(whole, inherited, lacks, None));
    }
    match split::split(options.wants(Layer::Namespaces), place)? {
        Halves::Outside(machine, [news, post], start) => {
            let outside = Outside::new(options, machine, start, news, post)?;
            Ok(Side::Outside(outside, inherited))
        }
        Halves::Inside(apart, refusal, [tell, send], go) => {
            news::inside(tell);
            post::inside(send);
            if let Some(refusal) = refusal {
                lacks.add(Layer::Namespaces, why_no_namespaces(refusal, apart));
            }
            Ok(inside(apart, inherited, lacks, Some(go)))
        }
    }
}

/// Has kite end by `signal` if this is the machine's process; answers whether it is, and then is to end.
pub(crate) fn end_by(signal: i32) -> bool {
    news::tell(News::EndBy(signal))
}

/// Whether this process is the machine's, and another is outside.
pub fn is_inside() -> bool {
    news::is_inside()
}

/// Has the terminal restored, as this process is about to end. Makes two system calls, and may be called in a signal's
/// handler.
pub(crate) fn leave_terminal() {
    news::tell_in_handler(News::Refused);
    outside::restore_terminal();
}

impl Inside {
    /// Parts the folders shared with the guest, in this order at these `paths`, from the host's other files. Where that is
    /// not allowed, they stay as they are, and Landlock limits this process to them.
    pub fn part_shares(&mut self, folders: Vec<&mut Share>, paths: &[PathBuf]) {
        if self.options.mode == Mode::None {
            return;
        }
        // Who is not known here is told by these numbers.
        let unknown = ["overflowuid", "overflowgid"].map(|name| {
            let text = std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW)
        });
        for (folder, path) in folders.into_iter().zip(paths) {
            if !self.apart.all_users {
                folder.unknown = Some(unknown.into());
            }
            if self.apart.others && self.options.wants(Layer::Root) {
                match shares::part(path, &folder.root, folder.writable) {
                    Ok(parted) => folder.root = parted,
                    Err(error) => {
                        let why = format!("cannot part share {} from the host: {error:#}", path.display());
                        self.lacks.add(Layer::Root, why);
                    }
                }
            }
            // One that cannot be duplicated is one that Landlock does not allow.
            self.shares.extend(folder.root.try_clone().map(|root| (root, folder.writable)));
        }
    }

    /// Has what is only read, now and from now on, open where nothing can be changed: neither by this process nor by a guest
    /// that has taken it over, whatever else the guest may change. To be called when shares are parted, and before files
    /// are leased.
    pub fn part_files(&mut self) {
        if !self.apart.others || !self.options.wants(Layer::Root) {
            return;
        }
        match read_only::mounts() {
            Ok(()) => {
                let lacks = read_only::reopen_files(&self.inherited.0);
                lacks.into_iter().for_each(|why| self.lacks.add(Layer::Root, why));
            }
            Err(error) => self.lacks.add(Layer::Root, with_confinement(error).to_string()),
        }
    }

    /// Locks this process in, which has one thread, for a machine that `needs` this much; the first time only. The process
    /// outside is locked in then, too.
    ///
    /// Returns what is missing, a line each.
    ///
    /// # Errors
    /// A layer is required that the host does not allow.
    pub fn lock(&mut self, needs: Needs) -> anyhow::Result<Vec<String>> {
        if std::mem::replace(&mut self.locked, true) || self.options.mode == Mode::None {
            return Ok(Vec::new());
        }
        privileges::clear_environment();
        privileges::close(&self.inherited.0);
        let Self { apart, shares, lacks, .. } = self;
        lacks.try_layer(Layer::Root, || match apart.others {
            true => root::empty().map_err(with_confinement),
            false => bail!("it needs a mount namespace"),
        });
        lacks.try_layer(Layer::Rlimits, || {
            privileges::limit((apart.user && counts_by_namespace()).then_some(needs.threads))
        });
        lacks.try_layer(Layer::NoNewPrivs, no_new_privs);
        lacks.try_layer(Layer::Capabilities, || {
            let kept = kept(needs, apart.user);
            KEPT.store(kept, Ordering::Relaxed);
            privileges::drop_capabilities(kept, kept != 0 && geteuid().is_root())
        });
        lacks.try_layer(Layer::Landlock, || {
            let folders: Vec<_> =
                shares.iter().map(|(root, writable)| (root.as_fd(), landlock::share(*writable))).collect();
            landlock::restrict(&folders, Scope::from_all(landlock::LATEST))
        });
        shares.clear();
        lacks.try_layer(Layer::Seccomp, || seccomp::prepare(needs));
        let lacks = self.lacks.answer()?;
        self.go.take().map_or(Ok(()), Go::wait)?;
        Ok(lacks)
    }
}

fn no_new_privs() -> anyhow::Result<()> {
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
}

/// The layers that this host does not allow, and why.
struct Lacks {
    options: Options,
    list: Vec<(Layer, String)>,
}

impl Lacks {
    fn new(options: Options) -> Self {
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
            options::without(&without.collect::<Vec<_>>())
        )
    }
}

/// Capabilities that root's threads keep which serve folders (capabilities(7)): CAP_DAC_READ_SEARCH, to read them.
const READ: u64 = 1 << 2;
/// And to change them as the guest's users: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETGID, CAP_SETUID,
/// CAP_SETFCAP.
const CHANGE: u64 = READ | 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31;
/// What such threads keep here.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// What an ordinary user's keep of a user namespace of its own: CAP_DAC_OVERRIDE, which is good for files of that user and
/// its group alone. The guest's kernel has checked permissions, and lets the root of a namespace in the guest do what it
/// may (user_namespaces(7)).
const OWN: u64 = 1 << 1;

fn kept(needs: Needs, namespace: bool) -> u64 {
    match (needs.shares, geteuid().is_root()) {
        (Some(true), true) => CHANGE,
        (Some(false), true) => READ,
        (Some(true), false) if namespace => OWN,
        _ => 0,
    }
}

/// How many threads have been started and are not yet confined.
static ON_THE_WAY: Mutex<usize> = Mutex::new(0);
/// One of them is.
static ARRIVED: Condvar = Condvar::new();

/// A thread's way into the sandbox, from before it is started.
pub struct Entry(());

impl Entry {
    /// For a thread to be started, and handed to it.
    pub fn new() -> Self {
        *on_the_way() += 1;
        Self(())
    }

    /// Confines the calling thread, if this process is in a sandbox: from now on it has no capability, unless it serves a
    /// folder as root, and makes no other system calls than one of its kind does. Threads that it starts are confined as
    /// well.
    pub fn confine(self, thread: Thread) {
        confine(thread);
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        *on_the_way() -= 1;
        ARRIVED.notify_all();
    }
}

fn on_the_way() -> MutexGuard<'static, usize> {
    ON_THE_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Confines the main thread, once all others are confined: then the guest may begin.
pub fn close() {
    close_as(Thread::Main);
}

fn close_as(thread: Thread) {
    let mut left = on_the_way();
    while *left > 0 {
        left = ARRIVED.wait(left).unwrap_or_else(PoisonError::into_inner);
    }
    drop(left);
    confine(thread);
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

/// The number that kernels tell where they may not tell an owner's, unless set otherwise.
const OVERFLOW: u32 = 65534;

/// Whether processes of a user are counted for each user namespace: since Linux 5.14. Before that, others of the same user
/// would count too.
fn counts_by_namespace() -> bool {
    let Ok(name) = uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|char: char| !char.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

/// Why not all namespaces could be had, and what to do.
fn why_no_namespaces(refusal: Errno, apart: Apart) -> String {
    let what = if apart.others { "no user namespace" } else { "none" };
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
