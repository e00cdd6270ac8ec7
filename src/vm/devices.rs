//! The devices of a machine, by name: the machine owns them, its buses hold second references.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use devices::chipset::cmos::Cmos;
use devices::chipset::i8042::I8042;
use devices::chipset::power::Power;
use devices::chipset::pvpanic::PvPanic;
use devices::chipset::serial::Serial;
use devices::device::{Device, State};
use devices::pci::Root;
use devices::virtio::Virtio;

use crate::host::lock::lock;

/// The devices of one machine.
pub(super) struct Devices {
    /// The serial port.
    pub serial: Arc<Mutex<Serial>>,
    /// The real-time clock.
    pub cmos: Arc<Mutex<Cmos>>,
    /// The keyboard controller, of which a PC has the reset.
    pub i8042: Arc<Mutex<I8042>>,
    /// Power-off and reset by ACPI.
    pub power: Arc<Mutex<Power>>,
    /// What a kernel reports of its panic.
    pub pvpanic: Arc<Mutex<PvPanic>>,
    /// The PCI bus, if there is one.
    pub pci: Option<Arc<Mutex<Root>>>,
    /// The virtio devices, in the order of the board.
    pub virtio: Vec<Arc<Mutex<Virtio>>>,
}

impl Devices {
    /// Those of the chipset, in the order in which several are locked.
    pub fn chipset(&self) -> impl Iterator<Item = &Mutex<dyn Device>> {
        let always: [&Mutex<dyn Device>; 5] =
            [&*self.serial, &*self.cmos, &*self.i8042, &*self.power, &*self.pvpanic];
        always.into_iter().chain(self.pci.as_deref().map(|bus| bus as &Mutex<dyn Device>))
    }

    /// All of them: the chipset's, then those of virtio.
    pub fn all(&self) -> impl Iterator<Item = &Mutex<dyn Device>> {
        self.chipset().chain(self.virtio.iter().map(|it| &**it as &Mutex<dyn Device>))
    }

    /// Loads the state of every device, which is new. Interrupts and notifications are sent by [`Self::resume`].
    ///
    /// # Errors
    /// A device has no state, or one that it cannot have; or there is a state of no device.
    pub fn load(&self, states: &BTreeMap<String, State>) -> anyhow::Result<()> {
        let mut count = 0;
        for device in self.all() {
            let mut device = lock(device);
            let name = device.name().to_owned();
            let state =
                states.get(&name).with_context(|| format!("the saved machine has no device {name}"))?;
            device.load(state.clone()).with_context(|| format!("cannot load device {name}"))?;
            count += 1;
        }
        if count != states.len() {
            let is_here = |name: &str| self.all().any(|device| lock(device).name() == name);
            let other = states.keys().find(|name| !is_here(name)).cloned().unwrap_or_default();
            bail!("the saved machine has a device {other}, and this one has none");
        }
        Ok(())
    }

    /// Sends again what may be lost between saving and loading; to be called before a vCPU runs.
    pub fn resume(&self) {
        self.all().for_each(|device| lock(device).resume());
    }
}
