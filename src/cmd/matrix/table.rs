//! The table at the end: a row for each kernel, a column for each command; and the names of the cases that failed.

use std::time::Duration;

use super::cell::Outcome;
use super::plan::Plan;
use crate::host::messages::printable;
use crate::observe::results::Case;

/// How many failed cases of a run are named.
const MOST_NAMES: usize = 20;

/// The table; `outcomes` are in the plan's order.
pub(super) fn text(plan: &Plan, outcomes: &[Outcome]) -> String {
    let mut header = vec!["kernel".to_owned()];
    header.extend(plan.commands.iter().cloned());
    let mut rows = vec![header];
    for (kernel, outcomes) in plan.kernels.iter().zip(outcomes.chunks(plan.commands.len().max(1))) {
        let mut row = vec![kernel.clone()];
        row.extend(outcomes.iter().map(cell));
        rows.push(row);
    }
    let named: Vec<_> = outcomes.iter().filter_map(failed_cases).collect();
    match named.is_empty() {
        true => aligned(&rows),
        false => format!("{}\n{}", aligned(&rows), named.concat()),
    }
}

/// A line with the cases of a run that failed, if its output had cases.
fn failed_cases(outcome: &Outcome) -> Option<String> {
    let run = outcome.suite.name();
    let full = |case: &Case| match case.group.is_empty() {
        true => case.name.clone(),
        false => format!("{}.{}", case.group, case.name),
    };
    let bad = || outcome.suite.cases().iter().filter(|case| case.is_bad() && case.name != run);
    let count = bad().count();
    let names: Vec<_> = bad().take(MOST_NAMES).map(full).collect();
    let more = match count.saturating_sub(names.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (count > 0).then(|| printable(&format!("{run} failed: {}{more}", names.join(", "))) + "\n")
}

fn cell(outcome: &Outcome) -> String {
    match outcome.elapsed {
        Duration::ZERO => outcome.told.clone(),
        elapsed => format!("{} {}", outcome.told, time(elapsed)),
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// As people read it: 1.2s, 2m05s, 1h02m05s.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}.{}s", time.subsec_millis() / 100),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes:02}m{seconds:02}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows =
            [row(["kernel", "boot", "x"]), row(["6.1", "ok 1.2s", "exit 1 3.0s"]), row(["é", "", "ok"])];
        assert_eq!(aligned(&rows), "kernel  boot     x\n6.1     ok 1.2s  exit 1 3.0s\né                ok\n");
    }

    #[test]
    fn times_have_the_units_that_they_need() {
        for (milliseconds, expected) in
            [(0, "0.0s"), (59_999, "59.9s"), (125_000, "2m05s"), (3_725_000, "1h02m05s")]
        {
            assert_eq!(time(Duration::from_millis(milliseconds)), expected);
        }
    }
}
