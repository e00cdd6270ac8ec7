//! The configuration space of PCI bus 0 as memory that the guest reads without an exit: a page for each function there
//! is, and the same few pages of ones for all that are absent.
//!
//! Every device there is has function 0 alone. The ones are the pages of the last device, which is always absent: they
//! are mapped once more wherever another function is.
#![expect(unsafe_code, reason = "maps the same pages at several addresses, and shares them with the guest")]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};
use boot::layout::PCI_CONFIG_LEN;
use devices::pci::{BUS, DEVICES, FUNCTIONS, PAGE, Page};

/// The length in bytes of a device's part.
const DEVICE: usize = FUNCTIONS * PAGE as usize;
/// The device whose pages are ones.
const ABSENT: usize = DEVICES - 1;

/// The memory.
pub struct ConfigSpace {
    start: NonNull<u8>,
    /// How many devices there are.
    devices: usize,
}

// SAFETY: who shares it only writes it whole words at a time, as atomics; the guest only reads it.
unsafe impl Send for ConfigSpace {}
// SAFETY: as above.
unsafe impl Sync for ConfigSpace {}

impl ConfigSpace {
    /// That of a bus with so many devices, at most 31, of which none has a page that says anything yet.
    ///
    /// # Errors
    /// The host has no room for that much address space.
    pub fn new(devices: usize) -> anyhow::Result<Self> {
        ensure!(devices <= ABSENT, "a PCI bus has room for {ABSENT} devices, and is given {devices}");
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), BUS as usize, access, flags, -1, 0) };
        let start =
            NonNull::new(start.cast::<u8>()).filter(|start| start.as_ptr().cast() != libc::MAP_FAILED);
        let start = start.context("cannot map PCI's configuration space")?;
        let space = Self { start, devices };
        // SAFETY: the last device's pages are in the mapping, and nothing else knows of them yet.
        unsafe { space.device(ABSENT).write_bytes(0xff, DEVICE) };
        for device in 0..ABSENT {
            let present = if device < devices { PAGE as usize } else { 0 };
            space.map_ones(device, present).context("cannot map PCI's configuration space")?;
        }
        Ok(space)
    }

    /// Where a device's part begins.
    fn device(&self, device: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(device * DEVICE)
    }

    /// Has a device's pages from `from` bytes on be those of ones.
    fn map_ones(&self, device: usize, from: usize) -> io::Result<()> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (ones, at) = (self.device(ABSENT), self.device(device).wrapping_add(from));
        // SAFETY: with no old length, a shared mapping's pages are mapped a second time (mremap(2)), over pages of the same
        // mapping that nothing has used.
        let mapped = unsafe { libc::mremap(ones.cast(), 0, DEVICE - from, flags, at) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Where KVM finds it: [`PCI_CONFIG_LEN`] bytes.
    pub fn host_address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    /// The page of function 0 of this device, which is present.
    pub fn page(self: &Arc<Self>, device: usize) -> ConfigPage {
        assert!(device < self.devices, "pages are asked for of devices that there are");
        ConfigPage { space: self.clone(), device }
    }
}

impl Drop for ConfigSpace {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and who has a page has the space too.
        unsafe { libc::munmap(self.start.as_ptr().cast(), BUS as usize) };
    }
}

/// A function's page.
pub struct ConfigPage {
    space: Arc<ConfigSpace>,
    device: usize,
}

impl Page for ConfigPage {
    fn show(&self, register: usize, value: u32) {
        assert!(register < PAGE as usize / size_of::<u32>(), "a register is in its page");
        let at = self.space.device(self.device).cast::<AtomicU32>().wrapping_add(register);
        // SAFETY: the word is in the mapping, which is there as long as `space`; a page begins at a multiple of all
        // alignments, and whoever else uses this word does so whole.
        unsafe { &*at }.store(value.to_le(), Ordering::Release);
    }
}

const _: () = assert!(PCI_CONFIG_LEN == BUS, "there is one bus");

#[cfg(test)]
mod tests {
    use super::*;

    /// The word at `offset` as the guest would read it.
    fn word(space: &ConfigSpace, offset: usize) -> u32 {
        let at = space.start.as_ptr().wrapping_add(offset).cast::<AtomicU32>();
        // SAFETY: `offset` is a multiple of four below the mapping's end.
        unsafe { &*at }.load(Ordering::Acquire)
    }

    #[test]
    fn only_present_functions_have_pages_of_their_own() {
        for devices in [0, 1, 4, ABSENT] {
            let space = Arc::new(ConfigSpace::new(devices).unwrap());
            for device in 0..devices {
                space.page(device).show(0, device as u32);
                space.page(device).show(1023, 7);
            }
            for function in 0..DEVICES * FUNCTIONS {
                let (page, device) = (function * PAGE as usize, function / FUNCTIONS);
                let present = function % FUNCTIONS == 0 && device < devices;
                let expected = if present { [device as u32, 0, 7] } else { [u32::MAX; 3] };
                assert_eq!(
                    [0, 4, 4092].map(|at| word(&space, page + at)),
                    expected,
                    "{function} of {devices}"
                );
            }
        }
        assert!(ConfigSpace::new(ABSENT + 1).is_err());
    }
}
