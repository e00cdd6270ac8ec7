//! Groups of version 2: one hierarchy, whose folders have the controllers that the folder above gives them (the kernel's
//! admin-guide/cgroup-v2).
//!
//! A group that gives controllers to groups below it may have no processes itself, unless it is the root. Where ours has
//! none but this one, this process makes way into a group of its own; where there are others, the new group comes beside
//! ours, or further up, as far as this user may.

use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;

use super::place::joined;
use super::{
    Controller, Folder, Group, IN_CONTAINER, Limits, Name, Place, Refused, SUPERVISOR, device, explain,
    lower, set,
};
use crate::spec::limits::PERIOD;

/// What helps those who have no group to make others in.
const FIX: &str =
    "start kite in a group that is yours: systemd-run --user --scope -p Delegate=yes kite run ...";

/// What is there where systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// The same where a user's own service manager was given less than a limit needs.
const MANAGER: &str = "have it given to users' service managers: as root, `systemctl edit user@.service` with [Service] and \
                       Delegate=cpu io memory pids; then log in again";

/// This process has made way.
#[derive(Debug)]
pub struct Way {
    /// Where it was.
    from: Folder,
    /// Where it is.
    aside: String,
    /// The controllers that were then given to the groups below.
    given: Vec<Controller>,
}

impl Way {
    /// The folder that it leads back to.
    pub fn folder(&self) -> &Folder {
        &self.from
    }

    /// Takes this process back, as far as that is possible: the group is as it was before, once there is none below.
    pub fn back(self) {
        for controller in self.given {
            let _others_use_it =
                self.from.write("cgroup.subtree_control", &format!("-{}", controller.name()));
        }
        let _others_use_it =
            self.from.write("cgroup.procs", "0").and_then(|()| self.from.remove(&self.aside));
    }
}

/// Makes the group in the nearest place that can have it. `required` are those of `wanted` that must be there.
///
/// # Errors
/// There is no such place, or the group is taken.
pub fn make(
    place: &Place,
    name: &Name,
    wanted: &[Controller],
    required: &[Controller],
) -> anyhow::Result<(Group, Option<Way>)> {
    let (mount, own) = place.seen.as_ref().with_context(|| {
        format!(
            "the group of kite, {}, is not mounted here: mount -t cgroup2 none /sys/fs/cgroup",
            place.group.display()
        )
    })?;
    let mut reasons = Vec::new();
    for below in own.ancestors() {
        match make_in(mount, below, below == own, name, wanted, required) {
            Ok(made) => return Ok(made),
            Err(Refusal::Taken) => return Err(super::Taken(joined(mount, below).join(name.as_str())).into()),
            Err(Refusal::Here(why)) => reasons.push(format!("{}: {why}", joined(mount, below).display())),
            Err(Refusal::ReadOnly) => {
                let parent = joined(mount, below).display().to_string();
                return Err(anyhow::anyhow!(
                    "cannot make the group {} in {parent}, which is read-only: {IN_CONTAINER}",
                    name.as_str()
                ));
            }
        }
    }
    let reasons = reasons.join("; ");
    let fix = match Path::new(SYSTEMD).exists() {
        true if is_managed(own) && lacks(mount, own, required) => MANAGER.to_owned(),
        true => FIX.to_owned(),
        false => format!(
            "start kite in a group that is yours and that it has for itself; in a container, {IN_CONTAINER}"
        ),
    };
    Err(anyhow::anyhow!("cannot make the group {} in {reasons}: {fix}", name.as_str()))
}

/// Whether a group is below that of a user's own service manager.
fn is_managed(group: &Path) -> bool {
    group.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"user@"))
}

/// Whether a group has not every controller.
fn lacks(mount: &Path, below: &Path, required: &[Controller]) -> bool {
    let missing = Folder::open(mount, below).and_then(|folder| missing(&folder, required));
    missing.is_ok_and(|missing| !missing.is_empty())
}

/// The names of the controllers that a group has not.
fn missing(group: &Folder, required: &[Controller]) -> Result<Vec<&'static str>, Errno> {
    let here = words(&group.read("cgroup.controllers")?);
    Ok(required.iter().map(|it| it.name()).filter(|name| !here.iter().any(|it| it == name)).collect())
}

/// Why a folder cannot have the group.
enum Refusal {
    Taken,
    /// This whole file system is, and so are the folders above.
    ReadOnly,
    Here(String),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        if errno == Errno::EROFS {
            return Self::ReadOnly;
        }
        Self::Here(lower(explain(errno, String::new()).to_string().trim_start_matches(": ")))
    }
}

