//! Whole files that the supervisor writes for the VM process, which has no folder itself. It names them by number: their
//! places are what the user has said, before there were two processes.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::anyhow;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::host::atomic_file::{Draft, Place};

/// A file's number and its length in bytes.
const HEADER: usize = 1 + 8;
/// The longest file: more is no report, but a process that is not ours any more.
const LONGEST: u64 = 256 << 20;
/// How much more may come for each file in a second, in bytes: ten reports of a large machine. What this process writes is
/// counted as its own by the host, and not as the machine's.
const RATE: u64 = 16 << 20;
/// How much is read at once: more than a pipe has.
const CHUNK: usize = 64 << 10;

/// The files that may be written, in the order of their numbers.
static PLACES: Mutex<Vec<Arc<Place>>> = Mutex::new(Vec::new());
/// Where the VM process sends them, and what it may call them.
static OUT: OnceLock<Mutex<(PipeWriter, Vec<PathBuf>)>> = OnceLock::new();

fn places() -> MutexGuard<'static, Vec<Arc<Place>>> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the VM process have a file written; to be called before the fork.
pub fn expect(place: Place) {
    places().push(Arc::new(place));
}

/// The place of the file at `path`, if it was expected.
pub fn expected(path: &Path) -> Option<Arc<Place>> {
    places().iter().find(|place| place.path() == path).cloned()
}

/// Makes this process the VM process, which has none of the folders.
pub(super) fn connect(out: PipeWriter) {
    let paths = places().drain(..).map(|place| place.path().to_owned()).collect();
    // A process forks once.
    let _ = OUT.set(Mutex::new((out, paths)));
}

/// Has the supervisor write the file, if there is one; else nothing.
///
/// # Errors
/// The file is not one that was expected, or the supervisor has gone.
pub fn send(path: &Path, content: &[u8]) -> Option<io::Result<()>> {
    let mut out = OUT.get()?.lock().unwrap_or_else(PoisonError::into_inner);
    let (out, paths) = &mut *out;
    let Some(number) = paths.iter().position(|it| it == path) else {
        return Some(Err(io::Error::other("it was not named at the start")));
    };
    let length = content.len() as u64;
    if length > LONGEST {
        return Some(Err(io::Error::other(format!("{length} bytes are more than {LONGEST}"))));
    }
    let header = [&[number as u8], &length.to_le_bytes()[..]].concat();
    Some(out.write_all(&header).and_then(|()| out.write_all(content)))
}

/// Reads the files that the VM process sends.
pub(super) struct Reader {
    /// Nothing once there is no more to come, or what came made no sense: who sends more is refused then.
    pipe: Option<PipeReader>,
    places: Vec<Arc<Place>>,
    /// How much has been sent for each of them, in bytes.
    spent: Vec<u64>,
    longest: u64,
    start: Instant,
    buffer: Vec<u8>,
    /// The next file's header, as far as it has come.
    header: Vec<u8>,
    coming: Option<Coming>,
    /// Why a file could not be written.
    failed: Option<anyhow::Error>,
}

/// A file that has come in part.
struct Coming {
    /// Nothing if it cannot be written.
    draft: Option<Draft>,
    left: u64,
}

impl Reader {
    /// Of a process that may have the files written that are expected now.
    ///
    /// # Errors
    /// The pipe cannot be set up.
    pub fn new(pipe: PipeReader) -> nix::Result<Self> {
        Self::of(pipe, places().clone())
    }

