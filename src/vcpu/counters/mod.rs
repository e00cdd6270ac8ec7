//! What a vCPU's thread counts of its exits: by the kind of access and the address, which the guest chooses. So there
//! is room for so many addresses and no more, made beforehand, and what finds none is counted together.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

pub mod clock;
pub mod histogram;
pub use crate::vcpu::exit::Space;
use crate::vcpu::exit::VcpuExit;
use histogram::{Histogram, Sum};

/// How many accesses are counted apart.
const PLACES: usize = 512;
/// How many places an access is looked for in.
const TRIES: usize = 16;

/// `0x3f8 write 1`; `n` where the length is another.
impl fmt::Display for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.write { "write" } else { "read" };
        match self.width {
            0 => write!(out, "{:#x} {way} n", self.address),
            width => write!(out, "{:#x} {way} {width}", self.address),
        }
    }
}

/// An access that a guest makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// The first address.
    pub address: u64,
    /// Whether the guest writes.
    pub write: bool,
    /// How many bytes: 1, 2, 4 or 8; 0 for what is of another length, as the elements of a string may be.
    pub width: u8,
}

impl Access {
    /// An access of so many bytes.
    #[inline]
    pub fn new(space: Space, address: u64, write: bool, len: usize) -> Self {
        let width = if matches!(len, 1 | 2 | 4 | 8) { len as u8 } else { 0 };
        Self { space, address, write, width }
    }

    /// As one number, which is never 0. No processor has addresses of more than 52 bits.
    #[inline]
    fn key(self) -> u64 {
        let space = if self.space == Space::Memory { KEY_MEMORY } else { 0 };
        let write = if self.write { KEY_WRITE } else { 0 };
        self.address << KEY_SHIFT | space | write | u64::from(self.width) | KEY_USED
    }

    fn of_key(key: u64) -> Option<Self> {
        let space = if key & KEY_MEMORY != 0 { Space::Memory } else { Space::Port };
        let used = key & KEY_USED != 0;
        used.then_some(Self {
            space,
            address: key >> KEY_SHIFT,
            write: key & KEY_WRITE != 0,
            width: (key & 0xf) as u8,
        })
    }
}

const KEY_USED: u64 = 1 << 4;
const KEY_WRITE: u64 = 1 << 5;
const KEY_MEMORY: u64 = 1 << 6;
const KEY_SHIFT: u32 = 8;

/// Why KVM_RUN came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// For an access.
    Access(Access),
    /// A signal came, or KVM had another reason to ask for nothing.
    Interrupted,
    /// For good.
    Ended,
}

impl Cause {
    /// What KVM_RUN's answer says.
    #[inline]
    pub fn of(left: &VcpuExit<'_>) -> Self {
        match left {
            VcpuExit::Access { space, address, write, data } => {
                Self::Access(Access::new(*space, *address, *write, data.len()))
            }
            VcpuExit::Interrupted => Self::Interrupted,
            VcpuExit::Ended(_) => Self::Ended,
        }
    }
}

/// Something that is being done.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    cause: Cause,
    begun: u64,
}

impl Timed {
    /// It begins now.
    #[inline]
    pub fn begin(cause: Cause) -> Self {
        Self { cause, begun: clock::ticks() }
    }
}

/// The counts of one vCPU, or of one ring. One thread at a time writes, any may read.
pub struct Counters {
    keys: Box<[AtomicU64]>,
    places: Box<[Histogram]>,
    /// Accesses that found no place: reads of ports, writes, reads of memory, writes.
    others: [Histogram; 4],
    interrupted: Histogram,
    ended: Histogram,
    entered: OnceLock<Instant>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            keys: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            places: (0..PLACES).map(|_| Histogram::default()).collect(),
            others: Default::default(),
            interrupted: Histogram::default(),
            ended: Histogram::default(),
            entered: OnceLock::new(),
        }
    }
}

impl Counters {
    /// The guest is about to be entered for the first time.
    pub fn enter(&self) {
        let _ = self.entered.set(Instant::now());
    }

    /// When the guest was entered for the first time.
    pub fn entered(&self) -> Option<Instant> {
        self.entered.get().copied()
    }

    /// What was begun is done.
    #[inline]
    pub fn end(&self, timed: Timed) {
        let ticks = clock::ticks().saturating_sub(timed.begun);
        let histogram = match timed.cause {
            Cause::Access(access) => self.place(access),
            Cause::Interrupted => &self.interrupted,
            Cause::Ended => &self.ended,
        };
        histogram.add(ticks);
    }

    #[inline]
    fn place(&self, access: Access) -> &Histogram {
        let key = access.key();
        // Fibonacci hashing: the upper bits of the product depend on all bits of the key.
        let first = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        for index in (first..first + TRIES).map(|index| index % PLACES) {
            let found = self.keys[index].load(Ordering::Relaxed);
            if found == key {
                return &self.places[index];
            }
            if found == 0 {
                // Who reads sees no access before its place is there, which is always.
                self.keys[index].store(key, Ordering::Relaxed);
                return &self.places[index];
            }
        }
        &self.others[usize::from(access.space == Space::Memory) * 2 + usize::from(access.write)]
    }

