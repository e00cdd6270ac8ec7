//! What the guest says of itself once it is up: where it runs and what it has.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::Context;
use nix::sys::sysinfo::sysinfo;
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

/// The guest, seen from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The kernel's release and machine (uname(2)).
    pub kernel: String,
    /// How many CPUs are online.
    pub cpus: u32,
    /// The memory the kernel has to give, in bytes: `MemTotal` of proc_meminfo(5).
    pub memory: u64,
    /// The time since the kernel began to count it.
    pub uptime: Duration,
    /// The modules loaded for this guest, in order.
    pub modules: Vec<String>,
}

impl Report {
    /// Asks the kernel.
    pub fn read(modules: Vec<String>) -> anyhow::Result<Self> {
        let name = uname().context("cannot read the kernel's name")?;
        let online =
            fs::read_to_string("/sys/devices/system/cpu/online").context("cannot read which CPUs run")?;
        let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).context("cannot read the time since boot")?;
        Ok(Self {
            kernel: format!("{} {}", name.release().display(), name.machine().display()),
            cpus: count(&online).with_context(|| format!("no list of CPUs: {online:?}"))?,
            memory: sysinfo().context("cannot read how much memory there is")?.ram_total(),
            uptime: uptime.into(),
            modules,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modules = if self.modules.is_empty() { "none".into() } else { self.modules.join(" ") };
        writeln!(out, "kite: kernel   {}", self.kernel)?;
        writeln!(out, "kite: cpus     {}", self.cpus)?;
        writeln!(out, "kite: memory   {} MiB", self.memory >> 20)?;
        writeln!(out, "kite: uptime   {}.{:03} s", self.uptime.as_secs(), self.uptime.subsec_millis())?;
        writeln!(out, "kite: modules  {modules}")
    }
}

/// How many numbers a kernel list like `0-3,8` has (Linux `Documentation/admin-guide/cputopology.rst`).
fn count(list: &str) -> Option<u32> {
    list.trim_end().split(',').try_fold(0u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            kernel: "6.1.0-56-cloud-amd64 x86_64".into(),
            cpus: 4,
            memory: 1003 << 20 | 0xf_ffff,
            uptime: Duration::from_micros(1_045_999),
            modules: vec!["virtio_ring".into(), "virtio".into(), "virtio_mmio".into()],
        }
    }

    #[test]
    fn a_report_is_five_aligned_lines() {
        let expected = "kite: kernel   6.1.0-56-cloud-amd64 x86_64\n\
                        kite: cpus     4\n\
                        kite: memory   1003 MiB\n\
                        kite: uptime   1.045 s\n\
                        kite: modules  virtio_ring virtio virtio_mmio\n";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn a_guest_without_modules_says_so() {
        let none = Report { modules: Vec::new(), ..report() };
        assert!(none.to_string().ends_with("kite: modules  none\n"));
    }

    #[test]
    fn cpus_are_counted_in_ranges() {
        assert_eq!(count("0\n"), Some(1));
        assert_eq!(count("0-3\n"), Some(4));
        assert_eq!(count("0-3,8,10-11\n"), Some(7));
    }

    #[test]
    fn a_broken_cpu_list_is_no_count() {
        for list in ["", "\n", "x", "3-0", "0-", "0-4294967295", "0,,1"] {
            assert_eq!(count(list), None, "{list:?}");
        }
    }
}
