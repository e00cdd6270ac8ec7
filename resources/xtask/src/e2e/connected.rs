//! A command's networks, which it finds set up: through passt, behind a tap by a server or by the command line; and the names
//! that its guest knows.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;

use super::command::{ended, kite};
use super::wire::{ASSIGNED, ip};
use super::{Fixture, GUEST, HERE, TAP, Wire, kernel};
use crate::host;

/// Where data is fetched.
const PORT: u16 = 9002;
/// This end behind the tap with a server, and what that assigns.
const ASSIGNER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
/// An address of this namespace that only a gateway leads to.
const BEYOND: &str = "10.6.0.1";
/// What both guests do.
const FETCH: &str = r#"
fetch() { exec 3<>/dev/tcp/$1/9002 && cat <&3; exec 3<&-; }
address() { ip -o addr show dev $1 scope global | tr -s ' ' | cut -d ' ' -f 4 | sort | tr '\n' ' '; }
getent hosts $(hostname) >/dev/null && getent ahostsv4 localhost >/dev/null && echo named
"#;
/// On the host's files, with three networks.
const ALL: &str = r#"
for host in 10.9.0.1 fd00:9::1 10.7.0.1 10.6.0.1; do fetch $host; done
address eth0; cat /sys/class/net/eth0/mtu
address eth1; cat /sys/class/net/eth1/mtu; ip route show 10.5.0.0/16 | cut -d " " -f 1-3
address eth2; ip route show default | cut -d ' ' -f 1-5; cat /sys/class/net/eth2/mtu
grep -x -e 'search.*' -e 'nameserver 10.[79].0.1' /etc/resolv.conf; rm /etc/resolv.conf && echo removed
"#;
const ALL_PRINTED: &str = "named
hello
hello
hello
hello
10.9.0.2/24 fd00:9::2/64 1380
10.7.0.2/24 1200
10.5.0.0/16 via 10.7.0.1
10.8.0.1/24 default via 10.8.0.2 dev eth2
1300
search example.org
nameserver 10.9.0.1
nameserver 10.7.0.1
removed
";
/// The server's first route has the guest itself for its gateway; all else is of use.
const ALL_SAID: &str = "kite: a DHCP server's route to 10.4.0.0/24 through 10.7.0.2 is of no use on eth1: Invalid argument (os \
                        error 22)\n";
/// On a disk, whose own files stay as they are.
const ON_DISK: &str = r#"fetch 10.6.0.1; address eth0; cat /etc/resolv.conf
grep -o -e "/etc/hosts tmpfs" -e "/etc/resolv.conf tmpfs" /proc/mounts"#;
const ON_DISK_PRINTED: &str = "named
hello
10.9.0.2/24 # Written by kite.
nameserver 10.9.0.1
/etc/hosts tmpfs
/etc/resolv.conf tmpfs
";

/// Two boots: one with all networks at once, and one whose root is a disk.
pub fn connected(fixture: &Fixture, name: &str) -> Result<String> {
    if host::program("passt").is_none() {
        bail!("there is no passt");
    }
    let kernel = kernel(name)?;
    let wire = Wire::new(fixture.user)?;
    wire.assigned(&ASSIGNER.to_string(), fixture.user)?;
    for words in [
        format!("addr replace {BEYOND}/32 dev lo"),
        format!("link set {TAP} mtu 1380"),
        format!("addr add fd00:9::1/64 dev {TAP} nodad"),
    ] {
        ip(&words)?;
    }
    greet()?;
    assign()?;
    let before = ["/etc/hosts", "/etc/resolv.conf"].map(fs::read);
    let here = format!("tap={TAP},ip={GUEST}/24,dns={HERE}");
    let (all, routed) = (format!("{here},ip=fd00:9::2/64"), format!("{here},gw={HERE}"));
    let (assigned, disk) = (format!("tap={ASSIGNED}"), fixture.debian.disk().display().to_string());
    let disk = format!("path={},ephemeral", disk.replace(',', ",,"));
    let on_all = ["--net", &all, "--net", &assigned, "--net", "user,mtu=1300"];
    let on_disk = ["--root", "disk", "--disk", &disk, "--net", &routed];
    for (options, script, printed, said) in
        [(&on_all[..], ALL, ALL_PRINTED, ALL_SAID), (&on_disk[..], ON_DISK, ON_DISK_PRINTED, "")]
    {
        let mut command = kite(fixture, &kernel)?;
        command.args(options).args(["--user", "0", "--", "bash", "-c", &(FETCH.to_owned() + script)]);
        let ended = ended(command, b"")?;
        let stdout = String::from_utf8_lossy(&ended.stdout);
        ensure!(
            ended.code == Some(0) && stdout == printed && ended.stderr == said,
            "{options:?} ended with {:?}:\n{}{stdout}",
            ended.code,
            ended.stderr
        );
    }
    for (before, path) in before.into_iter().zip(["/etc/hosts", "/etc/resolv.conf"]) {
        ensure!(before.ok() == fs::read(path).ok(), "{path} is another one on the host");
    }
    Ok(String::new())
}

/// How often data is fetched.
const FETCHES: usize = 5;

/// Greets whoever comes, in IPv4 and IPv6, on a thread that ends with the last of them.
fn greet() -> Result<()> {
    let listener = TcpListener::bind(("::", PORT)).context("listening")?;
    thread::spawn(move || {
        for stream in listener.incoming().take(FETCHES) {
            // Who has not heard it says so.
            let _ = stream.and_then(|mut stream| stream.write_all(b"hello\n"));
        }
    });
    Ok(())
}

/// Assigns the one address to the first who asks for it (RFC 2131), on a thread that ends then.
fn assign() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).context("listening for clients of DHCP")?;
    setsockopt(&socket, BindToDevice, &ASSIGNED.into()).context("choosing a tap")?;
    socket.set_broadcast(true).context("choosing to whom it is said")?;
    thread::spawn(move || {
        let mut message = [0; 1500];
        while let Ok(length) = socket.recv(&mut message) {
            // An offer to a discovery, or an acknowledgement: the kind is the first option.
            let kind = message[..length].get(242).copied().unwrap_or(0);
            let answer = answer(&message[..240], kind + 1 + kind / 3);
            if socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68)).is_err() || kind == 3 {
                return;
            }
        }
    });
    Ok(())
}

/// An answer to the client whose message begins so.
fn answer(head: &[u8], kind: u8) -> Vec<u8> {
    let mut answer = head.to_vec();
    answer[0] = 2;
    answer[16..20].copy_from_slice(&ADDRESS.octets());
    answer.extend([53, 1, kind]);
    for (code, value) in [
        (54, &ASSIGNER.octets()[..]),
        (51, &3600_u32.to_be_bytes()),
        (1, &[255, 255, 255, 0]),
        (6, &ASSIGNER.octets()),
        (15, b"example.org"),
        (26, &1200_u16.to_be_bytes()),
        (121, &[24, 10, 4, 0, 10, 7, 0, 2, 16, 10, 5, 10, 7, 0, 1]),
    ] {
        answer.extend([code, value.len() as u8]);
        answer.extend(value);
    }
    answer.push(255);
    answer
}
