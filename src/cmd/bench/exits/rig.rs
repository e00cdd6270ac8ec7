//! A machine to measure on: one vCPU or two in long mode at the payload's first instruction, kite's own bus with as many
//! devices as a board has, and kite's own run loop beside the bare one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use boot::cpuid::Leaves;
use boot::layout;
use boot::testing::Code;
use devices::bus::{Bus, BusDevice, SharedDevice};
use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, kvm_lapic_state,
    kvm_regs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::code;
use super::counters::Meanwhile;
use super::mode::{long_mode, tables};
use super::raw;
use super::sample::{Leg, Path};
use super::watch::watched;
use crate::observe::kvm_stats::KvmStats;
use crate::vcpu::stop::{Exit, ExitRequest};
use crate::vcpu::{Shared, StopHandle, Vcpu};
use crate::vm::memory::GuestRam;
use crate::vm::{self, Vm};

/// RAM in bytes: both rings end here.
const RAM: u64 = 16 << 20;
const CODE: u64 = 0x10_0000;
const SECOND_CODE: u64 = 0x11_0000;
/// The first vCPU's stack ends here, the second's below it.
const STACKS: u64 = 0x18_0000;
const STACK: u64 = 0x1_0000;
/// IA32_APIC_BASE: x2APIC mode (Intel SDM vol. 3 §11.12.1).
const X2APIC: u64 = 1 << 10;
/// Registers of the local APIC (Intel SDM vol. 3 §11.4.1): spurious vector, the timer's entry, and that of the PIC.
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const LINT0: usize = 0x350;
const MASKED: u32 = 1 << 16;

/// Who answers an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Nobody: there is no exit.
    Guest,
    /// The host's kernel.
    Kernel,
    /// User space, which KVM_RUN returns to with this reason.
    User(u32),
}

/// What machines are made of.
pub struct Host {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    leaves: Leaves,
}

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open() -> anyhow::Result<Self> {
        let kvm = vm::open_kvm()?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let leaves = Leaves::new(vm::supported_cpuid(&kvm)?.as_slice(), 2, deadline)?;
        Ok(Self { kvm, leaves })
    }
}

/// A device of a few registers that keep what is written.
struct Registers([u8; 16]);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.0.get(offset as usize..).and_then(|from| from.get(..data.len())) {
            Some(registers) => data.copy_from_slice(registers),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(registers) = self.0.get_mut(offset as usize..).and_then(|from| from.get_mut(..data.len()))
        {
            registers.copy_from_slice(data);
        }
    }
}

/// What ends a run.
struct Done(StopHandle);

impl BusDevice for Done {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        self.0.stop();
    }
}

/// How the vCPUs are set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// What the second vCPU executes, if there is one.
    pub second: Option<&'static Code>,
    /// Local APICs in x2APIC mode.
    pub x2apic: bool,
    /// Interrupts are handled.
    pub interrupts: bool,
}

/// A machine with one payload.
pub struct Rig {
    /// The vCPU that the payload runs on.
    pub vcpu: Vcpu,
    /// The other one.
    pub second: Option<Vcpu>,
    /// What stops the first, and what stops the second.
    pub switches: [StopHandle; 2],
    exit: Arc<ExitRequest>,
    stats: Option<KvmStats>,
    /// The virtual machine.
    pub vm: Vm,
    /// Whether the guest's clock is the host's.
    pub shares_clock: bool,
}

