//! How a function interrupts: a vector for each queue and one for the configuration, as the driver assigns them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use serde::{Deserialize, Serialize};

use crate::device::{Error, State, check};
use crate::pci::msix::{self, Msix};
use crate::virtio::{Cause, Interrupt};

/// VIRTIO_MSI_NO_VECTOR.
const NO_VECTOR: u16 = 0xffff;
/// The ISR status' bits: a queue, and the configuration (§4.1.4.5).
const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

/// The ISR status, and the vectors of MSI-X that the driver has assigned to causes.
pub struct Vectors {
    msix: Arc<Msix>,
    isr: AtomicU8,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
}

/// The saved vectors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    isr: u8,
    config: u16,
    queues: Vec<u16>,
    msix: msix::Saved,
}

impl Vectors {
    /// Those of a device with `queues` queues; none is assigned.
    pub fn new(msix: Arc<Msix>, queues: usize) -> Self {
        let none = || AtomicU16::new(NO_VECTOR);
        let queues = (0..queues).map(|_| none()).collect();
        Self { msix, isr: AtomicU8::new(0), config: none(), queues }
    }

    /// The table of MSI-X.
    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// The causes since the last call.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// As [`Self::take_isr`], and they stay.
    pub(super) fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    /// Where the vector of `cause` is; there is none for a queue that there is not.
    fn assigned(&self, cause: Cause) -> Option<&AtomicU16> {
        match cause {
            Cause::Config => Some(&self.config),
            Cause::Queue(index) => self.queues.get(usize::from(index)),
        }
    }

    /// The vector of `cause`.
    pub(super) fn vector(&self, cause: Cause) -> u16 {
        self.assigned(cause).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// The driver assigns a vector; it reads back that there is none if there is no such vector (§4.1.5.1.2.1).
    pub(super) fn assign(&self, cause: Cause, vector: u16) {
        let vector = if usize::from(vector) < self.msix.count() { vector } else { NO_VECTOR };
        if let Some(assigned) = self.assigned(cause) {
            assigned.store(vector, Ordering::SeqCst);
        }
    }

    fn causes(&self) -> impl Iterator<Item = Cause> {
        (0..self.queues.len()).map(|index| Cause::Queue(index as u16)).chain([Cause::Config])
    }
}

impl Interrupt for Vectors {
    fn signal(&self, cause: Cause) {
        let bit = if cause == Cause::Config { CONFIG } else { QUEUE };
        self.isr.fetch_or(bit, Ordering::SeqCst);
        self.msix.signal(self.vector(cause));
    }

    fn clear(&self) {
        self.isr.store(0, Ordering::SeqCst);
        self.causes().for_each(|cause| self.assign(cause, NO_VECTOR));
        self.msix.clear();
    }

    fn save(&self) -> State {
        State::of(&Saved {
            isr: self.isr(),
            config: self.vector(Cause::Config),
            queues: self.queues.iter().map(|vector| vector.load(Ordering::SeqCst)).collect(),
            msix: self.msix.save(),
        })
    }

    fn load(&self, state: State) -> Result<(), Error> {
        let Saved { isr, config, queues, msix } = state.take()?;
        check(isr & !(QUEUE | CONFIG) == 0, "ISR status")?;
        check(queues.len() == self.queues.len(), "number of interrupt vectors")?;
        let known = |vector: &u16| *vector == NO_VECTOR || usize::from(*vector) < self.msix.count();
        check(queues.iter().chain([&config]).all(known), "interrupt vector")?;
        self.msix.load(msix)?;
        self.isr.store(isr, Ordering::SeqCst);
        self.config.store(config, Ordering::SeqCst);
        self.queues.iter().zip(queues).for_each(|(to, vector)| to.store(vector, Ordering::SeqCst));
        Ok(())
    }

    /// With MSI-X drivers do not read the ISR status: whatever was signalled once is signalled again.
    fn resume(&self) {
        self.msix.resume();
        let isr = self.isr();
        for cause in self.causes() {
            let bit = if cause == Cause::Config { CONFIG } else { QUEUE };
            if isr & bit != 0 {
                self.msix.signal(self.vector(cause));
            }
        }
    }
}
