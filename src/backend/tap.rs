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

use crate::host::netlink::Netlink;
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
        bail!(
            "--net tap={name}: it is an interface of another kind; name a tap, or one that is not there, such as tap0"
        );
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

/// Opens a tap that has the packets of interface `interface` of this network namespace: what comes in by the one leaves by the
/// other. The host's own kernel sees none of them, so the guest can have the interface's addresses. The last to open one has
/// them: a pod's container, and not the one that only holds its namespaces. `mtu` is what the tap's becomes.
///
/// # Errors
/// This user or kernel cannot do that.
pub fn in_place_of(interface: &str, mtu: Option<u16>) -> anyhow::Result<Tap> {
    let (tap, own, index) = in_front_of(interface, mtu)?;
    redirect(interface, index, own)?;
    Ok(tap)
}

/// Whether [`in_place_of`] is possible; changes nothing.
///
/// # Errors
/// Why not.
pub fn can_take_place(interface: &str) -> anyhow::Result<()> {
    in_front_of(interface, None).map(drop)
}

/// Opens a tap whose packets leave by an interface; gives the numbers of both.
fn in_front_of(interface: &str, mtu: Option<u16>) -> anyhow::Result<(Tap, u32, u32)> {
    let index = if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))?;
    let mut names = (0_u32..).map(|number| format!("kite{number}"));
    let name = names.find(|name| if_nametoindex(name.as_str()).is_err()).context("there is no name left")?;
    let tap =
        open(&name, 1, mtu).with_context(|| format!("cannot put a guest in the place of {interface}"))?;
    // It has no address of its own, which others would see; a kernel without IPv6 has no such switch.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let own = if_nametoindex(name.as_str()).with_context(|| format!("tap {name} has gone"))?;
    redirect(interface, own, index)?;
    Ok((tap, own, index))
}

fn redirect(interface: &str, from: u32, to: u32) -> anyhow::Result<()> {
    Netlink::open().and_then(|mut kernel| kernel.redirect(from, to)).with_context(|| {
        format!("cannot redirect packets of {interface}: the host's kernel needs sch_ingress, cls_u32 and act_mirred")
    })
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
    use std::io::{Read, Write};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::host::netlink::{ETHERNET, Route};

    #[test]
    fn an_interface_of_another_kind_is_none_to_open() {
        let flags = |text: &str| Ok(text.to_owned());
        assert!(is_other(&flags("0x1001\n"), "tun0") && !is_other(&flags("0x5002\n"), "tap0"));
        let none = || Err(io::ErrorKind::NotFound.into());
        assert!(is_other(&none(), "lo") && !is_other(&none(), "kite-none"));
        let error = open("lo", 1, None).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("--net tap=lo: it is an interface of another kind"), "{error}");
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

    /// Runs `test` in a network namespace with the interfaces kitea and kiteb at the two ends of one wire.
    fn with_wire(name: &str, test: impl FnOnce() + Send) {
        let run = |command: &str| {
            let words: Vec<_> = command.split(' ').collect();
            Command::new(words[0]).args(&words[1..]).status().is_ok_and(|status| status.success())
        };
        let in_namespace = || {
            let is_there = unshare(CloneFlags::CLONE_NEWNET).is_ok()
                && run("ip link add kitea type veth peer name kiteb")
                && run("ip link set kitea mtu 1400 up")
                && run("ip link set kiteb mtu 1400 up");
            match is_there.then(|| can_take_place("kitea")) {
                Some(Ok(())) => test(),
                why => println!("skipped: {name}: no network namespace with a wire: {why:?}"),
            }
        };
        std::thread::scope(|scope| scope.spawn(in_namespace).join().unwrap());
    }

    /// A frame of a protocol that no kernel answers.
    fn frame(mark: u8) -> Vec<u8> {
        let mut frame = vec![0; HEADER];
        frame.extend([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5]);
        frame.extend([mark; 60]);
        frame
    }

    #[test]
    fn a_guest_in_the_place_of_an_interface_has_its_packets() {
        with_wire("a_guest_in_the_place_of_an_interface_has_its_packets", || {
            let mut there = in_place_of("kiteb", None).unwrap();
            let mut before = Vec::new();
            // Each takes the place of the one before, which runs on.
            for mark in 1..4 {
                let mut here = in_place_of("kitea", Some(1400)).unwrap();
                assert_eq!(here.mtu, Some(1400));
                arrives(&mut here, &mut there, mark);
                arrives(&mut there, &mut here, mark);
                before.push(here);
            }
        });
    }

    /// Sends a frame from one tap, and waits for it at another.
    fn arrives(from: &mut Tap, to: &mut Tap, mark: u8) {
        from.files[0].write_all(&frame(mark)).unwrap();
        let mut buffer = [0; 2048];
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match to.files[0].read(&mut buffer) {
                Ok(count) if count == frame(mark).len() && buffer[count - 1] == mark => return,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(Instant::now() < deadline, "no frame arrives");
        }
    }

    #[test]
    fn what_an_interface_has_is_read_as_it_is() {
        with_wire("what_an_interface_has_is_read_as_it_is", || {
            for command in [
                "addr add 192.0.2.7/24 dev kitea",
                "addr add 2001:db8::7/64 dev kitea nodad",
                "route add 198.51.100.1 dev kitea",
                "route add default via 198.51.100.1 dev kitea metric 7",
                "-6 route add default via fe80::1 dev kitea",
                "route add blackhole 203.0.113.0/24",
                "addr add 192.0.2.9/24 dev kiteb",
            ] {
                let status = Command::new("ip").args(command.split(' ')).status().unwrap();
                assert!(status.success(), "{command}");
            }
            let mut kernel = Netlink::open().unwrap();
            let found = kernel.interfaces().unwrap().into_iter().find(|it| it.name == "kitea").unwrap();
            assert!(found.is_up && found.kind == ETHERNET && found.mtu == 1400 && found.mac.is_some());
            let addresses = kernel.addresses(found.index).unwrap();
            let shown: Vec<_> = addresses.iter().map(|it| format!("{}/{}", it.address, it.length)).collect();
            assert_eq!(shown, ["192.0.2.7/24", "2001:db8::7/64"]);
            let routes = kernel.routes(found.index).unwrap();
            let shown =
                |it: &Route| format!("{}/{} {:?}", it.to, it.length, it.via.map(|via| via.to_string()));
            let mut shown: Vec<_> = routes.iter().map(shown).collect();
            shown.sort();
            let expected =
                ["0.0.0.0/0 Some(\"198.51.100.1\")", "198.51.100.1/32 None", "::/0 Some(\"fe80::1\")"];
            assert_eq!(shown, expected);
        });
    }
}
