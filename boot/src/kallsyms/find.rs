//! Finds the kernel's tables of symbols in guest memory.
//!
//! Nothing says where they are, but all are in one piece of read-only data, each at a multiple of eight, from Linux 7.0 on
//! of four, and the table of what codes stand for is easily told: a name has digits, so the codes of `0` to `9` stand for
//! themselves. From there the others are found, in either order that kernels have had them in:
//!
//! - up to Linux 6.3: offsets, base, count, names, markers (6.2, 6.3 and late stable releases of those before: an order of
//!   names), tokens, token index;
//! - from Linux 6.4: count, names, markers, tokens, token index, offsets, base;
//! - from Linux 7.0: the same without a base.
//!
//! Addresses are offsets from the base, which the kernel has moved with itself where it has moved (KASLR); without one,
//! each is an offset from where it is itself.

use std::cell::Cell;
use std::ops::Range;

use super::names::{MARKED, Names, Tokens, codes};
use super::{KERNEL_HALF, Physical, Place, Symbols};

/// How far behind an address of the image its tables may be, and how far before it: images of distributions have less
/// than 64 MiB.
const AHEAD: u64 = 256 << 20;
const BEHIND: u64 = 128 << 20;
/// What is read at once.
const CHUNK: usize = 64 << 10;
/// How much is read in all, in bytes: enough for all of the image and tables twice. A guest can make many places look
/// like tables.
const WORK: u64 = 1 << 30;
/// What each reading costs beside its bytes.
const READING: u64 = 64;
/// How many symbols a kernel has. Those of distributions have less than 300,000.
const COUNT: std::ops::RangeInclusive<u64> = 2 * MARKED as u64..=1 << 21;
/// What compressed names may measure.
const NAMES_MAX: u64 = 32 << 20;
/// What the codes of the names up to the second marker may measure.
const HEAD_MAX: u32 = 256 * MARKED as u32;
/// What the tokens may measure in front of `0` and altogether.
const TOKENS_MAX: u64 = 16 << 10;

/// What tables may be aligned to.
const ALIGNMENTS: [u64; 2] = [8, 4];

/// What the first token's string may measure.
const FIRST_MAX: usize = 128;

const DIGITS: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";

pub(super) fn find(memory: &impl Physical, near: Place) -> Option<Symbols> {
    let moved = near.address.wrapping_sub(near.physical);
    Search { memory, moved, left: Cell::new(WORK) }.find(near.physical)
}

/// A search, whose work has an end.
struct Search<'a, M> {
    memory: &'a M,
    /// How far the image's virtual addresses are from its physical ones.
    moved: u64,
    /// How many bytes it may still read.
    left: Cell<u64>,
}

