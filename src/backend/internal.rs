//! Devices for which the host has nothing open: the balloon and the source of entropy.

use std::sync::Arc;

use anyhow::Context;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{self, Target};
use devices::virtio::rng;

use super::{Backend, Modules};
use crate::vm::memory::GuestRam;

/// A balloon, by which the guest gives back memory that it has freed.
pub struct Balloon(Arc<Target>);

impl Balloon {
    /// A balloon that takes nothing.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Target::new().context("cannot make a balloon")?)))
    }
}

impl Backend for Balloon {
    fn device(&self, _ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        Ok(Box::new(balloon::Balloon::new(self.0.clone())))
    }

    fn modules(&self) -> Modules {
        Modules { optional: vec![balloon::KIND.module], ..Modules::default() }
    }
}

/// A source of entropy: the host's own.
pub struct Rng;

impl Backend for Rng {
    fn device(&self, _ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        Ok(Box::new(rng::Rng))
    }

    fn modules(&self) -> Modules {
        Modules { optional: vec![rng::KIND.module], ..Modules::default() }
    }
}