impl Rig {
    /// A new machine.
    ///
    /// # Errors
    /// The host's KVM refuses something.
    pub fn new(host: &Host, blob: &'static Code, setup: Setup) -> anyhow::Result<Self> {
        let cpus = 1 + u32::from(setup.second.is_some());
        let vm = Vm::new(&host.kvm, Arc::new(GuestRam::new(RAM)?), cpus)?;
        let memory = vm.ram().memory();
        memory.write_slice(blob.code(), GuestAddress(CODE))?;
        if let Some(second) = setup.second {
            memory.write_slice(second.code(), GuestAddress(SECOND_CODE))?;
        }
        // The rings' pages are there before they are measured.
        memory.write_slice(&vec![0; code::RING_MAX as usize * 8], GuestAddress(code::RING))?;
        tables(memory, setup)?;
        let exit = Arc::new(ExitRequest::new()?);
        let coalesced = Arc::new(vm.coalesced());
        let switches = [StopHandle::default(), StopHandle::default()];
        let (ports, mmio) = buses(&switches[0]).context("two devices share an address")?;
        let shared = Shared { ports: Arc::new(ports), mmio: Arc::new(mmio), coalesced, exit: exit.clone() };
        let mut vcpus = Vec::new();
        let mut shares_clock = true;
        for (index, switch) in (0..cpus).zip(&switches) {
            let fd = vm.create_vcpu(index)?;
            fd.set_cpuid2(&host.leaves.for_vcpu(index)).context("cannot set the vCPU's CPUID")?;
            shares_clock &= raw::share_clock(&fd);
            set_entry(&fd, index, setup)?;
            if index == 0 {
                shared.coalesced.set_vcpu(&fd)?;
            }
            vcpus.push(Vcpu::under(switch, index, fd, shared.clone()));
        }
        // As on a board whose drivers have been started: from now on every exit looks into the ring.
        shared.coalesced.add_register(code::MMIO + 0x100);
        let second = if cpus == 2 { vcpus.pop() } else { None };
        let mut vcpu = vcpus.pop().context("a machine without CPUs")?;
        let stats = KvmStats::of_vcpu(vcpu.fd());
        Ok(Self { vcpu, second, switches, exit, stats, vm, shares_clock })
    }

    /// What has been counted so far.
    pub fn meanwhile(&self) -> Meanwhile {
        Meanwhile::now(self.stats.as_ref())
    }

    /// Writes a word of the mailbox.
    ///
    /// # Errors
    /// It is not in guest memory.
    pub fn set(&self, address: u64, value: u64) -> anyhow::Result<()> {
        Ok(self.vm.ram().memory().write_obj(value, GuestAddress(address))?)
    }

    /// A word of the mailbox.
    ///
    /// # Errors
    /// It is not in guest memory.
    pub fn get(&self, address: u64) -> anyhow::Result<u64> {
        Ok(self.vm.ram().memory().read_obj(GuestAddress(address))?)
    }

    /// The first `count` entries of a ring.
    ///
    /// # Errors
    /// They are not in guest memory.
    pub fn ring(&self, address: u64, count: u64) -> anyhow::Result<Vec<u32>> {
        let mut bytes = vec![0; count.min(code::RING_MAX) as usize * 4];
        self.vm.ram().memory().read_slice(&mut bytes, GuestAddress(address))?;
        let entry = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(bytes.chunks_exact(4).map(entry).collect())
    }

    /// Executes the operation, which `ends` somewhere, `count` times on `path`, each timed, or as a batch.
    ///
    /// # Errors
    /// The guest does something else, or does not finish within `limit`.
    pub fn leg(
        &mut self,
        (path, ends): (Path, Ends),
        count: u64,
        batch: bool,
        limit: Duration,
    ) -> anyhow::Result<Leg> {
        let count = if batch { count.max(1) } else { count.clamp(1, code::RING_MAX) };
        self.set(code::COUNT, count)?;
        self.set(code::BATCH, u64::from(batch))?;
        let before = self.meanwhile();
        self.run((path, ends), limit)?;
        let meanwhile = self.meanwhile().since(&before);
        let times = self.ring(code::RING, if batch { 0 } else { count })?;
        let total = if batch { self.get(code::TOTAL)? } else { 0 };
        Ok(Leg { path, stage: "total", times, batch: batch.then_some((total, count)), meanwhile })
    }

    /// Runs the guest to the end of what the mailbox says.
    ///
    /// # Errors
    /// As [`Self::leg`].
    pub fn run(&mut self, at: (Path, Ends), limit: Duration) -> anyhow::Result<()> {
        let before = self.get(code::RUNS)?;
        self.enter(at, limit)?;
        ensure!(self.get(code::RUNS)? == before + 1, "the guest left in the middle of it");
        Ok(())
    }

    /// Runs the guest until it exits otherwise than its operation does.
    fn enter(&mut self, (path, ends): (Path, Ends), limit: Duration) -> anyhow::Result<()> {
        let late = AtomicBool::new(false);
        let switch = &self.switches[0];
        switch.go();
        let vcpu = &mut self.vcpu;
        match path {
            Path::Vmm => watched(limit, switch, &late, || vcpu.run()),
            _ => watched(limit, switch, &late, || run_raw(vcpu.fd(), ends, &late))?,
        }
        ensure!(!late.load(Ordering::Acquire), "the guest did not come to an end: this KVM never answers");
        self.check()
    }

