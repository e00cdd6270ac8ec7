//! `kite run`: boots a kernel and tells by the exit code how it ended.

mod command;
mod devices;
mod gauges;
mod image;
mod modules;
mod prepared;
mod supervise;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::devices::chipset::serial::Host;
use anyhow::{Context, bail, ensure};
use boot::Piece;
use kvm_ioctls::Kvm;
use nix::sys::sysinfo::sysinfo;

use crate::backend::net;
use crate::cli::{self, OnReboot, RunOptions};
use crate::guest;
use crate::host::messages;
use crate::host::rss;
use crate::host::signals::Signals;
use crate::host::terminal;
use crate::observe::crash;
use crate::observe::trace::Timeline;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::{self, Fork, InheritedFds, VmProcess};
use crate::session::console::Console;
use crate::vcpu::stop::{Exit, Panic};
use crate::vm;
use crate::vm::load::Guest;
use crate::vm::machine::{Board, Machine, ResetWord, Running};
use crate::vm::memory::GuestRam;
use devices::{Devices, Extra};
use gauges::Gauges;
use image::{Boot, Conventions};

pub(crate) use prepared::Prepared;

/// Runs the guest to its end, in a cgroup if that is wanted; returns the exit code. `begun` is when kite was started.
///
/// # Errors
/// kite or the host failed.
pub fn run(options: &RunOptions, begun: Instant) -> anyhow::Result<u8> {
    // Told before anything is made.
    options.sandbox()?;
    image::tell_of_built(options);
    supervise::run(options, begun)
}

/// Runs the guest to its end, in this process or another one, which is put into the group if there is one.
fn machine(
    options: &RunOptions,
    begun: Instant,
    inherited: InheritedFds,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<u8>> {
    let sandbox = options.sandbox()?;
    let mut gauges = Gauges::open(&options.measure, begun)?;
    if options.has_command() {
        return command::run(options, gauges, inherited, group);
    }
    options.networks.iter().try_for_each(net::Spec::check_without_command)?;
    rss::keep_one_heap();
    check_memory(options.memory())?;
    let timeline = gauges.timeline().clone();
    let boot = timeline.phase("open the kernel", || Boot::prepare(options))?;
    let signals = Signals::take_over(sandbox.splits() || group.is_some())?;
    let mut console = Console::new(signals, guest::prefers_hvc(&boot.cmdline), timeline.clone())?;
    let hvc = options.has_virtio_console().then(|| console.hvc().clone());
    let extra = Extra { hvc, ..Extra::default() };
    let mut devices = timeline.phase("open the devices", || Devices::open(options, extra))?;
    let mut process = match fork(sandbox, inherited, &mut devices, group)? {
        Fork::Vm(process) => process,
        Fork::Supervisor(supervisor) => return Ok(Fork::Supervisor(supervisor)),
    };
    process.part_files();
    let board = Board {
        cpus: options.cpus,
        ram: options.memory(),
        acpi: !options.no_acpi,
        virtio: devices.count(),
        test_devices: options.test_devices,
    };
    let mut start = Start { options, board, boot: &boot, kvm: open_kvm(&timeline), initrd: None };
    loop {
        let mut machine = start.machine(&devices, console.host(), &timeline)?;
        let needs = sandbox::Needs {
            test_devices: options.test_devices,
            restart: options.on_reboot == OnReboot::Restart,
            stats: gauges.are_read(),
            ..devices.needs(options.cpus)
        };
        for lack in process.lock(needs)?.iter().filter(|_| options.command.verbose) {
            terminal::tell(lack);
        }
        devices.start()?;
        gauges.watch(&mut machine)?;
        let mut running = timeline.phase("start the threads", || machine.start())?;
        let attended = console.attend(&mut running);
        let told = gauges.tell();
        let signal = attended?;
        told?;
        let end = match signal {
            Some(signal) => End::Signal(signal),
            None => End::of(&running, boot.conventions, console.printed().1),
        };
        // Whoever told kite to end may be the one who reads nothing, and a test's status is all it has to say.
        if !matches!(running.exit().reason(), Some(Exit::Quit | Exit::Status(_)))
            && !matches!(end, End::Signal(_))
        {
            report_lost_output(&running, &console);
        }
        let end = match end {
            End::Reboot if running.is_stuck() => End::Failed("the guest cannot boot again".to_owned()),
            End::Reboot if options.on_reboot == OnReboot::Restart => match console.ending_signal() {
                Some(signal) => End::Signal(signal),
                None => continue,
            },
            end => end,
        };
        match end {
            End::Done | End::Reboot => return Ok(Fork::Vm(cli::DONE)),
            End::Status(code) => return Ok(Fork::Vm(code)),
            End::Crashed(what) => {
                terminal::restore();
                cli::complain(&format!("the guest crashed: {what}"));
                report_crash(&running, &boot);
                return console.flush().map_or(Ok(cli::CRASHED), die_by).map(Fork::Vm);
            }
            End::Failed(what) => bail!(what),
            End::Signal(signal) => {
                terminal::restore();
                // The ports' sockets go with it.
                drop(devices);
                return die_by(signal).map(Fork::Vm);
            }
        }
    }
}

/// How long a reader who reads nothing holds up the end by a signal.
const BRIEF: Duration = Duration::from_secs(1);
/// The stack of the thread that loads, in bytes; the host gives what is touched of it.
const LOADER_STACK: usize = 256 << 10;

/// What every start of the guest has in common.
struct Start<'a> {
    options: &'a RunOptions,
    board: Board,
    boot: &'a Boot,
    /// KVM, or why there is none.
    kvm: Result<Kvm, String>,
    /// Made by the first start and kept for the next.
    initrd: Option<Vec<Piece>>,
}

