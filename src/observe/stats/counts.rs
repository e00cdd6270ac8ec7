//! How the counts stood at a moment, for what came between two.

use std::collections::BTreeMap;

use super::Stats;
use crate::vcpu::counters::{Access, Counters, Kind};

/// An access, or all of a kind that found no place.
pub type Subject = (Kind, Option<Access>);

/// One access's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// What was accessed.
    pub subject: Subject,
    /// Exits.
    pub exits: u64,
    /// Writes through the ring.
    pub ring: u64,
    /// How long kite took for both, in ticks.
    pub ticks: u64,
}

/// The accesses of all vCPUs.
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<Subject, Count>);

impl Counts {
    pub(super) fn of(stats: &Stats) -> Self {
        let mut counts = Self::default();
        stats.vcpus.iter().for_each(|vcpu| counts.add(&vcpu.counters, false));
        counts.add(&stats.ring, true);
        counts
    }

    fn add(&mut self, counters: &Counters, is_ring: bool) {
        for (kind, access, histogram) in counters.accesses() {
            let subject = (kind, access);
            let count = self.0.entry(subject).or_insert(Count { subject, exits: 0, ring: 0, ticks: 0 });
            let (times, ticks) = histogram.totals();
            *(if is_ring { &mut count.ring } else { &mut count.exits }) += times;
            count.ticks = count.ticks.wrapping_add(ticks);
        }
    }

    /// What has been added since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let added = self.0.values().map(|count| {
            let Some(before) = before.0.get(&count.subject) else { return *count };
            Count {
                subject: count.subject,
                exits: count.exits.saturating_sub(before.exits),
                ring: count.ring.saturating_sub(before.ring),
                ticks: count.ticks.saturating_sub(before.ticks),
            }
        });
        let added = added.filter(|count| count.exits + count.ring > 0);
        Self(added.map(|count| (count.subject, count)).collect())
    }

    /// All of them.
    pub fn rows(&self) -> Vec<Count> {
        self.0.values().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::counters::{Cause, Space, Timed};

    fn count(counters: &Counters, address: u64) {
        counters.end(Timed::begin(Cause::Access(Access::new(Space::Port, address, true, 1))));
    }

    #[test]
    fn only_what_came_between_is_left() {
        let (vcpu, ring) = (Counters::default(), Counters::default());
        let counts = || {
            let mut counts = Counts::default();
            counts.add(&vcpu, false);
            counts.add(&ring, true);
            counts
        };
        count(&vcpu, 1);
        count(&vcpu, 2);
        let before = counts();
        count(&vcpu, 2);
        count(&ring, 2);
        count(&ring, 3);
        let rows = counts().since(&before).rows();
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (row.subject.1.map(|access| access.address), row.exits, row.ring))
            .collect();
        assert_eq!(rows, [(Some(2), 1, 1), (Some(3), 0, 1)]);
        assert!(counts().since(&counts()).rows().is_empty());
    }
}
