//! Memory that a guest touches for the first time: how the host has it, and who answers for what is not there yet.
#![expect(unsafe_code, reason = "memory slots, advice on mappings and userfaultfd have no safe interface")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, bail, ensure};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use nix::sys::eventfd::EventFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use super::rig::Rig;
use crate::host::event::awaited_event;
use crate::host::thread::{self, ThreadKind};

/// Where it is in the guest.
pub const ADDRESS: u64 = 0x4000_0000;
/// Its slot.
pub const SLOT: u32 = 8;

/// What is behind a page that the guest has not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing; the host gives small pages.
    Small,
    /// Nothing; the host gives transparent huge pages.
    Transparent,
    /// Huge pages that have been reserved.
    Huge,
    /// A file's page, which is copied when it is written.
    File,
    /// Nothing; a thread of this process is asked for it.
    Userfault,
    /// A small page that the host has, but not the guest's page tables.
    Mapped,
}

/// A piece of guest memory. It is not to be dropped while the guest runs.
pub struct Slot {
    pager: Option<Pager>,
    _region: MmapRegion,
}

impl Slot {
    /// Gives the guest `len` bytes at [`ADDRESS`]; with `logged`, KVM notes which pages are written.
    ///
    /// # Errors
    /// Why this host cannot do it.
    pub fn new(rig: &Rig, backing: Backing, len: usize, logged: bool) -> anyhow::Result<Self> {
        let region = map(backing, len)?;
        let flags = if logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        let host = region.as_ptr();
        let slot = kvm_userspace_memory_region {
            slot: SLOT,
            flags,
            guest_phys_addr: ADDRESS,
            memory_size: len as u64,
            userspace_addr: host as u64,
        };
        let pager = match backing {
            Backing::Userfault => Some(Pager::start(host, len)?),
            _ => None,
        };
        // SAFETY: the region is this slot's own, and stays mapped until the guest no longer runs.
        unsafe { rig.vm.fd().set_user_memory_region(slot) }.context("KVM refuses more memory")?;
        Ok(Self { pager, _region: region })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Before the memory goes that it serves.
        self.pager.take();
    }
}

fn map(backing: Backing, len: usize) -> anyhow::Result<MmapRegion> {
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let builder = MmapRegionBuilder::new(len).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let region = match backing {
        Backing::Huge => builder
            .with_mmap_flags(anonymous | libc::MAP_HUGETLB)
            .build()
            .context("no huge pages are free: sysctl -w vm.nr_hugepages=64 reserves some")?,
        Backing::File => {
            let file = tempfile::tempfile().context("cannot make a temporary file")?;
            file.set_len(len as u64)?;
            read_through(&file, len)?;
            let offset = FileOffset::from_arc(Arc::new(file), 0);
            builder.with_mmap_flags(libc::MAP_PRIVATE).with_file_offset(offset).build()?
        }
        _ => aligned(len, builder.with_mmap_flags(anonymous | libc::MAP_NORESERVE))?,
    };
    let advise = |advice| {
        // SAFETY: the range is the mapping just made, which nothing refers to, and the advice changes no byte.
        match unsafe { libc::madvise(region.as_ptr().cast(), len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match backing {
        Backing::Small | Backing::Userfault => advise(libc::MADV_NOHUGEPAGE).or_else(unless_unknown)?,
        Backing::Mapped => {
            advise(libc::MADV_NOHUGEPAGE).or_else(unless_unknown)?;
            advise(libc::MADV_POPULATE_WRITE).context("this host kernel cannot fill memory beforehand")?;
        }
        Backing::Transparent => {
            let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
            ensure!(
                mode.is_ok_and(|mode| !mode.contains("[never]")),
                "transparent huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
            );
            advise(libc::MADV_HUGEPAGE)?;
        }
        Backing::Huge | Backing::File => {}
    }
    Ok(region)
}

/// A kernel without huge pages does not know the advice not to use them.
fn unless_unknown(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
}

/// Linux aligns large mappings to huge pages where it can.
fn aligned(len: usize, builder: MmapRegionBuilder) -> anyhow::Result<MmapRegion> {
    builder.build().with_context(|| format!("no room for {} MiB of memory", len >> 20))
}

/// Brings a file's pages into memory.
fn read_through(file: &File, len: usize) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let chunk = vec![0x5a; 1 << 20];
    for at in (0..len).step_by(chunk.len()) {
        file.write_all_at(&chunk[..chunk.len().min(len - at)], at as u64)?;
    }
    Ok(())
}

/// `struct uffdio_api`, `uffdio_register` and `uffdio_zeropage` (Linux `include/uapi/linux/userfaultfd.h`).
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Zeropage {
    start: u64,
    len: u64,
    mode: u64,
    zeropage: i64,
}

/// The stack of the thread that gives pages, in bytes.
const STACK: usize = 64 << 10;

/// A thread that gives pages of zeroes.
struct Pager {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    fn start(host: *mut u8, len: usize) -> anyhow::Result<Self> {
        const UFFD_API: u64 = 0xaa;
        const UFFDIO_API: u64 = 0xc018_aa3f;
        const UFFDIO_REGISTER: u64 = 0xc020_aa00;
        const MODE_MISSING: u64 = 1;
        // SAFETY: it takes flags only, and gives a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            bail!("userfaultfd(2): {error}; as root, or with sysctl -w vm.unprivileged_userfaultfd=1");
        }
        // SAFETY: the descriptor is new and owned here alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = Api { api: UFFD_API, ..Default::default() };
        let range = Register { start: host as u64, len: len as u64, mode: MODE_MISSING, ioctls: 0 };
        let mut range = range;
        // SAFETY: both requests read and write the structure that they are given, of the kernel's layout.
        let failed = unsafe {
            libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &raw mut api) != 0
                || libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER as _, &raw mut range) != 0
        };
        ensure!(!failed, "userfaultfd(2): {}", io::Error::last_os_error());
        let stop = Arc::new(awaited_event()?);
        let stopped = stop.clone();
        let thread = thread::spawn("pager", STACK, ThreadKind::Io, move || serve(&fd, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // Nothing else is written to it.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic and ended the process.
            let _ = thread.join();
        }
    }
}

fn serve(fd: &OwnedFd, stop: &EventFd) {
    const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
    const PAGE: u64 = 4096;
    let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        let mut fds = [poll(fd.as_raw_fd()), poll(stop.as_fd().as_raw_fd())];
        // SAFETY: it is given an array and its length.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if ready > 0 && fds[1].revents != 0 {
            return;
        }
        // `struct uffd_msg`: an event, and in its third word the address.
        let mut message = [0u64; 4];
        // SAFETY: it is given room and its length.
        let len = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
        if len == 32 {
            let mut page = Zeropage { start: message[2] & !(PAGE - 1), len: PAGE, ..Default::default() };
            // SAFETY: the request reads and writes the structure. One that fails leaves the vCPU waiting, which is seen.
            unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_ZEROPAGE as _, &raw mut page) };
        }
    }
}
