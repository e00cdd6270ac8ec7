//! Which sectors of an ephemeral disk the guest has written.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sectors of one leaf: 2 MiB of disk in 512 bytes of map, so that the map of scattered single sectors grows about as
/// the file does.
const LEAF: u64 = 4096;
const WORDS: usize = LEAF as usize / 64;

/// A set of sectors, in two levels; it grows with what is inserted.
#[derive(Debug, Default)]
pub(super) struct Map(BTreeMap<u64, Leaf>);

#[derive(Debug)]
enum Leaf {
    All,
    Some(Box<[u64; WORDS]>),
}

impl Leaf {
    fn has(&self, bit: u64) -> bool {
        match self {
            Self::All => true,
            Self::Some(words) => words[bit as usize / 64] >> (bit % 64) & 1 != 0,
        }
    }

    fn insert(&mut self, bits: Range<u64>) {
        let Self::Some(words) = self else { return };
        for bit in bits {
            words[bit as usize / 64] |= 1 << (bit % 64);
        }
        if words.iter().all(|word| *word == u64::MAX) {
            *self = Self::All;
        }
    }
}

impl Map {
    /// How many leaves it has.
    #[cfg(test)]
    pub fn leaves(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `sectors`.
    pub fn insert(&mut self, sectors: Range<u64>) {
        let mut at = sectors.start;
        while at < sectors.end {
            let (index, bit) = (at / LEAF, at % LEAF);
            let end = (bit + (sectors.end - at)).min(LEAF);
            if end - bit == LEAF {
                self.0.insert(index, Leaf::All);
            } else {
                let empty = || Leaf::Some(Box::new([0; WORDS]));
                self.0.entry(index).or_insert_with(empty).insert(bit..end);
            }
            at += end - bit;
        }
    }

    /// Whether the first of `sectors` is in the set, and how many from it on are as it is. There must be one.
    pub fn run(&self, sectors: Range<u64>) -> (bool, u64) {
        let first = self.0.get(&(sectors.start / LEAF)).is_some_and(|leaf| leaf.has(sectors.start % LEAF));
        let mut at = sectors.start;
        while at < sectors.end {
            // What is looked at together, and how much of it is alike.
            let (room, alike) = match self.0.get(&(at / LEAF)) {
                None => (LEAF - at % LEAF, if first { 0 } else { LEAF - at % LEAF }),
                Some(Leaf::All) => (LEAF - at % LEAF, if first { LEAF - at % LEAF } else { 0 }),
                Some(Leaf::Some(words)) => {
                    let word = words[(at % LEAF) as usize / 64] >> (at % 64);
                    let alike = if first { word.trailing_ones() } else { word.trailing_zeros() };
                    (64 - at % 64, u64::from(alike).min(64 - at % 64))
                }
            };
            at += alike;
            if alike < room {
                break;
            }
        }
        (first, at.min(sectors.end) - sectors.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_inserted() {
        let mut map = Map::default();
        map.insert(10..20);
        map.insert(4000..3 * LEAF + 1);
        map.insert(20..20);
        assert_eq!(map.run(0..100), (false, 10));
        assert_eq!(map.run(10..100), (true, 10));
        assert_eq!(map.run(15..17), (true, 2));
        assert_eq!(map.run(20..5000), (false, 3980));
        assert_eq!(map.run(4095..20_000), (true, 2 * LEAF + 2));
        assert_eq!(map.run(3 * LEAF + 1..1 << 30), (false, (1 << 30) - 3 * LEAF - 1));
    }

    #[test]
    fn a_leaf_that_fills_up_costs_no_bits() {
        let mut map = Map::default();
        for sector in (0..LEAF).rev() {
            map.insert(sector..sector + 1);
        }
        map.insert(LEAF..1 << 25);
        assert!(map.0.values().all(|leaf| matches!(leaf, Leaf::All)));
        assert_eq!(map.run(0..1 << 30), (true, 1 << 25));
    }
}
