//! The table for a terminal.

use std::io::{self, Write};

use super::report::{Measured, Report};
use crate::cmd::bench::measured::Way;
use crate::cmd::bench::time::{tail, time};

/// What a row is called beside its payload: its path if there are two, its stage if there are several, or else nothing.
pub fn part<'a>(report: &Report, row: &'a Measured) -> &'a str {
    let alone = report.results.iter().filter(|other| other.id == row.id).count() == 1;
    match report.added(&row.id) {
        Some(_) => row.path.name(),
        None if alone => "",
        None => &row.stage,
    }
}

/// Writes the table, and below it what this host is and what it cannot do.
///
/// # Errors
/// Nobody reads it.
pub fn write(report: &Report, to: &mut dyn Write) -> io::Result<()> {
    let columns = ["p50", "p90", "p99", "p99.9", "max", "mean"];
    write!(to, "{:<18}{:<16}", "payload", "")?;
    columns.iter().try_for_each(|column| write!(to, "{column:>9}"))?;
    writeln!(to, "{:>9}{:>9}  flags", "n", "exits/op")?;
    let mut last = "";
    for row in &report.results {
        let name = if row.id == last { "" } else { row.id.as_str() };
        last = &row.id;
        write!(to, "{name:<18}{:<16}", part(report, row))?;
        for value in [row.p50, row.p90, row.p99] {
            write!(to, "{:>9}", time(value, &row.unit))?;
        }
        write!(to, "{:>9}", tail(row.p999, &row.unit))?;
        write!(to, "{:>9}{:>9}", time(row.max, &row.unit), time(row.mean, &row.unit))?;
        let exits = row.exits_per_op.map_or_else(|| "n/a".to_owned(), |exits| format!("{exits:.2}"));
        writeln!(to, "{:>9}{exits:>9}  {}", row.n, row.flags.join(", "))?;
        if let (Some(added), "vmm") = (report.added(&row.id), row.path.name()) {
            let [low, high] = added.ci95.map(|bound| time(bound, &added.unit));
            writeln!(
                to,
                "{:<18}{:<16}{:>9}   95% sure: {low} to {high}",
                "",
                "kite adds",
                time(added.value, &added.unit)
            )?;
        }
    }
    for peer in &report.peers {
        let (p50, p90) = (time(peer.p50, &peer.unit), time(peer.p90, &peer.unit));
        writeln!(to, "{:<18}{:<16}{p50:>9}{p90:>9}{:>45}", peer.id, peer.name, peer.n)?;
    }
    if !report.skipped.is_empty() {
        writeln!(to)?;
    }
    for skipped in &report.skipped {
        writeln!(to, "{:<18}skipped: {}", skipped.id, skipped.reason)?;
    }
    let clock = &report.clock;
    let same =
        if clock.offset_zero { "guests have the host's clock" } else { "guests have a clock of their own" };
    let line = format!("clock: grain {} ns, {same}; CPUs {:?}", clock.quantum_ns, report.run.cpus);
    report.head.write(&[line], to)
}
