//! `--cgroup` and `--limit`: a group of its own for a machine, which bounds what it takes of the host (cgroups(7)), in
//! version 2 or, where version 1 has the controller, there.
//!
//! The supervisor makes the group and stays outside of it, so that it can report a machine that was killed for its memory,
//! and remove the group.

mod container;
mod device;
mod folder;
mod place;
mod stale;
mod v1;
mod v2;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use container::{ContainerGroup, Setting};
pub use folder::Folder;
pub use place::{Place, places};

pub use crate::spec::limits::{CgroupName as Name, Controller, Device, Limits};

/// What goes behind the name where kite makes way for a group.
const SUPERVISOR: &str = ".supervisor";
/// How often, and how far apart, a group is tried to be removed whose last processes are still on their way out.
const TRIES: u32 = 400;
const PAUSE: Duration = Duration::from_millis(5);
/// What helps where groups are shown but not given, as containers have them.
const IN_CONTAINER: &str = "give the limits to the container that kite is in (docker run --cpus, --memory, --pids-limit), \
                            or run that with --privileged";

/// Where this process's groups are.
fn own_places() -> anyhow::Result<Vec<Place>> {
    let groups = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(places(&groups, &mounts))
}

/// A group in one hierarchy.
#[derive(Debug)]
struct Group {
    parent: Folder,
    /// Locked, so that no other kite takes it.
    folder: Folder,
    v2: bool,
    controllers: Vec<Controller>,
}

impl Group {
    /// Sets the limits of its controllers.
    fn limit(&self, limits: &Limits) -> anyhow::Result<()> {
        let Self { folder, v2, .. } = self;
        for controller in &self.controllers {
            match (controller, limits) {
                (Controller::Cpu, Limits { cpu: Some(quota), .. }) => {
                    if *v2 {
                        v2::cpu(folder, *quota)?
                    } else {
                        v1::cpu(folder, *quota)?
                    }
                }
                (Controller::Memory, Limits { memory: Some(limit), .. }) => {
                    if *v2 {
                        v2::memory(folder, *limit)?
                    } else {
                        v1::memory(folder, *limit)?
                    }
                }
                (Controller::Pids, Limits { pids: Some(most), .. }) => {
                    set(folder, "pids.max", &most.to_string())?
                }
                (Controller::Io, _) => {
                    if *v2 {
                        v2::io(folder, limits)?
                    } else {
                        v1::io(folder, limits)?
                    }
                }
                (Controller::Cpu | Controller::Memory | Controller::Pids, _) => {}
            }
        }
        Ok(())
    }
}

/// A machine's group: one folder in each hierarchy that has something to limit. It is removed when dropped, with every
/// process in it.
#[derive(Debug)]
pub struct Cgroup {
    name: Name,
    groups: Vec<Group>,
    limited_memory: Option<u64>,
    /// Where this process was before it made way for the group.
    made_way: Option<v2::Way>,
}

