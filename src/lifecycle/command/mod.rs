//! `kite run -- COMMAND`: runs a command in a guest, on the host's files or others, and ends as it ends.

mod kernel_log;
mod outcome;
mod prepare;
mod session;
mod shares;
mod streams;

use std::time::{Duration, Instant};

use super::devices::{Devices, Extra};
use super::gauges::Gauges;
use super::image::Boot;
use super::{End as MachineEnd, Start, check_memory, die_by, fork, open_kvm};
use anyhow::Context;

use crate::cli::RunOptions;
use crate::host::atomic_file;
use crate::host::rss;
use crate::host::signals::Signals;
use crate::host::terminal as screen;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::{self, Fork, InheritedFds};
use crate::spec::task;
use crate::vcpu::stop::Exit;
use crate::vm::machine::{Board, Running};
use kernel_log::KernelLog;
use outcome::{Outcome, Results};
use session::{Limits, Patience, Session};
use shares::Shares;

/// Runs the command; returns the exit code.
///
/// # Errors
/// kite or the host failed.
pub(super) fn run(
    options: &RunOptions,
    gauges: Gauges,
    inherited: InheritedFds,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<u8>> {
    let command = &options.command;
    if let Some(path) = &command.junit {
        atomic_file::expect(path).context("--junit")?;
    }
    let results = Results::new(command);
    let mut outcome = match to_its_end(options, &results, gauges, inherited, group) {
        // The VM process reports it.
        Ok(Fork::Supervisor(supervisor)) => return Ok(Fork::Supervisor(supervisor)),
        Ok(Fork::Vm(outcome)) => Ok(outcome),
        Err(error) => Err(error),
    };
    results.finish(&mut outcome)?;
    match outcome? {
        Outcome { signal: Some(signal), .. } => die_by(signal).map(Fork::Vm),
        outcome => Ok(Fork::Vm(outcome.code)),
    }
}

/// Writes the results of a run that could not write them itself.
///
/// # Errors
/// The file cannot be written.
pub(super) fn record_failure(options: &RunOptions, why: &str) -> anyhow::Result<()> {
    Results::new(&options.command).finish(&mut Err(anyhow::anyhow!("{why}")))
}

/// Builds a machine, runs the command in it, and takes everything down.
fn to_its_end(
    options: &RunOptions,
    results: &Results,
    mut gauges: Gauges,
    inherited: InheritedFds,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<Outcome>> {
    let begun = Instant::now();
    let (command, sandbox) = (&options.command, options.sandbox()?);
    let own = prepare::Inherited::here()?;
    rss::keep_one_heap();
    check_memory(options.memory())?;
    prepare::check(options)?;
    let terminal = prepare::terminal();
    let mut shares = Shares::open(command)?;
    let timeline = gauges.timeline().clone();
    let mut boot = timeline.phase("open the kernel", || Boot::prepare(options))?;
    if let (Some(modules), Some(version)) = (&boot.modules, boot.image.version()) {
        shares.add_modules(modules, &version)?;
    }
    boot.task = Some(task::encode(&prepare::task(options, &shares, terminal, own)?));
    let log = KernelLog::new(command.kernel_log.as_deref(), command.verbose, timeline.clone())?;
    let signals = Signals::take_over(sandbox.splits() || group.is_some())?;
    let mut session = Session::new(signals, terminal, log, timeline.clone())?;
    let folders = shares.paths();
    let extra = Extra { hvc: None, ports: session.ports(), shares: shares.into_folders() };
    let mut devices = timeline.phase("open the devices", || Devices::open(options, extra))?;
    let mut process = match fork(sandbox, inherited, &mut devices, group)? {
        Fork::Vm(process) => process,
        Fork::Supervisor(supervisor) => return Ok(Fork::Supervisor(supervisor)),
    };
    process.part_shares(devices.shares(), &folders);
    process.part_files();
    let board = Board {
        cpus: options.cpus,
        ram: options.memory(),
        acpi: true,
        virtio: devices.count(),
        test_devices: false,
    };
    let mut start = Start { options, board, boot: &boot, kvm: open_kvm(&timeline), initrd: None };
    let mut machine = start.machine(&devices, session.log.host(), &timeline)?;
    let needs = sandbox::Needs { streams: true, stats: gauges.are_read(), ..devices.needs(options.cpus) };
    for lack in process.lock(needs)? {
        if command.verbose {
            screen::tell(&lack);
        }
    }
    devices.start()?;
    gauges.watch(&mut machine)?;
    let mut running = timeline.phase("start the threads", || machine.start())?;
    let limits = Limits { start: begun, timeout: command.timeout, idle_timeout: command.idle_timeout };
    let attended = session.attend(&running, &limits, results.tee());
    running.stop();
    let patience = Patience::after(running.exit().reason(), &limits);
    let finished = session.finish(&running, patience);
    let told = gauges.tell();
    let signal = finished?;
    attended?;
    told?;
    if let Some(signal) = signal {
        return Ok(Fork::Vm(Outcome::signalled(signal)));
    }
    let outcome = outcome(&running, &boot, &session, command.timeout)?;
    Ok(Fork::Vm(session.flush(&running, patience).map_or(outcome, Outcome::signalled)))
}

/// What a machine that has stopped comes to, which the user is told.
fn outcome(
    running: &Running,
    boot: &Boot,
    session: &Session,
    timeout: Option<Duration>,
) -> anyhow::Result<Outcome> {
    let log = &session.log;
    let death = |outcome: Outcome| outcome.tell(log, running, boot);
    Ok(match running.exit().reason() {
        Some(Exit::Command(end)) => match session.failure() {
            Some(why) => Outcome::failed(why),
            None => Outcome::of(end),
        },
        Some(Exit::TimedOut) => death(Outcome::timed_out(timeout.unwrap_or_default())),
        Some(Exit::Idle(idle)) => death(Outcome::idle(*idle)),
        Some(Exit::Quit) => Outcome::quit(),
        _ => match MachineEnd::of(running, boot.conventions, log.panic_seen()) {
            MachineEnd::Crashed(what) => death(Outcome::crashed(&what)),
            MachineEnd::Reboot | MachineEnd::Done | MachineEnd::Status(_) => death(Outcome::gone()),
            MachineEnd::Failed(what) => anyhow::bail!(what),
            MachineEnd::Signal(signal) => Outcome::signalled(signal),
        },
    })
}
