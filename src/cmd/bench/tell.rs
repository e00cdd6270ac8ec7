//! What every benchmark does with what it has measured: a table, a file to keep, a page, and a comparison.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compare::{self, Change};
use super::facts::Facts;
use super::measured::Tool;
use super::{html, now};
use crate::host::atomic_file;
use crate::host::exit_code::DONE;

/// Something has become slower.
const REGRESSION: u8 = 1;
/// A file larger than this is not one of ours.
const LARGEST: u64 = 64 << 20;

/// Whom to tell.
#[derive(Args, Debug)]
pub struct TellOptions {
    /// Write all of it as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write one page with tables and plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Compare with an earlier run's JSON
    #[arg(long, value_name = "OLD.json")]
    pub compare: Option<PathBuf>,
    /// Measure nothing, and tell of an earlier run
    #[arg(long, value_name = "FILE.json")]
    pub from: Option<PathBuf>,
}

/// What each report begins with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    /// [`Told::SCHEMA`].
    pub schema: String,
    /// What measured.
    pub tool: Tool,
    /// When it began: RFC 3339.
    pub when: String,
    /// Where.
    pub host: Facts,
}

impl Head {
    /// A report of this kite's that begins now.
    pub fn new(schema: &str, host: Facts) -> Self {
        Self { schema: schema.to_owned(), tool: Tool::this(), when: now(), host }
    }

    /// Begins a page about `what`, of which `how` says how it was measured.
    ///
    /// # Errors
    /// None, as it goes to memory.
    pub fn begin(&self, page: &mut String, what: &str, how: &str) -> std::fmt::Result {
        html::begin(page, &format!("{what}: {}", self.host.cpu))?;
        let line = format!(
            "kite {}, {}; Linux {}, {}; {how}",
            self.tool.version, self.when, self.host.kernel, self.host.kvm.module
        );
        page.push_str(&format!("<p class=faint>{}</p>\n", html::escape(&line)));
        html::warnings(page, &self.host)
    }

    /// Writes what the host is below a table, with `more` lines in front of what makes the times worth less.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn write(&self, more: &[String], to: &mut dyn Write) -> io::Result<()> {
        let Facts { cpu, kernel, kvm, warnings, .. } = &self.host;
        writeln!(to, "\n{cpu}, Linux {kernel}, {}", kvm.module)?;
        more.iter().try_for_each(|line| writeln!(to, "{line}"))?;
        warnings.iter().try_for_each(|warning| writeln!(to, "note: {warning}"))
    }
}

/// All of a run, in the form that is kept.
pub trait Told: Serialize + DeserializeOwned {
    /// The version of what is written.
    const SCHEMA: &'static str;
    /// What measures it.
    const COMMAND: &'static str;

    /// What it begins with.
    fn head(&self) -> &Head;

    /// Writes the table for a terminal.
    ///
    /// # Errors
    /// Nobody reads it.
    fn table(&self, to: &mut dyn Write) -> io::Result<()>;

    /// The page.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    fn page(&self) -> anyhow::Result<String>;

    /// What each row took and takes.
    fn changes(&self, old: &Self) -> Vec<Change>;
}

/// Tells what `measure` measures, or what an earlier run has, in every way that is asked for; returns the exit code.
///
/// # Errors
/// It cannot be measured, or a file cannot be read or written.
pub fn run<T: Told>(
    options: &TellOptions,
    measure: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<u8> {
    let old: Option<T> = options.compare.as_deref().map(read).transpose().context("--compare")?;
    // Before minutes have gone by.
    for (option, path) in [("--json", &options.json), ("--html", &options.html)] {
        path.as_deref().map_or(Ok(()), atomic_file::check).context(option)?;
    }
    let report = match &options.from {
        Some(path) => read(path).context("--from")?,
        None => measure()?,
    };
    if let Some(path) = &options.json {
        atomic_file::write(path, |file| write(&report, file).map_err(io::Error::other))?;
    }
    if let Some(path) = &options.html {
        let page = report.page()?;
        atomic_file::write(path, |file| file.write_all(page.as_bytes()))?;
    }
    let mut out = io::stdout().lock();
    report.table(&mut out).context("cannot write to standard output")?;
    let Some(old) = old else { return Ok(DONE) };
    let changes = report.changes(&old);
    compare::write(&old.head().when, &changes, &mut out).context("cannot write to standard output")?;
    let slower = changes.iter().any(Change::is_regression);
    Ok(if slower { REGRESSION } else { DONE })
}

/// Reads a report.
///
/// # Errors
/// It cannot be read, or is of another version.
pub fn read<T: Told>(path: &Path) -> anyhow::Result<T> {
    #[derive(Deserialize)]
    struct Version {
        schema: String,
    }
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let mut text = String::new();
    let read = file.take(LARGEST).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {name}"))?;
    let version: Version =
        serde_json::from_str(&text).map_err(|_| anyhow!("{name} is no report of `{} --json`", T::COMMAND))?;
    ensure!(
        version.schema == T::SCHEMA,
        "{name} has schema {:?}, and this kite's `{}` reads {:?}: measure again, or use the kite that wrote it",
        version.schema,
        T::COMMAND,
        T::SCHEMA
    );
    let damaged = |error| anyhow!("{name} is damaged: {error}");
    let value: Value = serde_json::from_str(&text).map_err(damaged)?;
    ensure!(is_plausible(&value), "{name} is damaged: it has numbers that no clock gives");
    serde_json::from_value(value).map_err(damaged)
}

/// Whether all numbers are zero or of a size that can be drawn: an axis of a thousand decades would have no end of labels.
fn is_plausible(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.as_f64().is_some_and(|it| it == 0.0 || (1e-12..1e15).contains(&it.abs()))
        }
        Value::Array(values) => values.iter().all(is_plausible),
        Value::Object(fields) => fields.values().all(is_plausible),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Writes a report.
///
/// # Errors
/// The file cannot be written.
pub fn write<T: Told>(report: &T, mut to: impl Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut to, report)?;
    to.write_all(b"\n")?;
    Ok(to.flush()?)
}
