//! A container's group on the host: made and entered by `create`, removed by `delete`.

use anyhow::Context;
use nix::unistd::Pid;

use super::config::Config;
use super::log::Log;
use super::resources;
use super::state::{Folder, GroupRecord, Record, is_host_root};
use crate::sandbox::cgroup::ContainerGroup;

/// Makes the group that the document names, for a machine with so much `ram`, and puts the monitor into it, and so all that
/// it starts. What only root may do, others do without.
///
/// # Errors
/// It is no place for a group, or the host does not let root make it.
pub fn enter(
    config: &Config,
    ram: u64,
    folder: &Folder,
    record: &mut Record,
    log: &Log,
) -> anyhow::Result<()> {
    let (named, is_root) = (&config.linux.cgroups_path, is_host_root());
    let settings = resources::settings(&config.linux.resources, ram)?;
    let Some(path) = resources::path(named, &record.id, !settings.is_empty(), is_root)? else {
        return Ok(());
    };
    let without = |why: &str| {
        log.warning(&format!(
            "linux.cgroupsPath and linux.resources of config.json: without effect but on the machine's size: {why}"
        ));
        Ok(())
    };
    let Some(group) = ContainerGroup::at(&path)? else {
        return without("this host does not have its controllers in cgroups of version 2");
    };
    // Whatever becomes of this process, `delete` finds the group, and ends nothing in one that is another's.
    record.group = Some(GroupRecord { path, found: None });
    folder.write_record(record)?;
    let done = group.make(&settings).and_then(|found| {
        if let Some(group) = &mut record.group {
            group.found = Some(found);
        }
        folder.write_record(record)?;
        group.add(Pid::from_raw(record.pid))
    });
    match done.context("linux.cgroupsPath") {
        Err(error) if !is_root => {
            remove(record)?;
            record.group = None;
            without(&format!("{error:#}"))
        }
        done => done,
    }
}

/// Removes the group of a container whose monitor has ended, with what is in it.
///
/// # Errors
/// The host does not let it.
pub fn remove(record: &Record) -> anyhow::Result<()> {
    let Some(GroupRecord { path, found }) = &record.group else { return Ok(()) };
    match ContainerGroup::at(path)? {
        Some(group) => group.remove(found.unwrap_or(path.iter().count()), found.is_some()),
        None => Ok(()),
    }
}
