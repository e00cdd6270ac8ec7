//! The board: what sits where. Builds it around memory that a kernel, or a saved machine's memory, is loaded into.
//!
//! A machine is built once, boots or is loaded once, and is dropped; a reset builds another. The order of locks is in
//! [`running`](crate::vm::running).

use std::sync::{Arc, Mutex};
use std::thread::{self, Builder};
use std::time::{Instant, SystemTime};

use anyhow::{Context, ensure};
use boot::cpuid::Leaves;
use boot::kernel::Image;
use boot::{layout, registers};
use devices::bus::{self, Bus, SharedDevice};
use devices::chipset::cmos::Cmos;
use devices::chipset::i8042::I8042;
use devices::chipset::power::Power;
use devices::chipset::pvpanic::{self, PvPanic};
use devices::chipset::serial::{Host, Serial};
use devices::pci::Root;
use devices::virtio::transport::mmio::{self, InterruptLine, Mmio};
use devices::virtio::{Thread, Virtio, VirtioDevice};
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::host::phases::Phases;
use crate::host::thread::ThreadKind;
use crate::spec::MachineSpec;
use crate::vcpu::coalesced::{Coalesced, CoalescingHost};
use crate::vcpu::counters::Counters;
use crate::vcpu::stop::ExitRequest;
use crate::vcpu::{Shared, Vcpu};
use crate::vm::device_thread::{IoDevice, IoThread, Notifier, QueueEvents};
use crate::vm::devices::Devices;
use crate::vm::memory::GuestRam;
use crate::vm::pci::PciBus;
use crate::vm::pit::Ports;
pub use crate::vm::running::{Paused, ResetWord, Running};
use crate::vm::snapshot::MachineState;
use crate::vm::testdev;
use crate::vm::{self, Vm};

/// The thread of the virtio devices that have little to do.
const SHARED_THREAD: &str = "virtio";

/// The stack of the thread that reads CPUID, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// IA32_MISC_ENABLE: fast string instructions work (Intel SDM vol. 4).
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: on, write-back unless said otherwise, as firmware leaves it.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// A machine that has not started.
pub struct Machine {
    spec: MachineSpec,
    vm: Vm,
    shared: Shared,
    devices: Devices,
    vcpus: Vec<VcpuFd>,
    virtio: Vec<Added>,
    /// What counts the exits of each vCPU; empty if they are not counted.
    counters: Vec<Arc<Counters>>,
}