impl Start<'_> {
    /// Builds a machine and loads the guest.
    fn machine(
        &mut self,
        devices: &Devices,
        host: Box<dyn Host>,
        timeline: &Timeline,
    ) -> anyhow::Result<Machine> {
        let Self { options, board, boot, kvm, initrd } = self;
        let board = *board;
        let ram = timeline.phase("memory", || GuestRam::new(board.ram))?;
        let ram = Arc::new(ram.relying_on(boot.system.clone()));
        let load = || -> anyhow::Result<_> {
            let initrd = match initrd {
                Some(initrd) => initrd,
                None => {
                    let made = timeline.phase("make the initrd", || image::initrd(options, boot, devices));
                    initrd.insert(made?)
                }
            };
            let (image, cmdline, module) = (&boot.image, &boot.cmdline, &boot.module);
            Ok(Guest { image, initrd, cmdline, module }.load(board, &ram, timeline))
        };
        // KVM mostly waits while it builds a machine: time enough to load the guest.
        let (machine, loaded) = std::thread::scope(|scope| -> anyhow::Result<_> {
            let loader = std::thread::Builder::new().name("loader".to_owned()).stack_size(LOADER_STACK);
            let loader = loader.spawn_scoped(scope, load).context("cannot start a thread")?;
            let machine = devices.attach(&ram).and_then(|devices| match kvm {
                Ok(kvm) => Machine::build(kvm, board, ram.clone(), host, devices, timeline),
                Err(why) => bail!("{why}"),
            });
            Ok((machine, loader.join().expect("a panic ends the process")))
        })?;
        // A file that the user can mend comes first, then what the host lacks, then what the guest's size is too small for.
        let info = loaded?;
        let mut machine = machine?;
        let info = info?;
        timeline.phase("registers", || machine.boot(&boot.image, info))?;
        Ok(machine)
    }
}

/// Opens KVM; that it cannot be is told once everything else is known to be well.
fn open_kvm(timeline: &Timeline) -> Result<Kvm, String> {
    timeline.phase("open KVM", vm::open_kvm).map_err(|error| format!("{error:#}"))
}

