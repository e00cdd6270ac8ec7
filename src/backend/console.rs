//! The virtio console: `hvc0`, the session's ports, and those that are connected to sockets.

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::console::{self, KIND, Port};

use super::socket::Ports;
use super::{Backend, Calls, Leftovers, Modules};
use crate::vm::memory::GuestRam;

/// What the virtio console is connected to.
pub struct Console {
    /// The host's end of `hvc0`, if the guest has it.
    hvc: Option<Arc<Port>>,
    sockets: Ports,
    /// The session's ports, behind those.
    session: Vec<Arc<Port>>,
}

impl Console {
    /// A console; nothing if the guest has no port of it.
    pub fn new(hvc: Option<Arc<Port>>, sockets: Ports, session: Vec<Arc<Port>>) -> Option<Self> {
        let is_there = hvc.is_some() || !sockets.ports().is_empty() || !session.is_empty();
        is_there.then_some(Self { hvc, sockets, session })
    }
}

impl Backend for Console {
    fn device(&self, _ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        let ports = [self.sockets.ports(), &self.session].concat();
        Ok(Box::new(console::Console::new(self.hvc.clone(), ports)))
    }

    fn modules(&self) -> Modules {
        let module = vec![KIND.module];
        if self.session.is_empty() {
            Modules { optional: module, ..Modules::default() }
        } else {
            Modules { needed: module, ..Modules::default() }
        }
    }

    fn calls(&self) -> Calls {
        if self.sockets.ports().is_empty() { Calls::None } else { Calls::Sockets }
    }

    fn take_leftovers(&mut self) -> Leftovers {
        Leftovers { names: self.sockets.take_names(), ..Leftovers::default() }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.sockets.start()
    }
}
