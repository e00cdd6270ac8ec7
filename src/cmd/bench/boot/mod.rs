//! `kite bench boot`: how long kernels take from exec to the first instruction, to user space, and to power-off.
//!
//! Each boot is a process of its own, watched from outside. Kernels and monitors take turns, every second round
//! backwards, so that drift and neighbours hit all alike.

mod options;
mod page;
mod plots;
mod report;
mod subject;
mod table;
mod watch;

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, bail};
use nix::sys::signalfd::{SfdFlags, SignalFd};

pub use options::{HELP, Options};

use super::exits::Rate;
use super::facts::Facts;
use super::measured::Way;
use super::progress;
use super::tell::{self, Head, Told};
use crate::host::signals;
use crate::lifecycle::die_by;
use report::{Kernel, Report, Run, Series, Skipped};
use subject::{Guest, Monitor};

/// Measures, and tells in every way that is asked for.
///
/// # Errors
/// A kernel or an option is wrong, or the host failed.
pub fn run(options: &Options) -> anyhow::Result<u8> {
    tell::run(&options.tell, || measure(options))
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    let qemu = options.peers.then(subject::qemu_version).transpose()?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let guests = subject::guests(options, folder.path())?;
    // Before there is a second thread. Nobody reads it before the end: a monitor is ended first.
    let ending = signals::ending();
    ending.thread_block().context("cannot block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let stop = SignalFd::with_flags(&ending, flags).context("cannot make a signalfd")?;
    let facts = Facts::of_this_host((Rate::measure()?.ticks_per_ns * 1e6).round() as u64);
    let mut report = Report {
        head: Head::new(Report::SCHEMA, facts),
        run: Run { runs: options.runs, qemu, kernels: guests.iter().map(kernel).collect() },
        results: Vec::new(),
        derived: Vec::new(),
        skipped: Vec::new(),
    };
    let all = boots(options, &guests, folder.path(), &stop)?;
    let Some(all) = all else {
        let signal = stop.read_signal().context("cannot read a signal")?.context("stopped by no signal")?;
        // This process dies of the signal, so the folder goes first.
        drop(folder);
        die_by(i32::try_from(signal.ssi_signo).context("an unknown signal")?)?;
        bail!("stopped")
    };
    ending.thread_unblock().context("cannot unblock signals")?;
    for guest in &guests {
        if let Some(reason) = &guest.refusal {
            report.skipped.push(Skipped {
                id: guest.id.clone(),
                path: None,
                stage: None,
                reason: reason.clone(),
            });
        }
    }
    for series in all.chunk_by(|a, b| a.guest.id == b.guest.id) {
        report.add(series);
    }
    if report.results.is_empty() {
        let why = report.skipped.first().map_or("there is no kernel", |skipped| &skipped.reason);
        bail!("nothing could be booted: {why}");
    }
    Ok(report)
}

fn kernel(guest: &Guest) -> Kernel {
    Kernel { id: guest.id.clone(), version: guest.version.clone(), cmdline: guest.cmdline().to_owned() }
}

/// Boots everything in turns; nothing if `stop` has become readable. Whatever does not even begin is not tried again.
fn boots<'a>(
    options: &Options,
    guests: &'a [Guest],
    folder: &Path,
    stop: &SignalFd,
) -> anyhow::Result<Option<Vec<Series<'a>>>> {
    let monitors: &[_] = if options.peers { &[Monitor::Kite, Monitor::Qemu] } else { &[Monitor::Kite] };
    let able = guests.iter().filter(|guest| guest.refusal.is_none());
    let series = able.flat_map(|guest| monitors.iter().map(move |monitor| (guest, *monitor)));
    let mut all: Vec<Series<'_>> =
        series.map(|(guest, monitor)| Series { guest, monitor, boots: Vec::new(), is_dead: false }).collect();
    let bar = progress(all.len() as u64 * u64::from(options.runs + 1));
    for round in 0..=options.runs {
        let mut order: Vec<_> = all.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for series in order {
            bar.set_message(format!("{} {}", series.monitor.name(), series.guest.id));
            if !series.is_dead {
                let boot = watch::boot(series.guest, series.monitor, folder, options.timeout, stop.as_fd())?;
                let Some(boot) = boot else { return Ok(None) };
                match round {
                    // To warm up; it counts for nothing but to tell why there is no more.
                    0 => series.is_dead = boot.us.iter().all(Option::is_none),
                    1 => series.boots.clear(),
                    _ => {}
                }
                series.boots.push(boot);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(Some(all))
}
