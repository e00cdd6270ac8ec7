//! Writes that leave the guest without an exit to kite: KVM keeps those to some ports in a ring ("coalesced PIO"), and
//! kite takes them from there at the next exit of any other kind, before it carries that out. For a kernel that logs to
//! the console this halves the exits of a boot.
//!
//! Such a write may be late, but for some registers that does not show. What a virtio driver acknowledges takes back only
//! what it has read ([`devices::virtio::transport::mmio::InterruptLine`]). What it sets up over PCI counts when it goes on to
//! write another register ([`devices::virtio::transport::pci::LATE`]). The clock's index does nothing until the data
//! port is used. And the serial port's data may wait if the driver comes back to the port after its last byte, so the
//! ring starts when the guest's driver has shown that it does ([`devices::chipset::serial::Host::output_awaited`]).
#![expect(
    unsafe_code,
    reason = "a second handle of a vCPU's descriptor, and the ring that is mapped through it"
)]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::Context;
use boot::layout::{CMOS_PORT, SERIAL_PORT};
use devices::bus::Bus;
use devices::chipset::serial::Host;
use kvm_bindings::KVM_COALESCED_MMIO_PAGE_OFFSET;
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};

use crate::host::lock::lock;
use crate::vcpu::counters::{Access, Cause, Counters, Space, Timed};

/// More entries than KVM's ring has: what is in it when an exit is taken fits, whatever other vCPUs add meanwhile.
const ENTRIES: usize = 256;

const PAGE: usize = 4096;

/// The ring of one virtual machine.
pub struct Coalesced {
    vm: Arc<VmFd>,
    /// A duplicate of a vCPU's descriptor, until the ring is mapped through it.
    vcpu: Mutex<Option<OwnedFd>>,
    ring: OnceLock<Ring>,
    /// What counts the writes, if anybody wants to know.
    counters: OnceLock<Arc<Counters>>,
}

impl Coalesced {
    /// No ring yet: it is made for the first register.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, vcpu: Mutex::default(), ring: OnceLock::new(), counters: OnceLock::new() }
    }

    /// Has the writes counted and timed by `counters`; the first one stays.
    pub fn set_counters(&self, counters: Arc<Counters>) {
        let _ = self.counters.set(counters);
    }

    /// Tells which vCPU to map the ring through. Without this, or without the capability, nothing is coalesced.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn set_vcpu(&self, vcpu: &VcpuFd) -> anyhow::Result<()> {
        if self.vm.check_extension(Cap::CoalescedPio) {
            // SAFETY: the descriptor stays open as long as `vcpu` is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
            let fd = fd.try_clone_to_owned().context("cannot duplicate a vCPU's descriptor")?;
            *lock(&self.vcpu) = Some(fd);
        }
        Ok(())
    }

    /// Makes the ring if there is none; answers whether there is one now.
    fn has_ring(&self) -> bool {
        let mut vcpu = lock(&self.vcpu);
        if let Some(vcpu) = vcpu.take() {
            // SAFETY: the descriptor is a vCPU's of this VM, and the new handle owns it.
            let vcpu = unsafe { self.vm.create_vcpu_from_rawfd(vcpu.into_raw_fd()) };
            if let Ok(mut vcpu) = vcpu
                && vcpu.map_coalesced_mmio_ring().is_ok()
            {
                // There was none: the descriptor is taken once.
                let _ = Ends::map(&vcpu).map(|ends| self.ring.set(Ring::new(vcpu, ends)));
            }
        }
        self.ring.get().is_some()
    }

    /// Lets KVM keep what the guest writes to `len` bytes at `address`. A host that refuses goes on as before.
    fn add(&self, address: IoEventAddress, len: u32) {
        // Only with a ring may entries come: every exit looks for them then.
        if self.has_ring() {
            let _ = self.vm.register_coalesced_mmio(address, len);
        }
    }

    /// Lets KVM keep what the guest writes to the register at `address`, 32 bits wide, of a device in memory space.
    pub fn add_register(&self, address: u64) {
        self.add_memory(address, 4);
    }

    /// Lets KVM keep what the guest writes to `len` bytes from `address` on, in memory space.
    pub fn add_memory(&self, address: u64, len: u32) {
        self.add(IoEventAddress::Mmio(address), len);
    }

    /// Has what was added there exit again; what waits in the ring stays there.
    pub fn remove_memory(&self, address: u64, len: u32) {
        if self.ring.get().is_some() {
            let _ = self.vm.unregister_coalesced_mmio(IoEventAddress::Mmio(address), len);
        }
    }

    /// Carries out what waits in the ring. To be called before any other access is carried out, with no device locked.
    #[inline]
    pub fn carry_out(&self, ports: &Bus, mmio: &Bus) {
        if let Some(ring) = self.ring.get()
            && ring.has_work()
        {
            self.carry_out_of(ring, ports, mmio);
        }
    }

    fn carry_out_of(&self, ring: &Ring, ports: &Bus, mmio: &Bus) {
        // The lock keeps the entries in order when two vCPUs exit at once.
        let mut vcpu = lock(&ring.vcpu);
        ring.busy.store(true, Ordering::SeqCst);
        for _ in 0..ENTRIES {
            let Ok(Some(entry)) = vcpu.coalesced_mmio_read() else { break };
            let len = entry.data.len().min(entry.len as usize);
            // Only what was added comes, and no port has an address so high.
            let space = if entry.phys_addr > u16::MAX.into() { Space::Memory } else { Space::Port };
            let bus = if space == Space::Memory { mmio } else { ports };
            let access = || Cause::Access(Access::new(space, entry.phys_addr, true, len));
            let counters = self.counters.get().map(|counters| (counters, Timed::begin(access())));
            bus.write(entry.phys_addr, &entry.data[..len]);
            if let Some((counters, timed)) = counters {
                counters.end(timed);
            }
        }
        ring.busy.store(false, Ordering::SeqCst);
    }
}

