//! `linux.cgroupsPath` and `linux.resources` as a group of the host's (OCI runtime-spec 1.2, `config-linux.md`), in the words of
//! cgroups of version 2 (the kernel's admin-guide/cgroup-v2).

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};

use super::config::{BlockIo, Cpu, Memory, Resources, Throttle, short};
use crate::sandbox::cgroup::Setting;
use crate::spec::number::MIB;

/// What a machine's own processes have of memory beside the guest's RAM, in bytes: programs, buffers, and page tables.
const OVERHEAD: u64 = 64 * MIB;
/// The part of the guest's RAM that describes it: entries of eight bytes for pages of 4 KiB, in the host's tables twice.
const TABLES: u64 = 256;
/// How many threads and processes a machine has on the host at most, which are not the container's.
const THREADS: i64 = 2048;
/// A limit that is none is often written as the largest number.
const NO_LIMIT: u64 = 1 << 50;
/// The period of a quota that names none, in microseconds.
const PERIOD: u64 = 100_000;
/// Where groups are whose containers have limits and name none.
const OWN: &str = "kite-oci";

/// A limit's bytes, if it is one.
pub fn bytes(limit: Option<i64>) -> Option<u64> {
    limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| (1..NO_LIMIT).contains(limit))
}

/// How many processors a document allows, rounded up; nothing if as many as there are.
///
/// # Errors
/// `cpus` is no list of processors.
pub fn processors(cpu: &Cpu) -> anyhow::Result<Option<u64>> {
    let quota = cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
    let by_quota = quota.map(|quota| quota.div_ceil(period(cpu)));
    let by_set = Some(cpu.cpus.trim()).filter(|list| !list.is_empty()).map(count).transpose()?;
    Ok(by_quota.into_iter().chain(by_set).min())
}

fn period(cpu: &Cpu) -> u64 {
    cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD)
}

/// How many there are in a list of numbers and ranges (cpuset(7), "List format").
fn count(list: &str) -> anyhow::Result<u64> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let one = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first)
            .zip(number(last))
            .and_then(|(first, last)| last.checked_sub(first))
            .map(|it| u64::from(it) + 1),
        None => number(part).map(|_| 1),
    };
    list.split(',').map(one).sum::<Option<u64>>().with_context(|| {
        format!("linux.resources.cpu.cpus is '{}': it is a list such as 0-2,4", short(list).escape_debug())
    })
}

/// Where the group is, from the root of the hierarchy; nothing where the document names none and limits nothing.
///
/// # Errors
/// It is no place for a group.
pub fn path(named: &str, id: &str, has_limits: bool, is_root: bool) -> anyhow::Result<Option<PathBuf>> {
    if named.is_empty() {
        return Ok(has_limits.then(|| Path::new(OWN).join(id)));
    }
    let parts: Vec<_> = named.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] if !named.starts_with('/') => unit(slice, prefix, name, is_root)?,
        _ => named.into(),
    };
    let parts = path.components().filter(|part| *part != Component::RootDir);
    let is_plain =
        !named.contains(['\0', '\n']) && parts.clone().all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        is_plain && parts.clone().next().is_some(),
        "linux.cgroupsPath is '{}': it is a path without dots, or SLICE:PREFIX:NAME",
        short(named).escape_debug()
    );
    Ok(Some(parts.collect()))
}