impl Machine {
    /// Builds the board of `spec` around `ram`; `console` is what the serial port wakes, `devices` are the virtio devices.
    /// `cpuid` is what KVM can show of this processor, which is asked where it is not known. Notes in `phases` how long each
    /// part takes.
    ///
    /// # Errors
    /// The host has not enough of something.
    pub fn build(
        kvm: &Kvm,
        cpuid: &mut Option<CpuId>,
        spec: &MachineSpec,
        ram: Arc<GuestRam>,
        console: Box<dyn Host>,
        devices: Vec<Box<dyn VirtioDevice>>,
        phases: &Phases,
    ) -> anyhow::Result<Self> {
        let most = kvm.get_max_vcpus();
        ensure!(
            spec.cpus as usize <= most,
            "{} CPUs are too many: this host's KVM has at most {most}",
            spec.cpus
        );
        let build = || phases.phase("virtual machine", || Vm::new(kvm, ram, spec.cpus));
        let (vm, supported) = match cpuid {
            Some(known) => (build()?, &*known),
            // While KVM waits for what a virtual machine takes, it can as well ask the processor: on a host that is itself a
            // guest each answer is an exit, and all of them take as long.
            None => thread::scope(|scope| -> anyhow::Result<_> {
                let asking = Builder::new().name("cpuid".to_owned()).stack_size(STACK);
                let ask = || phases.phase("ask for CPUID", || vm::supported_cpuid(kvm));
                let asking = asking.spawn_scoped(scope, ask);
                let asking = asking.context("cannot start a thread")?;
                let vm = build();
                let answer = asking.join().expect("a panic ends the process")?;
                Ok((vm?, &*cpuid.insert(answer)))
            })?,
        };
        let start = Instant::now();
        let exit = Arc::new(ExitRequest::new()?);
        let coalesced = Arc::new(vm.coalesced());
        let host = Box::new(CoalescingHost { host: console, coalesced: coalesced.clone() });
        let mut owned = Devices {
            serial: new(Serial::new(Box::new(vm.line(layout::SERIAL_GSI)?), host)),
            cmos: new(Cmos::new(Box::new(SystemTime::now))),
            i8042: new(I8042::new(exit.clone())),
            power: new(Power(exit.clone())),
            pvpanic: new(PvPanic(exit.clone())),
            pci: None,
            virtio: Vec::new(),
        };
        let mut ports = port_bus(spec, &vm, &owned, &exit).context("two devices share a port")?;
        let mut mmio = Bus::default();
        if spec.test_devices {
            testdev::add(spec, &vm, &exit, &mut ports, &mut mmio)?;
        }
        let (virtio, pci) = add_devices(&vm, &coalesced, &mut mmio, devices)?;
        owned.pci = pci;
        owned.virtio = virtio.iter().map(|(_, served)| served.virtio.clone()).collect();
        let shared = Shared { ports: Arc::new(ports), mmio: Arc::new(mmio), coalesced, exit };
        let mut machine = Self {
            spec: spec.clone(),
            vm,
            shared,
            devices: owned,
            vcpus: Vec::new(),
            virtio,
            counters: Vec::new(),
        };
        phases.note("devices", start);
        phases.phase("vCPUs", || machine.create_vcpus(supported))?;
        Ok(machine)
    }

    fn create_vcpus(&mut self, supported: &CpuId) -> anyhow::Result<()> {
        let leaves = Leaves::new(supported.as_slice(), self.spec.cpus, self.vm.has(Cap::TscDeadlineTimer))?;
        let msrs =
            [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry { index, data, reserved: 0 });
        let msrs = Msrs::from_entries(&msrs).expect("two fit in a list of MSRs");
        for index in 0..self.spec.cpus {
            let vcpu = self.vm.create_vcpu(index)?;
            vcpu.set_cpuid2(&leaves.for_vcpu(index))
                .with_context(|| format!("cannot set vCPU {index}'s CPUID"))?;
            // KVM stops at the first it refuses, and tells how many it took.
            let taken = vcpu.set_msrs(&msrs).with_context(|| format!("cannot set vCPU {index}'s MSRs"))?;
            ensure!(taken == msrs.as_slice().len(), "this KVM refuses vCPU {index} an MSR");
            if !self.spec.acpi || self.spec.test_devices {
                let mut lapic =
                    vcpu.get_lapic().with_context(|| format!("cannot read vCPU {index}'s local APIC"))?;
                registers::set_virtual_wire(&mut lapic, index == 0);
                vcpu.set_lapic(&lapic).with_context(|| format!("cannot set vCPU {index}'s local APIC"))?;
            }
            self.vcpus.push(vcpu);
        }
        self.shared.coalesced.set_vcpu(&self.vcpus[0])
    }

    /// Sets the boot vCPU at the entry of `image`, which has been loaded, its boot parameters at `info`.
    ///
    /// # Errors
    /// The host's KVM refuses the registers.
    pub fn boot(&mut self, image: &Image, info: u64) -> anyhow::Result<()> {
        let boot_vcpu = self.vcpus.first().context("a machine without CPUs")?;
        let (mut sregs, mut regs) =
            (boot_vcpu.get_sregs().context("cannot read the boot vCPU")?, Default::default());
        registers::set(self.vm.ram().memory(), image, info, &mut sregs, &mut regs)?;
        boot_vcpu.set_sregs(&sregs).context("cannot set the boot vCPU's system registers")?;
        boot_vcpu.set_regs(&regs).context("cannot set the boot vCPU's registers")
    }