/// Forks kite, if there is to be a sandbox or a group.
fn fork(
    options: sandbox::Options,
    inherited: InheritedFds,
    devices: &mut Devices,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<VmProcess>> {
    let cleanup = devices.cleanup();
    cleanup.group = group;
    sandbox::fork(options, inherited, cleanup)
}

/// How a guest ended.
enum End {
    Done,
    Reboot,
    Status(u8),
    Crashed(String),
    Failed(String),
    Signal(i32),
}

impl End {
    /// What the reason and the reset word say. Linux writes that word before every reset that it asks for, whichever
    /// way it then takes, so a triple fault without it was none of Linux's doing.
    fn of(running: &Running, conventions: Conventions, panic_seen: bool) -> Self {
        let linux = conventions != Conventions::None;
        let word = if linux { running.reset_word() } else { ResetWord::Untouched };
        let told = linux && (panic_seen || running.exit().panic() != Panic::None);
        let panicked = told || conventions == Conventions::WarmIsPanic && word == ResetWord::Warm;
        if let Some(Exit::Failed(_) | Exit::Crash(_)) = running.exit().reason()
            && let Some(why) = running.ram().cut_file()
        {
            return Self::Failed(why);
        }
        match running.exit().reason() {
            Some(Exit::Panicked) => Self::Crashed("kernel panic".to_owned()),
            Some(Exit::Reset | Exit::TripleFault { .. }) if panicked => {
                Self::Crashed("kernel panic".to_owned())
            }
            Some(Exit::TripleFault { vcpu }) if word == ResetWord::Untouched => {
                Self::Crashed(format!("triple fault on vCPU {vcpu}"))
            }
            Some(Exit::Reset | Exit::TripleFault { .. }) => Self::Reboot,
            // None of the last three comes without a command, whose room looks for them first.
            Some(Exit::PowerOff | Exit::Quit | Exit::Command(_) | Exit::TimedOut | Exit::Idle(_)) => {
                Self::Done
            }
            Some(Exit::Status(code)) => Self::Status(*code),
            Some(Exit::Crash(what)) => Self::Crashed(what.clone()),
            Some(Exit::Signal(signal)) => Self::Signal(*signal),
            Some(Exit::Failed(error)) => Self::Failed(format!("{error:#}")),
            None => Self::Failed("the console stopped without a reason".to_owned()),
        }
    }
}

/// More memory than the host has can only end in the host's killing things.
fn check_memory(size: u64) -> anyhow::Result<()> {
    let info = sysinfo().context("cannot ask how much memory the host has")?;
    let host = info.ram_total().saturating_add(info.swap_total());
    ensure!(
        size <= host,
        "--memory asks for {} MiB, and this host has {} MiB with its swap",
        size >> 20,
        host >> 20
    );
    Ok(())
}

/// Tells what each vCPU was at. Whether anybody reads it changes nothing.
fn report_crash(running: &Running, boot: &Boot) {
    let mut text = Vec::new();
    if crash::report(running, &boot.symbols, &mut text).is_ok() {
        messages::say(text);
    }
}

fn report_lost_output(running: &Running, console: &Console) {
    let serial = running.serial().lock().unwrap_or_else(std::sync::PoisonError::into_inner).dropped();
    let lost = serial + console.hvc().lost();
    if lost > 0 {
        cli::complain(&format!(
            "{lost} bytes of the guest's output were lost: standard output took none, and the guest went on"
        ));
    }
}

/// Ends the process by the signal that it was sent, so that whoever waits for it sees that.
pub(crate) fn die_by(signal: i32) -> anyhow::Result<u8> {
    use nix::sys::signal::{SigSet, Signal, raise};
    if sandbox::end_by(signal) {
        return Ok(cli::FAILED);
    }
    let signal = Signal::try_from(signal).context("an unknown signal")?;
    messages::flush(|stuck| stuck > BRIEF);
    let mut mask = SigSet::empty();
    mask.add(signal);
    // The standard library has a handler for these.
    if matches!(signal, Signal::SIGSEGV | Signal::SIGBUS) {
        sandbox::reset(signal)?;
    }
    raise(signal).context("cannot raise a signal")?;
    mask.thread_unblock().context("cannot unblock a signal")?;
    bail!("{signal} did not end kite")
}