impl Cgroup {
    /// Makes a group with these limits, below this process's own or, where that cannot have groups below it, beside it.
    /// One of the same name that is empty, as a killed kite leaves it, is made anew.
    ///
    /// # Errors
    /// The host lacks what a limit needs, does not let this user, or another kite has the group.
    pub fn create(name: &Name, limits: &Limits) -> anyhow::Result<Self> {
        // A limit that makes no sense is reported before what this user may not do.
        for limit in &limits.io {
            device::number(&limit.device)?;
        }
        let places = own_places()?;
        let needed = limits.controllers();
        let wanted = if needed.is_empty() { Controller::COUNTING.to_vec() } else { needed.clone() };
        let mut this =
            Self { name: name.clone(), groups: Vec::new(), limited_memory: limits.memory, made_way: None };
        let (mut for_v2, mut refused) = (Vec::new(), None);
        for controller in wanted {
            let Some(place) = places.iter().find(|place| place.is_v1_of(controller.v1_name())) else {
                for_v2.push(controller);
                continue;
            };
            match this.add_v1(place, controller) {
                Ok(()) => {}
                // One of several that would only have counted may be missing.
                Err(error) if needed.is_empty() && !error.is::<Taken>() => _ = refused.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        if !for_v2.is_empty() && (!needed.is_empty() || this.groups.is_empty()) {
            this.add_v2(&places, &for_v2, !needed.is_empty())?;
        }
        if let Some(error) = refused.filter(|_| this.groups.is_empty()) {
            return Err(error);
        }
        for group in &this.groups {
            group.limit(limits)?;
        }
        Ok(this)
    }

    /// One folder in the hierarchy of version 2.
    fn add_v2(&mut self, places: &[Place], wanted: &[Controller], required: bool) -> anyhow::Result<()> {
        let place = places.iter().find(|place| place.v1.is_none()).with_context(|| {
            let names: Vec<_> = wanted.iter().map(|it| it.name()).collect();
            let names = names.join(" and ");
            format!("this host has no cgroup controller {names}: mount -t cgroup2 none /sys/fs/cgroup")
        })?;
        let required = if required { wanted } else { &[] };
        let (group, made_way) = v2::make(place, &self.name, wanted, required)?;
        self.groups.push(group);
        self.made_way = made_way;
        Ok(())
    }

    /// One folder in a hierarchy of version 1; those of several controllers share it if they share the hierarchy.
    fn add_v1(&mut self, place: &Place, controller: Controller) -> anyhow::Result<()> {
        let mine = |group: &&mut Group| {
            !group.v2 && place.folder().is_some_and(|folder| group.parent.path() == folder)
        };
        if let Some(group) = self.groups.iter_mut().find(mine) {
            group.controllers.push(controller);
            return Ok(());
        }
        self.groups.push(v1::make(place, &self.name, controller)?);
        Ok(())
    }

    /// Moves a process into the group, for good.
    ///
    /// # Errors
    /// The host does not let it.
    pub fn add(&self, process: Pid) -> anyhow::Result<()> {
        for group in &self.groups {
            let path = group.folder.path();
            let refused = |errno| explain(errno, format!("cannot enter the group {}", path.display()));
            group.folder.write("cgroup.procs", &process.to_string()).map_err(refused)?;
        }
        Ok(())
    }

    /// Leaves the group to another process, which removes it.
    pub fn leave(mut self) {
        self.made_way = None;
        self.groups.clear();
    }

    /// The most memory that the limits allow, in bytes.
    pub fn limited_memory(&self) -> Option<u64> {
        self.limited_memory
    }

    /// The folders in which it is read and removed.
    pub fn folders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let way = self.made_way.iter().map(|way| way.folder().as_fd());
        self.groups.iter().map(|group| group.parent.as_fd()).chain(way)
    }

    /// How many processes of the group the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let count = |group: &Group| {
            let file = if group.v2 { "memory.events" } else { "memory.oom_control" };
            group.folder.number(file, "oom_kill")
        };
        self.groups.iter().filter_map(count).sum()
    }

    /// Why the kernel has killed for want of memory, if it has, as a sentence's end.
    pub fn memory_kill(&self) -> Option<String> {
        if self.oom_kills() == 0 {
            return None;
        }
        let reached = |group: &Group| {
            if group.v2 {
                v2::has_reached_memory(&group.folder)
            } else {
                v1::has_reached_memory(&group.folder)
            }
        };
        let reached = self.groups.iter().any(reached);
        Some(match self.limited_memory.filter(|_| reached) {
            Some(limit) => format!("it took more than the {} that --limit memory allows", size(limit)),
            None => "the host had no memory left for it".to_owned(),
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for group in &self.groups {
            if let Err(errno) = remove(&group.parent, &group.folder, self.name.as_str()) {
                log::warn!("cannot remove the group {}: {}", group.folder.path().display(), errno.desc());
            }
        }
        if let Some(way) = self.made_way.take() {
            way.back();
        }
    }
}

/// Ends the processes of the group `name` of `parent`, and removes it. They leave it only a moment after they have ended.
fn remove(parent: &Folder, group: &Folder, name: &str) -> Result<(), Errno> {
    for _ in 0..TRIES {
        match parent.remove(name) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno),
        }
        for process in group.processes().unwrap_or_default() {
            // A group lists 0 for who cannot be seen from here, and to kill 0 would be to kill ourselves.
            if process > 0 {
                let _it_has_gone = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
        sleep(PAUSE);
    }
    Err(Errno::EBUSY)
}

/// Makes a folder that no other kite has; a stale one is made anew, so that it has no limits of before.
fn make(parent: Folder, name: &Name, v2: bool, controllers: &[Controller]) -> Result<Group, Refused> {
    if Name::process(name.as_str()).is_some() {
        stale::sweep(&parent);
    }
    let folder = match parent.make(name.as_str()) {
        Err(Errno::EEXIST) => {
            let stale = parent.folder(name.as_str().as_ref())?;
            stale.lock().map_err(|_| Refused::Taken)?;
            match parent.remove(name.as_str()) {
                Err(Errno::EBUSY) => return Err(Refused::Taken),
                removed => removed?,
            }
            parent.make(name.as_str())?
        }
        made => made?,
    };
    folder.lock().map_err(|_| Refused::Taken)?;
    // Before it was locked, another kite may have taken it for a stale one.
    if !folder.is(&parent, name.as_str()) {
        return Err(Refused::Taken);
    }
    Ok(Group { parent, folder, v2, controllers: controllers.to_vec() })
}

/// Why a group is not to be had.
#[derive(Debug)]
enum Refused {
    /// There are processes in it, or it is another kite's.
    Taken,
    Errno(Errno),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// The group at this path is another kite's, or has processes.
#[derive(Debug, thiserror::Error)]
#[error("the group {} is in use: choose another --cgroup, or leave it out", .0.display())]
struct Taken(PathBuf);

/// A refusal by the kernel, in terms that fit groups.
fn explain(errno: Errno, what: String) -> anyhow::Error {
    let why = match errno {
        Errno::ELOOP => "there is a symbolic link on the way",
        Errno::EMEDIUMTYPE | Errno::EXDEV => "something else is mounted there",
        Errno::ENOSYS => "the host kernel has no openat2(2): use Linux 5.6 or later",
        Errno::ENODEV => "it has been removed",
        errno => return anyhow!("{what}: {}", lower(errno.desc())),
    };
    anyhow!("{what}: {why}")
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_lowercase().to_string() + chars.as_str()).unwrap_or_default()
}

/// A limit is set, or the kernel's reason given.
fn set(folder: &Folder, file: &str, text: &str) -> anyhow::Result<()> {
    match folder.write(file, text) {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL | Errno::ERANGE) => bail!(
            "the host kernel refuses {text:?} for {}: it may be more than the group around it has",
            folder.path().join(file).display()
        ),
        Err(errno) => Err(explain(errno, format!("cannot set {}", folder.path().join(file).display()))),
    }
}

