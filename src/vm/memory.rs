//! Guest RAM: anonymous memory, with the pages of large files mapped privately into it instead of being read.
//!
//! A private mapping shows the file's own pages until the guest writes them, so the file must not change meanwhile.
//! Where the host can promise that (a read lease, `fcntl(2)`: the kernel tells us before it lets a writer in), pages
//! are mapped; everywhere else they are copied.
#![expect(
    unsafe_code,
    reason = "maps files over guest memory and takes leases, which have no safe interface"
)]

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, anyhow, ensure};
use boot::layout::{FRAME_BUFFER, HIGH_MEMORY, PCI_MAX};
use boot::{GuestMemory, Piece};
use devices::virtio::Copies;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRegionMmap};

use crate::host::lock::lock;
use crate::vm::config_space::ConfigSpace;
use crate::vm::truncated;

const PAGE: u64 = 4096;
const HUGE_PAGE: usize = 2 << 20;
/// Address space that kite's own heap and threads need besides guest RAM. Where it is limited, this is looked for
/// at the start, while failing is easy.
const HEADROOM: usize = 16 << 20;
/// Below this, reading is cheaper than one more mapping.
const WORTH_MAPPING: u64 = 16 * PAGE;

/// The guest's RAM.
pub struct GuestRam {
    memory: GuestMemory,
    /// Memory that the guest has beside its RAM, and no device does.
    frame_buffer: Option<GuestMemory>,
    /// What the guest only reads.
    config_space: Option<Arc<ConfigSpace>>,
    system: SystemFiles,
    mapped: Mutex<Vec<Mapped>>,
    copies: Arc<Copies>,
}

/// Root's files that only root may write. Those who install kernels replace them and never rewrite them.
#[derive(Clone, Debug, Default)]
pub struct SystemFiles(Vec<(u64, u64)>);

impl SystemFiles {
    /// Those among the files at these paths. In a user namespace that has only the user the owners of files are no
    /// longer known, so this has to be asked before.
    pub fn among<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let files = paths.into_iter().filter_map(|path| path.metadata().ok());
        let system = files.filter(|it| it.uid() == 0 && it.mode() & 0o022 == 0);
        Self(system.map(|it| (it.dev(), it.ino())).collect())
    }

    fn contains(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|it| self.0.contains(&(it.dev(), it.ino())))
    }
}

/// Pages of a file in guest memory.
struct Mapped {
    host: *mut libc::c_void,
    len: usize,
    /// Held for the lease that it carries.
    file: Arc<File>,
    /// Where the pages end in the file.
    end: u64,
}

// SAFETY: the address is of guest memory, which any thread may use; see `replace_by_copy` for what it takes.
unsafe impl Send for Mapped {}

impl GuestRam {
    /// `size` bytes, whole pages, laid out around the hole below 4 GiB; the host gives pages as the guest touches them.
    ///
    /// # Errors
    /// The host has no room for that much address space.
    pub fn new(size: u64) -> anyhow::Result<Self> {
        let cannot = |error: &dyn Display| anyhow!("cannot map {} MiB of guest memory: {error}", size >> 20);
        let mut regions = Vec::new();
        for (start, len) in boot::params::ram(size) {
            let map = || GuestRegionMmap::from_range(GuestAddress(start), len as usize, None);
            let region = at_huge_page(len as usize, map).map_err(|error| cannot(&error))?;
            regions.push(region.map_err(|error| cannot(&error))?);
        }
        let memory = GuestMemory::from_regions(regions).map_err(|error| cannot(&error))?;
        let ram = Self {
            memory,
            frame_buffer: None,
            config_space: None,
            system: SystemFiles::default(),
            mapped: Mutex::default(),
            copies: Arc::default(),
        };
        ram.keep_small_pages(0, HIGH_MEMORY)?;
        Ok(ram)
    }

    /// The same, which relies on these files not to change.
    pub fn relying_on(mut self, system: SystemFiles) -> Self {
        self.system = system;
        self
    }

