//! What devices are connected to: disks, tap interfaces, passt, sockets, folders, and the images of containers.

pub mod console;
pub mod disk;
pub mod image;
pub mod internal;
pub mod net;
pub mod passt;
pub mod screen;
pub mod share;
pub mod socket;
pub mod tap;
pub mod vnc;

use std::process::Child;

use devices::virtio::VirtioDevice;
use devices::virtio::fs::Share;

use crate::vm::memory::GuestRam;

/// What the host has open for one virtio device. Each machine of a run gets a new device from it.
pub trait Backend: Sync {
    /// A new device for a machine with `ram`; there is no other at the time.
    ///
    /// # Errors
    /// The host has no file, thread or memory left.
    fn device(&self, ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>>;

    /// The kernel modules that the guest loads for it.
    fn modules(&self) -> Modules;

    /// The system calls that its threads make beside those of every device's.
    fn calls(&self) -> Calls {
        Calls::None
    }

    /// How many threads it has at most beside the device's own.
    fn threads(&self) -> usize {
        0
    }

    /// The folder that it shares with the guest, as long as no device has it.
    fn share(&mut self) -> Option<&mut Share> {
        None
    }

    /// Gives away what has to be ended or removed after the machine.
    fn take_leftovers(&mut self) -> Leftovers {
        Leftovers::default()
    }

    /// Starts its threads, once, after signals are blocked.
    ///
    /// # Errors
    /// The host has no thread left.
    fn start(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Kernel modules of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// Those without which the device is of no use, and the guest is not started.
    pub needed: Vec<&'static str>,
    /// Those that are loaded if the kernel has them.
    pub optional: Vec<&'static str>,
}

/// A group of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// None beside those of every device's thread.
    None,
    /// Those of disks.
    Disk,
    /// Those of networks.
    Net,
    /// Those of sockets that ports are connected to.
    Sockets,
    /// Those of a shared folder.
    Share {
        /// Whether the guest may change it.
        writable: bool,
    },
}

/// What has to be ended or removed after a machine.
#[derive(Default)]
pub struct Leftovers {
    /// Sockets' names.
    pub names: Vec<socket::Name>,
    /// Programs.
    pub programs: Vec<Child>,
}
