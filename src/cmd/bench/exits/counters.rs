//! What else happened while something was measured: KVM's own counters of the vCPU, how often this thread lost its CPU,
//! and what the host's own host took.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::resource::{UsageWho, getrusage};

use crate::observe::kvm_stats::KvmStats;

/// The counters that are kept, where KVM has them.
const KEPT: [&str; 7] =
    ["exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "signal_exits", "insn_emulation"];
/// What /proc/stat counts in.
const STEAL_TICK_NS: u64 = 10_000_000;

/// What happened meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Meanwhile {
    /// How often this thread lost its CPU to another.
    pub nivcsw: u64,
    /// What the hypervisor below took of all CPUs, in nanoseconds.
    pub steal_ns: u64,
    /// KVM's counters.
    pub counters: BTreeMap<String, u64>,
}

impl Meanwhile {
    /// All counts as they are now.
    pub fn now(counters: Option<&KvmStats>) -> Self {
        let usage = getrusage(UsageWho::RUSAGE_THREAD);
        let nivcsw = usage.map_or(0, |usage| usage.involuntary_context_switches());
        let counters = counters.map(KvmStats::read).unwrap_or_default();
        Self {
            nivcsw: nivcsw.try_into().unwrap_or(0),
            steal_ns: steal_ns(),
            counters: counters.into_iter().filter(|(name, _)| KEPT.contains(&name.as_str())).collect(),
        }
    }

    /// What was added since `before`.
    pub fn since(mut self, before: &Self) -> Self {
        self.nivcsw = self.nivcsw.saturating_sub(before.nivcsw);
        self.steal_ns = self.steal_ns.saturating_sub(before.steal_ns);
        for (name, value) in &mut self.counters {
            *value = value.saturating_sub(before.counters.get(name).copied().unwrap_or(0));
        }
        self
    }

    /// Adds what happened in another stretch of time.
    pub fn add(&mut self, other: &Self) {
        self.nivcsw += other.nivcsw;
        self.steal_ns += other.steal_ns;
        for (name, value) in &other.counters {
            *self.counters.entry(name.clone()).or_default() += value;
        }
    }
}

/// What the hypervisor below has taken of all CPUs since it started this machine, in nanoseconds.
pub fn steal_ns() -> u64 {
    steal(&fs::read_to_string("/proc/stat").unwrap_or_default()) * STEAL_TICK_NS
}

/// The eighth number of the first line of /proc/stat (proc_stat(5)).
pub fn steal(stat: &str) -> u64 {
    let field = stat.lines().next().and_then(|line| line.split_whitespace().nth(8));
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_number() {
        assert_eq!(steal("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 0\n"), 8);
        assert_eq!(steal(""), 0);
    }

    #[test]
    fn what_happens_twice_counts_twice() {
        let count =
            |value| Meanwhile { counters: [("exits".to_owned(), value)].into(), ..Default::default() };
        let mut sum = count(7).since(&count(5));
        sum.add(&count(40));
        assert_eq!(sum.counters["exits"], 42);
    }
}