    /// Takes over a saved machine's state, instead of booting. The memory has the saved machine's content, and the board is
    /// the same.
    ///
    /// # Errors
    /// The state is of another board, or the host's KVM refuses a part.
    pub fn load(&mut self, state: &MachineState) -> anyhow::Result<()> {
        let (saved, here) = (state.vcpus.len(), self.vcpus.len());
        ensure!(saved == here, "the saved machine has {saved} vCPUs, and this one {here}");
        let vm = self.vm.fd();
        let mut vcpus = state.vcpus.iter().zip(&self.vcpus);
        vcpus.clone().try_for_each(|(state, vcpu)| state.set_cpuid(vcpu))?;
        state.vm.set(vm)?;
        vcpus.try_for_each(|(state, vcpu)| state.set(vm, vcpu))?;
        self.devices.load(&state.devices)?;
        state.vm.set_clock(vm)
    }

    /// Has the exits of each vCPU counted and timed by its own of `vcpus`, and coalesced writes by `ring`.
    pub fn count(&mut self, vcpus: Vec<Arc<Counters>>, ring: Arc<Counters>) {
        self.shared.coalesced.set_counters(ring);
        self.counters = vcpus;
    }

    /// The vCPUs' descriptors, in the order of their indices.
    pub fn vcpus(&self) -> &[VcpuFd] {
        &self.vcpus
    }

    /// The virtual machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// What the vCPUs share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts the threads of vCPUs and devices; the guest begins when it is [released](Running::release).
    ///
    /// # Errors
    /// The host has no threads left.
    pub fn start(self) -> anyhow::Result<Running> {
        let Self { spec, vm, shared, devices, vcpus, virtio, counters } = self;
        let counters = |index: u32| counters.get(index as usize).cloned();
        let start = |(index, fd)| Vcpu::new(index, fd, shared.clone()).counted_by(counters(index)).start();
        let vcpus = (0..).zip(vcpus).map(start).collect::<Result<_, _>>()?;
        let mut threads: Vec<(String, Vec<IoDevice>)> = Vec::new();
        for (name, served) in virtio {
            match threads.iter_mut().find(|(known, _)| *known == name) {
                Some((_, thread)) => thread.push(served),
                None => threads.push((name, vec![served])),
            }
        }
        let threads = threads.into_iter().map(|(name, served)| IoThread::start(&name, served));
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(Running { spec, vcpus, threads, devices, vm, shared, states: Vec::new(), stuck: false })
    }
}

/// The PCI bus, as its owner and memory space share it.
type SharedRoot = Arc<Mutex<Root>>;

/// A virtio device that is put on the board: the thread that serves it, and what that knows of it.
type Added = (String, IoDevice);

/// The thread that serves a device, and what that may do.
fn thread_of(device: &dyn VirtioDevice) -> (String, ThreadKind) {
    let name = device.name();
    let (thread, confinement) = match device.thread() {
        Thread::Shared => (SHARED_THREAD, ThreadKind::Io),
        Thread::Own => (name, ThreadKind::Io),
        Thread::Files { writable: true } => (name, ThreadKind::Share),
        Thread::Files { writable: false } => (name, ThreadKind::ReadOnlyShare),
    };
    (thread.to_owned(), confinement)
}

