//! Device models that know no KVM: what a device does with the bytes a guest reads and writes.
//!
//! A device owns no thread and no address; what it needs is given to `new`.

pub mod bus;
pub mod chipset;
pub mod device;
pub mod irq;
pub mod pci;
pub mod screen;
#[cfg(test)]
mod testing;
pub mod virtio;

/// Guest RAM as devices see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap;