/// Where systemd has the unit of a container (systemd.slice(5)). Here the group is made as any other.
fn unit(slice: &str, prefix: &str, name: &str, is_root: bool) -> anyhow::Result<PathBuf> {
    let slice = match slice {
        "" if is_root => "system.slice",
        "" => "user.slice",
        slice => slice,
    };
    let no_slice = || format!("linux.cgroupsPath: '{}' is no name of a slice", short(slice).escape_debug());
    let stem = slice.strip_suffix(".slice").with_context(no_slice)?;
    let mut path = PathBuf::new();
    if stem != "-" {
        ensure!(!stem.split('-').any(str::is_empty) && !stem.contains('/'), no_slice());
        // a-b.slice is below a.slice.
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        path.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    ensure!(!name.is_empty() && !format!("{prefix}{name}").contains('/'), "linux.cgroupsPath names no unit");
    path.push(match name {
        name if name.ends_with(".slice") => name.to_owned(),
        name if prefix.is_empty() => format!("{name}.scope"),
        name => format!("{prefix}-{name}.scope"),
    });
    Ok(path)
}

/// What is written to the files of the group of a machine with so much `ram`.
///
/// # Errors
/// A file that the document names is none to write.
pub fn settings(resources: &Resources, ram: u64) -> anyhow::Result<Vec<Setting>> {
    let mut settings = Vec::new();
    memory(&resources.memory, ram, &mut settings);
    cpu(&resources.cpu, &mut settings);
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit > 0) {
        // The container's processes are the guest's, and count there.
        settings.push(Setting::new("pids.max", limit.saturating_add(THREADS)));
    }
    block_io(&resources.block_io, &mut settings);
    for (file, value) in &resources.unified {
        let is_one = file.contains('.') && !file.starts_with(['.', '/']) && !file.starts_with("cgroup.");
        ensure!(
            is_one && !file.contains(['/', '\0']),
            "linux.resources.unified: '{}' is no file of a limit",
            short(file).escape_debug()
        );
        settings.push(Setting::new(file, value));
    }
    Ok(settings)
}

/// A container's limit is the guest's RAM but for its kernel; the machine's is that RAM and what its own processes need.
fn memory(memory: &Memory, ram: u64, settings: &mut Vec<Setting>) {
    if let Some(limit) = bytes(memory.limit) {
        settings.push(Setting::new("memory.max", ram + OVERHEAD + ram / TABLES));
        // Both together are given, and limits of version 2 are apart.
        if let Some(both) = bytes(memory.swap) {
            settings.push(Setting::new("memory.swap.max", both.saturating_sub(limit)).if_there());
        }
    }
    if let Some(reservation) = bytes(memory.reservation) {
        settings.push(Setting::new("memory.low", reservation));
    }
}

fn cpu(cpu: &Cpu, settings: &mut Vec<Setting>) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
        // From 2 to 262144 to 1 to 10000, as runc and crun have it.
        let shares = shares.clamp(2, 262_144);
        settings.push(Setting::new("cpu.weight", 1 + (shares - 2) * 9999 / 262_142));
    }
    match cpu.quota {
        Some(quota @ 1..) => settings.push(Setting::new("cpu.max", format!("{quota} {}", period(cpu)))),
        _ if cpu.period.is_some_and(|period| period > 0) => {
            settings.push(Setting::new("cpu.max", format!("max {}", period(cpu))));
        }
        _ => {}
    }
    for (file, list) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !list.is_empty() {
            settings.push(Setting::new(file, list));
        }
    }
}

