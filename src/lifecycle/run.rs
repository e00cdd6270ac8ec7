//! The one order of steps: open, part, build, lock, run, and judge the end.

use std::sync::Arc;
use std::time::Instant;

use ::devices::chipset::serial::Host;
use anyhow::{Context, bail};
use boot::Piece;
use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use super::Ahead;
use super::devices::Devices;
use super::kernel::{self, Boot};
use super::measurements::{LastLook, Measurements};
use super::resources::Resources;
use crate::host::terminal;
use crate::host::thread;
use crate::observe::trace::Timeline;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::{self, Fork, InheritedFds, VmProcess};
use crate::session::command::results::Results;
use crate::session::{Controls, End, Next, Outcome, Stopped, event_loop};
use crate::spec::RunSpec;
use crate::spec::machine::OnReboot;
use crate::spec::sandbox::SandboxSpec;
use crate::vm;
use crate::vm::load::Guest;
use crate::vm::machine::Machine;
use crate::vm::memory::GuestRam;

/// Runs the guest to its end, in this process or another one, which is put into the group if there is one.
pub(super) fn run(
    spec: &RunSpec,
    begun: Instant,
    ahead: Ahead,
    inherited: InheritedFds,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<Outcome>> {
    let measurements = Measurements::open(&spec.measure, begun)?;
    let results = Results::new(spec.command.as_ref())?;
    let mut look = LastLook::default();
    let mut outcome = match to_its_end(spec, &results, measurements, &mut look, ahead, inherited, group) {
        // The VM process writes the results.
        Ok(Fork::Supervisor(supervisor)) => return Ok(Fork::Supervisor(supervisor)),
        Ok(Fork::Vm(outcome)) => Ok(outcome),
        Err(error) => Err(error),
    };
    results.finish(&mut outcome, |outcome| {
        let Some(file) = &spec.measure.screenshot_on_failure else { return Ok(None) };
        let is_taken = look.take_picture(outcome, file)?;
        Ok(is_taken.then(|| file.clone()))
    })?;
    outcome.map(Fork::Vm)
}

fn to_its_end(
    spec: &RunSpec,
    results: &Results<'_>,
    mut measurements: Measurements,
    look: &mut LastLook,
    ahead: Ahead,
    inherited: InheritedFds,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<Outcome>> {
    let timeline = measurements.timeline().clone();
    let machine_spec = &spec.machine;
    let parts = machine_spec.sandbox.splits() || group.is_some() || machine_spec.is_found();
    let Resources { boot, signals, mut session, mut devices, folders } =
        Resources::open(spec, results, parts, &timeline)?;
    devices.cleanup().passes_signals_on = spec.command.as_ref().is_some_and(|it| it.image().is_some());
    let cpuid = timeline.phase("ask for CPUID", || ahead.cpuid());
    let mut process = match fork(machine_spec.sandbox, inherited, &mut devices, group)? {
        Fork::Vm(process) => process,
        Fork::Supervisor(supervisor) => return Ok(Fork::Supervisor(supervisor)),
    };
    process.part_shares(devices.shares(), &folders);
    process.part_files();
    let mut plan = Plan::new(spec, &boot, cpuid, &timeline);
    let needs = sandbox::Needs {
        streams: spec.command.is_some(),
        test_devices: machine_spec.test_devices,
        pci: machine_spec.has_pci(),
        restart: machine_spec.on_reboot == OnReboot::Restart,
        stats: measurements.are_read(),
        ..devices.needs(machine_spec.cpus)
    };
    loop {
        let opened = || process.prepare(needs);
        let mut machine = plan.build(&devices, session.serial_host(), opened, &timeline)?;
        for lack in process.lock(needs)?.iter().filter(|_| spec.verbose) {
            terminal::tell(lack);
        }
        devices.start()?;
        measurements.watch(&mut machine)?;
        let _gathered = thread::gather();
        let mut running = timeline.phase("start the threads", || machine.start())?;
        let screen = devices.display().map(|display| &**display.screen());
        let controls = Controls::new(process.questions(), screen);
        let attended = event_loop::attend(&mut *session, &signals, &running, &controls);
        running.stop();
        let finished = attended.and_then(|()| session.finish(&running, &signals));
        let measured = measurements.report();
        let signal = finished?;
        measured?;
        let end = match signal {
            Some(signal) => End::Signal(signal),
            None => End::of(&running, boot.conventions, session.progress().panic_seen),
        };
        let stopped = Stopped {
            machine: &running,
            signals: &signals,
            symbols: &boot.symbols,
            version: boot.image.version(),
            has_modules: boot.modules.is_some(),
        };
        look.look(devices.display());
        match session.conclude(end, &stopped)? {
            Next::Restart => {}
            Next::Exit(outcome) => return Ok(Fork::Vm(outcome)),
        }
    }
}

/// The stack of the thread that loads, in bytes; the host gives what is touched of it.
const LOADER_STACK: usize = 256 << 10;

/// What every machine of a run has in common.
struct Plan<'a> {
    spec: &'a RunSpec,
    boot: &'a Boot,
    /// KVM, or why there is none.
    kvm: Result<Kvm, String>,
    /// What that can show a guest of this processor, if it is known.
    cpuid: Option<CpuId>,
    /// Made for the first machine, and used again for the next.
    initrd: Option<Vec<Piece>>,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a RunSpec, boot: &'a Boot, cpuid: Option<CpuId>, timeline: &Timeline) -> Self {
        // That there is no KVM is reported once everything else is known to be well.
        let kvm = timeline.phase("open KVM", vm::open_kvm).map_err(|error| format!("{error:#}"));
        Self { spec, boot, kvm, cpuid, initrd: None }
    }

    /// Builds a machine and loads the guest. When it needs no path any more, it calls `opened` on a thread of its own.
    fn build(
        &mut self,
        devices: &Devices,
        host: Box<dyn Host>,
        opened: impl FnOnce() + Send,
        timeline: &Timeline,
    ) -> anyhow::Result<Machine> {
        let Self { spec, boot, kvm, cpuid, initrd } = self;
        let machine_spec = &spec.machine;
        let ram = timeline.phase("memory", || {
            let mut ram = GuestRam::new(machine_spec.memory)?;
            if let Some(screen) = machine_spec.screen() {
                ram = ram.with_frame_buffer(screen.frame_buffer().len())?;
            }
            if machine_spec.has_pci() {
                ram = ram.with_config_space(devices.count())?;
            }
            anyhow::Ok(ram)
        })?;
        let ram = Arc::new(ram.relying_on(boot.system.clone()));
        let load = || -> anyhow::Result<_> {
            let initrd = match initrd {
                Some(initrd) => initrd,
                None => {
                    let made =
                        timeline.phase("make the initrd", || kernel::initrd(machine_spec, boot, devices));
                    initrd.insert(made?)
                }
            };
            let (image, cmdline, module) = (&boot.image, &boot.cmdline, &boot.module);
            let guest = Guest { image, initrd, cmdline, module };
            let loaded = guest.load(machine_spec, devices.count(), &ram, timeline);
            timeline.phase("part from the host", opened);
            Ok(loaded)
        };
        // KVM mostly waits while it builds a machine: time enough to load the guest, and for what of the sandbox takes long.
        let (machine, loaded) = std::thread::scope(|scope| -> anyhow::Result<_> {
            let loader = std::thread::Builder::new().name("loader".to_owned()).stack_size(LOADER_STACK);
            let loader = loader.spawn_scoped(scope, load).context("cannot start a thread")?;
            let machine = devices.attach(&ram).and_then(|devices| match kvm {
                Ok(kvm) => Machine::build(kvm, cpuid, machine_spec, ram.clone(), host, devices, timeline),
                Err(why) => bail!("{why}"),
            });
            Ok((machine, loader.join().expect("a panic ends the process")))
        })?;
        // A file that the user can mend comes first, then what the host lacks, then what the guest's size is too small for.
        let info = loaded?;
        let mut machine = machine?;
        let info = info?;
        timeline.phase("registers", || machine.boot(&boot.image, info))?;
        if let Some(display) = devices.display() {
            display.begin(machine.vm());
        }
        Ok(machine)
    }
}

/// Forks kite for a sandbox or a group.
fn fork(
    sandbox: SandboxSpec,
    inherited: InheritedFds,
    devices: &mut Devices,
    group: Option<Cgroup>,
) -> anyhow::Result<Fork<VmProcess>> {
    let cleanup = devices.cleanup();
    cleanup.group = group;
    sandbox::fork(sandbox, inherited, cleanup)
}
