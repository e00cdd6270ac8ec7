//! A machine killed at a random moment while its guest writes and flushes: what the guest was told is flushed is there.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Fixture, SCRIPT, watched};
use crate::guest::job::RECORDS;
use crate::guest::records::{self, RECORD, SLOTS};
use crate::machine::Access;
use crate::running::Running;

/// How long a guest writes at most, in milliseconds.
const LONGEST: u64 = 1500;

/// Kills a machine so many times; answers how many records were told of.
pub fn killed(fixture: &Fixture, times: u32) -> Result<String> {
    let disk = fixture.file("records.img");
    let mut machine = fixture.machine(RECORDS)?;
    machine.memory = 128;
    machine.disks.push((disk.clone(), Access::Write));
    let mut told = 0;
    for time in 1..=times {
        let file = File::create(&disk).context("making a disk")?;
        file.set_len(SLOTS * RECORD as u64).context("making a disk")?;
        let random = RandomState::new().hash_one(time) % LONGEST;
        let last = watched(fixture.start(&machine)?, |running| kill(running, Duration::from_millis(random)))?;
        compare(&disk, last).with_context(|| format!("kill {time}, after {random} ms"))?;
        told += last + 1;
    }
    Ok(format!("{told} records"))
}

/// Kills a machine so long after its first record; answers the last one that it told of.
fn kill(running: &mut Running, after: Duration) -> Result<u64> {
    running.wait_for("record ", SCRIPT)?;
    std::thread::sleep(after);
    running.kill()?;
    let said = running.said();
    said.lines().filter_map(told).next_back().context("no record was told of")
}

/// The number in a whole line: `record 12.`
fn told(line: &str) -> Option<u64> {
    line.trim().strip_prefix("record ")?.strip_suffix('.')?.parse().ok()
}

/// Compares a disk with the last record told of: each place has the last of its records that was told of, or a later
/// one.
fn compare(disk: &Path, last: u64) -> Result<()> {
    let file = File::open(disk).context("opening the disk")?;
    let mut bytes = vec![0; RECORD];
    for slot in 0..SLOTS.min(last + 1) {
        let wanted = last - (last - slot) % SLOTS;
        file.read_exact_at(&mut bytes, slot * RECORD as u64).context("reading the disk")?;
        match records::number(&bytes) {
            Some(found) if found >= wanted && found % SLOTS == slot => {}
            Some(found) => bail!("record {found} is where {wanted} was flushed"),
            // Being written anew when the machine was killed: it was told of long ago, and overwriting tears.
            None if wanted + SLOTS <= last + 2 * 8 => {}
            None => bail!("record {wanted} was flushed, and is not there"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_tells_of_nothing() {
        assert_eq!(told("record 12.\r"), Some(12));
        assert_eq!(told("record 12"), None);
        assert_eq!(told("[ 1.0] record 1."), None);
    }

    #[test]
    fn a_record_that_was_told_of_and_is_gone_or_old_is_found() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let write = |number: u64| {
            disk.as_file().write_all_at(&records::record(number), number % SLOTS * RECORD as u64).unwrap();
        };
        (0..SLOTS).for_each(write);
        compare(disk.path(), SLOTS - 1).unwrap();
        assert!(compare(disk.path(), SLOTS).unwrap_err().to_string().contains("is where 2048 was flushed"));
        write(SLOTS);
        compare(disk.path(), SLOTS).unwrap();
        // Later than what was told of, whole or half.
        write(SLOTS + 1);
        compare(disk.path(), SLOTS).unwrap();
        disk.as_file().write_all_at(b"half", 2 * RECORD as u64).unwrap();
        compare(disk.path(), SLOTS).unwrap();
        disk.as_file().write_all_at(b"half", 900 * RECORD as u64).unwrap();
        assert!(compare(disk.path(), SLOTS).unwrap_err().to_string().contains("is not there"));
    }
}