/// Puts a virtio device into the window and on the line of its `index`.
fn add_mmio(
    vm: &Vm,
    coalesced: &Arc<Coalesced>,
    bus: &mut Bus,
    index: u32,
    device: Box<dyn VirtioDevice>,
) -> anyhow::Result<Added> {
    ensure!(
        index < layout::VIRTIO_MAX,
        "there is room for {} devices: use fewer disks and networks",
        layout::VIRTIO_MAX
    );
    let line = Arc::new(InterruptLine::new(Box::new(vm.line(layout::VIRTIO_GSI + index)?)));
    let name = device.name().to_owned();
    let (thread, confinement) = thread_of(&*device);
    let events = Arc::new(QueueEvents::new(device.queue_sizes().len())?);
    let notify = Arc::new(Notifier(events.clone()));
    let virtio = Virtio::new(device, vm.ram().memory().clone(), line.clone(), notify.clone());
    let virtio = Arc::new(Mutex::new(virtio));
    let window = new(Mmio::new(virtio.clone(), line, notify));
    let address = layout::VIRTIO + layout::VIRTIO_WINDOW * u64::from(index);
    bus.insert(address, layout::VIRTIO_WINDOW, window).context("two devices share an address")?;
    bus.set_name(address, name);
    let registers = vm.registers(address + mmio::NOTIFY, address + mmio::ACKNOWLEDGE, coalesced.clone());
    Ok((thread, IoDevice { virtio, events, connect: Box::new(registers), confinement }))
}

/// Makes a virtio device the bus's next function.
fn add_function(vm: &Vm, bus: &mut PciBus, device: Box<dyn VirtioDevice>) -> anyhow::Result<Added> {
    let name = device.name().to_owned();
    let (thread, confinement) = thread_of(&*device);
    let queues = device.queue_sizes().len();
    let events = Arc::new(QueueEvents::new(queues)?);
    let notify = Arc::new(Notifier(events.clone()));
    let vectors = bus.vectors(queues)?;
    let virtio = Virtio::new(device, vm.ram().memory().clone(), vectors.clone(), notify);
    let virtio = Arc::new(Mutex::new(virtio));
    let kicks = bus.add(name, virtio.clone(), vectors, events.clone())?;
    Ok((thread, IoDevice { virtio, events, connect: Box::new(kicks), confinement }))
}

/// Puts the virtio devices on the PCI bus, if there is one, or each into a window of its own.
fn add_devices(
    vm: &Vm,
    coalesced: &Arc<Coalesced>,
    mmio: &mut Bus,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> anyhow::Result<(Vec<Added>, Option<SharedRoot>)> {
    let Some(pages) = vm.ram().config_space() else {
        let places = (0..).zip(devices);
        let added = places.map(|(index, device)| add_mmio(vm, coalesced, mmio, index, device));
        return Ok((added.collect::<Result<_, _>>()?, None));
    };
    let mut bus = PciBus::new(vm, pages, coalesced);
    let added = devices.into_iter().map(|device| add_function(vm, &mut bus, device));
    let added = added.collect::<Result<_, _>>()?;
    Ok((added, Some(bus.finish(mmio)?)))
}

/// The devices at I/O ports.
fn port_bus(
    spec: &MachineSpec,
    vm: &Vm,
    devices: &Devices,
    exit: &Arc<ExitRequest>,
) -> Result<Bus, bus::Error> {
    let mut ports = Bus::default();
    let mut put = |port: u16, len, name: &str, device: SharedDevice| {
        ports.insert(port.into(), len, device)?;
        ports.set_name(port.into(), name);
        Ok(())
    };
    put(layout::SERIAL_PORT, 8, "serial", devices.serial.clone())?;
    put(layout::CMOS_PORT, 2, "cmos", devices.cmos.clone())?;
    put(layout::POWER_PORT, 3, "power", devices.power.clone())?;
    put(layout::PVPANIC_PORT, pvpanic::LEN, "pvpanic", devices.pvpanic.clone())?;
    if !spec.test_devices {
        put(layout::PIT_PORT, 4, "pit", new(vm.pit(Ports::Timer, exit.clone())))?;
        put(layout::PIT_GATE_PORT, 1, "pit", new(vm.pit(Ports::Gate, exit.clone())))?;
    }
    // The timer's gate lies between the keyboard controller's two ports.
    let base = layout::I8042_PORT.into();
    ports.insert_part(base, base, 1, devices.i8042.clone())?;
    ports.insert_part(base, base + 4, 1, devices.i8042.clone())?;
    [base, base + 4].iter().for_each(|port| ports.set_name(*port, "i8042"));
    Ok(ports)
}

/// A device, as its owner and the buses share it.
fn new<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}
