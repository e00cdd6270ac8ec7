//! The table for a terminal.

use std::io::{self, Write};

use super::report::{Measured, Report};

/// A time with three digits that count and a unit.
pub fn time(value: f64, unit: &str) -> String {
    if unit != "ns" {
        return format!("{value:.0}");
    }
    let (value, unit) = match value.abs() {
        0.0 => return "0 ns".to_owned(),
        ns if ns < 1000.0 => (value, "ns"),
        ns if ns < 1e6 => (value / 1e3, "us"),
        ns if ns < 1e9 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let digits = match value.abs() {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// The last of several percentiles, or that there is none.
fn tail(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "n/a".to_owned(), |value| time(value, unit))
}

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
pub fn write(report: &Report, to: &mut impl Write) -> io::Result<()> {
    let columns = ["p50", "p90", "p99", "p99.9", "max", "mean"];
    write!(to, "{:<17}{:<16}", "payload", "")?;
    columns.iter().try_for_each(|column| write!(to, "{column:>9}"))?;
    writeln!(to, "{:>9}{:>9}  flags", "n", "exits/op")?;
    let mut last = "";
    for row in &report.results {
        let name = if row.id == last { "" } else { row.id.as_str() };
        last = &row.id;
        write!(to, "{name:<17}{:<16}", part(report, row))?;
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
                "{:<17}{:<16}{:>9}   95% sure: {low} to {high}",
                "",
                "kite adds",
                time(added.value, &added.unit)
            )?;
        }
    }
    for peer in &report.peers {
        let (p50, p90) = (time(peer.p50, &peer.unit), time(peer.p90, &peer.unit));
        writeln!(to, "{:<17}{:<16}{p50:>9}{p90:>9}{:>45}", peer.id, peer.name, peer.n)?;
    }
    if !report.skipped.is_empty() {
        writeln!(to)?;
    }
    for skipped in &report.skipped {
        writeln!(to, "{:<17}skipped: {}", skipped.id, skipped.reason)?;
    }
    let host = &report.host;
    writeln!(to, "\n{}, Linux {}, {}", host.cpu, host.kernel, host.kvm.module)?;
    let clock = &report.clock;
    let same =
        if clock.offset_zero { "guests have the host's clock" } else { "guests have a clock of their own" };
    writeln!(to, "clock: grain {} ns, {same}; CPUs {:?}", clock.quantum_ns, report.run.cpus)?;
    host.warnings.iter().try_for_each(|warning| writeln!(to, "note: {warning}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (value, expected) in [
            (0.0, "0 ns"),
            (9.99, "9.99 ns"),
            (55.25, "55.2 ns"),
            (999.4, "999 ns"),
            (9573.0, "9.57 us"),
            (-1500.0, "-1.50 us"),
            (12_345_678.0, "12.3 ms"),
            (2e9, "2.00 s"),
        ] {
            assert_eq!(time(value, "ns"), expected);
        }
        assert_eq!(time(3163.4, "ticks"), "3163");
    }
}