    /// Whether the guest has done nothing that ended it.
    ///
    /// # Errors
    /// What it was.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.exit.reason() {
            Some(Exit::Crash(what)) => bail!("the guest ended: {what}"),
            Some(reason) => bail!("the guest ended: {reason:?}"),
            None => Ok(()),
        }
    }

    /// Calls KVM_RUN `count` times without entering the guest.
    pub fn immediate_exits(&mut self, count: usize) -> Leg {
        let mut times = vec![0; count];
        let before = self.meanwhile();
        let fd = self.vcpu.fd();
        fd.set_kvm_immediate_exit(1);
        raw::time_runs(fd, &mut times);
        fd.set_kvm_immediate_exit(0);
        let meanwhile = self.meanwhile().since(&before);
        Leg { path: Path::Raw, stage: "total", times, batch: None, meanwhile }
    }
}

/// The bare loop, until the guest exits otherwise than its operation does.
fn run_raw(vcpu: &mut VcpuFd, ends: Ends, late: &AtomicBool) -> anyhow::Result<()> {
    let operation = match ends {
        Ends::User(reason) => reason,
        Ends::Guest | Ends::Kernel => u32::MAX,
    };
    loop {
        match raw::run_while(vcpu, operation).context("KVM does not run it")? {
            KVM_EXIT_INTR if !late.load(Ordering::Acquire) => {}
            KVM_EXIT_INTR | KVM_EXIT_IO | KVM_EXIT_MMIO => return Ok(()),
            KVM_EXIT_SHUTDOWN => bail!("the guest met an exception: KVM or the processor does not know this"),
            KVM_EXIT_INTERNAL_ERROR => bail!("KVM cannot emulate it"),
            other => bail!("KVM left the guest for another reason, {other}"),
        }
    }
}

/// Both address spaces, with devices where a board has some (see `machine.rs`).
fn buses(switch: &StopHandle) -> Result<(Bus, Bus), devices::bus::Error> {
    let (mut ports, mut mmio) = (Bus::default(), Bus::default());
    let device = || -> SharedDevice { Arc::new(Mutex::new(Registers([0; 16]))) };
    let board = [
        (layout::SERIAL_PORT, 8),
        (layout::CMOS_PORT, 2),
        (layout::POWER_PORT, 3),
        (layout::PVPANIC_PORT, 1),
        (layout::PIT_PORT, 4),
        (layout::PIT_GATE_PORT, 1),
        (layout::I8042_PORT, 1),
        (layout::I8042_PORT + 4, 1),
        (code::PORT, 4),
    ];
    for (port, len) in board {
        ports.insert(port.into(), len, device())?;
    }
    for index in 0..4 {
        mmio.insert(layout::VIRTIO + index * layout::VIRTIO_WINDOW, layout::VIRTIO_WINDOW, device())?;
    }
    let done: SharedDevice = Arc::new(Mutex::new(Done(switch.clone())));
    ports.insert(code::DONE_PORT.into(), 1, done.clone())?;
    mmio.insert(code::DONE_MMIO, layout::VIRTIO_WINDOW, done)?;
    Ok((ports, mmio))
}

/// Sets a vCPU at the first instruction of its code.
fn set_entry(fd: &VcpuFd, index: u32, setup: Setup) -> anyhow::Result<()> {
    let mut sregs = fd.get_sregs().context("cannot read the vCPU")?;
    long_mode(&mut sregs, setup);
    if setup.x2apic {
        sregs.apic_base |= X2APIC;
    }
    fd.set_sregs(&sregs).context("cannot set the vCPU's system registers")?;
    if setup.interrupts {
        let mut lapic = fd.get_lapic().context("cannot read the local APIC")?;
        set_register(&mut lapic, SPURIOUS, 0x1ff);
        // In TSC-deadline mode; nothing comes until a deadline is set.
        set_register(&mut lapic, TIMER, 0b10 << 17 | u32::from(code::VECTOR));
        set_register(&mut lapic, LINT0, MASKED);
        fd.set_lapic(&lapic).context("cannot set the local APIC")?;
    }
    let rip = if index == 0 { CODE } else { SECOND_CODE };
    let regs = kvm_regs { rip, rsp: STACKS - u64::from(index) * STACK, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).context("cannot set the vCPU's registers")?;
    if index > 0 {
        let running = kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE };
        fd.set_mp_state(running).context("cannot start the second vCPU")?;
    }
    Ok(())
}

fn set_register(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (to, from) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *to = from as _;
    }
}