impl<M: Physical> Search<'_, M> {
    /// Reads what there is at `at`; nothing once too much has been read.
    fn read<'a>(&self, at: u64, into: &'a mut [u8]) -> Option<&'a [u8]> {
        self.left.set(self.left.get().checked_sub(into.len() as u64 + READING)?);
        let len = self.memory.read(at, into);
        into.get(..len)
    }

    /// Reads all of `len` bytes, of which there are at most [`NAMES_MAX`].
    fn bytes(&self, at: u64, len: u64) -> Option<Vec<u8>> {
        if len > NAMES_MAX || len > self.left.get() {
            return None;
        }
        let mut bytes = vec![0; len as usize];
        (self.read(at, &mut bytes)?.len() as u64 == len).then_some(bytes)
    }

    fn words(&self, at: u64, count: u64) -> Option<Vec<u32>> {
        let bytes = self.bytes(at, 4 * count)?;
        Some(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    fn find(&self, near: u64) -> Option<Symbols> {
        let near = near & !(CHUNK as u64 - 1);
        let step = CHUNK as u64;
        let ahead = (0..AHEAD / step).map_while(|index| near.checked_add(index * step));
        let behind = (1..=BEHIND / step).map_while(|index| near.checked_sub(index * step));
        let mut chunk = vec![0; CHUNK];
        let mut last = None;
        for start in ahead.chain(behind) {
            let chunk = self.read(start, &mut chunk)?;
            for digits in digits(chunk).map(|at| start.wrapping_add_signed(at)) {
                let again = last.replace(digits) == Some(digits);
                let tokens = if again { None } else { self.tokens(digits) };
                if let Some(symbols) = tokens.and_then(|(tokens, place)| self.symbols(tokens, place)) {
                    return Some(symbols);
                }
            }
        }
        None
    }

    /// The tokens, and where their tables are, if `digits` is where `0` to `9` are.
    fn tokens(&self, digits: u64) -> Option<(Tokens, Range<u64>)> {
        let from = digits.checked_sub(TOKENS_MAX)?;
        let bytes = self.bytes(from, TOKENS_MAX)?;
        // The strings of as many codes end in front of that of `0`. What is in front of the first one ends with a zero byte
        // where it is a table of small numbers or has been aligned, and else with any.
        let mut ends = (0..bytes.len()).rev().filter(|&at| bytes[at] == 0);
        let first = ends.nth(usize::from(b'0') - 1)?;
        let least = first.saturating_sub(FIRST_MAX).max(ends.next().map_or(0, |end| end + 1));
        let starts = (least..=first).map(|at| from + at as u64).filter(|start| start.is_multiple_of(4));
        starts.rev().find_map(|start| self.tokens_at(start))
    }

    /// The tokens, and where their tables are, if the first one's string is at `start`.
    fn tokens_at(&self, start: u64) -> Option<(Tokens, Range<u64>)> {
        let mut bytes = vec![0; TOKENS_MAX as usize];
        let bytes = self.read(start, &mut bytes)?;
        let (mut index, mut at) = (Box::new([0; 256]), 0);
        for place in index.iter_mut() {
            *place = u16::try_from(at).ok()?;
            at += bytes.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
        }
        let zero = usize::from(index[usize::from(b'0')]);
        if !bytes[zero..].starts_with(DIGITS) {
            return None;
        }
        let is_index = |second: &usize| {
            let written = bytes.get(*second..second + 512).unwrap_or_default().as_chunks().0;
            written.len() == 256
                && index.iter().zip(written).all(|(place, bytes)| *place == u16::from_le_bytes(*bytes))
        };
        let behind = start.checked_add(at as u64)?;
        let seconds = ALIGNMENTS.map(|align| (behind.next_multiple_of(align) - start) as usize);
        let second = seconds.into_iter().find(is_index)?;
        let tokens = Tokens { table: bytes[..at].to_vec(), index };
        Some((tokens, start..start.checked_add(second as u64 + 512)?))
    }

    /// Everything else: the tables of tokens are at `place`.
    fn symbols(&self, tokens: Tokens, place: Range<u64>) -> Option<Symbols> {
        let (count_at, count, bytes, markers) = self.names(place.start)?;
        let size = (4 * count).next_multiple_of(8);
        let later = || self.addresses(place.end, place.end.checked_add(size)?, count);
        let placed = || self.placed_addresses(place.end, count);
        let base = count_at.checked_sub(8);
        let earlier = || self.addresses(base?.checked_sub(size)?, base?, count);
        let addresses = later().or_else(earlier).or_else(placed)?;
        Some(Symbols { addresses, names: Names::Compressed { bytes, markers, tokens }, slide: 0 })
    }

    /// Where the count is, the count, the names and the markers; the tokens are at `tokens`.
    fn names(&self, tokens: u64) -> Option<(u64, u64, Vec<u8>, Vec<u32>)> {
        let mut chunk = vec![0; CHUNK];
        let mut end = tokens;
        while end > tokens.saturating_sub(NAMES_MAX) {
            let start = end.saturating_sub(CHUNK as u64);
            let chunk = self.read(start, &mut chunk[..(end - start) as usize])?;
            let words = chunk.as_chunks().0.iter().enumerate().rev();
            let words =
                words.map(|(index, word)| (u32::from_le_bytes(*word).into(), start + 4 * index as u64));
            for (count, at) in words.filter(|(count, _)| COUNT.contains(count)) {
                if let Some((names, markers)) = self.names_behind(at, count, tokens) {
                    return Some((at, count, names, markers));
                }
            }
            end = start;
        }
        None
    }

    /// The names and markers if the count is at `at`.
    fn names_behind(&self, at: u64, count: u64, tokens: u64) -> Option<(Vec<u8>, Vec<u32>)> {
        let aligned = |align: &u64| at.is_multiple_of(*align) && tokens.is_multiple_of(*align);
        ALIGNMENTS.into_iter().filter(aligned).find_map(|align| {
            let order = (3 * count).next_multiple_of(align);
            [0, order]
                .into_iter()
                .find_map(|behind| self.names_until(at + align, count, tokens.checked_sub(behind)?, align))
        })
    }

    /// The names and markers, if the names are at `at`, and the markers in front of `end`.
    fn names_until(&self, at: u64, count: u64, end: u64, align: u64) -> Option<(Vec<u8>, Vec<u32>)> {
        let marked = count.div_ceil(MARKED as u64);
        let markers_at = end.checked_sub((4 * marked).next_multiple_of(align))?;
        let room = markers_at.checked_sub(at).filter(|room| *room >= 2 * count)?;
        // Almost every wrong place ends here, and every other at the first names.
        let first = self.words(markers_at, 2)?;
        if first[0] != 0 || u64::from(first[1]) >= room || first[1] > HEAD_MAX {
            return None;
        }
        let head = self.bytes(at, first[1].into())?;
        if marked_names(&head, MARKED as u64, &first[..1]) != Some(head.len()) {
            return None;
        }
        let (names, markers) = (self.bytes(at, room)?, self.words(markers_at, marked)?);
        let len = marked_names(&names, count, &markers)?;
        ((len as u64).next_multiple_of(align) == room).then_some((names, markers))
    }

    /// The addresses, if that is what they are: they go up, and the base is a kernel's.
    fn addresses(&self, offsets: u64, base: u64, count: u64) -> Option<Vec<u64>> {
        let base = u64::from_le_bytes(self.bytes(base, 8)?.try_into().ok()?);
        let offsets = self.words(offsets, count).filter(|_| base >= KERNEL_HALF)?;
        // With CONFIG_KALLSYMS_ABSOLUTE_PERCPU an offset below zero is what others are behind the base, and one from zero
        // up an address, of a variable that each CPU has.
        let absolute_percpu = offsets.iter().any(|&offset| (offset as i32) < 0);
        let address = |&offset: &u32| match absolute_percpu {
            true if offset as i32 >= 0 => u64::from(offset),
            true => base.wrapping_add((!offset).into()),
            false => base.wrapping_add(offset.into()),
        };
        ascending(offsets.iter().map(address).collect())
    }

    /// The addresses, if those are offsets from where they are themselves.
    fn placed_addresses(&self, offsets: u64, count: u64) -> Option<Vec<u64>> {
        let table = offsets.wrapping_add(self.moved);
        let words = self.words(offsets, count)?;
        let place = |index: u64| table.wrapping_add(4 * index);
        let address =
            |(offset, index): (&u32, u64)| place(index).wrapping_add_signed((*offset as i32).into());
        let addresses: Vec<u64> = words.iter().zip(0..).map(address).collect();
        ascending(addresses).filter(|addresses| addresses[0] >= KERNEL_HALF)
    }
}

fn ascending(addresses: Vec<u64>) -> Option<Vec<u64>> {
    (addresses.is_sorted() && addresses.last() > addresses.first()).then_some(addresses)
}

/// Where in a chunk the ten digits seem to begin: an aligned word of four of them is there wherever they do.
fn digits(chunk: &[u8]) -> impl Iterator<Item = i64> {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    const STEP: u64 = 0x0003_0002_0001_0000;
    const ONES: u64 = 0x0001_0001_0001_0001;
    let words = chunk.as_chunks::<8>().0.iter().zip((0i64..).step_by(8));
    words.filter_map(|(word, at)| {
        let word = u64::from_le_bytes(*word);
        let (word, at) = match (word & !EVEN == 0, word & EVEN == 0) {
            (true, false) => (word, at),
            (false, true) => (word >> 8, at + 1),
            _ => return None,
        };
        let digit = (word & 0xff).checked_sub(b'0'.into()).filter(|digit| *digit < 7)?;
        let same = word == STEP + ONES * (word & 0xff);
        same.then(|| at - 2 * digit as i64)
    })
}

/// How long `count` names are, if every 256th begins where its marker says.
fn marked_names(names: &[u8], count: u64, markers: &[u32]) -> Option<usize> {
    let mut at = 0;
    for index in 0..count as usize {
        if index.is_multiple_of(MARKED) && markers.get(index / MARKED).map(|it| *it as usize) != Some(at) {
            return None;
        }
        let (start, len) = codes(names, at)?;
        at = start + len;
        if len == 0 || at > names.len() {
            return None;
        }
    }
    Some(at)
}