fn make_in(
    mount: &Path,
    below: &Path,
    own: bool,
    name: &Name,
    wanted: &[Controller],
    required: &[Controller],
) -> Result<(Group, Option<Way>), Refusal> {
    let parent = Folder::open(mount, below)?;
    let here = words(&parent.read("cgroup.controllers")?);
    let missing = missing(&parent, required)?;
    if !missing.is_empty() {
        return Err(Refusal::Here(format!("it has no controller {}", missing.join(" and "))));
    }
    // Who moves a process needs this file of the group around both places.
    parent.may_write("cgroup.procs")?;
    if parent.has("cgroup.type") && parent.read("cgroup.type")?.trim() != "domain" {
        return Err(Refusal::Here("it is for threads".to_owned()));
    }
    let given = words(&parent.read("cgroup.subtree_control")?);
    let lacking = |it: &&Controller| {
        here.iter().any(|name| name == it.name()) && !given.iter().any(|name| name == it.name())
    };
    let lacking: Vec<Controller> = wanted.iter().filter(lacking).copied().collect();
    let lacking = if required.is_empty() && own { Vec::new() } else { lacking };
    let way = give(&parent, own, name, &lacking)?;
    let group = super::make(parent, name, true, wanted).map_err(|refused| match refused {
        Refused::Taken => Refusal::Taken,
        Refused::Errno(errno) => errno.into(),
    });
    match (group, way) {
        (Ok(group), way) => Ok((group, way)),
        (Err(refusal), way) => {
            way.into_iter().for_each(Way::back);
            Err(refusal)
        }
    }
}

/// Gives the groups below `parent` these controllers too; this process makes way if it is all that is in the way.
fn give(parent: &Folder, own: bool, name: &Name, lacking: &[Controller]) -> Result<Option<Way>, Refusal> {
    if lacking.is_empty() {
        return Ok(None);
    }
    let words: Vec<_> = lacking.iter().map(|it| format!("+{}", it.name())).collect();
    let words = words.join(" ");
    // With processes in it, some controllers could be given all the same, but then only to threads.
    let processes = if parent.has("cgroup.type") { parent.processes()? } else { Vec::new() };
    if processes.is_empty() {
        parent.write("cgroup.subtree_control", &words)?;
        return Ok(None);
    }
    let this = i32::try_from(std::process::id()).unwrap_or_default();
    if !own || processes.iter().any(|process| *process != this) {
        return Err(Refusal::Here("there are other processes in it".to_owned()));
    }
    let aside = format!("{}{SUPERVISOR}", name.as_str());
    let folder = match parent.make(&aside) {
        Err(Errno::EEXIST) => parent.folder(Path::new(&aside))?,
        made => made?,
    };
    folder.write("cgroup.procs", "0")?;
    let from = parent.folder(Path::new("."))?;
    let way = Way { from, aside, given: lacking.to_vec() };
    match parent.write("cgroup.subtree_control", &words) {
        Ok(()) => Ok(Some(way)),
        Err(errno) => {
            way.back();
            Err(errno.into())
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Sets how much processor time there is in each [`PERIOD`].
///
/// # Errors
/// The kernel refuses it.
pub fn cpu(folder: &Folder, quota: u64) -> anyhow::Result<()> {
    set(folder, "cpu.max", &format!("{quota} {PERIOD}"))
}

/// Sets how much memory there is.
///
/// # Errors
/// The kernel refuses it.
pub fn memory(folder: &Folder, limit: u64) -> anyhow::Result<()> {
    set(folder, "memory.max", &limit.to_string())?;
    // Limits of memory and of swap are apart here: without swap the sum is the limit.
    if folder.has("memory.swap.max") {
        set(folder, "memory.swap.max", "0")?;
    }
    // A machine that has lost one of its processes is none.
    if folder.has("memory.oom.group") {
        set(folder, "memory.oom.group", "1")?;
    }
    Ok(())
}

/// Whether the group has ever wanted more memory than it may have.
pub fn has_reached_memory(folder: &Folder) -> bool {
    folder.number("memory.events", "oom").is_some_and(|times| times > 0)
}

/// Sets how fast devices are.
///
/// # Errors
/// The kernel refuses one.
pub fn io(folder: &Folder, limits: &Limits) -> anyhow::Result<()> {
    for limit in &limits.io {
        let mut line = device::number(&limit.device)?;
        for (rate, value) in &limit.rates {
            line += &format!(" {}={value}", rate.name());
        }
        set(folder, "io.max", &line)?;
    }
    Ok(())
}