    /// The same, with a frame buffer of at least `len` bytes beside it.
    ///
    /// # Errors
    /// The host has no room for that much address space.
    pub fn with_frame_buffer(mut self, len: u64) -> anyhow::Result<Self> {
        let pages = len.next_multiple_of(PAGE) as usize;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(FRAME_BUFFER), pages)]);
        self.frame_buffer = Some(memory.context("cannot map the frame buffer")?);
        Ok(self)
    }

    /// The same, with the configuration space of a PCI bus that has so many devices and a host bridge.
    ///
    /// # Errors
    /// There are too many, or the host has no room for that much address space.
    pub fn with_config_space(mut self, devices: u32) -> anyhow::Result<Self> {
        let count = devices.min(PCI_MAX) as usize + 1;
        self.config_space = Some(Arc::new(ConfigSpace::new(count)?));
        Ok(self)
    }

    /// PCI's configuration space, if there is a bus.
    pub(super) fn config_space(&self) -> Option<&Arc<ConfigSpace>> {
        self.config_space.as_ref()
    }

    /// The frame buffer, if there is one.
    pub fn frame_buffer(&self) -> Option<&GuestMemory> {
        self.frame_buffer.as_ref()
    }

    /// All memory that the guest has written, and that is saved with a machine: its RAM, and the frame buffer if there is one.
    pub fn saved(&self) -> impl Iterator<Item = &GuestMemory> {
        std::iter::once(&self.memory).chain(&self.frame_buffer)
    }

    /// Keeps huge pages out of a range that gets a few small tables: clearing a huge one takes longer than all of them.
    fn keep_small_pages(&self, at: u64, len: u64) -> anyhow::Result<()> {
        let slice =
            self.memory.get_slice(GuestAddress(at), len as usize).context("guest memory is too small")?;
        let host = slice.ptr_guard_mut().as_ptr().cast::<libc::c_void>();
        // SAFETY: the range is guest memory, and the advice changes no byte. A kernel without huge pages refuses it, and
        // does not need it.
        unsafe { libc::madvise(host, slice.len(), libc::MADV_NOHUGEPAGE) };
        Ok(())
    }

    /// The memory as devices and loaders see it.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What devices learn of its copies by.
    pub fn copies(&self) -> &Arc<Copies> {
        &self.copies
    }

    /// Puts `piece` at the guest-physical address `at`, before the guest runs.
    ///
    /// # Errors
    /// It does not fit in guest memory, or the file cannot be read or is shorter than the piece says.
    pub fn place(&self, at: u64, piece: &Piece) -> anyhow::Result<()> {
        ensure!(
            self.memory.check_range(GuestAddress(at), piece.len() as usize),
            "{} KiB at {at:#x} do not fit in guest memory",
            piece.len().div_ceil(1024)
        );
        match piece {
            Piece::Bytes(bytes) => Ok(self.memory.write_slice(bytes, GuestAddress(at))?),
            Piece::File { file, offset, len } => self.place_file(at, file, *offset, *len),
        }
    }

    fn place_file(&self, at: u64, file: &Arc<File>, offset: u64, len: u64) -> anyhow::Result<()> {
        // Asked for in any case: the next guest may find the file in another state, and no way to ask.
        truncated::name(file);
        let head = (at.next_multiple_of(PAGE) - at).min(len);
        let whole = (len - head) / PAGE * PAGE;
        if at % PAGE != offset % PAGE || whole < WORTH_MAPPING || !self.is_unchanging(file) {
            return self.copy(at, file, offset, len);
        }
        self.copy(at, file, offset, head)?;
        self.map(at + head, file, offset + head, whole as usize)?;
        let done = head + whole;
        self.copy(at + done, file, offset + done, len - done)
    }

    fn copy(&self, at: u64, file: &File, offset: u64, len: u64) -> anyhow::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        self.memory
            .read_exact_volatile_from(GuestAddress(at), &mut file, len as usize)
            .context("cannot read all of the file")
    }

    fn map(&self, at: u64, file: &Arc<File>, offset: u64, len: usize) -> anyhow::Result<()> {
        let slice = self.memory.get_slice(GuestAddress(at), len).context("a piece spans two regions")?;
        let host = slice.ptr_guard_mut().as_ptr().cast::<libc::c_void>();
        // SAFETY: `host..host + len` lies within one mapping of ours (`get_slice` checked it), page-aligned, which
        // nothing has a reference into; it stays mapped, readable and writable.
        let result = unsafe {
            libc::mmap(
                host,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if result == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("cannot map the file");
        }
        truncated::add(host.addr(), len, truncated::name(file));
        self.mapped().push(Mapped { host, len, file: file.clone(), end: offset + len as u64 });
        Ok(())
    }

    /// Whether the file's content stays as it is until [`GuestRam::detach_files`]: it is leased, or, as a lease on root's
    /// files is root's to take, it is one of the system's.
    fn is_unchanging(&self, file: &File) -> bool {
        lease(file, libc::F_RDLCK) || (!nix::unistd::geteuid().is_root() && self.system.contains(file))
    }

    fn mapped(&self) -> MutexGuard<'_, Vec<Mapped>> {
        lock(&self.mapped)
    }

    /// Has KVM forget how it maps the page at the guest-physical address `page`; its content stays. What is no RAM is left
    /// alone.
    pub fn flush_page(&self, page: u64) {
        let Ok(slice) = self.memory.get_slice(GuestAddress(page), PAGE as usize) else { return };
        let host = slice.ptr_guard_mut().as_ptr().cast::<libc::c_void>();
        // Any change of protection is announced to KVM, which unmaps the page. Taking access away would hit another user
        // of the page, and no process may make it executable: so it becomes one that can only be written, which
        // the processor does not know (Intel SDM vol. 3, "Determination of Access Rights"), and both at once again.
        for access in [libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE] {
            // SAFETY: the page is guest memory, page-aligned as `page` and the regions are, and what can be written on
            // this architecture can be read.
            if unsafe { libc::mprotect(host, PAGE as usize, access) } < 0 {
                log::debug!("cannot flush the page at {page:#x}: {}", io::Error::last_os_error());
            }
        }
    }

    /// Replaces every mapped page by a copy of its own and lets waiting writers of the files go on. To be called when a
    /// lease is broken, which `SIGIO` tells, while the guest is still and every device locked. What is in flight need not
    /// have come to an end.
    ///
    /// # Errors
    /// The host is out of memory, or a file was cut before.
    pub fn detach_files(&self) -> io::Result<()> {
        let mut mapped = self.mapped();
        for it in mapped.iter() {
            if it.is_cut() {
                return Err(io::Error::other(it.told()));
            }
            self.copies.copy(|| it.replace_by_copy())?;
            truncated::forget(it.host.addr());
        }
        for it in mapped.drain(..) {
            lease(&it.file, libc::F_UNLCK);
        }
        Ok(())
    }

    /// The message about a file that was cut while the guest ran from it, if one was: the guest gets no such page.
    pub fn cut_file(&self) -> Option<String> {
        self.mapped().iter().find(|it| it.is_cut()).map(Mapped::told)
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        self.mapped().iter().for_each(|it| truncated::forget(it.host.addr()));
    }
}

