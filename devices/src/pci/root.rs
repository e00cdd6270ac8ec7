//! The host bridge's configuration space: a page for each function of bus 0 (PCI Express 5.0 §7.2.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config::LEN;
use super::{BUS, DEVICES, FUNCTIONS, Function, PAGE, Page};
use crate::bus::BusDevice;
use crate::device::{Device, Error, State, base64_bytes, check};

/// A function, and the page that shows it.
pub type Shown = (Arc<Mutex<dyn Function>>, Box<dyn Page>);

/// The functions of bus 0, of which each is function 0 of the device with its index.
pub struct Root {
    functions: Vec<Slot>,
}

struct Slot {
    function: Arc<Mutex<dyn Function>>,
    page: Box<dyn Page>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, dyn Function + 'static> {
        // A function that panicked under its lock ends the process by the panic hook; in tests it is one less.
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, function: &dyn Function) {
        let config = function.config();
        (0..LEN / 4).for_each(|register| self.page.show(register, config.register(register)));
    }
}

/// The functions, saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    functions: Vec<SavedConfig>,
}

/// The bytes of a function's configuration space.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct SavedConfig(#[serde(with = "base64_bytes")] [u8; LEN]);

impl Root {
    /// A bus with these functions, at most [`DEVICES`], the host bridge first, and the page that shows each.
    pub fn new(functions: impl IntoIterator<Item = Shown>) -> Self {
        let slots = functions.into_iter().map(|(function, page)| Slot { function, page });
        let root = Self { functions: slots.take(DEVICES).collect() };
        root.functions.iter().for_each(|slot| slot.show(&*slot.lock()));
        root
    }

    /// The parts in which the guest can write what it likes and nothing happens, though drivers do: an offset and a length
    /// each.
    pub fn idle(&self) -> Vec<(u64, u32)> {
        let idle = |(device, slot): (u64, &Slot)| {
            let (start, len) = slot.lock().config().constant_bars();
            (device * FUNCTIONS as u64 * PAGE + start as u64, len as u32)
        };
        (0..).zip(&self.functions).map(idle).collect()
    }

    /// The function whose page `offset` is in, and where in it.
    fn find(&self, offset: u64) -> Option<(&Slot, u64)> {
        let index = usize::try_from(offset / PAGE).ok().filter(|index| index % FUNCTIONS == 0)?;
        Some((self.functions.get(index / FUNCTIONS)?, offset % PAGE))
    }
}

impl BusDevice for Root {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((slot, at)) => slot.lock().config().read(at, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((slot, at)) = self.find(offset) {
            let mut function = slot.lock();
            function.write_config(at, data);
            slot.show(&*function);
        }
    }
}

impl Device for Root {
    fn name(&self) -> &'static str {
        "pci"
    }

    fn save(&mut self) -> Result<State, Error> {
        let functions = self.functions.iter().map(|slot| SavedConfig(*slot.lock().config().bytes()));
        Ok(State::of(&Saved { functions: functions.collect() }))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        let Saved { functions } = state.take()?;
        check(functions.len() == self.functions.len(), "number of functions")?;
        for (slot, SavedConfig(saved)) in self.functions.iter().zip(&functions) {
            let mut function = slot.lock();
            function.load_config(saved)?;
            slot.show(&*function);
        }
        Ok(())
    }
}

const _: () = assert!(BUS == 1 << 20, "a bus has a MiB of configuration space");
