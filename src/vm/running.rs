//! A machine that runs: how it is paused, saved and stopped.
//!
//! Lock order: the ring of coalesced writes, then the PCI bus, then a virtio device's registers, then one device, then its
//! interrupt vectors. Only while every vCPU is paused are several devices locked at once, in the order of the board.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use boot::layout;
use devices::chipset::serial::Serial;
use devices::device::Device;
use devices::virtio::Virtio;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use crate::spec::MachineSpec;
use crate::vcpu::registers::VcpuRegisters;
use crate::vcpu::state::{self, VcpuState};
use crate::vcpu::stop::{Exit, ExitRequest};
use crate::vcpu::{self, LONGEST_STEP, PausedVcpus, Shared, VcpuThread};
use crate::vm::Vm;
use crate::vm::device_thread::IoThread;
use crate::vm::devices::Devices;
use crate::vm::memory::GuestRam;
use crate::vm::snapshot::{MachineState, VmState};

/// A machine that runs. Dropping it stops it.
pub struct Running {
    pub(super) vcpus: Vec<VcpuThread>,
    pub(super) threads: Vec<IoThread>,
    pub(super) spec: MachineSpec,
    pub(super) devices: Devices,
    pub(super) vm: Vm,
    pub(super) shared: Shared,
    /// How the vCPUs stood when they were stopped, if that is of interest.
    pub(super) states: Vec<Option<VcpuRegisters>>,
    /// One of its threads did not end when it was stopped.
    pub(super) stuck: bool,
}

/// A machine whose vCPUs and devices are paused for as long as this lives.
#[must_use = "the machine runs on when it is dropped"]
pub struct Paused<'a> {
    // The devices go on before the vCPUs.
    virtio: Vec<MutexGuard<'a, Virtio>>,
    chipset: Vec<MutexGuard<'a, dyn Device + 'static>>,
    running: &'a Running,
    _vcpus: PausedVcpus<'a>,
}

impl Paused<'_> {
    /// Saves the state of devices, vCPUs, interrupt controllers, timer and clock; the memory is [`GuestRam::saved`].
    ///
    /// # Errors
    /// A device has something that cannot be saved, a vCPU has ended, or the host's KVM refuses a part.
    pub fn save(&mut self, kvm: &Kvm) -> anyhow::Result<MachineState> {
        ensure!(!self.running.spec.test_devices, "a machine with --test-devices cannot be saved");
        // What a device completes may interrupt a vCPU, whose state is read after that.
        let mut devices = BTreeMap::new();
        let chipset = self.chipset.iter_mut().map(|device| &mut **device);
        for device in chipset.chain(self.virtio.iter_mut().map(|device| &mut **device as &mut dyn Device)) {
            let name = device.name().to_owned();
            let state = device.save().with_context(|| format!("cannot save device {name}"))?;
            devices.insert(name, state);
        }
        let indices: Arc<[u32]> = state::msr_indices(kvm)?.into();
        let vm = &self.running.vm;
        let read = |vcpu: &VcpuThread| {
            let (vm, indices) = (vm.fd().clone(), indices.clone());
            vcpu.ask(move |vcpu| VcpuState::read(&vm, vcpu, &indices)).context("a vCPU has ended")?
        };
        let vcpus = self.running.vcpus.iter().map(read).collect::<Result<_, _>>()?;
        Ok(MachineState { vcpus, vm: VmState::read(vm.fd())?, devices })
    }
}

/// Locks a device, unless its thread waits for the host until the time is over.
fn lock_by<T: ?Sized>(device: &Mutex<T>, until: Instant) -> Option<MutexGuard<'_, T>> {
    loop {
        match device.try_lock() {
            Ok(device) => return Some(device),
            Err(TryLockError::Poisoned(device)) => return Some(device.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => return None,
        }
    }
}

/// How often a device that is busy is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// How Linux went into the reset that ended it, by the word it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetWord {
    /// The guest did not come to write it.
    Untouched,
    /// An ordinary restart.
    Cold,
    /// A warm restart: what kite's command line makes of a panic.
    Warm,
}

impl Running {
    /// Lets the guest begin, or go on where it was saved.
    pub fn release(&self) {
        // Until here the state is what was loaded.
        self.devices.resume();
        self.vcpus.iter().for_each(VcpuThread::release);
    }

