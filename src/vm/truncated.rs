//! The files that guest memory is mapped from, by their addresses: a mapping of a file that is cut has no pages any more,
//! and who touches them gets a `SIGBUS` (mmap(2)). The one line that tells which file it was is written by the signal's
//! handler, which allocates nothing and takes no lock.
#![expect(unsafe_code, reason = "a signal's handler")]

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::host::exit_code::FAILED;
use crate::host::lock::lock;
use crate::host::terminal;

/// What is said after the file's name.
pub const WHY: &str = "was cut short while the guest ran from it, and kite had no time to make a copy; start it again, \
                       and replace a file that is in use instead of rewriting it";

/// How many mappings are known at a time; a `SIGBUS` in another one has no name.
const MOST: usize = 512;

/// A mapping. It is none if its length is 0, which is written last and cleared first.
struct Range {
    start: AtomicUsize,
    len: AtomicUsize,
    name: AtomicPtr<libc::c_char>,
}

/// Those of this process: it has one address space, and one handler of the signal.
static RANGES: [Range; MOST] = [const {
    Range { start: AtomicUsize::new(0), len: AtomicUsize::new(0), name: AtomicPtr::new(std::ptr::null_mut()) }
}; MOST];

/// A file, by its device and number, and its name.
type Named = ((u64, u64), &'static CStr);

/// What files are called. A process that has locked itself in cannot ask any more when it loads its next guest, so names are
/// remembered for as long as it lives.
static NAMES: Mutex<Vec<Named>> = Mutex::new(Vec::new());

/// What an open file is called, for which it has to be asked once before this process locks itself in.
pub fn name(file: &File) -> &'static CStr {
    const UNKNOWN: &CStr = c"a file";
    let Ok(metadata) = file.metadata() else { return UNKNOWN };
    let identity = (metadata.dev(), metadata.ino());
    let mut names = lock(&NAMES);
    if let Some((_, name)) = names.iter().find(|(known, _)| *known == identity) {
        return name;
    }
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
    let name = path.and_then(|path| CString::new(path.into_os_string().into_vec()).ok());
    let name = name.map_or(UNKNOWN, |name| &*Box::leak(name.into_boxed_c_str()));
    names.push((identity, name));
    name
}

/// Has an end by `SIGBUS` between `start` and `start + len` reported with the file's name, until [`forget`].
pub fn add(start: usize, len: usize, name: &'static CStr) {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        let flags = SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO;
        let action = SigAction::new(SigHandler::SigAction(cut), flags, SigSet::empty());
        // SAFETY: the handler does only what a handler may. The kernel refuses none for this signal.
        let _ = unsafe { sigaction(Signal::SIGBUS, &action) };
    });
    let free = RANGES.iter().find(|range| range.len.load(Ordering::Relaxed) == 0);
    if let Some(range) = free {
        range.start.store(start, Ordering::Relaxed);
        range.name.store(name.as_ptr().cast_mut(), Ordering::Relaxed);
        range.len.store(len, Ordering::Release);
    }
}

/// There is no file mapped at `start` any more.
pub fn forget(start: usize) {
    let known = RANGES.iter().filter(|range| range.start.load(Ordering::Relaxed) == start);
    known.for_each(|range| range.len.store(0, Ordering::Release));
}

fn name_at(address: usize) -> Option<&'static CStr> {
    let range = RANGES.iter().find(|range| {
        let len = range.len.load(Ordering::Acquire);
        let start = range.start.load(Ordering::Relaxed);
        (start..start.saturating_add(len)).contains(&address)
    })?;
    let name = range.name.load(Ordering::Relaxed);
    // SAFETY: a range that has a length has the name of a string that lasts for ever.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })
}

/// Tells of a cut file and ends the process; any other fault is left to end it as it does by default.
extern "C" fn cut(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler set up so this structure.
    let address = unsafe { (*info).si_addr() }.addr();
    let Some(name) = name_at(address) else {
        // What caused the fault is done again then. A signal that another process has sent is lost, and the next one is not.
        // SAFETY: sets no handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    };
    for part in [b"kite: ", name.to_bytes(), b" ", WHY.as_bytes(), b"\n"] {
        // SAFETY: reads the part.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    terminal::leave();
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(FAILED.into()) };
}
