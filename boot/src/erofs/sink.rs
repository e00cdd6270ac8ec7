//! Bytes on their way into the image's file, those that follow each other in one write.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{BLOCK, Error};

/// How many bytes wait for others behind them.
const WAITING: usize = 256 << 10;
/// A block of zeros.
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Writes a file at any place. Whole blocks of zeros are not written: the file has holes there.
pub(super) struct Sink<'a> {
    file: &'a File,
    /// Where what waits belongs, in bytes.
    at: u64,
    waiting: Vec<u8>,
}

impl<'a> Sink<'a> {
    /// The file must have nothing but zeros where is written.
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, at: 0, waiting: Vec::with_capacity(WAITING) }
    }

    /// Writes `bytes` at `at`.
    pub(super) fn write(&mut self, mut at: u64, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (part, is_zero) = alike(at, bytes);
            if !is_zero {
                self.put(at, &bytes[..part])?;
            }
            at += part as u64;
            bytes = &bytes[part..];
        }
        Ok(())
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = self.at + self.waiting.len() as u64;
        match at.checked_sub(end) {
            // The rest of a file's last block.
            Some(gap) if gap < BLOCK && !self.waiting.is_empty() => {
                self.waiting.resize(self.waiting.len() + gap as usize, 0);
            }
            _ => {
                self.flush()?;
                self.at = at;
            }
        }
        if self.waiting.len() + bytes.len() > WAITING {
            self.flush()?;
        }
        if bytes.len() >= WAITING {
            self.file.write_all_at(bytes, at).map_err(Error::Write)?;
            self.at = at + bytes.len() as u64;
        } else {
            self.waiting.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.file.write_all_at(&self.waiting, self.at).map_err(Error::Write)?;
        self.at += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

/// How many of these bytes, which belong at `at`, are in whole blocks of zeros, or how many come before such a block.
fn alike(at: u64, bytes: &[u8]) -> (usize, bool) {
    let first = (BLOCK - at % BLOCK) as usize;
    let mut len = 0;
    let mut is_zero = None;
    let mut next = first.min(bytes.len());
    while len < bytes.len() {
        let part = &bytes[len..next];
        let part_is_zero = part.len() == ZEROS.len() && part == ZEROS.as_slice();
        if *is_zero.get_or_insert(part_is_zero) != part_is_zero {
            break;
        }
        len = next;
        next = (next + ZEROS.len()).min(bytes.len());
    }
    (len, is_zero == Some(true))
}
