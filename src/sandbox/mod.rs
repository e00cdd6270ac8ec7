//! The sandbox around a machine: what kite takes from itself before the guest's first instruction, so that a guest that
//! takes over the process has taken over nothing.
//!
//! Everything that has a path or needs a right is opened first, by one thread. Then the process is split ([`split()`]):
//! the machine's half is built in namespaces of its own, and locks itself in ([`Inside::lock`]) when the guest is loaded;
//! the half outside stays what the user has started. Threads that start from then on confine themselves further ([`confine`]).

mod landlock;
mod news;
mod options;
mod outside;
mod privileges;
mod root;
mod seccomp;
mod split;

use std::os::fd::RawFd;

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;

use crate::doctor;
use news::News;
pub use options::{Layer, Mode, Options, parse};
pub use outside::{End, Outside};
pub use seccomp::{Needs, Thread, confine};
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
    let mut inside = Inside { options, apart: whole, inherited, lacks: Vec::new(), locked: false };
    if options.mode == Mode::None {
        return Ok(Side::Inside(inside));
    }
    let wanted = options.wants(Layer::Namespaces);
    match split::split(wanted)? {
        Halves::Outside(machine, pipe) => {
            let news = news::Reader::new(pipe).context("cannot set up a pipe")?;
            Ok(Side::Outside(Outside::new(machine, news)))
        }
        Halves::Inside(apart, refusal, tell) => {
            news::inside(tell);
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

/// Tells that standard error is closed here.
pub(crate) fn stderr_closed() {
    news::tell(News::StderrClosed);
}

impl Inside {
    /// Locks this process in, which has one thread, for a machine that `needs` this much; the first time only.
    ///
    /// # Errors
    /// A layer is required that the host does not allow.
    pub fn lock(&mut self, needs: Needs) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.locked, true) || self.options.mode == Mode::None {
            return Ok(());
        }
        privileges::clear_environment();
        privileges::close(&self.inherited.0);
        self.layer(Layer::Root, |this| match this.apart.others {
            true => root::empty().map_err(|error| with_apparmor(error)),
            false => bail!("it needs a mount namespace"),
        });
        // Counted for a user namespace alone they are since Linux 5.14, which Landlock's second ABI tells.
        self.layer(Layer::Rlimits, |_| privileges::limit(None));
        self.layer(Layer::NoNewPrivs, |_| {
            nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
        });
        self.layer(Layer::Capabilities, |_| privileges::drop_capabilities());
        self.layer(Layer::Landlock, |_| landlock::restrict(&[]));
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

    fn answer_for_lacks(&self) -> anyhow::Result<()> {
        let lacks: Vec<_> =
            self.lacks.iter().map(|lack| format!("no {}: {}", lack.layer.name(), lack.why)).collect();
        match (self.options.mode, self.lacks.first()) {
            (Mode::Require, Some(first)) => Err(anyhow!(
                "the sandbox is required, and this host allows it in part: {}; or leave it out with \
                 --sandbox=require,no-{}",
                lacks.join("; "),
                first.layer.name()
            )),
            _ => {
                lacks.iter().for_each(|lack| log::info!("sandbox: {lack}"));
                Ok(())
            }
        }
    }
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
