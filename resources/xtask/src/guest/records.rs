//! Numbered records written to a disk for as long as the machine lives, each told of once it has been flushed: what was
//! told must be on the disk whenever the machine is killed.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// A record's size in bytes.
pub const RECORD: usize = 4096;
/// How many places for records there are, each used again after so many.
pub const SLOTS: u64 = 2048;
/// How many records are written between two flushes, at most.
const BATCH: u64 = 8;

/// Writes records until the machine is gone.
pub fn write() -> Result<Infallible> {
    let disk = File::options().write(true).open("/dev/vda").context("opening the disk")?;
    let mut console = std::io::stdout().lock();
    let mut next = 0;
    let mut flush = 0;
    loop {
        for _ in 0..=flush % BATCH {
            let at = next % SLOTS * RECORD as u64;
            disk.write_all_at(&record(next), at).with_context(|| format!("writing record {next}"))?;
            next += 1;
        }
        disk.sync_data().with_context(|| format!("flushing record {}", next - 1))?;
        // In one piece: half a number would be another one.
        console.write_all(format!("record {}.\n", next - 1).as_bytes()).context("telling of a record")?;
        flush += 1;
    }
}

/// The record of this number: the number over and over, each time with its place, so that no part of another record,
/// and no part in another place, passes for it.
pub fn record(number: u64) -> Vec<u8> {
    (0..RECORD as u64 / 8).flat_map(|index| ((number + 1) << 16 | index).to_le_bytes()).collect()
}

/// The number of the record that these bytes are, if they are a whole one.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let first: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    // A place that was never written has none.
    let number = (u64::from_le_bytes(first) >> 16).checked_sub(1)?;
    (bytes == record(number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_number_and_a_torn_one_none() {
        assert_eq!(number(&record(77)), Some(77));
        let torn = [&record(77)[..512], &record(78)[512..]].concat();
        assert_eq!(number(&torn), None);
        assert_eq!(number(&[0xff; RECORD]), None);
        assert_eq!(number(&[0; RECORD]), None);
        assert_eq!(number(&[]), None);
    }
}
