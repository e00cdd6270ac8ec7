//! `kite bench exits`: how long a VM exit takes, and what kite adds to it.
//!
//! Guests of a few bytes execute one operation over and over and time it by the processor's counter. What ends in user
//! space is measured with a bare loop around KVM_RUN and with kite's own, in turns within each virtual machine, so that
//! drift and neighbours hit both alike.

mod beside;
mod clock;
mod code;
mod compare;
mod counters;
mod entry;
mod facts;
mod image;
mod interrupts;
mod ipi;
mod memory;
mod options;
mod page;
mod payload;
mod plots;
mod protocol;
mod raw;
mod report;
mod rig;
mod sample;
mod single;
mod slot;
mod statistics;
mod table;
mod threads;
mod watch;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::mman::{MlockAllFlags, mlockall};

pub use options::{HELP, Options};

use crate::cli;
use crate::doctor::hardware::{Engine, Processor};
use facts::Facts;
use payload::Payload;
use protocol::Budget;
use report::{Clock, Report, Run, SCHEMA, SEED, Scale, Skipped, Tool};
use rig::Host;

/// Something has become slower.
const REGRESSION: u8 = 1;
/// Each block has at least so many times.
const LEAST: u64 = 1000;

/// Measures, and tells in every way that is asked for.
///
/// # Errors
/// kite or the host failed.
pub fn run(options: &Options) -> anyhow::Result<u8> {
    let payloads = options.payloads()?;
    if options.list {
        return list(&payloads);
    }
    if let Some(path) = &options.payload {
        let [payload] = payloads[..] else { bail!("--payload writes one payload: name it with --only") };
        return image::write(payload, path).map(|()| cli::DONE);
    }
    let old = options.compare.as_deref().map(Report::read).transpose()?;
    // Before minutes have gone by.
    let json = options.json.as_deref().map(create).transpose()?;
    let html = options.html.as_deref().map(create).transpose()?;
    let report = match &options.from {
        Some(path) => Report::read(path)?,
        None => measure(options, &payloads)?,
    };
    if let Some((file, path)) = json {
        report.write(io::BufWriter::new(file)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some((mut file, path)) = html {
        let page = page::page(&report)?;
        file.write_all(page.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    table::write(&report, &mut out).context("cannot write to standard output")?;
    let Some(old) = old else { return Ok(cli::DONE) };
    let changes = compare::changes(&old, &report);
    compare::write(&old, &changes, &mut out).context("cannot write to standard output")?;
    let slower = changes.iter().any(compare::Change::is_regression);
    Ok(if slower { REGRESSION } else { cli::DONE })
}

fn create(path: &Path) -> anyhow::Result<(File, &Path)> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((file, path))
}

fn list(payloads: &[&Payload]) -> anyhow::Result<u8> {
    let mut out = io::stdout().lock();
    for payload in payloads {
        writeln!(out, "{:<18}{}", payload.id, payload.about).context("cannot write to standard output")?;
    }
    Ok(cli::DONE)
}

fn measure(options: &Options, payloads: &[&Payload]) -> anyhow::Result<Report> {
    let cpus = options.cpus()?;
    crate::vcpu::handle_signal()?;
    let host = Host::open()?;
    let rate = clock::Rate::measure()?;
    let mut facts = Facts::of_this_host((rate.ticks_per_ns * 1e6).round() as u64);
    if cpus[0] == cpus[1] {
        facts.warnings.push("there is one CPU: what needs two threads at once is left out".to_owned());
    }
    if mlockall(MlockAllFlags::MCL_CURRENT).is_err() {
        facts.warnings.push("memory cannot be locked: ulimit -l".to_owned());
    }
    threads::bind(cpus[0])?;
    if options.rt {
        threads::real_time()?;
    }
    let overhead = clock::overhead(&host)?;
    let quantum = clock::quantum();
    let ticks = if options.ticks { 1.0 } else { rate.ticks_per_ns };
    let scale = Scale { ticks, unit: if options.ticks { "ticks" } else { "ns" }, overhead, quantum };
    let budget = Budget {
        time: options.time / options.blocks,
        least: LEAST,
        cpus,
        ticks_per_us: rate.ticks_per_ns * 1000.0,
    };
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        tool: Tool { version: env!("CARGO_PKG_VERSION").to_owned() },
        when: now(),
        clock: Clock {
            quantum_ns: (quantum as f64 / rate.ticks_per_ns * 100.0).round() / 100.0,
            pair_overhead_cycles: overhead,
            offset_zero: clock::is_shared(&host)?,
        },
        host: facts,
        run: Run { cpus, rt: options.rt, blocks: options.blocks, seed: SEED, unit: scale.unit.to_owned() },
        results: Vec::new(),
        derived: Vec::new(),
        skipped: Vec::new(),
        peers: Vec::new(),
    };
    let bar = progress(payloads.len() as u64 * u64::from(options.blocks));
    for payload in payloads {
        bar.set_message(payload.id);
        let rows = one(payload, &host, &budget, options.blocks, &bar);
        match rows {
            Ok(rows) => report.add(payload, &rows, &scale),
            Err(error) => {
                report.skipped.push(Skipped { id: payload.id.to_owned(), reason: format!("{error:#}") });
            }
        }
    }
    bar.finish_and_clear();
    rate.check()?;
    Ok(report)
}

fn one(
    payload: &Payload,
    host: &Host,
    budget: &Budget,
    blocks: u32,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<sample::Row>> {
    let begun = bar.position();
    let engine = Processor::of_this_machine().engine();
    ensure!(
        !(payload.hypercall && engine == Engine::Pvm),
        "kvm_pvm never answers this instruction in a guest's kernel mode"
    );
    let rows = protocol::measure(&mut *(payload.make)(), host, budget, blocks, || bar.inc(1));
    bar.set_position(begun + u64::from(blocks));
    rows
}

/// On standard error, if that is a terminal.
fn progress(len: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg} ({eta} left)");
    bar.set_style(style.expect("the template is a constant"));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// In UTC.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
