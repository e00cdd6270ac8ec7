//! The groups of a process, their limits and what they use (cgroups(7), both versions).

use std::io;
use std::path::Path;

use serde::Serialize;

use super::text;
use crate::sandbox::cgroup::{Folder, Place, places};

/// What version 1 says where there is no limit of memory: more pages than there are.
const V1_UNLIMITED: u64 = 1 << 62;
/// The controllers of version 1 that are reported.
const V1: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

/// A group.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Group {
    /// 1 or 2.
    pub version: u8,
    /// Those of the hierarchy, or with version 2 those that the group has.
    pub controllers: Vec<String>,
    /// Its folder, or the kernel's name for it if that is not to be seen from here.
    pub path: String,
    /// What it may take and takes.
    #[serde(flatten)]
    pub account: Account,
}

/// Limits and use. What is not limited, or not known, is not there.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Account {
    /// CPUs' worth of time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<f64>,
    /// Seconds of CPU time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// Processes that were killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_kills: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_used: Option<u64>,
    /// Limits of devices, in the kernel's words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_limits: Vec<String>,
}

/// The groups of a process; the roots of hierarchies of version 1, which limit nothing, are left out.
///
/// # Errors
/// They cannot be read.
pub fn of(process: &Path) -> io::Result<Vec<Group>> {
    let places = places(&text::read(process.join("cgroup"))?, &text::read("/proc/self/mountinfo")?);
    Ok(places.iter().filter(|place| is_told_of(place)).map(group).collect())
}

fn is_told_of(place: &Place) -> bool {
    place.v1.as_ref().is_none_or(|names| {
        place.group != Path::new("/") && names.iter().any(|name| V1.contains(&name.as_str()))
    })
}

fn group(place: &Place) -> Group {
    let path = place.folder().unwrap_or_else(|| place.group.clone()).display().to_string();
    let folder = place.seen.as_ref().and_then(|(mount, below)| Folder::open(mount, below).ok());
    match &place.v1 {
        Some(names) => {
            let account = folder.as_ref().map(v1).unwrap_or_default();
            Group { version: 1, controllers: names.clone(), path, account }
        }
        None => {
            let names = folder.as_ref().and_then(|folder| folder.read("cgroup.controllers").ok());
            let controllers = names.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
            // The root's account is the whole host's.
            let account = folder.as_ref().filter(|_| place.group != Path::new("/")).map(v2);
            Group { version: 2, controllers, path, account: account.unwrap_or_default() }
        }
    }
}

/// A file's only number; none for `max`.
fn number(folder: &Folder, file: &str) -> Option<u64> {
    folder.read(file).ok()?.trim().parse().ok()
}

fn v2(folder: &Folder) -> Account {
    let max = folder.read("cpu.max").ok();
    let io = folder.read("io.max").unwrap_or_default();
    Account {
        cpu_limit: max.and_then(|text| {
            let (quota, period) = text.trim().split_once(' ')?;
            share(quota.parse().ok()?, period.parse().ok()?)
        }),
        cpu_seconds: folder.number("cpu.stat", "usage_usec").map(|used| used as f64 / 1e6),
        memory_limit: number(folder, "memory.max"),
        memory_used: number(folder, "memory.current"),
        memory_peak: number(folder, "memory.peak"),
        memory_kills: folder.number("memory.events", "oom_kill"),
        pids_limit: number(folder, "pids.max"),
        pids_used: number(folder, "pids.current"),
        io_limits: io.lines().map(str::to_owned).collect(),
    }
}

fn v1(folder: &Folder) -> Account {
    let file = |name| number(folder, name);
    let quota = file("cpu.cfs_quota_us").zip(file("cpu.cfs_period_us"));
    let rates = ["read_bps", "write_bps", "read_iops", "write_iops"];
    let io_limits = rates.iter().flat_map(|rate| {
        let text = folder.read(&format!("blkio.throttle.{rate}_device")).unwrap_or_default();
        text.lines().map(|line| format!("{line} {rate}")).collect::<Vec<_>>()
    });
    Account {
        cpu_limit: quota.and_then(|(quota, period)| share(quota, period)),
        cpu_seconds: file("cpuacct.usage").map(|used| used as f64 / 1e9),
        memory_limit: file("memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED),
        memory_used: file("memory.usage_in_bytes"),
        memory_peak: file("memory.max_usage_in_bytes"),
        memory_kills: folder.number("memory.oom_control", "oom_kill"),
        pids_limit: file("pids.max"),
        pids_used: file("pids.current"),
        io_limits: io_limits.collect(),
    }
}

fn share(quota: u64, period: u64) -> Option<f64> {
    (period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_groups_are_told_of() {
        if !Path::new("/sys/fs/cgroup").exists() {
            return println!("skipped: our_own_groups_are_told_of: no cgroups are mounted");
        }
        for group in of(Path::new("/proc/self")).unwrap() {
            assert!(group.path.starts_with('/') && (1..=2).contains(&group.version), "{group:?}");
        }
        assert!(of(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_share_has_a_period() {
        assert_eq!(share(150_000, 100_000), Some(1.5));
        assert_eq!(share(1, 0), None);
    }

    #[test]
    fn roots_of_version_1_are_left_out() {
        let told = |groups: &str| places(groups, "").iter().filter(|place| is_told_of(place)).count();
        assert_eq!(told("1:cpu:/\n2:memory:/a\n3:name=systemd:/a\n0::/\n"), 2);
    }
}
