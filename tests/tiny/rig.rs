//! A machine with one vCPU and nothing but the test's own devices, and the device that records.

use std::sync::{Arc, Mutex};

use boot::cpuid::Leaves;
use boot::kernel::Image;
use boot::layout;
use boot::testing::{Code, Entry};
use devices::bus::{Bus, BusDevice, SharedDevice};
use devices::chipset::power::Power;
use kite::observe::stats::Stats;
use kite::vcpu::stop::{Exit, ExitRequest};
use kite::vcpu::{self, PausedVcpus, Shared, Vcpu, VcpuThread};
use kite::vm::memory::GuestRam;
use kite::vm::{self, Vm};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};

use crate::support::HANG;
use crate::support::guest::Elf;

const RAM: u64 = 64 << 20;
/// Where the ports of the test's device are.
const PORTS: u64 = 0xc00;
/// Where the memory of the test's device is.
const MEMORY: u64 = 0x1000_0000;
const LEN: u64 = 0x2000;
/// Ports that an instruction can name in one byte.
const LOW_PORTS: u64 = 0xe0;

/// A guest that runs. Dropping it stops it.
pub struct Rig {
    vcpus: Vec<VcpuThread>,
    exit: Arc<ExitRequest>,
    /// What the vCPU has exited for.
    pub stats: Stats,
    vm: Vm,
}

impl Rig {
    /// Runs `guest` in long mode with `ports` at ports 0xc00 and 0xe0, and `memory` at 0x10000000.
    pub fn run(guest: &'static Code, ports: SharedDevice, memory: SharedDevice) -> Self {
        let elf = Elf::new(guest.code(), Entry::Long);
        let image = Image::open(&elf.path).unwrap();
        let ram = Arc::new(GuestRam::new(RAM).unwrap());
        ram.place(image.segments[0].addr, &image.segments[0].piece).unwrap();
        let kvm = vm::open_kvm().unwrap();
        let vm = Vm::new(&kvm, ram, 1).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let leaves = Leaves::new(vm::supported_cpuid(&kvm).unwrap().as_slice(), 1, false).unwrap();
        vcpu.set_cpuid2(&leaves.for_vcpu(0)).unwrap();
        let (mut sregs, mut regs) = (vcpu.get_sregs().unwrap(), Default::default());
        boot::registers::set(vm.ram().memory(), &image, 0, &mut sregs, &mut regs).unwrap();
        vcpu.set_sregs(&sregs).unwrap();
        vcpu.set_regs(&regs).unwrap();

        let exit = Arc::new(ExitRequest::new().unwrap());
        let (mut port_bus, mut memory_bus) = (Bus::default(), Bus::default());
        port_bus.insert(LOW_PORTS, 16, ports.clone()).unwrap();
        port_bus.insert(PORTS, 16, ports).unwrap();
        port_bus.set_name(PORTS, "recorder");
        let power = Arc::new(Mutex::new(Power(exit.clone())));
        port_bus.insert(layout::POWER_PORT.into(), 3, power).unwrap();
        port_bus.set_name(layout::POWER_PORT.into(), "power");
        memory_bus.insert(MEMORY, LEN, memory).unwrap();
        memory_bus.set_name(MEMORY, "recorder");
        let coalesced = Arc::new(vm.coalesced());
        let (port_bus, memory_bus) = (Arc::new(port_bus), Arc::new(memory_bus));
        let vcpus = [vcpu];
        let stats = Stats::new(vm.fd().clone(), &vcpus, port_bus.clone(), memory_bus.clone());
        let shared = Shared { ports: port_bus, mmio: memory_bus, coalesced, exit: exit.clone() };
        let start = |fd| {
            let vcpu = Vcpu::new(0, fd, shared.clone()).counted_by(stats.counters(0)).start().unwrap();
            vcpu.release();
            vcpu
        };
        let vcpus = vcpus.into_iter().map(start).collect();
        Self { vcpus, exit, stats, vm }
    }

    /// Waits until the guest powers off, and stops.
    pub fn wait(&mut self) {
        let timeout = PollTimeout::try_from(HANG).unwrap();
        let ended = poll(&mut [PollFd::new(self.exit.event(), PollFlags::POLLIN)], timeout).unwrap();
        assert_eq!(ended, 1, "the guest hangs");
        assert!(matches!(self.exit.reason(), Some(Exit::PowerOff)), "{:?}", self.exit.reason());
        vcpu::stop(std::mem::take(&mut self.vcpus));
    }

    /// Pauses the vCPU.
    pub fn pause(&self) -> PausedVcpus<'_> {
        vcpu::pause(&self.vcpus)
    }

    /// Fails if the guest has ended.
    pub fn assert_running(&self) {
        assert!(self.exit.reason().is_none(), "{:?}", self.exit.reason());
    }

    /// What is in guest memory at `address`.
    pub fn memory<const LEN: usize>(&self, address: u64) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        self.vm.ram().memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// An access as a device sees it.
#[derive(Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest read these bytes at this offset.
    Read(u64, Vec<u8>),
    /// The guest wrote these bytes at this offset.
    Write(u64, Vec<u8>),
}

/// Records every access; what it gives is 1, 2, 3 and so on, byte by byte, then from 0 again.
#[derive(Default)]
pub struct Recorder {
    /// All accesses so far.
    pub accesses: Vec<Access>,
    last: u8,
}

impl BusDevice for Recorder {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in &mut *data {
            self.last = self.last.wrapping_add(1);
            *byte = self.last;
        }
        self.accesses.push(Access::Read(offset, data.to_vec()));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.accesses.push(Access::Write(offset, data.to_vec()));
    }
}

/// Runs `guest` to its end; returns what its ports and its memory saw, and the rig.
pub fn record(guest: &'static Code) -> (Vec<Access>, Vec<Access>, Rig) {
    let (ports, memory) = (Arc::<Mutex<Recorder>>::default(), Arc::<Mutex<Recorder>>::default());
    let mut rig = Rig::run(guest, ports.clone(), memory.clone());
    rig.wait();
    let taken = |device: &Mutex<Recorder>| std::mem::take(&mut device.lock().unwrap().accesses);
    (taken(&ports), taken(&memory), rig)
}
