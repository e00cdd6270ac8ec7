//! A folder of the host's that the guest sees, by virtio-fs.

use std::sync::Arc;
use std::thread::Builder;

use anyhow::Context;
use devices::virtio::VirtioDevice;
use devices::virtio::fs::{Fs, KIND, Share};

use super::{Backend, Calls, Modules};
use crate::vm::memory::GuestRam;

/// The stack of a thread that serves a share, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;
/// How many threads serve one.
const THREADS: usize = 16;

/// A shared folder, open.
pub struct SharedFolder {
    name: String,
    share: Arc<Share>,
}

impl SharedFolder {
    /// The `index`-th shared folder of a machine.
    pub fn new(index: usize, share: Arc<Share>) -> Self {
        Self { name: format!("fs{index}"), share }
    }
}

impl Backend for SharedFolder {
    fn device(&self, ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        let thread = self.name.clone();
        let spawn = move |work: Box<dyn FnOnce() + Send>| {
            Builder::new().name(thread.clone()).stack_size(STACK).spawn(work).map(drop)
        };
        let (share, memory) = (self.share.clone(), ram.memory().clone());
        let device = Fs::new(self.name.clone(), share, memory, ram.copies().clone(), Box::new(spawn));
        Ok(Box::new(device.with_context(|| format!("cannot set up share {}", self.share.tag))?))
    }

    fn modules(&self) -> Modules {
        Modules { needed: vec![KIND.module, "overlay"], optional: Vec::new() }
    }

    fn calls(&self) -> Calls {
        Calls::Share { writable: self.share.writable }
    }

    fn threads(&self) -> usize {
        THREADS
    }

    fn share(&mut self) -> Option<&mut Share> {
        Arc::get_mut(&mut self.share)
    }
}