    /// Pauses every vCPU between two instructions, with nothing half done. The devices go on: what they have in flight may
    /// wait for the host.
    pub fn pause_vcpus(&self) -> PausedVcpus<'_> {
        let paused = vcpu::pause(&self.vcpus);
        if paused.is_complete() {
            self.shared.coalesced.carry_out(&self.shared.ports, &self.shared.mmio);
        }
        paused
    }

    /// Has the guest's clock know of a pause of the vCPUs, which are paused, so that its watchdogs do not take it for a hang.
    pub fn note_pause(&self) {
        for vcpu in &self.vcpus {
            // A guest without kvmclock has nothing to know it by.
            vcpu.ask(|vcpu| _ = vcpu.kvmclock_ctrl());
        }
    }

    /// Pauses every vCPU and every device.
    ///
    /// # Errors
    /// A vCPU or a device waits for the host.
    pub fn pause(&self) -> io::Result<Paused<'_>> {
        let mut paused = self.hold()?;
        paused.virtio.iter_mut().for_each(|device| device.drain());
        Ok(paused)
    }

    /// As [`Self::pause`], but what a device has in flight goes on.
    fn hold(&self) -> io::Result<Paused<'_>> {
        let vcpus = self.pause_vcpus();
        let until = Instant::now() + LONGEST_STEP;
        let chipset = self.devices.chipset().map(|device| lock_by(device, until));
        let chipset = chipset.collect::<Option<_>>();
        let virtio = self.devices.virtio.iter().map(|device| lock_by(device, until)).collect::<Option<_>>();
        match (vcpus.is_complete(), chipset, virtio) {
            (true, Some(chipset), Some(virtio)) => {
                Ok(Paused { virtio, chipset, running: self, _vcpus: vcpus })
            }
            _ => Err(io::Error::other("a device waits for the host")),
        }
    }

    /// Makes the guest independent of the files it was loaded from.
    ///
    /// # Errors
    /// The host is out of memory.
    pub fn detach_files(&self) -> io::Result<()> {
        // Devices write guest memory, too. What they have in flight may wait for the host, and so is not waited for.
        let paused = self.hold()?;
        paused.running.vm.ram().detach_files()
    }

    /// How much processor time the vCPUs have used, together.
    pub fn cpu_time(&self) -> Duration {
        self.vcpus.iter().map(VcpuThread::cpu_time).sum()
    }

    /// How each vCPU stands: now, if they are paused, or as they were stopped; nothing for one that runs or cannot tell.
    pub fn states(&self) -> Vec<Option<VcpuRegisters>> {
        match self.vcpus.as_slice() {
            [] => self.states.clone(),
            vcpus => vcpus.iter().map(|vcpu| vcpu.ask(VcpuRegisters::read)?.ok()).collect(),
        }
    }

    /// Ends the vCPUs, then the devices' threads; one that does not end in time is left to end with the process. How the
    /// vCPUs stood is kept, unless the guest went in peace.
    pub fn stop(&mut self) {
        use Exit::{Command, PowerOff, Quit, Signal};
        let peaceful = matches!(self.exit().reason(), None | Some(Command(_) | PowerOff | Quit | Signal(_)));
        if !peaceful && !self.vcpus.is_empty() {
            let paused = vcpu::pause(&self.vcpus);
            self.states = self.states();
            paused.forget();
        }
        let mut ended = vcpu::stop(std::mem::take(&mut self.vcpus));
        let until = Instant::now() + LONGEST_STEP;
        self.threads.iter_mut().for_each(|thread| ended &= thread.end(until));
        self.threads.clear();
        if ended {
            self.shared.coalesced.carry_out(&self.shared.ports, &self.shared.mmio);
        } else if !std::mem::replace(&mut self.stuck, true) {
            log::error!("a device waits for the host, and is given up");
        }
    }

    /// Whether a thread did not end when the machine was stopped: it still has the machine's devices.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// What the guest left in the reset word. The vCPUs are stopped.
    pub fn reset_word(&self) -> ResetWord {
        match self.vm.ram().memory().read_obj(GuestAddress(layout::RESET_WORD)) {
            Ok(0x1234u16) => ResetWord::Warm,
            Ok(0) => ResetWord::Cold,
            _ => ResetWord::Untouched,
        }
    }

    /// Why the machine stops.
    pub fn exit(&self) -> &Arc<ExitRequest> {
        &self.shared.exit
    }

    /// The serial port.
    pub fn serial(&self) -> &Arc<Mutex<Serial>> {
        &self.devices.serial
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.vm.ram()
    }
}