impl Mapped {
    /// Whether the file does not have all the pages any more.
    fn is_cut(&self) -> bool {
        self.file.metadata().is_ok_and(|it| it.len() < self.end)
    }

    fn told(&self) -> String {
        format!("{} {}", truncated::name(&self.file).to_string_lossy(), truncated::WHY)
    }

    /// Merely writing the pages would not do: truncating a file takes even the written pages of its private mappings.
    fn replace_by_copy(&self) -> io::Result<()> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let copy = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), self.len, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if copy == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both ranges are mapped, `self.len` long and apart; the writer of the file waits for our lease, so
        // every page can be read, and the guest is still. What the host writes for a device meanwhile, it writes again.
        unsafe { std::ptr::copy_nonoverlapping(self.host.cast::<u8>(), copy.cast::<u8>(), self.len) };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: moves the copy over a range of guest memory, which stays mapped throughout.
        if unsafe { libc::mremap(copy, self.len, self.len, flags, self.host) } == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Calls `map`, which is to map `len` bytes where the host likes, and sees to it that the host likes a multiple of a huge
/// page's size: KVM gives a guest huge pages only where both addresses are one, and hosts before Linux 6.7 align nothing.
///
/// # Errors
/// The host has no address space for that and what kite needs besides.
fn at_huge_page<T>(len: usize, map: impl FnOnce() -> T) -> io::Result<T> {
    let room = len.saturating_add(HUGE_PAGE + HEADROOM);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let hole = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
    if hole == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = hole.addr().next_multiple_of(HUGE_PAGE) - hole.addr();
    let after = before + len;
    let unmap = |from: usize, to: usize| {
        // SAFETY: `from..to` are pages of the hole, which nothing uses.
        unsafe { libc::munmap(hole.byte_add(from), to - from) }
    };
    // The host takes the highest place where a mapping fits: that is here, between what stays of the hole. Somewhere
    // else would do too, with small pages.
    unmap(before, after);
    let mapped = map();
    unmap(0, before);
    unmap(after, room);
    Ok(mapped)
}

