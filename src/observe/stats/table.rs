//! The numbers as a table for people.

use std::fmt::{self, Display, Formatter};

use super::NOBODY;
use super::report::{Cost, Report, Row, Total};
use super::summary::{counted, grouped, time};
use crate::vcpu::counters::Space;

/// Of the addresses, the most expensive; a file has all.
const ROWS: usize = 30;
/// KVM's counters that tell why a vCPU exited.
const COUNTERS: [(&str, &str); 8] = [
    ("exits", "in all"),
    ("io_exits", "ports"),
    ("mmio_exits", "memory"),
    ("halt_exits", "halts"),
    ("irq_exits", "host interrupts"),
    ("irq_window_exits", "interrupt windows"),
    ("signal_exits", "signals"),
    ("insn_emulation", "emulated instructions"),
];

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(out, "kite: {} to kite in {seconds:.3} s", counted(self.exits(), "exit"))?;
        self.reasons(out)?;
        rows(out, "address", &self.rows)?;
        if !self.ring.is_empty() {
            rows(out, "write without an exit", &self.ring)?;
        }
        self.counters(out)?;
        if !self.words.is_empty() {
            writeln!(out, "\nwhat stands out, with the time in kite:")?;
            self.words.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        }
        Ok(())
    }
}

impl Report {
    fn reasons(&self, out: &mut Formatter<'_>) -> fmt::Result {
        head(out, "vCPU, reason")?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            for (kind, cost) in &vcpu.reasons {
                line(out, &format!("{index:<5} {}", kind.name()), cost)?;
            }
        }
        Ok(())
    }

    /// What KVM has counted, and how kite's numbers come to it.
    fn counters(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.vcpus.iter().all(|vcpu| vcpu.kvm.is_empty()) {
            return writeln!(out, "\nthis KVM has no counters of its own (Linux has them since 5.14)");
        }
        writeln!(out, "\nKVM's own counters of exits")?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let found = COUNTERS.iter().filter_map(|(name, what)| {
                let value = vcpu.kvm.iter().find(|(it, _)| it == name)?.1;
                Some(format!("{what} {}", grouped(value)))
            });
            writeln!(out, "  vCPU {index}: {}", found.collect::<Vec<_>>().join(", "))?;
        }
        total(out, "ports", &self.ports, Space::Port)?;
        total(out, "memory", &self.memory, Space::Memory)
    }
}

fn total(out: &mut Formatter<'_>, what: &str, total: &Total, space: Space) -> fmt::Result {
    let (Some(kvm), Some(beyond)) = (total.kvm, total.beyond(space)) else { return Ok(()) };
    if kvm == 0 && total.exits > 0 {
        let exits = grouped(total.exits);
        return writeln!(out, "  {what}: {exits} to kite, and this KVM counts none, as it emulates them");
    }
    let mut seen = format!("{} to kite", grouped(total.exits));
    if space == Space::Port && total.ring > 0 {
        seen.push_str(&format!(" + {} kept in the ring", grouped(total.ring)));
    }
    let difference = grouped(beyond.unsigned_abs());
    let rest = match beyond {
        0 => String::new(),
        1.. => format!(" + {difference} that KVM has answered itself"),
        // One of KVM's is then several of kite's.
        _ => format!(" - {difference} more from strings and accesses over two pages"),
    };
    writeln!(out, "  {what}: {} of KVM's = {seen}{rest}", grouped(kvm))
}

fn head(out: &mut Formatter<'_>, what: &str) -> fmt::Result {
    let [count, total, p50, p90, p99, max] = ["count", "total", "p50", "p90", "p99", "max"];
    writeln!(out, "\n{what:<44} {count:>9} {total:>8} {p50:>8} {p90:>8} {p99:>8} {max:>8}")
}

fn line(out: &mut Formatter<'_>, what: &str, cost: &Cost) -> fmt::Result {
    let count = grouped(cost.count);
    let times = [cost.total_ns, cost.p50_ns, cost.p90_ns, cost.p99_ns, cost.max_ns].map(time);
    let [total, p50, p90, p99, max] = times;
    writeln!(out, "{what:<44} {count:>9} {total:>8} {p50:>8} {p90:>8} {p99:>8} {max:>8}")
}

fn rows(out: &mut Formatter<'_>, what: &str, rows: &[Row]) -> fmt::Result {
    head(out, &format!("{what:<22} device"))?;
    for row in rows.iter().take(ROWS) {
        let place = match row.access {
            Some(access) => format!("{:<22} {}", access.to_string(), row.device.as_deref().unwrap_or(NOBODY)),
            None => format!("all other {}s", row.kind.name()),
        };
        line(out, &place, &row.cost)?;
    }
    match rows.len().saturating_sub(ROWS) {
        0 => Ok(()),
        more => writeln!(out, "and {more} more, which --stats=FILE.json has"),
    }
}