fn block_io(io: &BlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = io.weight.filter(|weight| *weight > 0) {
        let weight = weight.clamp(10, 1000);
        // The one file is of a scheduler, the other of a model of costs; a kernel has either, both or none.
        settings.push(Setting::new("io.bfq.weight", weight).if_there());
        settings.push(Setting::new("io.weight", 1 + (weight - 10) * 9999 / 990).if_there());
    }
    let rates: [(&str, &[Throttle]); 4] = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (name, throttles) in rates {
        for Throttle { major, minor, rate } in throttles {
            settings.push(Setting::new("io.max", format!("{major}:{minor} {name}={rate}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Vec<String> {
        let resources: Resources = serde_json::from_str(json).unwrap();
        let settings = settings(&resources, 1 << 30).unwrap();
        settings.iter().map(|it| format!("{}={}", it.file, it.value)).collect()
    }

    #[test]
    fn limits_become_files_of_a_group() {
        for (json, expected) in [
            ("{}", &[][..]),
            (r#"{"memory": {"limit": -1, "swap": -1}, "pids": {"limit": 0}, "cpu": {"quota": -1}}"#, &[]),
            (r#"{"memory": {"limit": 9223372036854771712}}"#, &[]),
            // 1 GiB, 64 MiB and 4 MiB.
            (
                r#"{"memory": {"limit": 4096, "swap": 8192, "reservation": 9}}"#,
                &["memory.max=1145044992", "memory.swap.max=4096", "memory.low=9"],
            ),
            (r#"{"cpu": {"quota": 5, "shares": 2}}"#, &["cpu.weight=1", "cpu.max=5 100000"]),
            (r#"{"cpu": {"period": 7, "shares": 999999}}"#, &["cpu.weight=10000", "cpu.max=max 7"]),
            (
                r#"{"cpu": {"shares": 1024, "cpus": "0-1", "mems": "0"}}"#,
                &["cpu.weight=39", "cpuset.cpus=0-1", "cpuset.mems=0"],
            ),
            (r#"{"pids": {"limit": 2}}"#, &["pids.max=2050"]),
            (
                r#"{"blockIO": {"weight": 1000, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 2}]}}"#,
                &["io.bfq.weight=1000", "io.weight=10000", "io.max=8:0 rbps=1", "io.max=8:1 wiops=2"],
            ),
            (r#"{"unified": {"memory.high": "1"}, "devices": [{"allow": false}]}"#, &["memory.high=1"]),
        ] {
            assert_eq!(written(json), expected, "{json}");
        }
        for file in ["cgroup.procs", "../memory.max", "memory.max/x", "tasks", "", ".", "/x.y"] {
            let unified = [(file.to_owned(), "1".to_owned())].into();
            assert!(settings(&Resources { unified, ..Resources::default() }, 0).is_err(), "{file}");
        }
    }

    #[test]
    fn a_group_is_where_the_engine_says() {
        for (named, expected) in [
            ("/libpod_parent/libpod-a", "libpod_parent/libpod-a"),
            ("a//b/", "a/b"),
            ("/x:y:z/a", "x:y:z/a"),
            ("machine.slice:libpod:a", "machine.slice/libpod-a.scope"),
            ("a-b-c.slice:cri:d", "a.slice/a-b.slice/a-b-c.slice/cri-d.scope"),
            ("-.slice:x:y", "x-y.scope"),
            (":docker:y", "system.slice/docker-y.scope"),
            ("a.slice::y.slice", "a.slice/y.slice"),
        ] {
            assert_eq!(path(named, "id", false, true).unwrap(), Some(expected.into()), "{named}");
        }
        for named in [
            "/",
            "//",
            "..",
            "/a/../b",
            "./a",
            "a:b:c",
            "a--b.slice:x:y",
            "-a.slice:x:y",
            "a.slice:x:",
            "a.slice:x:/../y",
            "a.slice:../x:y",
            "a/b.slice:x:y",
            "a\n",
        ] {
            let error = path(named, "id", true, true).unwrap_err().to_string();
            assert!(error.starts_with("linux.cgroupsPath") && !error.contains('\n'), "{named}: {error}");
        }
        assert_eq!(path("", "id", false, true).unwrap(), None);
        assert_eq!(path("", "id", true, true).unwrap(), Some("kite-oci/id".into()));
        assert_eq!(path(":a:b", "id", true, false).unwrap(), Some("user.slice/a-b.scope".into()));
    }

    #[test]
    fn processors_are_the_least_of_what_limits_them() {
        let cpu = |quota, period, cpus: &str| Cpu { quota, period, cpus: cpus.to_owned(), ..Cpu::default() };
        for (cpu, expected) in [
            (cpu(None, None, ""), None),
            (cpu(Some(-1), Some(1000), ""), None),
            (cpu(Some(150_000), None, ""), Some(2)),
            (cpu(Some(1), Some(0), " "), Some(1)),
            (cpu(Some(i64::MAX), Some(1), "0-2,5"), Some(4)),
            (cpu(Some(1000), Some(500), "7"), Some(1)),
        ] {
            assert_eq!(processors(&cpu).unwrap(), expected, "{cpu:?}");
        }
        for list in ["x", "1-", "2-1", "0,,1", "-", "99999999999"] {
            assert!(processors(&cpu(None, None, list)).is_err(), "{list}");
        }
    }
}
