//! MSI-X: a function's table of messages, and which of them wait (PCI Local Bus 3.0 §6.8.2).
//!
//! The host is given the messages when the guest enables or unmasks vectors and one of these has another message than
//! the host knows: no message is sent before. A masked vector waits in the pending bits, and is sent when it is unmasked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::device::{Error, check};

/// The capability's id.
pub const CAPABILITY: u8 = 0x11;
/// The length in bytes of a vector's entry in the table.
pub const ENTRY: u64 = 16;
/// The most vectors that a function can have.
pub const MOST: usize = 2048;

/// Message control: the function uses its vectors.
pub const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub const MASK_ALL: u16 = 1 << 14;

/// Where a processor takes messages (Intel SDM vol. 3 §11.11.1), and the bits of an address that say so.
const MESSAGES: (u64, u64) = (0xfee0_0000, 0xff_fff0_0000);

/// What interrupts a processor: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The address, within what processors take as messages.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// How messages are sent.
pub trait Messages: Send + Sync {
    /// From now on each vector sends its message of `messages`; one that has none is not sent.
    fn route(&self, messages: &[Option<Message>]);

    /// Sends the message of this vector. Must not wait.
    fn send(&self, vector: u16);
}

/// A function's vectors.
pub struct Msix {
    table: Mutex<Table>,
    messages: Box<dyn Messages>,
}

struct Table {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
    /// What the host knows.
    routes: Vec<Option<Message>>,
}

/// A vector as the guest has set it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

impl Entry {
    const NEW: Self = Self { address: 0, data: 0, masked: true, pending: false };

    /// The message, if it would reach a processor.
    fn message(&self) -> Option<Message> {
        let (place, mask) = MESSAGES;
        let Self { address, data, .. } = *self;
        (address & mask == place).then_some(Message { address, data })
    }
}

/// The vectors, saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    entries: Vec<Entry>,
}

impl Msix {
    /// `count` vectors, at most [`MOST`], all of them masked.
    pub fn new(count: usize, messages: Box<dyn Messages>) -> Self {
        let (entries, routes) = (vec![Entry::NEW; count], vec![None; count]);
        Self { table: Mutex::new(Table { enabled: false, masked: false, entries, routes }), messages }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many vectors there are.
    pub fn count(&self) -> usize {
        self.table().entries.len()
    }

    /// Sends a vector, or has it wait until it may be sent. What is no vector is lost.
    pub fn signal(&self, vector: u16) {
        let mut table = self.table();
        let open = table.enabled && !table.masked;
        let Some(entry) = table.entries.get_mut(usize::from(vector)) else { return };
        if !open || entry.masked {
            entry.pending = true;
        } else if entry.message().is_some() {
            self.messages.send(vector);
        }
    }

    /// The guest wrote message control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.table();
        table.enabled = control & ENABLE != 0;
        table.masked = control & MASK_ALL != 0;
        self.send_pending(&mut table);
    }

    /// Takes over message control of a saved configuration space.
    pub fn load_control(&self, control: u16) {
        let mut table = self.table();
        table.enabled = control & ENABLE != 0;
        table.masked = control & MASK_ALL != 0;
    }

    /// Sends what waits and need not, after the host knows its messages.
    fn send_pending(&self, table: &mut Table) {
        if !table.enabled || table.masked {
            return;
        }
        let mut changed = false;
        for (entry, route) in table.entries.iter().zip(&mut table.routes).filter(|(entry, _)| !entry.masked) {
            changed |= *route != entry.message();
            *route = entry.message();
        }
        if changed {
            self.messages.route(&table.routes);
        }
        for (vector, entry) in (0..).zip(&mut table.entries).filter(|(_, entry)| !entry.masked) {
            if std::mem::take(&mut entry.pending) && entry.message().is_some() {
                self.messages.send(vector);
            }
        }
    }

    /// The guest reads the table, whole registers of four or eight bytes; anything else reads as zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let table = self.table();
        for (at, part) in registers(offset, data.len()).zip(data.chunks_exact_mut(4)) {
            let Some(entry) = table.entries.get(index(at)) else { return };
            let value = match at % ENTRY {
                0 => entry.address as u32,
                4 => (entry.address >> 32) as u32,
                8 => entry.data,
                _ => entry.masked.into(),
            };
            part.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The guest writes the table, whole registers of four or eight bytes; anything else changes nothing.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut table = self.table();
        for (at, part) in registers(offset, data.len()).zip(data.chunks_exact(4)) {
            let Some(entry) = table.entries.get_mut(index(at)) else { break };
            let value = part.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            match at % ENTRY {
                0 => entry.address = entry.address & !u64::from(u32::MAX) | u64::from(value & !3),
                4 => entry.address = entry.address & u64::from(u32::MAX) | u64::from(value) << 32,
                8 => entry.data = value,
                _ => entry.masked = value & 1 != 0,
            }
        }
        self.send_pending(&mut table);
    }

    /// The guest reads the pending bits, in registers as those of the table; beyond them are zeros.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let table = self.table();
        for (at, part) in registers(offset, data.len()).zip(data.chunks_exact_mut(4)) {
            let first = usize::try_from(at).map_or(usize::MAX, |at| at.saturating_mul(8));
            let entries = table.entries.iter().skip(first).take(32);
            let bits = (0..).zip(entries).filter(|(_, entry)| entry.pending);
            part.copy_from_slice(&bits.fold(0u32, |bits, (bit, _)| bits | 1 << bit).to_le_bytes());
        }
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        self.table().entries.iter_mut().for_each(|entry| entry.pending = false);
    }

    /// The vectors, to be saved. Message control is in the configuration space.
    pub fn save(&self) -> Saved {
        Saved { entries: self.table().entries.clone() }
    }

    /// Takes over saved vectors, and sends none.
    ///
    /// # Errors
    /// They are not as many, or one has an address that it cannot have.
    pub fn load(&self, saved: Saved) -> Result<(), Error> {
        let mut table = self.table();
        check(saved.entries.len() == table.entries.len(), "number of interrupt vectors")?;
        check(saved.entries.iter().all(|entry| entry.address & 3 == 0), "interrupt vector")?;
        table.entries = saved.entries;
        Ok(())
    }

    /// Sends what waits, after a load. Has the host know the messages in any case.
    pub fn resume(&self) {
        self.send_pending(&mut self.table());
    }
}

/// The offsets of the registers that an access is to, none if it is not to whole ones.
fn registers(offset: u64, len: usize) -> impl Iterator<Item = u64> {
    let whole = matches!(len, 4 | 8) && offset.is_multiple_of(len as u64);
    let count = if whole { len / 4 } else { 0 };
    (0..count as u64).map(move |index| offset.saturating_add(4 * index))
}

/// The vector in whose entry `at` is.
fn index(at: u64) -> usize {
    usize::try_from(at / ENTRY).unwrap_or(usize::MAX)
}