/// Bytes as a user would have written them.
pub fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &(u32, &str)| bytes >> shift > 0 && bytes.is_multiple_of(1 << shift);
    units
        .into_iter()
        .find(fits)
        .map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_plain_folder() {
        for name in ["a", "kite-7", "ci:job@2.x_y", "9"] {
            assert_eq!(Name::parse(name).unwrap().as_str(), name);
        }
        let long = "a".repeat(65);
        for name in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "a/b",
            "../a",
            "/a",
            "a b",
            "a\n",
            "ä",
            "cgroup.procs",
            "memory.x",
            "tasks",
            "release_agent",
            &long,
        ] {
            assert!(!Name::parse(name).unwrap_err().contains('\n'), "{name:?}");
        }
    }

    #[test]
    fn a_made_up_name_has_its_process() {
        assert_eq!(Name::process(Name::of_this_process().as_str()), Some(std::process::id() as i32));
        for name in ["kite", "kite-", "kite-x", "kite-0", "kite--1", "kite-7.supervisor", "kite-99999999999"]
        {
            assert_eq!(Name::process(name), None, "{name}");
        }
    }

    #[test]
    fn sizes_are_told_in_the_greatest_whole_unit() {
        assert_eq!(size(600 << 20), "600 MiB");
        assert_eq!(size(2 << 30), "2 GiB");
        assert_eq!(size(1000), "1000 bytes");
        assert_eq!(size(0), "0 bytes");
    }
}