fn lease(file: &File, kind: libc::c_int) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: take no pointer. The kernel signals the thread that takes a lease at its end, unless the file has an owner: the process
    // is there for that when the thread that loads has ended.
    unsafe {
        libc::fcntl(fd, libc::F_SETOWN, libc::getpid()) == 0 && libc::fcntl(fd, libc::F_SETLEASE, kind) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(len: usize) -> (tempfile::TempPath, Arc<File>, Vec<u8>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..len).map(|index| (index / 7) as u8 | 1).collect();
        file.write_all(&bytes).unwrap();
        let path = file.into_temp_path();
        let file = Arc::new(File::open(&path).unwrap());
        (path, file, bytes)
    }

    fn holds(ram: &GuestRam, at: u64, expected: &[u8]) {
        let mut got = vec![0; expected.len() + 1];
        ram.memory.read_slice(&mut got, GuestAddress(at)).unwrap();
        assert!(&got[..expected.len()] == expected, "content differs");
        assert_eq!(got[expected.len()], 0, "bytes behind the piece show");
    }

    #[test]
    fn a_piece_of_a_file_arrives_whole_wherever_it_begins_and_ends() {
        let (_path, file, bytes) = file(300_000);
        for (at, offset, len) in [
            (0x10_0000, 0, 300_000),
            (0x10_0200, 0x200, 200_001),
            (0x10_0001, 0, 100_000),
            (0x10_0000, 4096, 1),
        ] {
            let ram = GuestRam::new(4 << 20).unwrap();
            ram.place(at, &Piece::File { file: file.clone(), offset, len }).unwrap();
            holds(&ram, at, &bytes[offset as usize..(offset + len) as usize]);
        }
    }

    #[test]
    fn what_the_guest_writes_never_reaches_the_file() {
        let (path, file, bytes) = file(300_000);
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.place(0x10_0000, &Piece::File { file, offset: 0, len: 300_000 }).unwrap();
        ram.memory.write_slice(&[0; 300_000], GuestAddress(0x10_0000)).unwrap();
        assert!(std::fs::read(path).unwrap() == bytes, "the file changed");
    }

    #[test]
    fn a_detached_file_may_change_without_the_guest_seeing_it() {
        let (path, file, mut bytes) = file(300_000);
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.place(0x10_0000, &Piece::File { file, offset: 0, len: 300_000 }).unwrap();
        ram.memory.write_slice(b"guest", GuestAddress(0x10_1234)).unwrap();
        bytes[0x1234..0x1239].copy_from_slice(b"guest");
        ram.detach_files().unwrap();
        std::fs::write(&path, vec![0x55; 300_000]).unwrap();
        holds(&ram, 0x10_0000, &bytes);
    }

    #[test]
    fn a_file_that_is_cut_is_told_of_by_its_name() {
        const CHILD: &str = "KITE_TEST_CUTS";
        const NAME: &str = "vm::memory::tests::a_file_that_is_cut_is_told_of_by_its_name";
        if std::env::var_os(CHILD).is_none() {
            let test = std::process::Command::new(std::env::current_exe().unwrap())
                .args([NAME, "--exact", "--nocapture"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&test.stderr).into_owned();
            let line = said.lines().find(|line| line.starts_with("kite: ")).unwrap_or_default();
            assert!(line.contains("/.tmp") && line.contains(" was cut short while the guest ran"), "{said}");
            assert_eq!(test.status.code(), Some(125), "{said}");
            return;
        }
        let (path, file, _) = file(300_000);
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.place(0x10_0000, &Piece::File { file: file.clone(), offset: 0, len: 300_000 }).unwrap();
        assert_eq!(ram.cut_file(), None);
        // As the kernel does where the lease is not given back in time.
        lease(&file, libc::F_UNLCK);
        File::options().write(true).truncate(true).open(&path).unwrap();
        assert!(ram.cut_file().unwrap().contains("/.tmp"));
        assert!(ram.detach_files().unwrap_err().to_string().contains("/.tmp"));
        let _gone = ram.memory.read_obj::<u8>(GuestAddress(0x10_1000));
    }

    #[test]
    fn only_root_s_files_that_others_may_not_write_are_the_system_s() {
        let (path, file, _) = file(1);
        let system = SystemFiles::among([Path::new("/etc/passwd"), Path::new("/nowhere"), &path]);
        assert!(system.contains(&File::open("/etc/passwd").unwrap()));
        assert!(!system.contains(&File::open("/etc/group").unwrap()));
        assert_eq!(system.contains(&file), nix::unistd::geteuid().is_root());
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
        assert!(!SystemFiles::among([&*path]).contains(&file));
    }

    #[test]
    fn a_flushed_page_keeps_its_content_and_its_place() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.memory.write_slice(b"kept", GuestAddress(0x20_0ffe)).unwrap();
        for page in [0x20_0000, 0x20_1000, 0, 0x3f_f000, 0x40_0000, !0xfff] {
            ram.flush_page(page);
        }
        holds(&ram, 0x20_0ffe, b"kept");
        ram.memory.write_slice(b"more", GuestAddress(0x20_0ffe)).unwrap();
        holds(&ram, 0x20_0ffe, b"more");
    }

    #[test]
    fn a_piece_beyond_memory_or_beyond_its_file_is_refused() {
        let (_path, file, _) = file(100_000);
        let ram = GuestRam::new(4 << 20).unwrap();
        let piece = Piece::File { file: file.clone(), offset: 0, len: 100_000 };
        assert!(ram.place((4 << 20) - 4096, &piece).is_err());
        assert!(ram.place(u64::MAX, &piece).is_err());
        assert!(ram.place(0x10_0001, &Piece::File { file, offset: 0, len: 100_001 }).is_err());
    }
}
