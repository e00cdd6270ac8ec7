//! The same small command as a process, in a container, in a virtual machine, and in a jailed one: what it costs, and what
//! it can reach. A table, and a picture of the same.

mod filter;
mod picture;
pub mod probe;
mod running;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use self::running::{Inspected, Memory};
use self::subject::{Subject, subjects};
use super::quartiles;
use crate::setup::Kernel;

/// Commands that are timed.
const COMMANDS: [(&str, &[&str]); 2] =
    [("true", &["true"]), ("cat /etc/hostname", &["cat", "/etc/hostname"])];

/// The programs that take part.
pub struct Programs {
    pub kite: PathBuf,
    /// This program, which tries what is within reach.
    pub probe: PathBuf,
}

/// What is known of one of them in the end.
#[derive(Debug, Default)]
pub struct Figures {
    /// From exec to exit, for each command.
    times: Vec<Vec<Duration>>,
    memory: Memory,
    reach: probe::Reach,
    around: Around,
}

/// What the command is in the hands of, and could take over.
#[derive(Debug, Default)]
enum Around {
    /// The host's own kernel, with so many system calls open to the command.
    #[default]
    Kernel,
    /// A virtual machine's process.
    Machine(Inspected),
}

/// Measures and prints; the picture goes into a file.
///
/// # Errors
/// A command fails, or the picture cannot be written.
pub fn run(programs: &Programs, kernel: &str, rounds: u32, picture: Option<&Path>) -> Result<()> {
    let kernel = Kernel::open(kernel)?.with_context(|| format!("no kernel {kernel}"))?;
    let folder = tempfile::tempdir().context("making a folder")?;
    let (subjects, left_out) = subjects(programs, &kernel, &folder)?;
    let mut all: Vec<(&Subject, Figures)> = subjects.iter().map(|it| (it, Figures::default())).collect();
    for (_, figures) in &mut all {
        figures.times = vec![Vec::new(); COMMANDS.len()];
    }
    for round in 0..=rounds {
        eprintln!("xtask: round {round} of {rounds}, the first to warm up");
        for (subject, figures) in &mut all {
            for ((_, command), times) in COMMANDS.iter().zip(&mut figures.times) {
                let time = running::time(subject, command)?;
                times.extend((round > 0).then_some(time));
            }
        }
    }
    for (subject, figures) in &mut all {
        eprintln!("xtask: what a command as {} can reach", subject.name);
        (figures.memory, figures.around) = running::look(subject, &programs.kite)?;
        figures.reach = probe::ask(subject, &programs.probe)?;
    }
    let rows = rows(&mut all);
    print(&all, &rows);
    left_out.iter().for_each(|why| println!("left out: {why}"));
    match picture {
        Some(path) => {
            let names: Vec<&str> = all.iter().map(|(subject, _)| subject.name).collect();
            fs::write(path, picture::svg(&names, &rows))
                .with_context(|| format!("writing {}", path.display()))
        }
        None => Ok(()),
    }
}

/// A line of the table.
pub struct Row {
    what: String,
    cells: Vec<Cell>,
}

/// What it says of one subject.
pub enum Cell {
    /// A figure, and how it is written.
    Figure(f64, String),
    /// Whether something is within reach; less is better.
    Reach(bool, String),
}

impl Cell {
    fn text(&self) -> &str {
        match self {
            Self::Figure(_, text) | Self::Reach(_, text) => text,
        }
    }
}

fn rows(all: &mut [(&Subject, Figures)]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, (name, _)) in COMMANDS.iter().enumerate() {
        let cell = |figures: &mut Figures| {
            let times = &mut figures.times[index];
            times.sort_unstable();
            let [low, median, high] = quartiles(times).map(|time| time.as_secs_f64() * 1e3);
            Cell::Figure(median, format!("{} ({} to {})", digits(median), digits(low), digits(high)))
        };
        row(&mut rows, format!("`{name}`, exec to exit, ms"), all, cell);
    }
    row(&mut rows, "memory (PSS) while `cat` waits, MiB".to_owned(), all, |it| {
        let mib = it.memory.kib as f64 / 1024.0;
        Cell::Figure(mib, digits(mib))
    });
    let yes = |is: bool| Cell::Reach(is, if is { "yes" } else { "no" }.to_owned());
    row(&mut rows, "reads the user's files".to_owned(), all, |it| yes(it.reach.reads));
    row(&mut rows, "changes the user's files".to_owned(), all, |it| yes(it.reach.writes));
    row(&mut rows, "sees the host's processes".to_owned(), all, |it| yes(it.reach.processes));
    row(&mut rows, "reaches the host's own network services".to_owned(), all, |it| yes(it.reach.network));
    row(&mut rows, "host system calls open to it".to_owned(), all, |it| match it.around {
        Around::Kernel => calls(it.reach.calls),
        Around::Machine(_) => calls(0),
    });
    behind(&mut rows, all);
    rows
}

/// What the command would find if it took over what runs it.
fn behind(rows: &mut Vec<Row>, all: &mut [(&Subject, Figures)]) {
    let machine = |it: &mut Figures, cell: &dyn Fn(&Inspected) -> Cell| match &it.around {
        Around::Kernel => Cell::Reach(true, "the kernel".to_owned()),
        Around::Machine(inspected) => cell(inspected),
    };
    let mut behind = |what: &str, cell: &dyn Fn(&Inspected) -> Cell| {
        row(rows, format!("behind it: {what}"), all, |it| machine(it, cell));
    };
    behind("files", &|it| match it.root_own {
        true => Cell::Reach(false, "an empty folder".to_owned()),
        false => Cell::Reach(true, "the user's".to_owned()),
    });
    behind("processes", &|it| match it.has_own("pid") {
        true => Cell::Reach(false, "its own".to_owned()),
        false => Cell::Reach(true, "the user's".to_owned()),
    });
    behind("network", &|it| match it.has_own("net") {
        true => Cell::Reach(false, "none".to_owned()),
        false => Cell::Reach(true, "the host's".to_owned()),
    });
    behind("host system calls", &|it| calls(it.calls));
}

fn calls(count: usize) -> Cell {
    // What no filter narrows is all.
    Cell::Reach(count > 150, count.to_string())
}

fn row(
    rows: &mut Vec<Row>,
    what: String,
    all: &mut [(&Subject, Figures)],
    mut cell: impl FnMut(&mut Figures) -> Cell,
) {
    let cells = all.iter_mut().map(|(_, figures)| cell(figures)).collect();
    rows.push(Row { what, cells });
}

/// Three significant digits, no more.
fn digits(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn print(all: &[(&Subject, Figures)], rows: &[Row]) {
    let names: Vec<&str> = all.iter().map(|(subject, _)| subject.name).collect();
    println!("| | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for row in rows {
        let cells: Vec<_> = row.cells.iter().map(Cell::text).collect();
        println!("| {} | {} |", row.what, cells.join(" | "));
    }
    println!("\ntimes: medians and middle halves, all in turn");
}

/// Where the picture is written by default.
pub fn default_picture() -> Result<PathBuf> {
    Ok(crate::host::target("bench")?.join("compare.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([0.5, 12.34, 123.4, 7031.0].map(digits), ["0.50", "12.3", "123", "7031"]);
    }
}
