//! `kite bench exits`: how long a VM exit takes, and what kite adds to it.
//!
//! Guests of a few bytes execute one operation over and over and time it by the processor's counter. What ends in user
//! space is measured with a bare loop around KVM_RUN and with kite's own, in turns within each virtual machine, so that
//! drift and neighbours hit both alike.

mod beside;
mod clock;
mod code;
mod counters;
mod entry;
mod image;
mod interrupts;
mod ipi;
mod memory;
mod mode;
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
mod table;
mod threads;
mod watch;

use std::io::{self, Write};

use anyhow::{Context, bail, ensure};
use nix::sys::mman::{MlockAllFlags, mlockall};

pub(super) use clock::Rate;
pub(super) use counters::{steal, steal_ns};
pub use options::{HELP, Options};
pub(super) use report::Report;

use super::facts::Facts;
use super::progress;
use super::statistics::SEED;
use super::tell::{self, Head, Told};
use crate::cmd::doctor::hardware::{Engine, Processor};
use crate::host::exit_code::DONE;
use payload::Payload;
use protocol::{Budget, Subject};
use report::{Clock, Run, Scale, Skipped};
use rig::Host;

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
        return image::write(payload, path).map(|()| DONE);
    }
    tell::run(&options.tell, || measure(options, &payloads))
}

fn list(payloads: &[&Payload]) -> anyhow::Result<u8> {
    let mut out = io::stdout().lock();
    for payload in payloads {
        writeln!(out, "{:<18}{}", payload.id, payload.about).context("cannot write to standard output")?;
    }
    Ok(DONE)
}

fn measure(options: &Options, payloads: &[&Payload]) -> anyhow::Result<Report> {
    let cpus = options.cpus()?;
    crate::vcpu::handle_signal()?;
    let host = Host::open()?;
    let rate = clock::Rate::measure()?;
    let facts = settle(options, cpus, &rate)?;
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
        head: Head::new(Report::SCHEMA, facts),
        clock: Clock {
            quantum_ns: (quantum as f64 / rate.ticks_per_ns * 100.0).round() / 100.0,
            pair_overhead_cycles: overhead,
            offset_zero: clock::is_shared(&host)?,
        },
        run: Run { cpus, rt: options.rt, blocks: options.blocks, seed: SEED, unit: scale.unit.to_owned() },
        results: Vec::new(),
        derived: Vec::new(),
        skipped: Vec::new(),
        peers: Vec::new(),
    };
    take_turns(options, payloads, (&host, &budget, &scale), &mut report);
    rate.check()?;
    Ok(report)
}

/// Binds and locks this thread and its memory for the measurement; what the host does not allow is among its facts.
fn settle(options: &Options, cpus: [usize; 2], rate: &Rate) -> anyhow::Result<Facts> {
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
    Ok(facts)
}

/// Measures the payloads in turns, and adds them to the report.
fn take_turns(
    options: &Options,
    payloads: &[&Payload],
    (host, budget, scale): (&Host, &Budget, &Scale),
    report: &mut Report,
) {
    let mut subjects: Vec<_> =
        payloads.iter().map(|payload| Subject::new(payload, hopeless(payload).err())).collect();
    let bar = progress(u64::from(options.blocks) * subjects.len() as u64);
    // Each payload's blocks are spread over the whole run, so that how they differ tells how sure the medians are: what
    // drifts, drifts more slowly than one payload takes.
    for index in 0..options.blocks {
        for subject in &mut subjects {
            bar.set_message(subject.payload.id);
            subject.block(host, budget, (index, options.blocks));
            bar.inc(1);
        }
    }
    for subject in subjects {
        let payload = subject.payload;
        match subject.finish() {
            Ok(rows) => report.add(payload, &rows, scale),
            Err(error) => {
                report.skipped.push(Skipped { id: payload.id.to_owned(), reason: format!("{error:#}") });
            }
        }
    }
    bar.finish_and_clear();
}

/// Whether it is known beforehand that a payload does not come to an end here.
fn hopeless(payload: &Payload) -> anyhow::Result<()> {
    let engine = Processor::of_this_machine().engine();
    ensure!(
        !(payload.hypercall && engine == Engine::Pvm),
        "kvm_pvm never answers this instruction in a guest's kernel mode"
    );
    Ok(())
}
