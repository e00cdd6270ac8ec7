//! The sandbox around a machine: what kite takes from itself before the guest's first instruction, so that a guest that
//! takes over the process has taken over nothing.
//!
//! Everything that has a path or needs a right is opened first, by one thread. Then the process is split ([`split()`]):
//! the machine's half is built in namespaces of its own, and locks itself in ([`Inside::lock`]) when the guest is loaded;
//! the half outside stays what the user has started. Threads that start from then on confine themselves further ([`Entry`]), the main thread last ([`close`]).

mod landlock;
mod news;
mod options;
mod outside;
pub mod post;
mod privileges;
mod root;
mod seccomp;
mod shares;
mod split;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow, bail};
use devices::virtio::fs::Share;
use nix::errno::Errno;
use nix::sys::utsname::uname;
use nix::unistd::geteuid;

use crate::doctor;
use news::News;
pub use options::{Layer, Mode, Options, parse};
pub use outside::{End, Outside};
pub use seccomp::{Needs, Thread};
use split::{Apart, Halves};

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
    /// The one that the user has started.
    Outside(Outside),
    /// The machine's.
    Inside(Inside),
}

/// The machine's process on its way into the sandbox.
pub struct Inside {
    options: Options,
    apart: Apart,
    inherited: Inherited,
    lacks: Vec<Lack>,
    /// The folders shared with the guest, and whether they may be changed.
    shares: Vec<(OwnedFd, bool)>,
    locked: bool,
}

/// A layer that this host does not allow, and why.
struct Lack {
    layer: Layer,
    why: String,
}

/// Splits this process, which has one thread, unless there is to be no sandbox.
///
/// # Errors
/// The host has no process left.
pub fn split(options: Options, inherited: Inherited) -> anyhow::Result<Side> {
    let whole = Apart { user: false, others: false, all_users: true };
    let mut inside =
        Inside { options, apart: whole, inherited, lacks: Vec::new(), shares: Vec::new(), locked: false };
    if options.mode == Mode::None {
        return Ok(Side::Inside(inside));
    }
    let wanted = options.wants(Layer::Namespaces);
    match split::split(wanted)? {
        Halves::Outside(machine, [news, post]) => {
            let news = news::Reader::new(news).context("cannot set up a pipe")?;
            let post = post::Reader::new(post).context("cannot set up a pipe")?;
            Outside::new(machine, news, post).map(Side::Outside)
        }
        Halves::Inside(apart, refusal, [tell, send]) => {
            news::inside(tell);
            post::inside(send);
            inside.apart = apart;
            if let Some(refusal) = refusal {
                let why = why_no_namespaces(refusal, apart);
                inside.lacks.push(Lack { layer: Layer::Namespaces, why });
            }
            Ok(Side::Inside(inside))
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

/// Tells the process outside, if there is one, that standard error is closed here; answers whether there is.
pub(crate) fn stderr_closed() -> bool {
    news::tell(News::StderrClosed)
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
                    Err(error) => self.lacks.push(Lack {
                        layer: Layer::Root,
                        why: format!("cannot part share {} from the host: {error:#}", path.display()),
                    }),
                }
            }
            // One that cannot be duplicated is one that Landlock does not allow.
            self.shares.extend(folder.root.try_clone().map(|root| (root, folder.writable)));
        }
    }

    /// Locks this process in, which has one thread, for a machine that `needs` this much; the first time only.
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
        self.layer(Layer::Root, |this| match this.apart.others {
            true => root::empty().map_err(with_apparmor),
            false => bail!("it needs a mount namespace"),
        });
        self.layer(Layer::Rlimits, |this| {
            privileges::limit((this.apart.user && counts_by_namespace()).then_some(needs.threads))
        });
        self.layer(Layer::NoNewPrivs, |_| {
            nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
        });
        self.layer(Layer::Capabilities, |_| {
            let kept = kept(needs);
            KEPT.store(kept, Ordering::Relaxed);
            privileges::drop_capabilities(kept)
        });
        self.layer(Layer::Landlock, |this| {
            let folders: Vec<_> =
                this.shares.iter().map(|(root, writable)| (root.as_fd(), *writable)).collect();
            landlock::restrict(&folders)
        });
        self.shares.clear();
        self.layer(Layer::Seccomp, |_| seccomp::prepare(needs));
        self.answer_for_lacks()
    }

    fn layer(&mut self, layer: Layer, lock: impl FnOnce(&Self) -> anyhow::Result<()>) {
        if self.options.wants(layer)
            && let Err(error) = lock(self)
        {
            self.lacks.push(Lack { layer, why: format!("{error:#}") });
        }
    }

    fn answer_for_lacks(&self) -> anyhow::Result<Vec<String>> {
        let lacks: Vec<_> = self
            .lacks
            .iter()
            .map(|lack| format!("no sandbox layer {}: {}", lack.layer.name(), lack.why))
            .collect();
        if self.options.mode != Mode::Require || lacks.is_empty() {
            return Ok(lacks);
        }
        let lacking = Layer::ALL.into_iter().filter(|layer| self.lacks.iter().any(|it| it.layer == *layer));
        let without: Vec<_> = lacking.map(|layer| format!(",no-{}", layer.name())).collect();
        bail!(
            "the sandbox is required, and this host allows it in part: {}; or leave that out with \
             --sandbox=require{}",
            lacks.join("; "),
            without.concat()
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

fn kept(needs: Needs) -> u64 {
    match needs.shares {
        Some(writable) if geteuid().is_root() => {
            if writable {
                CHANGE
            } else {
                READ
            }
        }
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
    let mut left = on_the_way();
    while *left > 0 {
        left = ARRIVED.wait(left).unwrap_or_else(PoisonError::into_inner);
    }
    drop(left);
    confine(Thread::Main);
}

fn confine(thread: Thread) {
    if KEPT.load(Ordering::Relaxed) != 0 && thread != Thread::Share {
        privileges::set_capabilities(0).expect("a thread may give up what it has");
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
    let knob = doctor::user_namespaces_refused().map_or_else(
        || "a container's seccomp profile may forbid it".to_owned(),
        |(found, fix)| format!("they are {found}; {fix}"),
    );
    format!("{what} ({}): {knob}", refusal.desc())
}

/// A refusal with Ubuntu's reason for it, if that may be it.
fn with_apparmor(error: anyhow::Error) -> anyhow::Error {
    match doctor::user_namespaces_refused() {
        Some((_, fix)) => anyhow!("{error:#}; {fix}"),
        None => error,
    }
}