/// The ring, as it is read.
struct Ring {
    vcpu: Mutex<VcpuFd>,
    ends: Ends,
    /// What has been taken out is being carried out.
    busy: AtomicBool,
}

impl Ring {
    fn new(vcpu: VcpuFd, ends: Ends) -> Self {
        Self { vcpu: Mutex::new(vcpu), ends, busy: AtomicBool::new(false) }
    }

    /// Whether something waits, or another vCPU is at it, whose end has to be waited for. At almost every exit there is
    /// nothing, and the lock would cost as much as all the rest.
    #[inline]
    fn has_work(&self) -> bool {
        // In this order: who empties the ring has said that it is busy before.
        self.ends.differ() || self.busy.load(Ordering::SeqCst)
    }
}

/// The indices at the ring's beginning (`struct kvm_coalesced_mmio_ring`).
struct Ends(NonNull<[AtomicU32; 2]>);

// SAFETY: it points at atomics, in a mapping that is there until this is dropped.
unsafe impl Send for Ends {}
// SAFETY: as above.
unsafe impl Sync for Ends {}

impl Ends {
    /// Maps them, to be read only.
    fn map(vcpu: &VcpuFd) -> Option<Self> {
        let at = i64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as i64;
        let fd = vcpu.as_raw_fd();
        // SAFETY: a new mapping, of a page that KVM has there (KVM API, KVM_CAP_COALESCED_MMIO).
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, fd, at) };
        NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED).map(|page| Self(page.cast()))
    }

    #[inline]
    fn differ(&self) -> bool {
        // SAFETY: the mapping is there as long as `self`, a page begins at a multiple of all alignments, and whoever else
        // changes these words does so whole.
        let [first, last] = unsafe { self.0.as_ref() };
        first.load(Ordering::Acquire) != last.load(Ordering::Acquire)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and nothing refers into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// The serial port's host side, which starts the ring and passes everything else on.
pub struct CoalescingHost {
    /// Where the rest goes.
    pub host: Box<dyn Host>,
    /// What is started.
    pub coalesced: Arc<Coalesced>,
}

impl Host for CoalescingHost {
    fn output_ready(&self) {
        self.host.output_ready();
    }

    fn input_wanted(&self) {
        self.host.input_wanted();
    }

    fn output_awaited(&self) {
        for port in [SERIAL_PORT, CMOS_PORT] {
            self.coalesced.add(IoEventAddress::Pio(port.into()), 1);
        }
    }
}
