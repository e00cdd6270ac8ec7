//! Everything of a run that has a path or a privilege, opened before kite parts in two and locks itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::check_memory;
use super::command::{self, Surroundings};
use super::devices::{Devices, Extra};
use super::image::RunImage;
use super::kernel::Boot;
use super::shares::Shares;
use crate::guest;
use crate::host::rss;
use crate::host::signals::Signals;
use crate::observe::trace::Timeline;
use crate::sandbox::Cleanup;
use crate::sandbox::control::{ControlSocket, Facts, cut};
use crate::session::Session;
use crate::session::command::results::Results;
use crate::session::command::{CommandSession, KernelLog, Limits};
use crate::session::console::{self, Console};
use crate::spec::id::MachineId;
use crate::spec::machine::OnReboot;
use crate::spec::{RunSpec, wire};

/// Everything that is open.
pub(super) struct Resources {
    pub boot: Boot,
    pub signals: Signals,
    pub session: Box<dyn Session>,
    pub devices: Devices,
    /// Where the shares' folders are on the host, in their order.
    pub folders: Vec<PathBuf>,
}

impl Resources {
    /// Opens what `spec` names. With `parts`, kite becomes two processes.
    ///
    /// # Errors
    /// Something that it names cannot be opened.
    pub fn open(
        spec: &RunSpec,
        results: &Results<'_>,
        parts: bool,
        timeline: &Arc<Timeline>,
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let surroundings = spec.command.as_ref().map(|_| Surroundings::now()).transpose()?;
        rss::keep_one_heap();
        check_memory(spec.machine.memory)?;
        let image = match &spec.command {
            Some(command) => timeline.phase("get the image", || RunImage::obtain(command))?,
            None => None,
        };
        let mut shares = match &spec.command {
            Some(command) => Shares::open(&spec.machine, command)?,
            None => Shares::default(),
        };
        let mut boot = timeline.phase("open the kernel", || Boot::prepare(spec))?;
        let has_terminal =
            spec.command.as_ref().is_some_and(|it| it.container.as_ref().is_none_or(|it| it.terminal));
        let terminal = has_terminal.then(command::terminal).flatten();
        let log = match spec.command.as_ref().zip(surroundings) {
            Some((command, surroundings)) => {
                // What is in a container's root folder is its own.
                if command.container.is_none()
                    && let (Some(modules), Some(version)) = (&boot.modules, boot.image.version())
                {
                    shares.add_modules(modules, &version)?;
                }
                let guest_command = command::guest_command(
                    &spec.machine,
                    command,
                    image.as_ref(),
                    &shares,
                    terminal,
                    surroundings,
                )?;
                boot.command = Some(wire::encode(&guest_command));
                Some(KernelLog::new(command.kernel_log.as_deref(), spec.verbose, timeline.clone())?)
            }
            None => None,
        };
        let signals = Signals::take_over(parts)?;
        let session: Box<dyn Session> = match spec.command.as_ref().zip(log) {
            Some((command, log)) => {
                let limits =
                    Limits { start: begun, timeout: command.timeout, idle_timeout: command.idle_timeout };
                let session = CommandSession::new(terminal, log, limits, results.tee(), timeline.clone())?;
                match &image {
                    Some(image) => Box::new(session.forwarding_signals(image.command.stop_signal)),
                    None if command.container.is_some() => Box::new(session.without_keys()),
                    None => Box::new(session),
                }
            }
            None => {
                let setup = console::Setup {
                    prefers_hvc: guest::prefers_hvc(&boot.cmdline),
                    has_hvc: spec.has_virtio_console(),
                    restarts: spec.machine.on_reboot == OnReboot::Restart,
                };
                Box::new(Console::new(setup, timeline.clone())?)
            }
        };
        let folders = shares.paths();
        let image = image.map(|image| image.disk(spec.machine.cpus)).transpose()?;
        let extra = Extra { wiring: session.wiring(), shares: shares.into_folders(), image };
        let mut devices = timeline.phase("open the devices", || Devices::open(&spec.machine, extra))?;
        // Who finds the machine finds one that has all that it is made of.
        open_control(spec, &boot, devices.cleanup())?;
        Ok(Self { boot, signals, session, devices, folders })
    }
}

/// Has commands find the machine, if they are to. One that is given no name need not be found.
fn open_control(spec: &RunSpec, boot: &Boot, cleanup: &mut Cleanup) -> anyhow::Result<()> {
    let machine = &spec.machine;
    if !machine.is_found() {
        return Ok(());
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let facts = Facts {
        id: machine.id.clone().unwrap_or_else(MachineId::of_this_process),
        pid: std::process::id(),
        since: since.as_secs(),
        command: spec.command.as_ref().map(|command| cut(&command.to_string_lossy())),
        kernel: cut(&boot.path.to_string_lossy()),
        screen: machine.screen().is_some(),
    };
    match ControlSocket::open(facts) {
        Ok((socket, name)) => {
            cleanup.control = Some(socket);
            cleanup.names.push(name);
            Ok(())
        }
        Err(error) if machine.id.is_some() => Err(error.context("--id")),
        Err(error) => {
            log::warn!("no command finds this machine: {error:#}");
            Ok(())
        }
    }
}
