//! The virtio devices of `kite run`: opened once, and made anew for each machine that is built.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Result, ensure};
use boot::layout;
use devices::virtio::VirtioDevice;
use devices::virtio::fs::Share;

use crate::backend::console::Console;
use crate::backend::disk::OpenDisk;
use crate::backend::internal::{Balloon, Rng};
use crate::backend::screen::Display;
use crate::backend::share::SharedFolder;
use crate::backend::socket::Ports;
use crate::backend::vnc::Vnc;
use crate::backend::{Backend, Modules};
use crate::sandbox::{Cleanup, Needs};
use crate::session::Wiring;
use crate::spec::container::{ContainerSpec, MountSource};
use crate::spec::wire::FILES;
use crate::spec::{MachineSpec, RunSpec};
use crate::vm::memory::GuestRam;

/// Devices that the command line does not name.
#[derive(Default)]
pub(super) struct Extra {
    /// The session's ends of the virtio console's ports.
    pub wiring: Wiring,
    /// Folders.
    pub shares: Vec<Arc<Share>>,
    /// The disk with an image's root file system. It comes after the user's, which keep their names in the guest.
    pub image: Option<OpenDisk>,
}

/// The module by which the guest's kernel reports a panic.
const PANIC_NOTIFIER: &str = "pvpanic_mmio";
/// How many threads a machine has at most beside those of vCPUs and devices, KVM's own among them.
const THREADS: usize = 32;

/// Whether there is room for the devices of a command's run.
///
/// # Errors
/// There is not.
pub(super) fn check_room(spec: &RunSpec) -> Result<()> {
    let machine = &spec.machine;
    let shown = |container: &ContainerSpec| {
        let folders = container.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Folder(_)));
        folders.count() + container.files.as_ref().map_or(0, |_| FILES.len())
    };
    let container = spec.command.as_ref().and_then(|command| command.container.as_ref());
    let root = usize::from(spec.command.is_some());
    let folders = machine.shares().count() + container.map_or(0, shown);
    let others = machine.disks().count() + machine.nets().count();
    let screen = machine.screen().filter(|_| machine.acpi).map_or(0, |_| Display::DEVICES);
    // The console's ports are one device.
    let inner = usize::from(machine.has_balloon()) + usize::from(machine.has_rng()) + screen + 1;
    let most = if machine.has_pci() { layout::PCI_MAX } else { layout::VIRTIO_MAX };
    let room = (most as usize).saturating_sub(root + others + inner);
    ensure!(
        folders <= room,
        "the guest is shown {folders} folders beside its root, and there is room for {room}: show it folders above them"
    );
    Ok(())
}

/// What the host has opened for the guest's devices, in the order of the board.
pub(super) struct Devices {
    backends: Vec<Box<dyn Backend>>,
    display: Option<Display>,
    /// What viewers of the screen connect to.
    vnc: Option<Vnc>,
    cleanup: Cleanup,
}

impl Devices {
    /// Opens what `spec` names.
    pub fn open(spec: &MachineSpec, extra: Extra) -> Result<Self> {
        let mut backends: Vec<Box<dyn Backend>> = Vec::new();
        for (disk, index) in spec.disks().zip(0..) {
            backends.push(Box::new(disk.open(index, spec.cpus)?));
        }
        if let Some(image) = extra.image {
            backends.push(Box::new(image));
        }
        for (net, index) in spec.nets().zip(0..) {
            backends.push(Box::new(net.open(index)?));
        }
        for (share, index) in extra.shares.into_iter().zip(0..) {
            backends.push(Box::new(SharedFolder::new(index, share)));
        }
        let sockets = Ports::open(&spec.ports().collect::<Vec<_>>())?;
        if let Some(console) = Console::new(extra.wiring.hvc, sockets, extra.wiring.ports) {
            backends.push(Box::new(console));
        }
        if spec.has_balloon() {
            backends.push(Box::new(Balloon::new()?));
        }
        if spec.has_rng() {
            backends.push(Box::new(Rng));
        }
        let display = spec.screen().map(|screen| Display::new(screen.size())).transpose()?;
        if let Some(display) = display.as_ref().filter(|_| spec.acpi) {
            backends.extend(display.backends());
        }
        let vnc = spec.vnc.as_ref().zip(display.as_ref());
        let mut vnc = vnc
            .map(|(vnc, display)| Vnc::open(vnc, display.screen().clone(), display.input()))
            .transpose()?;
        let mut cleanup = Cleanup::default();
        cleanup.names.extend(vnc.as_mut().and_then(Vnc::take_name));
        for backend in &mut backends {
            let leftovers = backend.take_leftovers();
            cleanup.names.extend(leftovers.names);
            cleanup.programs.extend(leftovers.programs);
        }
        Ok(Self { backends, display, vnc, cleanup })
    }

