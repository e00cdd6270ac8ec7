//! A KVM virtual machine: memory slots, interrupt controllers, lines.

mod config_space;
pub mod device_thread;
mod devices;
pub mod frame_buffer;
pub mod load;
pub mod machine;
pub mod memory;
mod pci;
pub mod pic;
pub mod pit;
pub mod running;
pub mod snapshot;
pub mod testdev;
mod truncated;

use std::sync::Arc;

use ::devices::irq::Line;
use anyhow::{Context, bail};
use boot::layout::{KVM_IDENTITY_MAP, KVM_TSS, PCI_CONFIG, PCI_CONFIG_LEN};
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::host::event::kvm_event;
use crate::vcpu::coalesced::Coalesced;
use crate::vcpu::stop::ExitRequest;
use crate::vm::device_thread::{Kicks, QueueEvents};
use crate::vm::memory::GuestRam;
use crate::vm::pit::{Pit, Ports};
use crate::vm::testdev::{Ioeventfd, Levels};

/// Opens `/dev/kvm`.
///
/// # Errors
/// It is missing, forbidden, or not the KVM that Linux has had since 2.6.22; the message says what to do.
pub fn open_kvm() -> anyhow::Result<Kvm> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => anyhow::anyhow!(
            "cannot open /dev/kvm: it is missing; load kvm_intel or kvm_amd, and enable virtualisation in the firmware"
        ),
        libc::EACCES | libc::EPERM => {
            anyhow::anyhow!("cannot open /dev/kvm: permission denied; add yourself to group kvm, or see `kite doctor`")
        }
        _ => anyhow::anyhow!("cannot open /dev/kvm: {error}; `kite doctor` tells more"),
    })?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => bail!("/dev/kvm speaks API version {version}, not {KVM_API_VERSION}"),
    }
}

/// What KVM can show a guest of this processor.
///
/// # Errors
/// The host's KVM refuses to tell.
pub fn supported_cpuid(kvm: &Kvm) -> anyhow::Result<CpuId> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("cannot read KVM's CPUID")
}

/// The virtual machine. Its memory outlives it.
pub struct Vm {
    fd: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// A machine with `ram` and the interrupt controllers of a PC.
    ///
    /// The order is the quickest there is: the kernel waits for readers of what each step changes, and before the
    /// first vCPU, with the memory in place, there are none.
    ///
    /// # Errors
    /// The host's KVM refuses a step.
    pub fn new(kvm: &Kvm, ram: Arc<GuestRam>, cpus: u32) -> anyhow::Result<Self> {
        let fd = kvm.create_vm().context("cannot create a virtual machine")?;
        let vm = Self { fd: Arc::new(fd), ram };
        vm.map_memory()?;
        // Only Intel without unrestricted guest wants these two, and nothing else minds.
        vm.fd.set_identity_map_address(KVM_IDENTITY_MAP).context("cannot set KVM's identity map")?;
        vm.fd.set_tss_address(KVM_TSS as usize).context("cannot set KVM's TSS")?;
        vm.fd.create_irq_chip().context("cannot create the interrupt controllers")?;
        if cpus > FIRST_WIDE_APIC_ID {
            vm.allow_wide_apic_ids()?;
        }
        Ok(vm)
    }

    fn map_memory(&self) -> anyhow::Result<()> {
        let ram = self.ram.memory().iter().map(|region| (self.ram.memory(), region, 0));
        // What viewers want to know is written down from the start: without a viewer, that costs nothing.
        let frame_buffer = self.ram.frame_buffer().into_iter();
        let frame_buffer =
            frame_buffer.flat_map(|it| it.iter().map(move |region| (it, region, KVM_MEM_LOG_DIRTY_PAGES)));
        for (slot, (memory, region, flags)) in (0..).zip(ram.chain(frame_buffer)) {
            let start = region.start_addr();
            let host = memory.get_host_address(start).context("guest memory has no host address")?;
            self.map(kvm_userspace_memory_region {
                slot,
                guest_phys_addr: start.raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
                flags,
            })?;
        }
        self.map_config_space()
    }

    /// Has the guest read PCI's configuration space without exits, where the host can do that.
    fn map_config_space(&self) -> anyhow::Result<()> {
        let Some(space) = self.ram.config_space().filter(|_| self.has(Cap::ReadonlyMem)) else {
            return Ok(());
        };
        let frame_buffers = self.ram.frame_buffer().map_or(0, GuestMemoryBackend::num_regions);
        self.map(kvm_userspace_memory_region {
            slot: self.frame_buffer_slot() + frame_buffers as u32,
            guest_phys_addr: PCI_CONFIG,
            memory_size: PCI_CONFIG_LEN,
            userspace_addr: space.host_address(),
            flags: KVM_MEM_READONLY,
        })
    }