    /// Every access that was made, with its counts, in no order. `None` stands for the address of those that found no
    /// place.
    pub fn accesses(&self) -> impl Iterator<Item = (Kind, Option<Access>, &Histogram)> {
        let placed = self.keys.iter().zip(&self.places).filter_map(|(key, histogram)| {
            let access = Access::of_key(key.load(Ordering::Relaxed))?;
            Some((Kind::of(access.space, access.write), Some(access), histogram))
        });
        let others = Kind::ACCESSES.into_iter().zip(&self.others);
        placed.chain(
            others
                .filter(|(_, histogram)| histogram.totals().0 > 0)
                .map(|(kind, histogram)| (kind, None, histogram)),
        )
    }

    /// All exits of this kind.
    pub fn sum(&self, kind: Kind) -> Sum {
        let mut sum = Sum::default();
        match kind {
            Kind::Interrupted => sum.add(&self.interrupted),
            Kind::Ended => sum.add(&self.ended),
            _ => self
                .accesses()
                .filter(|(it, ..)| *it == kind)
                .for_each(|(_, _, histogram)| sum.add(histogram)),
        }
        sum
    }
}

/// The reasons that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The guest read a port.
    PortRead,
    /// The guest wrote a port.
    PortWrite,
    /// The guest read memory that is not RAM.
    MemoryRead,
    /// The guest wrote memory that is not RAM.
    MemoryWrite,
    /// A signal came.
    Interrupted,
    /// The vCPU stopped for good.
    Ended,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MemoryRead,
        Self::MemoryWrite,
        Self::Interrupted,
        Self::Ended,
    ];
    const ACCESSES: [Self; 4] = [Self::PortRead, Self::PortWrite, Self::MemoryRead, Self::MemoryWrite];

    fn of(space: Space, write: bool) -> Self {
        Self::ACCESSES[usize::from(space == Space::Memory) * 2 + usize::from(write)]
    }

    /// Where the access went, if it was one.
    pub fn space(self) -> Option<Space> {
        match self {
            Self::PortRead | Self::PortWrite => Some(Space::Port),
            Self::MemoryRead | Self::MemoryWrite => Some(Space::Memory),
            Self::Interrupted | Self::Ended => None,
        }
    }

    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port read",
            Self::PortWrite => "port write",
            Self::MemoryRead => "memory read",
            Self::MemoryWrite => "memory write",
            Self::Interrupted => "signal",
            Self::Ended => "end",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::exit::Ending;

    fn count(counters: &Counters, access: Access) {
        counters.end(Timed::begin(Cause::Access(access)));
    }

    #[test]
    fn accesses_are_told_apart_by_all_that_they_are() {
        let counters = Counters::default();
        let accesses = [
            Access::new(Space::Port, 0, false, 1),
            Access::new(Space::Port, 0x3f8, true, 1),
            Access::new(Space::Port, 0x3f8, false, 1),
            Access::new(Space::Port, 0x3f8, true, 4),
            Access::new(Space::Port, 0x3f8, true, 700),
            Access::new(Space::Memory, 0x3f8, true, 1),
            Access::new(Space::Memory, (1 << 52) - 1, true, 8),
        ];
        for (access, times) in accesses.iter().zip(1..) {
            (0..times).for_each(|_| count(&counters, *access));
        }
        for (access, times) in accesses.iter().zip(1..) {
            let found = counters.accesses().find(|(_, it, _)| *it == Some(*access));
            assert_eq!(found.map(|(.., histogram)| histogram.totals().0), Some(times), "{access:?}");
        }
        assert_eq!(counters.accesses().count(), accesses.len());
        assert_eq!(counters.sum(Kind::PortWrite).count, 2 + 4 + 5);
    }

    #[test]
    fn a_guest_that_goes_everywhere_loses_no_count_and_takes_no_room() {
        let counters = Counters::default();
        for address in 0..10_000 {
            count(&counters, Access::new(Space::Memory, address << 12, address % 4 == 0, 4));
        }
        assert_eq!(counters.sum(Kind::MemoryWrite).count, 2_500);
        assert_eq!(counters.sum(Kind::MemoryRead).count, 7_500);
        let (known, others): (Vec<_>, Vec<_>) =
            counters.accesses().partition(|(_, access, _)| access.is_some());
        assert!(known.len() <= PLACES && known.len() > PLACES / 2, "{}", known.len());
        assert_eq!(others.len(), 2);
    }

    #[test]
    fn exits_without_an_access_have_counts_of_their_own() {
        let counters = Counters::default();
        counters.end(Timed::begin(Cause::of(&VcpuExit::Interrupted)));
        counters.end(Timed::begin(Cause::of(&VcpuExit::Ended(Ending::Shutdown))));
        let counts = Kind::ALL.map(|kind| counters.sum(kind).count);
        assert_eq!(counts, [0, 0, 0, 0, 1, 1]);
    }
}
