//! The server behind this machine's own FUSE client: what a Linux guest's virtio-fs is, but for the queues.
#![expect(unsafe_code, reason = "parts a thread's mounts from the others'")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::super::Share;
use super::super::server::{MOST_DATA, Server};
use super::message::Message;

/// How many threads serve.
const THREADS: usize = 3;

/// Serves what the kernel asks until the file system is unmounted.
fn serve(server: &Server, device: &File) {
    let mut request = vec![0; MOST_DATA as usize + 4096];
    let mut reply = vec![0; MOST_DATA as usize + 4096];
    loop {
        let len = match (&*device).read(&mut request) {
            Ok(len) => len,
            // Unmounted: by force, when a request was on its way.
            Err(error) if [Some(libc::ENODEV), Some(libc::ECONNABORTED)].contains(&error.raw_os_error()) => {
                return;
            }
            // A request was interrupted before it was read.
            Err(error) if [libc::ENOENT, libc::EINTR].contains(&error.raw_os_error().unwrap_or(0)) => {
                continue;
            }
            Err(error) => panic!("cannot read /dev/fuse: {error}"),
        };
        let mut message = Message { request: &request[..len], reply: &mut reply };
        // As the device does: at once if that can be, and else in a thread that may wait.
        let at_once = server.serve(&mut message, false);
        let len = at_once.or_else(|| server.serve(&mut message, true)).expect("what may wait is done");
        if len > 0 {
            // The one who asked may be gone.
            let _gone = (&*device).write(&reply[..len]);
        }
    }
}

/// Runs `test` in the folder where `share` is mounted; says so, and answers false, if this machine does not let it.
pub fn mounted(share: Share, test: impl FnOnce(&Path) + Send) -> bool {
    let folder = tempfile::tempdir().expect("the host has room");
    let mounted = folder.path();
    let device = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) => return cannot(&format!("/dev/fuse: {error}")),
    };
    let server = Server::new(Arc::new(share)).expect("the share is a directory");
    let mounting = || {
        // SAFETY: takes flags.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return cannot(&format!("mounts of its own: {}", io::Error::last_os_error()));
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("its own mounts can be private");
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other");
        if let Err(error) =
            mount(Some("kite"), mounted, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
        {
            return cannot(&format!("a FUSE mount: {error}"));
        }
        std::thread::scope(|scope| {
            (0..THREADS).for_each(|_| _ = scope.spawn(|| serve(&server, &device)));
            let done = catch_unwind(AssertUnwindSafe(|| test(mounted)));
            umount2(mounted, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).expect("it is mounted");
            done.unwrap_or_else(|panic| resume_unwind(panic));
        });
        true
    };
    // In a thread of its own, whose mounts are.
    let done = std::thread::scope(|scope| scope.spawn(mounting).join());
    done.unwrap_or_else(|panic| resume_unwind(panic))
}

fn cannot(what: &str) -> bool {
    eprintln!("NOT RUN: this machine does not let the test have {what}");
    false
}
