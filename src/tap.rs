//! Opens taps (Linux, Documentation/networking/tuntap.rst).
#![expect(unsafe_code, reason = "a tap's ioctls have no safe interface")]

use std::ffi::c_short;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, anyhow};
use devices::virtio::net::HEADER;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const DEVICE: &str = "/dev/net/tun";
/// The longest name of an interface in bytes.
pub const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// Opens the tap `name` with so many queues, a file each. If there is none it is made, and goes when the last of its
/// files is closed.
///
/// # Errors
/// There is no such tap and none may be made, or it cannot be used so.
pub fn open(name: &str, queues: u16) -> anyhow::Result<Vec<File>> {
    let made = if_nametoindex(name).is_err();
    let files: Vec<_> = (0..queues).map(|_| open_device()).collect::<Result<_, _>>()?;
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut attached = attach(&files, name, several);
    if !made && queues == 1 && matches!(&attached, Err(error) if is(error, Errno::EINVAL)) {
        attached = attach(&files, name, libc::IFF_MULTI_QUEUE); // It is made for more, and one will do.
    }
    attached.map_err(|error| explain(name, queues, error))?;
    if made {
        bring_up(name).with_context(|| format!("cannot bring up tap {name}"))?;
    }
    Ok(files)
}

fn open_device() -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(DEVICE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("cannot open {DEVICE}: {error}; load its module with `modprobe tun`")
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!("cannot open {DEVICE}: {error}; let this user use it with `chmod 666 {DEVICE}`")
        }
        _ => anyhow!(error).context(format!("cannot open {DEVICE}")),
    })
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn attach(files: &[File], name: &str, flags: i32) -> io::Result<()> {
    let header = HEADER as libc::c_int;
    for file in files {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as c_short;
        // SAFETY: the kernel reads and writes the request, which lives during the call.
        checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
        // SAFETY: the kernel reads an integer, which lives during the call.
        checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header) })?;
    }
    Ok(())
}

/// A request about interface `name`.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: a request is integers and characters, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(LONGEST_NAME)) {
        *to = from as libc::c_char;
    }
    request
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says what to do.
fn explain(name: &str, queues: u16, error: io::Error) -> anyhow::Error {
    let several = if queues > 1 { " multi_queue" } else { "" };
    let create = format!("`ip tuntap add {name} mode tap{several} user $USER`");
    let advice = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EPERM => format!("create it with {create} or run kite with CAP_NET_ADMIN"),
        Errno::EBUSY => "another program uses it; give each machine a tap of its own".to_owned(),
        Errno::EINVAL if queues > 1 => format!("it may be no tap of several queues; create it with {create}"),
        Errno::EINVAL => format!("it may be no tap; create one with {create}"),
        _ => return anyhow!(error).context(format!("cannot use tap {name}")),
    };
    anyhow!("cannot use tap {name}: {error}; {advice}")
}

/// Brings a new interface up; who made it may do that.
fn bring_up(name: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as c_short;
    // SAFETY: the kernel reads the request, which lives during the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}
