//! The VM process: it locks itself in, step by step, until only what the machine needs is possible.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use ::landlock::{Access, Scope};
use anyhow::ensure;
use devices::virtio::fs::Share;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;

use crate::host::atomic_file;

use super::fork::Apart;
use super::{
    InheritedFds, KEPT, Lacks, Layer, Mode, Needs, Questions, READ, channel, landlock, no_new_privs,
    privileges, read_only, root, seccomp, shares, why_not, with_confinement,
};
use crate::spec::sandbox::SandboxSpec;

/// Makes a network namespace for the calling thread; answers what leads there, if both can be had.
fn new_network() -> Option<File> {
    unshare(CloneFlags::CLONE_NEWNET).ok()?;
    File::open("/proc/thread-self/ns/net").ok()
}

/// The process that has the machine, on its way into the sandbox; kite's only process where there is no fork.
pub struct VmProcess {
    options: SandboxSpec,
    apart: Apart,
    inherited: InheritedFds,
    lacks: Lacks,
    /// The folders shared with the guest, and whether they may be changed.
    shares: Vec<(OwnedFd, bool)>,
    /// What commands may ask of the machine, if they may.
    questions: Option<Questions>,
    /// The network namespace, which another thread has made.
    network: Option<File>,
    prepared: bool,
    locked: bool,
}

impl VmProcess {
    pub(super) fn new(
        options: SandboxSpec,
        inherited: InheritedFds,
        apart: Apart,
        lacks: Lacks,
        questions: Option<Questions>,
    ) -> Self {
        let (shares, network) = (Vec::new(), None);
        Self { options, apart, inherited, lacks, shares, questions, network, prepared: false, locked: false }
    }

    /// By which commands ask for the machine, if they may.
    pub fn questions(&self) -> Option<Questions> {
        self.questions
    }

    /// Parts the folders shared with the guest, in this order at these `paths`, from the host's other files. Where that is
    /// not allowed, they stay as they are, and Landlock limits this process to them.
    pub fn part_shares(&mut self, folders: Vec<&mut Share>, paths: &[PathBuf]) {
        if self.options.mode == Mode::None || folders.is_empty() {
            return;
        }
        // The kernel gives these numbers for users that are not known here.
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
    /// that has taken it over, whatever else the guest may change. It is called when shares are parted, and before files
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

    /// Does what of [`Self::lock`] takes long, on any thread of this process: when all that has a path is open, and while
    /// others build the machine. The first time only.
    pub fn prepare(&mut self, needs: Needs) {
        if std::mem::replace(&mut self.prepared, true) || self.options.mode == Mode::None {
            return;
        }
        let Self { apart, lacks, questions, .. } = self;
        if apart.others {
            // Before the way there is out of reach with the root.
            self.network = new_network();
        }
        lacks.try_layer(Layer::Root, || {
            ensure!(apart.others, "it needs a mount namespace");
            root::empty().map_err(with_confinement)
        });
        let needs = Needs { files: atomic_file::are_sent(), control: questions.is_some(), ..needs };
        lacks.try_layer(Layer::Seccomp, || seccomp::prepare(needs));
    }

    /// Moves the calling thread, and those that it starts from then on, into the network namespace that there is or into
    /// a new one.
    fn part_network(&mut self) {
        if !self.apart.others {
            return;
        }
        let parted = match self.network.take() {
            Some(network) => setns(network, CloneFlags::CLONE_NEWNET),
            None => unshare(CloneFlags::CLONE_NEWNET),
        };
        if let Err(refusal) = parted {
            self.lacks.add(Layer::Namespaces, why_not("no network namespace", refusal));
        }
    }

    /// Locks this process in, which has one thread, for a machine that `needs` this much; the first time only. The
    /// supervisor is locked in then, too.
    ///
    /// Returns what is missing, a line each.
    ///
    /// # Errors
    /// A layer is required that the host does not allow.
    pub fn lock(&mut self, needs: Needs) -> anyhow::Result<Vec<String>> {
        if std::mem::replace(&mut self.locked, true) {
            return Ok(Vec::new());
        }
        if self.options.mode == Mode::None {
            return channel::wait_until_locked().map(|()| Vec::new());
        }
        self.prepare(needs);
        self.part_network();
        privileges::clear_environment();
        privileges::close(&self.inherited.0);
        let Self { apart, shares, lacks, .. } = self;
        lacks.try_layer(Layer::Rlimits, || {
            privileges::limit((apart.user && counts_by_namespace()).then_some(needs.threads))
        });
        lacks.try_layer(Layer::NoNewPrivs, no_new_privs);
        lacks.try_layer(Layer::Capabilities, || {
            let capabilities = capabilities(needs, apart.user);
            KEPT.store(capabilities, Ordering::Relaxed);
            privileges::drop_capabilities(capabilities, capabilities != 0 && geteuid().is_root())
        });
        lacks.try_layer(Layer::Landlock, || {
            let folders: Vec<_> =
                shares.iter().map(|(root, writable)| (root.as_fd(), landlock::share(*writable))).collect();
            landlock::restrict(&folders, Scope::from_all(landlock::LATEST))
        });
        shares.clear();
        let lacks = self.lacks.answer()?;
        channel::wait_until_locked()?;
        Ok(lacks)
    }
}

/// What root's threads keep that change folders as the guest's users: CAP_DAC_READ_SEARCH, CAP_CHOWN, CAP_DAC_OVERRIDE,
/// CAP_FOWNER, CAP_FSETID, CAP_SETGID, CAP_SETUID, CAP_SETFCAP.
const CHANGE: u64 = READ | 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31;

/// What an ordinary user's threads have in a user namespace of its own: CAP_DAC_OVERRIDE, which is good for files of that user and
/// its group alone. The guest's kernel has checked permissions, and lets the root of a namespace in the guest do what it
/// may (user_namespaces(7)).
const OWN: u64 = 1 << 1;

/// The capabilities that its threads need.
fn capabilities(needs: Needs, namespace: bool) -> u64 {
    match (needs.shares, geteuid().is_root()) {
        (Some(true), true) => CHANGE,
        (Some(false), true) => READ,
        (Some(true), false) if namespace => OWN,
        _ => 0,
    }
}

/// The number that kernels give for an owner who is not known, unless set otherwise.
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
