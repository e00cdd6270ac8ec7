//! What the machine's process tells the one outside: a few bytes, which are all that it can ask of it.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Something that the one outside is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing more is written to standard error.
    StderrClosed,
    /// A system call was refused, and the end is near.
    Refused,
    /// kite is to end by this signal.
    EndBy(i32),
}

impl News {
    /// One byte each: signals have their numbers, which end at 64.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::StderrClosed => 0x80,
            Self::Refused => 0x81,
            Self::EndBy(signal) => signal as u8 & 0x7f,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        match byte {
            0x80 => Some(Self::StderrClosed),
            0x81 => Some(Self::Refused),
            1..=64 => Some(Self::EndBy(byte.into())),
            _ => None,
        }
    }
}

/// Where news come.
pub(super) struct Reader {
    pipe: PipeReader,
    open: bool,
    /// The signal that kite is to end by.
    pub end: Option<i32>,
}

impl Reader {
    /// # Errors
    /// The pipe cannot be set up.
    pub fn new(pipe: PipeReader) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, open: true, end: None })
    }

    /// What was told since the last time.
    pub fn take(&mut self) -> Vec<News> {
        let mut bytes = [0; 64];
        match self.pipe.read(&mut bytes) {
            Ok(0) => {
                self.open = false;
                Vec::new()
            }
            Ok(count) => bytes[..count].iter().copied().filter_map(News::of).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Whether more can come.
    pub fn is_open(&self) -> bool {
        self.open
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Where this process, if it is the machine's, tells the one outside.
static OUTSIDE: OnceLock<PipeWriter> = OnceLock::new();
/// Its descriptor, for a signal's handler.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// This process is the machine's from now on.
pub(super) fn inside(tell: PipeWriter) {
    DESCRIPTOR.store(tell.as_raw_fd(), Ordering::Relaxed);
    // A process is split once.
    let _ = OUTSIDE.set(tell);
}

/// Whether this process is the machine's, and another is outside.
pub(super) fn is_inside() -> bool {
    OUTSIDE.get().is_some()
}

/// Tells the one outside, if there is one; answers whether there is.
pub(super) fn tell(news: News) -> bool {
    OUTSIDE.get().is_some_and(|mut outside| outside.write_all(&[news.byte()]).is_ok())
}

/// The descriptor by which a signal's handler tells.
pub(super) fn descriptor() -> i32 {
    DESCRIPTOR.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_and_nothing_else() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut reader = Reader::new(reader).unwrap();
        assert_eq!(reader.take(), []);
        writer.write_all(&[0, 15, 0x80, 99, 0x81, 0xff]).unwrap();
        let heard = [News::EndBy(15), News::StderrClosed, News::Refused];
        assert_eq!(reader.take(), heard);
        assert!(heard.iter().all(|news| News::of(news.byte()) == Some(*news)));
        drop(writer);
        assert_eq!((reader.take(), reader.is_open()), (Vec::new(), false));
    }
}
