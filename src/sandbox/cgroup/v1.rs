//! Groups of version 1: a hierarchy for each controller (the kernel's admin-guide/cgroup-v1).

use anyhow::{Context, bail};
use nix::errno::Errno;

use super::place::joined;
use super::{Controller, Folder, Group, Limits, Name, Place, Refused, device, explain, set};
use crate::spec::limits::PERIOD;

/// What helps those whom version 1 does not let.
const FIX: &str = "groups of version 1 are root's to make: run kite as root, or boot the host with \
                   systemd.unified_cgroup_hierarchy=1";

/// Makes the group below this process's own.
///
/// # Errors
/// The host does not let it, or the group is taken.
pub fn make(place: &Place, name: &Name, controller: Controller) -> anyhow::Result<Group> {
    let (mount, below) = place.seen.as_ref().with_context(|| {
        let group = place.group.display();
        format!("the {} group of kite, {group}, is not mounted here: mount it", controller.v1_name())
    })?;
    let path = joined(mount, below);
    let parent = Folder::open(mount, below)
        .map_err(|errno| explain(errno, format!("cannot open the group {}", path.display())))?;
    super::make(parent, name, false, &[controller]).map_err(|refused| {
        let path = path.join(name.as_str());
        let what = format!("cannot make the group {}", path.display());
        match refused {
            Refused::Taken => super::Taken(path).into(),
            Refused::Errno(errno @ Errno::EROFS) => {
                anyhow::anyhow!("{}: {}", explain(errno, what), super::IN_CONTAINER)
            }
            Refused::Errno(errno @ (Errno::EACCES | Errno::EPERM)) => {
                anyhow::anyhow!("{}: {FIX}", explain(errno, what))
            }
            Refused::Errno(errno) => explain(errno, what),
        }
    })
}

/// Sets how much processor time there is in each [`PERIOD`].
///
/// # Errors
/// The kernel refuses it.
pub fn cpu(folder: &Folder, quota: u64) -> anyhow::Result<()> {
    set(folder, "cpu.cfs_period_us", &PERIOD.to_string())?;
    set(folder, "cpu.cfs_quota_us", &quota.to_string())
}

/// Sets how much memory there is.
///
/// # Errors
/// The kernel refuses it.
pub fn memory(folder: &Folder, limit: u64) -> anyhow::Result<()> {
    set(folder, "memory.limit_in_bytes", &limit.to_string())?;
    // Swap counts, too, unless the host kernel's command line says otherwise.
    if folder.has("memory.memsw.limit_in_bytes") {
        set(folder, "memory.memsw.limit_in_bytes", &limit.to_string())?;
    }
    Ok(())
}

/// Whether the group has ever had as much memory as it may.
pub fn has_reached_memory(folder: &Folder) -> bool {
    // Whether refusals are counted differs from kernel to kernel; memory is charged in pieces of 64 pages.
    const PIECE: u64 = 64 * 4096;
    let number = |file: &str| folder.read(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let (most, limit) = (number("memory.max_usage_in_bytes"), number("memory.limit_in_bytes"));
    most.zip(limit).is_some_and(|(most, limit)| most.saturating_add(PIECE) >= limit)
}

/// Sets how fast devices are.
///
/// # Errors
/// The kernel refuses one.
pub fn io(folder: &Folder, limits: &Limits) -> anyhow::Result<()> {
    for limit in &limits.io {
        let number = device::number(&limit.device)?;
        for (rate, value) in &limit.rates {
            if !folder.has(rate.v1_file()) {
                bail!("this host kernel limits no I/O: use one with CONFIG_BLK_DEV_THROTTLING");
            }
            set(folder, rate.v1_file(), &format!("{number} {value}"))?;
        }
    }
    Ok(())
}
