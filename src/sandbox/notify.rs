//! What the VM process asks of the supervisor, a byte each.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::host::signals;

/// What the VM process sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// A system call was refused, or a mapped file cut, and the end is near.
    Refused,
    /// kite is to end by this signal.
    EndBy(i32),
}

impl Notice {
    /// One byte each: signals have their numbers.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Refused => 0x81,
            Self::EndBy(signal) => signal as u8 & 0x7f,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        match byte {
            0x81 => Some(Self::Refused),
            signal if signals::ends(signal.into()) => Some(Self::EndBy(signal.into())),
            _ => None,
        }
    }
}

/// The most that there is to tell. Each thing is told once, the second by each thread at most: more comes of a process that
/// is not ours any more.
const MOST: usize = 256;

/// Reads notices.
pub(super) struct Reader {
    pipe: PipeReader,
    /// How many bytes have come.
    heard: usize,
    ended: bool,
}

impl Reader {
    /// # Errors
    /// The pipe cannot be set up.
    pub fn new(pipe: PipeReader) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, heard: 0, ended: false })
    }

    /// What was told since the last time, or a part of it: to hear any of it twice does no more than to hear it once.
    pub fn take(&mut self) -> Vec<Notice> {
        let mut bytes = [0; MOST];
        match self.pipe.read(&mut bytes) {
            Ok(0) => {
                self.ended = true;
                Vec::new()
            }
            Ok(count) => {
                self.heard = self.heard.saturating_add(count);
                bytes[..count].iter().copied().filter_map(Notice::of).collect()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Whether more has come than there is to tell: who goes on so is to be ended, so that it keeps nobody busy.
    pub fn is_flooded(&self) -> bool {
        self.heard > MOST
    }

    /// Where more can come from, if it can.
    pub fn more(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.pipe.as_fd())
    }
}

/// The way from this process, if it is the VM process, to the supervisor.
static SUPERVISOR: OnceLock<PipeWriter> = OnceLock::new();
/// Its descriptor, for a signal's handler.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// Makes this process the VM process.
pub(super) fn connect(pipe: PipeWriter) {
    DESCRIPTOR.store(pipe.as_raw_fd(), Ordering::Relaxed);
    // A process is split once.
    let _ = SUPERVISOR.set(pipe);
}

/// Whether this process is the VM process, and another one supervises it.
pub(super) fn is_supervised() -> bool {
    SUPERVISOR.get().is_some()
}

/// Sends a notice to the supervisor, if there is one; answers whether there is.
pub(super) fn send(notice: Notice) -> bool {
    SUPERVISOR.get().is_some_and(|mut supervisor| supervisor.write_all(&[notice.byte()]).is_ok())
}

/// As [`send`], in a signal's handler.
#[expect(unsafe_code, reason = "a write that takes no lock")]
pub(super) fn send_in_handler(notice: Notice) {
    let byte = [notice.byte()];
    // SAFETY: reads a byte. Where there is no supervisor, the descriptor is none.
    unsafe { libc::write(DESCRIPTOR.load(Ordering::Relaxed), byte.as_ptr().cast(), 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_and_nothing_else() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut reader = Reader::new(reader).unwrap();
        assert_eq!(reader.take(), []);
        // Signals that stop or that nobody is told to end by are no notices, nor is what is no signal.
        writer.write_all(&[0, 15, 0x80, 9, 19, 99, 0x81, 0xff]).unwrap();
        let heard = [Notice::EndBy(15), Notice::Refused];
        assert_eq!(reader.take(), heard);
        assert!(heard.iter().all(|notice| Notice::of(notice.byte()) == Some(*notice)));
        drop(writer);
        assert_eq!((reader.take(), reader.more().is_none()), (Vec::new(), true));
    }

    #[test]
    fn who_tells_without_end_is_found_out_and_heard_all_the_same() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut reader = Reader::new(reader).unwrap();
        writer.write_all(&[0x81; MOST]).unwrap();
        assert_eq!((reader.take().len(), reader.is_flooded()), (MOST, false));
        writer.write_all(&[0x81; 2 * MOST]).unwrap();
        writer.write_all(&[15]).unwrap();
        let heard: Vec<_> = (0..3).flat_map(|_| reader.take()).collect();
        assert_eq!((heard.last(), reader.is_flooded()), (Some(&Notice::EndBy(15)), true));
        assert!(reader.more().is_some());
    }
}
