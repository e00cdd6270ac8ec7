//! Opens taps (Linux, Documentation/networking/tuntap.rst).
#![expect(unsafe_code, reason = "a tap's ioctls have no safe interface")]

use std::ffi::c_short;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use devices::virtio::net::HEADER;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::spec::net::LONGEST_NAME;

const DEVICE: &str = "/dev/net/tun";
/// Where the kernel lists interfaces.
const INTERFACES: &str = "/sys/class/net";

/// An open tap.
pub struct Tap {
    /// A file for each queue.
    pub files: Vec<File>,
    /// The longest packet that the host takes and sends, in bytes, where it can be known.
    pub mtu: Option<u16>,
}

/// Opens the tap `name` with so many queues. If there is none it is made, and goes when the last of its files is closed.
/// `mtu` is what its MTU becomes.
///
/// # Errors
/// There is no such tap and none may be made, or it cannot be used so.
pub fn open(name: &str, queues: u16, mtu: Option<u16>) -> anyhow::Result<Tap> {
    let made = if_nametoindex(name).is_err();
    if !made && is_other(&fs::read_to_string(format!("{INTERFACES}/{name}/tun_flags")), name) {
        bail!("{name} is an interface of another kind; name a tap, or one that is not there, such as tap0");
    }
    let files: Vec<_> = (0..queues).map(|_| open_device()).collect::<Result<_, _>>()?;
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut attached = attach(&files, name, several);
    if !made && queues == 1 && matches!(&attached, Err(error) if is(error, Errno::EINVAL)) {
        attached = attach(&files, name, libc::IFF_MULTI_QUEUE); // It is made for more, and one will do.
    }
    attached.map_err(|error| explain(name, queues, error))?;
    if let Some(mtu) = mtu
        && mtu_of(name).ok() != Some(mtu)
    {
        set_mtu(name, mtu).with_context(|| format!("cannot set the MTU of tap {name} to {mtu}"))?;
    }
    if made {
        bring_up(name).with_context(|| format!("cannot bring up tap {name}"))?;
    }
    Ok(Tap { files, mtu: mtu_of(name).ok() })
}

/// Whether interface `name` is none that a guest can have, by its `tun_flags`: only taps and TUN devices have them.
fn is_other(flags: &io::Result<String>, name: &str) -> bool {
    let listed = || Path::new(INTERFACES).join(name).exists();
    match flags {
        Ok(flags) => {
            let flags =
                flags.trim().strip_prefix("0x").and_then(|it| libc::c_int::from_str_radix(it, 16).ok());
            flags.is_some_and(|flags| flags & libc::IFF_TAP == 0)
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound && listed(),
    }
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
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    ask(libc::SIOCSIFFLAGS, &mut request)
}

fn mtu_of(name: &str) -> io::Result<u16> {
    let mut request = request(name);
    ask(libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel has written an integer there.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u16::try_from(mtu).map_err(io::Error::other)
}

fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    ask(libc::SIOCSIFMTU, &mut request)
}

/// Asks the kernel about an interface, or for a change of it.
fn ask(what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the kernel reads and writes the request, which lives during the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), what, request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_of_another_kind_is_none_to_open() {
        let flags = |text: &str| Ok(text.to_owned());
        assert!(is_other(&flags("0x1001\n"), "tun0") && !is_other(&flags("0x5002\n"), "tap0"));
        let none = || Err(io::ErrorKind::NotFound.into());
        assert!(is_other(&none(), "lo") && !is_other(&none(), "kite-none"));
        let error = open("lo", 1, None).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("lo is an interface of another kind"), "{error}");
    }

    #[test]
    fn a_tap_has_the_mtu_that_it_is_given() {
        for (mtu, expected) in [(None, 1500), (Some(68), 68), (Some(9000), 9000)] {
            match open("kitet8", 1, mtu) {
                Ok(tap) => assert_eq!(tap.mtu, Some(expected)),
                Err(error) => {
                    println!("skipped: a_tap_has_the_mtu_that_it_is_given: {error:#}");
                    return;
                }
            }
        }
    }
}
