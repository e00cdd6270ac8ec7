//! The table for a terminal.

use std::io::{self, Write};

use super::report::{Measured, Report};
use crate::cmd::bench::measured::Way;
use crate::cmd::bench::time::time;

/// A stage for people.
pub fn words(stage: &str) -> String {
    stage.replace('_', " ")
}

/// Writes the table, and below it what there is not, and what this host is.
///
/// # Errors
/// Nobody reads it.
pub fn write(report: &Report, to: &mut dyn Write) -> io::Result<()> {
    write!(to, "{:<27}", "from exec to")?;
    ["p50", "p90", "p99", "max", "mean"].iter().try_for_each(|column| write!(to, "{column:>9}"))?;
    writeln!(to, "{:>6}  95% sure of p50", "n")?;
    let has_peers = report.run.qemu.is_some();
    for kernel in &report.run.kernels {
        let version = kernel.version.as_ref().map(|version| format!(", Linux {version}")).unwrap_or_default();
        writeln!(to, "{}{version}", kernel.id)?;
        let mut last = "";
        for row in report.of(&kernel.id) {
            let stage = if row.stage == last { "" } else { row.stage.as_str() };
            last = &row.stage;
            let monitor = if has_peers { row.path.name() } else { "" };
            write!(to, "  {:<19}{monitor:<6}", words(stage))?;
            self::row(row, to)?;
            if let (Some(more), "qemu") = (report.difference(row), row.path.name()) {
                let [value, low, high] =
                    [more.value, more.ci95[0], more.ci95[1]].map(|it| time(it, &more.unit));
                writeln!(to, "  {:<19}{:<6}{value:>9}   95% sure: {low} to {high}", "", "more")?;
            }
        }
    }
    if !report.skipped.is_empty() {
        writeln!(to)?;
    }
    for skipped in &report.skipped {
        let monitor = skipped.path.filter(|_| has_peers).map(Way::name);
        let stage = skipped.stage.as_deref().map(words);
        let parts: Vec<_> =
            [Some(skipped.id.as_str()), monitor, stage.as_deref()].into_iter().flatten().collect();
        writeln!(to, "{}: skipped: {}", parts.join(", "), skipped.reason)?;
    }
    let qemu: Vec<_> = report.run.qemu.iter().map(|qemu| format!("{qemu}, machine microvm")).collect();
    report.head.write(&qemu, to)
}

fn row(row: &Measured, to: &mut dyn Write) -> io::Result<()> {
    for value in [row.p50, row.p90, row.p99, row.max, row.mean] {
        write!(to, "{:>9}", time(value, &row.unit))?;
    }
    let [low, high] = row.ci95_p50.map(|bound| time(bound, &row.unit));
    let flags: String = row.flags.iter().map(|flag| format!("; {flag}")).collect();
    writeln!(to, "{:>6}  {low} to {high}{flags}", row.n)
}
