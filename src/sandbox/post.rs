//! Whole files that the machine's process has the one outside write, as it has no folder itself. It names them by number:
//! their paths are what the user has said, before there were two processes.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A file's number and its length in bytes.
const HEADER: usize = 1 + 8;
/// The longest file: more is no report, but a process that is not ours any more.
const LONGEST: u64 = 256 << 20;
/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// The files that may be written, in the order of their numbers.
static PATHS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Where the machine's process sends them.
static OUT: OnceLock<Mutex<PipeWriter>> = OnceLock::new();

fn paths() -> MutexGuard<'static, Vec<PathBuf>> {
    PATHS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the machine's process have the file at `path` written. To be called before the process is split.
pub fn expect(path: &Path) {
    paths().push(path.to_owned());
}

/// This process is the machine's from now on.
pub(super) fn inside(out: PipeWriter) {
    // A process is split once.
    let _ = OUT.set(Mutex::new(out));
}

/// Has the process outside write the file, if there is one; else nothing.
///
/// # Errors
/// The file is not one that was expected, or the process outside has gone.
pub fn send(path: &Path, content: &[u8]) -> Option<io::Result<()>> {
    let out = OUT.get()?;
    let Some(number) = paths().iter().position(|it| it == path) else {
        return Some(Err(io::Error::other("it was not named at the start")));
    };
    let header = [&[number as u8], &(content.len() as u64).to_le_bytes()[..]].concat();
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    Some(out.write_all(&header).and_then(|()| out.write_all(content)))
}

/// Where they come.
pub(super) struct Reader {
    pipe: PipeReader,
    open: bool,
    received: Vec<u8>,
}

impl Reader {
    /// # Errors
    /// The pipe cannot be set up.
    pub fn new(pipe: PipeReader) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, open: true, received: Vec::new() })
    }

    /// Whether more can come.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The files that have come whole since the last time. What makes no sense ends it.
    pub fn take(&mut self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut chunk = vec![0; CHUNK];
        let mut files = Vec::new();
        while self.open {
            match self.pipe.read(&mut chunk) {
                Ok(0) => self.open = false,
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(_) => break,
            }
            while let Some(file) = self.next() {
                files.push(file);
            }
        }
        files
    }

    fn next(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        let (header, content) = self.received.split_first_chunk::<HEADER>()?;
        let [number, length @ ..] = *header;
        let length = u64::from_le_bytes(length);
        let path = paths().get(usize::from(number)).cloned().filter(|_| length <= LONGEST);
        let Some(path) = path else {
            (self.open, self.received) = (false, Vec::new());
            return None;
        };
        let content = content.get(..length as usize)?.to_vec();
        self.received.drain(..HEADER + content.len());
        Some((path, content))
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_arrive_whole_and_only_where_they_were_expected() {
        let path = Path::new("/expected/by/a/test");
        expect(path);
        let number = paths().iter().position(|it| it == path).unwrap() as u8;
        let (pipe, mut writer) = io::pipe().unwrap();
        let mut reader = Reader::new(pipe).unwrap();
        let frame =
            |number: u8, length: u64, text: &[u8]| [&[number], &length.to_le_bytes()[..], text].concat();
        writer.write_all(&frame(number, 3, b"one")).unwrap();
        writer.write_all(&frame(number, 3, b"tw")).unwrap();
        assert_eq!(reader.take(), [(path.to_owned(), b"one".to_vec())]);
        writer.write_all(b"o").unwrap();
        assert_eq!(reader.take(), [(path.to_owned(), b"two".to_vec())]);
        writer.write_all(&frame(200, 3, b"bad")).unwrap();
        assert_eq!((reader.take(), reader.is_open()), (Vec::new(), false));
        let (pipe, mut writer) = io::pipe().unwrap();
        let mut reader = Reader::new(pipe).unwrap();
        writer.write_all(&frame(number, u64::MAX, b"")).unwrap();
        assert_eq!((reader.take(), reader.is_open()), (Vec::new(), false));
    }
}