    fn of(pipe: PipeReader, places: Vec<Arc<Place>>) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            pipe: Some(pipe),
            spent: vec![0; places.len()],
            places,
            longest: LONGEST,
            start: Instant::now(),
            buffer: vec![0; CHUNK],
            header: Vec::new(),
            coming: None,
            failed: None,
        })
    }

    /// Takes no file that is longer than so many bytes.
    pub fn limit(&mut self, bytes: u64) {
        self.longest = self.longest.min(bytes);
    }

    /// Where more can come from, if it can.
    pub fn more(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// The folders that files are written to.
    pub fn folders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.places.iter().map(|place| place.folder())
    }

    /// Why a file could not be written, if one could not.
    pub fn failure(&mut self) -> Option<anyhow::Error> {
        self.failed.take()
    }

    /// Writes a bounded part of what has come since the last time. What makes no sense ends it.
    pub fn take(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        match pipe.read(&mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                let mut bytes = &buffer[..count];
                while self.pipe.is_some() && !bytes.is_empty() {
                    bytes = self.feed(bytes);
                }
            }
            Err(_) => {}
        }
        self.buffer = buffer;
    }

    /// Takes some of the bytes and returns the others.
    fn feed<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(coming) = &mut self.coming else {
            let (header, rest) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
            self.header.extend_from_slice(header);
            self.begin();
            return rest;
        };
        let (part, rest) = bytes.split_at(bytes.len().min(coming.left as usize));
        coming.left -= part.len() as u64;
        if let Some(draft) = &mut coming.draft
            && let Err(error) = draft.write_all(part)
        {
            let error =
                anyhow::Error::from(error).context(format!("cannot write {}", draft.path().display()));
            self.failed.get_or_insert(error);
            coming.draft = None;
        }
        self.finish();
        rest
    }

    /// Begins a file, once its header is there.
    fn begin(&mut self) {
        let Ok([number, length @ ..]) = <[u8; HEADER]>::try_from(self.header.as_slice()) else { return };
        self.header.clear();
        let left = u64::from_le_bytes(length);
        let number = usize::from(number);
        let Some(place) = self.places.get(number).cloned() else {
            self.pipe = None;
            return;
        };
        let allowed = self.longest.saturating_add(RATE.saturating_mul(self.start.elapsed().as_secs()));
        self.spent[number] = self.spent[number].saturating_add(left);
        if left > self.longest || self.spent[number] > allowed {
            let path = place.path().display();
            self.failed.get_or_insert(anyhow!("cannot write {path}: the machine sends more than it may"));
            self.pipe = None;
            return;
        }
        let draft = Draft::of(place);
        self.coming =
            Some(Coming { draft: draft.map_err(|error| self.failed.get_or_insert(error)).ok(), left });
        self.finish();
    }

    /// Gives a file that is there its name.
    fn finish(&mut self) {
        if let Some(coming) = self.coming.take_if(|coming| coming.left == 0)
            && let Some(Err(error)) = coming.draft.map(Draft::finish)
        {
            self.failed.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file's place, a reader of what is sent for it, and where to send it.
    fn reader(folder: &Path) -> (PathBuf, Reader, PipeWriter) {
        let path = folder.join("file");
        let (pipe, writer) = io::pipe().unwrap();
        let reader = Reader::of(pipe, vec![Arc::new(Place::of(&path).unwrap())]).unwrap();
        (path, reader, writer)
    }

    fn frame(number: u8, length: u64, text: &[u8]) -> Vec<u8> {
        [&[number], &length.to_le_bytes()[..], text].concat()
    }

    #[test]
    fn files_arrive_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut reader, mut writer) = reader(folder.path());
        let mut look = |bytes: &[u8], expected: &str| {
            for byte in bytes {
                writer.write_all(&[*byte]).unwrap();
                reader.take();
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        };
        look(&frame(0, 3, b"one"), "one");
        look(&frame(0, 3, b"tw"), "one");
        look(&[b"o", &frame(0, 0, b"")[..]].concat(), "");
        look(&frame(0, 9, b"never"), "");
        drop(writer);
        reader.take();
        assert!(reader.more().is_none() && reader.failure().is_none());
        drop(reader);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a part is left");
    }

    #[test]
    fn what_was_not_expected_is_not_written() {
        for bytes in
            [frame(1, 3, b"bad"), frame(255, 0, b""), frame(0, LONGEST + 1, b"x"), frame(0, u64::MAX, b"")]
        {
            let folder = tempfile::tempdir().unwrap();
            let (_, mut reader, mut writer) = reader(folder.path());
            writer.write_all(&bytes).unwrap();
            reader.take();
            assert!(reader.more().is_none());
            assert_eq!(writer.write_all(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn who_sends_more_than_a_machine_may_is_refused_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut reader, mut writer) = reader(folder.path());
        reader.limit(10);
        // Much more than a second's would be allowed if this took that long.
        for _ in 0..2 {
            writer.write_all(&frame(0, 5, b"whole")).unwrap();
            reader.take();
        }
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), reader.more().is_some()), ("whole", true));
        writer.write_all(&frame(0, 11, b"eleven bytes")).unwrap();
        reader.take();
        assert!(reader.more().is_none());
        assert!(reader.failure().unwrap().to_string().ends_with("the machine sends more than it may"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
    }

    #[test]
    fn files_without_end_come_to_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut reader, mut writer) = reader(folder.path());
        reader.limit(1 << 16);
        let file = frame(0, 1 << 15, &[b'x'; 1 << 15]);
        let mut sent = 0_u64;
        while reader.more().is_some() {
            // Where the reader has gone, nothing more is written.
            sent += writer.write(&file[..]).unwrap_or_default() as u64;
            reader.take();
            assert!(sent <= RATE * (2 + reader.start.elapsed().as_secs()), "{sent}");
        }
        assert!(reader.failure().is_some());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_of_and_those_after_it_are() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut reader, mut writer) = reader(folder.path());
        fs::create_dir(&path).unwrap();
        writer.write_all(&frame(0, 3, b"bad")).unwrap();
        reader.take();
        assert!(reader.failure().unwrap().to_string().ends_with("is not a regular file"));
        fs::remove_dir(&path).unwrap();
        writer.write_all(&frame(0, 4, b"good")).unwrap();
        reader.take();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), reader.failure().is_none()), ("good", true));
    }
}
