//! The virtio devices of `kite run`: opened once, and made anew for each machine that is built.

use std::sync::Arc;
use std::thread::Builder;

use anyhow::{Context, Result};
use devices::virtio::balloon::{self, Balloon, Target};
use devices::virtio::console::{self, Port};
use devices::virtio::fs::{self, Fs, Share};
use devices::virtio::rng::{self, Rng};
use devices::virtio::{VirtioDevice, block, net};

use crate::backend::disk;
use crate::backend::net::Network;
use crate::backend::socket::Ports;
use crate::sandbox::{self, Cleanup};
use crate::session::Wiring;
use crate::spec::MachineSpec;
use crate::vm::memory::GuestRam;

/// The stack of a thread that serves a share, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// Devices that the command line does not name.
#[derive(Default)]
pub(super) struct Extra {
    /// The session's ends of the virtio console's ports.
    pub wiring: Wiring,
    /// Folders.
    pub shares: Vec<Arc<Share>>,
}

/// The module by which the guest's kernel tells of a panic.
const PANIC_NOTIFIER: &str = "pvpanic_mmio";

/// What the host has opened for the guest's devices.
pub(super) struct Devices {
    disks: Vec<disk::Open>,
    networks: Vec<Network>,
    /// The host's end of `hvc0`, if the guest has it.
    hvc: Option<Arc<Port>>,
    ports: Ports,
    /// The host's ends of more ports, behind those.
    more_ports: Vec<Arc<Port>>,
    shares: Vec<Arc<Share>>,
    /// What the balloon is to be; nothing without a balloon.
    balloon: Option<Arc<Target>>,
    rng: bool,
    cleanup: Cleanup,
}

impl Devices {
    /// Opens what `spec` names.
    pub fn open(spec: &MachineSpec, extra: Extra) -> Result<Self> {
        let balloon = spec.has_balloon().then(Target::new).transpose();
        let networks = spec.nets().zip(0..).map(|(spec, index)| spec.open(index));
        let disks = spec.disks().map(|disk| disk.open(spec.cpus)).collect::<Result<_>>()?;
        let mut networks: Vec<_> = networks.collect::<Result<_>>()?;
        let mut ports = Ports::open(&spec.ports().collect::<Vec<_>>())?;
        let programs = networks.iter_mut().filter_map(Network::take_program).collect();
        let cleanup = Cleanup { names: ports.take_names(), programs, group: None };
        Ok(Self {
            disks,
            networks,
            hvc: extra.wiring.hvc,
            ports,
            more_ports: extra.wiring.ports,
            shares: extra.shares,
            balloon: balloon.context("cannot make a balloon")?.map(Arc::new),
            rng: spec.has_rng(),
            cleanup,
        })
    }

    /// What they use on the host, to be removed after the machine.
    pub fn cleanup(&mut self) -> &mut Cleanup {
        &mut self.cleanup
    }

    /// The folders shared with the guest, which no device has yet.
    pub fn shares(&mut self) -> Vec<&mut Share> {
        self.shares.iter_mut().filter_map(Arc::get_mut).collect()
    }

    /// What of the sandbox they need to be left open.
    pub fn needs(&self, cpus: u32) -> sandbox::Needs {
        // Each disk's and share's thread starts more, a machine has a few for itself, and KVM has some.
        let threads = 32 + self.networks.len() + 8 * self.disks.len() + 16 * self.shares.len();
        let shares = self.shares.iter().map(|share| share.writable).reduce(|one, other| one || other);
        sandbox::Needs {
            disks: !self.disks.is_empty(),
            networks: !self.networks.is_empty(),
            ports: !self.ports.ports().is_empty(),
            shares,
            threads: u64::from(cpus) + threads as u64,
            ..sandbox::Needs::default()
        }
    }

    /// Starts the threads of what the devices are connected to, once.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(&mut self) -> Result<()> {
        self.ports.start()
    }

    /// How many devices there are.
    pub fn count(&self) -> u32 {
        let named = self.disks.len() + self.networks.len() + self.shares.len();
        let single = [self.has_console(), self.balloon.is_some(), self.rng];
        named as u32 + single.into_iter().map(u32::from).sum::<u32>()
    }

    fn has_console(&self) -> bool {
        self.hvc.is_some() || !self.ports.ports().is_empty() || !self.more_ports.is_empty()
    }

    /// The kernel modules of devices that the guest cannot do without, and of those that it can.
    pub fn modules(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let (mut needed, mut optional) = (Vec::new(), vec![PANIC_NOTIFIER]);
        if !self.disks.is_empty() {
            needed.push(block::KIND.module);
        }
        if !self.networks.is_empty() {
            needed.push(net::KIND.module);
            optional.extend(["af_packet", "ipv6"]);
        }
        if !self.shares.is_empty() {
            needed.extend([fs::KIND.module, "overlay"]);
        }
        if !self.more_ports.is_empty() {
            needed.push(console::KIND.module);
        } else if self.has_console() {
            optional.push(console::KIND.module);
        }
        if self.balloon.is_some() {
            optional.push(balloon::KIND.module);
        }
        if self.rng {
            optional.push(rng::KIND.module);
        }
        (needed, optional)
    }

    /// New devices for a machine with `ram`, in the order of the board.
    pub fn attach(&self, ram: &GuestRam) -> Result<Vec<Box<dyn VirtioDevice>>> {
        let (memory, copies) = (ram.memory(), ram.copies());
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for (disk, index) in self.disks.iter().zip(0..) {
            let device = disk.device(format!("disk{index}"), memory, copies.clone());
            devices.push(device.with_context(|| format!("cannot set up disk {index}"))?);
        }
        for (network, index) in self.networks.iter().zip(0..) {
            devices.push(network.device(format!("net{index}"))?);
        }
        for (share, index) in self.shares.iter().zip(0..) {
            let name = format!("fs{index}");
            let thread = name.clone();
            let spawn = move |work: Box<dyn FnOnce() + Send>| {
                Builder::new().name(thread.clone()).stack_size(STACK).spawn(work).map(drop)
            };
            let device = Fs::new(name, share.clone(), memory.clone(), copies.clone(), Box::new(spawn));
            devices.push(Box::new(device.with_context(|| format!("cannot set up share {}", share.tag))?));
        }
        if self.has_console() {
            let ports = [self.ports.ports(), &self.more_ports].concat();
            devices.push(Box::new(console::Console::new(self.hvc.clone(), ports)));
        }
        if let Some(target) = &self.balloon {
            devices.push(Box::new(Balloon::new(target.clone())));
        }
        if self.rng {
            devices.push(Box::new(Rng));
        }
        Ok(devices)
    }
}
