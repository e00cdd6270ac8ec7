//! A part of a file as a reader of its own, and what a layer's blob is compressed with.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A range of a file's bytes, read at a position of its own.
#[derive(Clone, Debug)]
pub struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Section {
    /// The `length` bytes at `at`; fewer if the file ends before.
    pub fn new(file: Arc<File>, at: u64, length: u64) -> Self {
        Self { file, at, left: length }
    }

    /// How many bytes are left to read, if the file has them.
    pub fn length(&self) -> u64 {
        self.left
    }

    /// What the content is compressed with, by how it begins.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn compression(&self) -> io::Result<Compression> {
        let mut head = Vec::new();
        self.clone().take(4).read_to_end(&mut head)?;
        Ok(Compression::of(&head))
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// What a layer's tar is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// What content is compressed with that begins like this. Media types are not asked: tools write wrong ones, and what
    /// comes out is checked against the layer's `diff_id`.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one to be skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_section_has_its_own_bytes_and_no_others() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Arc::new(file);
        let read = |at, length| {
            let mut text = String::new();
            Section::new(file.clone(), at, length).read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read(2, 3), "234");
        assert_eq!(read(8, 100), "89");
        assert_eq!(read(0, 0), "");
        assert_eq!(read(100, u64::MAX), "");
    }

    #[test]
    fn compression_is_seen_in_the_content() {
        for (head, expected) in [
            (&[0x1f, 0x8b, 8, 0][..], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x5a, 0x2a, 0x4d, 0x18], Compression::Zstd),
            (b"etc/", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(Compression::of(head), expected);
        }
    }
}
