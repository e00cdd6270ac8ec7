//! Files that the supervisor writes for the VM process, which has no folder itself.
//!
//! Their places are those that were named before there were two processes, and their content is memory that the VM process
//! sends, which is copied with bounds: it may change or grow meanwhile.

use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};

use super::channel::Lie;
use crate::host::atomic_file::{Draft, Place};

/// The longest file in bytes: more is no report.
const LONGEST: u64 = 256 << 20;
/// How much more may come for each file in a second, in bytes: ten reports of a large machine. What this process writes is
/// counted as its own by the host, and not as the machine's.
const RATE: u64 = 16 << 20;
/// How much is copied at once, in bytes.
const CHUNK: usize = 64 << 10;

/// Writes the files.
pub(super) struct FileProxy {
    places: Vec<Arc<Place>>,
    /// How much has come for each of them, in bytes.
    spent: Vec<u64>,
    longest: u64,
    start: Instant,
    buffer: Vec<u8>,
    current: Option<Current>,
    /// Why a file could not be written.
    failure: Option<anyhow::Error>,
}

/// A file that is written in part.
struct Current {
    index: usize,
    content: File,
    copied: u64,
    draft: Draft,
}

impl FileProxy {
    /// Of the files that go to these places, which the VM process names by their order.
    pub fn new(places: Vec<Arc<Place>>) -> Self {
        Self {
            spent: vec![0; places.len()],
            places,
            longest: LONGEST,
            start: Instant::now(),
            buffer: Vec::new(),
            current: None,
            failure: None,
        }
    }

    /// Takes no file that is longer than so many bytes.
    pub fn limit(&mut self, bytes: u64) {
        self.longest = self.longest.min(bytes);
    }

    /// The folders that files are written to.
    pub fn folders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.places.iter().map(|place| place.folder())
    }

    /// Why a file could not be written, if one could not.
    pub fn failure(&mut self) -> Option<anyhow::Error> {
        self.failure.take()
    }

    /// Whether a file is written in part: the next one waits.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Begins to write a file. That it cannot be written is no lie, but a [`failure`](Self::failure).
    ///
    /// # Errors
    /// There is no file of this number.
    pub fn begin(&mut self, index: u8, content: OwnedFd) -> Result<(), Lie> {
        let place = self.places.get(usize::from(index)).cloned().ok_or(Lie::UnknownFile(index))?;
        self.buffer.resize(CHUNK, 0);
        match Draft::of(place) {
            Ok(draft) => {
                let (index, content) = (index.into(), content.into());
                self.current = Some(Current { index, content, copied: 0, draft });
            }
            Err(error) => _ = self.failure.get_or_insert(error),
        }
        Ok(())
    }

    /// Writes a bounded part of the file, and gives it its name once it is whole.
    pub fn step(&mut self) {
        let Some(current) = self.current.take() else { return };
        match self.copy(current) {
            Ok(current) => self.current = current,
            Err(error) => _ = self.failure.get_or_insert(error),
        }
    }

    /// Returns the file if it is not whole yet.
    fn copy(&mut self, mut current: Current) -> anyhow::Result<Option<Current>> {
        let path = current.draft.path().to_owned();
        let what = || format!("cannot write {}", path.display());
        let count = current.content.read_at(&mut self.buffer, current.copied).with_context(what)?;
        if count == 0 {
            return current.draft.finish().map(|()| None);
        }
        let spent = &mut self.spent[current.index];
        *spent = spent.saturating_add(count as u64);
        current.copied += count as u64;
        let allowed = self.longest.saturating_add(RATE.saturating_mul(self.start.elapsed().as_secs()));
        if current.copied > self.longest || *spent > allowed {
            return Err(anyhow!("{}: the machine sends more than it may", what()));
        }
        current.draft.write_all(&self.buffer[..count]).with_context(what)?;
        Ok(Some(current))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    /// A file's place, and a proxy that writes there.
    fn proxy(folder: &Path) -> (PathBuf, FileProxy) {
        let path = folder.join("file");
        let proxy = FileProxy::new(vec![Arc::new(Place::of(&path).unwrap())]);
        (path, proxy)
    }

    fn memory(content: &[u8]) -> OwnedFd {
        let memory = File::from(memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap());
        (&memory).write_all(content).unwrap();
        memory.into()
    }

    /// Writes a whole file.
    fn write(proxy: &mut FileProxy, content: &[u8]) {
        proxy.begin(0, memory(content)).unwrap();
        while proxy.is_busy() {
            proxy.step();
        }
    }

    #[test]
    fn files_have_their_names_once_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut proxy) = proxy(folder.path());
        let long = vec![b'x'; 3 * CHUNK + 1];
        for content in [&b"one"[..], b"", &long, b"two"] {
            write(&mut proxy, content);
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        proxy.begin(0, memory(&long)).unwrap();
        proxy.step();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(proxy.failure().is_none());
        drop(proxy);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a part stays");
    }

    #[test]
    fn a_file_that_was_not_named_is_a_lie() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut proxy) = proxy(folder.path());
        for index in [1, 255] {
            assert_eq!(proxy.begin(index, memory(b"bad")).unwrap_err(), Lie::UnknownFile(index));
        }
        assert!(!proxy.is_busy());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn memory_that_changes_while_it_is_copied_ends_in_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut proxy) = proxy(folder.path());
        proxy.limit(4 * CHUNK as u64);
        // It shrinks.
        let content = memory(&vec![b'x'; 3 * CHUNK]);
        let other = File::from(content.try_clone().unwrap());
        proxy.begin(0, content).unwrap();
        proxy.step();
        other.set_len(1).unwrap();
        proxy.step();
        assert_eq!((fs::read(&path).unwrap().len(), proxy.is_busy()), (CHUNK, false));
        // It grows for ever.
        let content = memory(b"x");
        let other = File::from(content.try_clone().unwrap());
        proxy.begin(0, content).unwrap();
        let steps = (1..).find(|steps| {
            other.set_len((steps + 1) << 20).unwrap();
            proxy.step();
            !proxy.is_busy()
        });
        assert!(steps.unwrap() <= 5 && proxy.failure().is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_machine_that_sends_more_than_it_may_is_refused_and_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut proxy) = proxy(folder.path());
        proxy.limit(10);
        // Much more than a second's would be allowed if this took that long.
        for _ in 0..2 {
            write(&mut proxy, b"whole");
        }
        assert!(proxy.failure().is_none());
        write(&mut proxy, b"eleven byte");
        assert!(proxy.failure().unwrap().to_string().ends_with("the machine sends more than it may"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
    }

    #[test]
    fn files_without_end_come_to_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut proxy) = proxy(folder.path());
        proxy.limit(1 << 16);
        let mut sent = 0_u64;
        while proxy.failure().is_none() {
            write(&mut proxy, &[b'x'; 1 << 15]);
            sent += 1 << 15;
            assert!(sent <= RATE * (2 + proxy.start.elapsed().as_secs()), "{sent}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_reported_and_those_after_it_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut proxy) = proxy(folder.path());
        fs::create_dir(&path).unwrap();
        write(&mut proxy, b"bad");
        assert!(proxy.failure().unwrap().to_string().ends_with("is not a regular file"));
        fs::remove_dir(&path).unwrap();
        write(&mut proxy, b"good");
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), proxy.failure().is_none()), ("good", true));
    }
}