    #[expect(unsafe_code, reason = "KVM is handed host addresses")]
    fn map(&self, region: kvm_userspace_memory_region) -> anyhow::Result<()> {
        // SAFETY: the regions do not overlap, as the frame buffer and PCI's configuration space are where RAM never is, and
        // `self.ram` keeps them mapped for as long as this VM's descriptor is open.
        unsafe { self.fd.set_user_memory_region(region) }
            .with_context(|| format!("cannot give the guest {} MiB of memory", region.memory_size >> 20))
    }

    /// The number of the frame buffer's memory slot, if there is one.
    fn frame_buffer_slot(&self) -> u32 {
        self.ram.memory().num_regions() as u32
    }

    /// Local APIC ids from 255 up differ from broadcasts only with this.
    fn allow_wide_apic_ids(&self) -> anyhow::Result<()> {
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let cap =
            kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [flags.into(), 0, 0, 0], ..Default::default() };
        self.fd.enable_cap(&cap).context("this KVM has no APIC ids above 254: use fewer CPUs")
    }

    /// An edge-triggered line into the I/O APIC, with no exit and no lock on the way.
    ///
    /// # Errors
    /// The host's KVM refuses it.
    pub fn line(&self, gsi: u32) -> anyhow::Result<Irqfd> {
        let event = kvm_event()?;
        self.fd.register_irqfd(&event, gsi).with_context(|| format!("cannot connect GSI {gsi}"))?;
        Ok(Irqfd(event))
    }

    /// The registers of a virtio device that a driver writes all the time: to kick, and to acknowledge interrupts.
    pub fn registers(&self, notify: u64, acknowledge: u64, coalesced: Arc<Coalesced>) -> Registers {
        Registers { vm: self.fd.clone(), notify, acknowledge, coalesced, enabled: false }
    }

    /// A vCPU as it is after reset.
    ///
    /// # Errors
    /// The host's KVM refuses it.
    pub fn create_vcpu(&self, index: u32) -> anyhow::Result<VcpuFd> {
        self.fd.create_vcpu(index.into()).with_context(|| format!("cannot create vCPU {index}"))
    }

    /// Whether the virtual machine has `cap`.
    pub fn has(&self, cap: Cap) -> bool {
        self.fd.check_extension(cap)
    }

    /// A stand-in for the interval timer, at `ports`.
    pub fn pit(&self, ports: Ports, exit: Arc<ExitRequest>) -> Pit {
        Pit::new(self.fd.clone(), ports, exit)
    }

    /// Makes the interval timer at once, for a guest that is about to test it.
    ///
    /// # Errors
    /// The host's KVM refuses it.
    pub fn create_pit(&self) -> anyhow::Result<()> {
        pit::make(&self.fd).context("cannot create the interval timer")
    }

    /// Sets interrupt controllers and interval timer as a PC's firmware leaves them.
    ///
    /// # Errors
    /// The host's KVM refuses it.
    pub fn start_timer(&self) -> anyhow::Result<()> {
        pic::set_up(&self.fd).context("cannot set up the interrupt controllers")?;
        pit::start(&self.fd).context("cannot start the interval timer")
    }

    /// The lines, by their level.
    pub fn levels(&self) -> Levels {
        Levels::new(self.fd.clone())
    }

    /// An eventfd that can be connected with an address.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn doorbell(&self) -> anyhow::Result<Ioeventfd> {
        Ioeventfd::new(self.fd.clone())
    }

    /// A ring for writes that need no exit.
    pub fn coalesced(&self) -> Coalesced {
        Coalesced::new(self.fd.clone())
    }

    /// The virtual machine's descriptor.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}

/// The first APIC id that does not fit in eight bits: 255 is the broadcast.
const FIRST_WIDE_APIC_ID: u32 = 255;

/// A line that KVM raises when its eventfd is written.
pub struct Irqfd(EventFd);

impl Line for Irqfd {
    fn pulse(&self) {
        // Fails only if 2^64 - 1 edges wait to be delivered; one of them will do.
        let _ = self.0.write(1);
    }
}

/// Where a driver kicks queues and acknowledges interrupts.
pub struct Registers {
    vm: Arc<VmFd>,
    notify: u64,
    acknowledge: u64,
    coalesced: Arc<Coalesced>,
    enabled: bool,
}

impl Kicks for Registers {
    /// The event of queue `n` is written when the guest writes `n`. Acknowledgements are coalesced from now on.
    fn enable(&mut self, events: &QueueEvents) {
        if std::mem::replace(&mut self.enabled, true) {
            return;
        }
        self.coalesced.add_register(self.acknowledge);
        for (index, event) in (0u32..).zip(events.kicks()) {
            if let Err(error) = self.vm.register_ioevent(event, &IoEventAddress::Mmio(self.notify), index) {
                log::debug!("KVM refuses an ioeventfd: {error}");
                return;
            }
        }
    }
}
