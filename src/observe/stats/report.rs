//! What has been counted, as numbers for people and programs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Stats;
use super::summary;
use crate::vcpu::counters::histogram::Sum;
use crate::vcpu::counters::{Access, Counters, Kind, Space};

/// How often, and how long in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often.
    pub count: u64,
    /// All together.
    pub total_ns: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// Nine of ten took no longer.
    pub p90_ns: u64,
    /// 99 of a hundred took no longer.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Cost {
    fn of(sum: &Sum, tick_ns: f64) -> Self {
        let ns = |ticks: u64| (ticks as f64 * tick_ns) as u64;
        Self {
            count: sum.count,
            total_ns: ns(sum.ticks),
            p50_ns: ns(sum.percentile(500)),
            p90_ns: ns(sum.percentile(900)),
            p99_ns: ns(sum.percentile(990)),
            max_ns: ns(sum.longest),
        }
    }
}

/// The accesses of one kind to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which kind.
    pub kind: Kind,
    /// The access; nothing for all of this kind that found no place of their own.
    pub access: Option<Access>,
    /// Which device answers, if one does.
    pub device: Option<String>,
    /// What they cost.
    pub cost: Cost,
}

/// One vCPU.
#[derive(Clone, Debug, Default)]
pub struct Vcpu {
    /// Its exits to kite by reason, those that happened.
    pub reasons: Vec<(Kind, Cost)>,
    /// Its accesses, the most expensive first.
    pub rows: Vec<Row>,
    /// KVM's own counters; nothing without any.
    pub kvm: Vec<(String, u64)>,
}

impl Vcpu {
    /// How many exits to kite it had.
    pub fn exits(&self) -> u64 {
        self.reasons.iter().map(|(_, cost)| cost.count).sum()
    }
}

/// The exits of one address space, as kite and as KVM have counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Exits to kite.
    pub exits: u64,
    /// Writes that came through the ring.
    pub ring: u64,
    /// KVM's own counter: `io_exits` for ports, `mmio_exits` for memory; nothing without it.
    pub kvm: Option<u64>,
}

impl Total {
    /// What KVM has counted beyond what kite has seen of it: accesses that KVM answered itself. Of ports the ring's
    /// writes count as exits, of memory they do not (Linux `arch/x86/kvm/x86.c`). Less than nothing where one string
    /// instruction, or one access over two pages, makes several exits to kite.
    pub fn beyond(&self, space: Space) -> Option<i64> {
        let seen = match space {
            Space::Port => self.exits + self.ring,
            Space::Memory => self.exits,
        };
        self.kvm.map(|kvm| kvm.wrapping_sub(seen) as i64)
    }
}

/// All that has been counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Since the counters were made.
    pub elapsed: Duration,
    /// Each vCPU.
    pub vcpus: Vec<Vcpu>,
    /// The accesses of all vCPUs, the most expensive first.
    pub rows: Vec<Row>,
    /// The writes that came through the ring, the most expensive first.
    pub ring: Vec<Row>,
    /// Ports.
    pub ports: Total,
    /// Memory.
    pub memory: Total,
    /// What stands out.
    pub words: Vec<String>,
}

impl Report {
    pub(super) fn of(stats: &Stats) -> Self {
        let tick_ns = stats.scale.tick_ns();
        let mut all = Rows::default();
        let vcpus = stats.vcpus.iter().map(|vcpu| {
            let mut rows = Rows::default();
            rows.add(&vcpu.counters);
            all.add(&vcpu.counters);
            let reasons = Kind::ALL.map(|kind| (kind, Cost::of(&vcpu.counters.sum(kind), tick_ns)));
            Vcpu {
                reasons: reasons.into_iter().filter(|(_, cost)| cost.count > 0).collect(),
                rows: rows.finish(stats, tick_ns),
                kvm: vcpu.kvm.as_ref().map(|kvm| kvm.read()).unwrap_or_default(),
            }
        });
        let vcpus: Vec<_> = vcpus.collect();
        let mut ring = Rows::default();
        ring.add(&stats.ring);
        let (rows, ring) = (all.finish(stats, tick_ns), ring.finish(stats, tick_ns));
        let total = |space, counter| Total {
            exits: count(&rows, space),
            ring: count(&ring, space),
            kvm: vcpus.iter().map(|vcpu| counter_of(&vcpu.kvm, counter)).sum(),
        };
        let (ports, memory) = (total(Space::Port, "io_exits"), total(Space::Memory, "mmio_exits"));
        let mut report =
            Self { elapsed: stats.elapsed(), vcpus, rows, ring, ports, memory, words: Vec::new() };
        report.words = summary::of(&report);
        report
    }

    /// One of KVM's counters, of all vCPUs; nothing if it does not have it.
    pub fn kvm(&self, name: &str) -> Option<u64> {
        self.vcpus.iter().map(|vcpu| counter_of(&vcpu.kvm, name)).sum()
    }

    /// How many exits to kite there were.
    pub fn exits(&self) -> u64 {
        self.vcpus.iter().map(Vcpu::exits).sum()
    }
}

fn count(rows: &[Row], space: Space) -> u64 {
    rows.iter().filter(|row| row.kind.space() == Some(space)).map(|row| row.cost.count).sum()
}

fn counter_of(kvm: &[(String, u64)], name: &str) -> Option<u64> {
    kvm.iter().find(|(it, _)| it == name).map(|(_, value)| *value)
}

/// Accesses that are being put together.
#[derive(Default)]
struct Rows(BTreeMap<(Kind, Option<Access>), Sum>);

impl Rows {
    fn add(&mut self, counters: &Counters) {
        for (kind, access, histogram) in counters.accesses() {
            self.0.entry((kind, access)).or_default().add(histogram);
        }
    }

    fn finish(self, stats: &Stats, tick_ns: f64) -> Vec<Row> {
        let rows = self.0.into_iter().map(|((kind, access), sum)| {
            let device = access.and_then(|access| stats.device(access)).map(str::to_owned);
            Row { kind, access, device, cost: Cost::of(&sum, tick_ns) }
        });
        let mut rows: Vec<_> = rows.filter(|row| row.cost.count > 0).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.cost.total_ns));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvm_counts_beyond_kite_is_told_for_each_space_by_its_own_rule() {
        let total = Total { exits: 10, ring: 5, kvm: Some(17) };
        assert_eq!((total.beyond(Space::Port), total.beyond(Space::Memory)), (Some(2), Some(7)));
        let strings = Total { exits: 10, ring: 0, kvm: Some(1) };
        assert_eq!(strings.beyond(Space::Port), Some(-9));
        assert_eq!(Total::default().beyond(Space::Port), None);
    }
}