    /// What they use on the host, to be removed after the machine.
    pub fn cleanup(&mut self) -> &mut Cleanup {
        &mut self.cleanup
    }

    /// The folders shared with the guest, which no device has yet.
    pub fn shares(&mut self) -> Vec<&mut Share> {
        self.backends.iter_mut().filter_map(|backend| backend.share()).collect()
    }

    /// What of the sandbox they need to be left open.
    pub fn needs(&self, cpus: u32) -> Needs {
        let threads: usize = self.backends.iter().map(|backend| 1 + backend.threads()).sum();
        let mut needs = Needs { threads: u64::from(cpus) + (THREADS + threads) as u64, ..Needs::default() };
        self.backends.iter().for_each(|backend| needs.add(backend.calls()));
        needs.vnc = self.vnc.is_some();
        needs
    }

    /// Starts the threads of what the devices are connected to, once.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(&mut self) -> Result<()> {
        self.backends.iter_mut().try_for_each(|backend| backend.start())?;
        self.vnc.iter_mut().try_for_each(Vnc::start)
    }

    /// The screen, with what its viewers type and point at.
    pub fn display(&self) -> Option<&Display> {
        self.display.as_ref()
    }

    /// How many devices there are.
    pub fn count(&self) -> u32 {
        self.backends.len() as u32
    }

    /// The kernel modules of all of them.
    pub fn modules(&self) -> Modules {
        let mut all = Modules { needed: Vec::new(), optional: vec![PANIC_NOTIFIER] };
        for modules in self.backends.iter().map(|backend| backend.modules()) {
            all.needed.extend(modules.needed);
            all.optional.extend(modules.optional);
        }
        // Those of several disks are named several times.
        for list in [&mut all.needed, &mut all.optional] {
            let mut seen = HashSet::new();
            list.retain(|module| seen.insert(*module));
        }
        all
    }

    /// New devices for a machine with `ram`.
    pub fn attach(&self, ram: &GuestRam) -> Result<Vec<Box<dyn VirtioDevice>>> {
        self.backends.iter().map(|backend| backend.device(ram)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::device::{DeviceSpec, ScreenSpec, ShareSpec};
    use crate::spec::{CommandSpec, MeasureSpec};

    #[test]
    fn a_screen_s_devices_leave_less_room_for_folders() {
        let room = |screen: bool| {
            let share = || DeviceSpec::Share(ShareSpec::parse("/").unwrap());
            (0..100).find(|count| {
                let mut devices: Vec<_> = (0..=*count).map(|_| share()).collect();
                devices.extend(screen.then_some(DeviceSpec::Screen(ScreenSpec { width: 640, height: 480 })));
                let machine = MachineSpec { devices, ..MachineSpec::default() };
                let command = CommandSpec { argv: vec!["true".into()], ..CommandSpec::default() };
                check_room(&RunSpec::new(machine, Some(command), MeasureSpec::default(), false)).is_err()
            })
        };
        assert_eq!(room(false).unwrap() - room(true).unwrap(), Display::DEVICES);
    }
}
