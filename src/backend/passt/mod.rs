//! passt(1), which gives a guest the host's network without privileges: one process a network, at the other end of a
//! socket. It ends when that is closed, so it goes with kite, whatever ends kite.

mod options;
mod probe;
mod program;

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, ExitStatus};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::confinement::Confinement;
use crate::host::thread::{ThreadKind, spawn};
use crate::spec::net::Forward;
use options::Resolvers;
use probe::Answer;
pub use program::find;

/// The stack of the thread that waits for passt, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;
/// The longest line of passt's that is printed at once, in bytes.
const LINE: usize = 1024;
/// How many of its lines are shown.
const MOST_LINES: u64 = 10;
/// The most that is read of what it says before it is ready, in bytes.
const START: usize = 4096;
/// What passt may take to be ready. It takes milliseconds.
const STARTS_IN: Duration = Duration::from_secs(30);
/// What passt says of itself in any case, when all is well.
const CHATTER: [&str; 4] = ["Don't run as root", "to syslog", "Started as root", "AVX2 build"];

/// Starts passt and waits until it is ready; returns the socket to talk to it, and the process, to be [`watch`]ed. `mtu` is
/// what it announces to the guest.
///
/// # Errors
/// There is no passt, or it doesn't start: with what it says.
pub fn start(forwards: &[Forward], mtu: Option<u16>) -> anyhow::Result<(UnixStream, Child)> {
    forwards.iter().try_for_each(check)?;
    let program = find().context(
        "cannot find passt, which `--net user` needs; install it with `apt install passt` (or dnf, pacman, zypper)",
    )?;
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    let mut command = program::command(&program, theirs.as_fd());
    command.args(options::all(forwards, mtu));
    command.args(["--fd", &theirs.as_raw_fd().to_string()]);
    let started = command.spawn();
    drop(theirs);
    let mut child = started.with_context(|| format!("cannot start {}", program.display()))?;
    wait_until_ready(&ours, &mut child)?;
    Ok((ours, child))
}

/// The resolver of this host's that passt asks for the guest and does not name to it, if there is one.
pub fn resolver() -> Option<IpAddr> {
    Resolvers::here().unnamed()
}

/// Hands on what passt says until its end: the first lines, for a guest may have it say any number, and how many more.
fn pass_on(from: &mut impl BufRead, mut tell: impl FnMut(&str)) {
    let mut count = 0_u64;
    while let Some(line) = next_line(from) {
        if is_news(&line) {
            count += 1;
            match count {
                ..=MOST_LINES => tell(&line),
                _ if count == MOST_LINES + 1 => tell("and so on"),
                _ => {}
            }
        }
    }
    if count > MOST_LINES {
        tell(&format!("{} more lines were not shown", count - MOST_LINES));
    }
}

/// passt says nothing if it gets a port for IPv6 alone.
fn check(forward: &Forward) -> anyhow::Result<()> {
    let address = (Ipv4Addr::UNSPECIFIED, forward.host);
    let (bound, protocol) = match forward.udp {
        true => (UdpSocket::bind(address).map(drop), "UDP"),
        false => (TcpListener::bind(address).map(drop), "TCP"),
    };
    bound.map_err(|error| {
        anyhow!("cannot forward {protocol} port {}: {error}; choose another port of the host", forward.host)
    })
}

/// What a program says next: a line, or as much of one as is worth reading; none at its end.
fn next_line(from: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let count = from.take(LINE as u64).read_until(b'\n', &mut line).unwrap_or(0);
    (count > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// Waits until passt serves. If it ends instead, it says why.
fn wait_until_ready(socket: &UnixStream, child: &mut Child) -> anyhow::Result<()> {
    match probe::ask(socket, STARTS_IN).context("cannot ask passt")? {
        Answer::Ready => return child.stderr.as_mut().map_or(Ok(()), pass_over),
        Answer::Gone => {}
        Answer::Late => {
            child.kill().and_then(|()| child.wait()).context("cannot end passt")?;
            bail!("passt doesn't start: it said nothing for {} s", STARTS_IN.as_secs());
        }
    }
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.take(START as u64).read_to_string(&mut said).context("cannot read what passt says")?;
    }
    let status = child.wait().context("cannot wait for passt")?;
    let said = reason(&said, status);
    if wants_namespaces(&said) {
        bail!(
            "passt doesn't start: {said}: it locks itself into namespaces; {}; or use --net tap=NAME",
            Confinement::here().told()
        );
    }
    bail!("passt doesn't start: {said}")
}

/// Why passt has ended, by what it said; if it said nothing, by how it ended.
fn reason(said: &str, status: ExitStatus) -> String {
    let said: Vec<_> = said.lines().filter(|line| is_news(line)).map(str::trim).collect();
    match said.is_empty() {
        true => format!("it gave no reason ({status}); `passt --foreground` may give one"),
        false => said.join("; "),
    }
}

/// Passes over what a passt that is ready has said so far: what it does without, such as IPv6.
fn pass_over(stderr: &mut ChildStderr) -> anyhow::Result<()> {
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO).context("cannot hear from passt")? > 0 {
        stderr.read(&mut [0; START]).context("cannot read what passt says")?;
    }
    Ok(())
}

/// Whether that is what it was refused.
fn wants_namespaces(said: &str) -> bool {
    ["user namespace", "sandbox process", "unshare"].iter().any(|words| said.contains(words))
}

fn is_news(line: &str) -> bool {
    !line.trim().is_empty() && !CHATTER.iter().any(|known| line.contains(known))
}

/// Logs what passt says and that it ends, and takes its exit status, so that nothing is left of it. This takes a thread.
///
/// # Errors
/// The host has none left.
pub fn watch(mut child: Child) -> anyhow::Result<()> {
    let run = move || {
        if let Some(stderr) = child.stderr.take() {
            let mut lines = BufReader::with_capacity(LINE, stderr);
            pass_on(&mut lines, |line| log::warn!(target: "passt", "passt: {line}"));
        }
        match child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => log::error!("passt ended: {status}"),
            Err(error) => log::warn!("cannot wait for passt: {error}"),
        }
    };
    spawn("passt", STACK, ThreadKind::Supervisor, run).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::ExitStatusExt;
    use std::thread::sleep;

    use devices::virtio::testing::{BUFFERS, Driver};

    use super::*;
    use crate::backend::Backend;
    use crate::spec::net;

    /// Whether there is no passt, which is said.
    fn missing(test: &str) -> bool {
        let missing = find().is_none();
        if missing {
            println!("skipped: {test}: passt isn't installed");
        }
        missing
    }

    /// How many processes passt has that this one started, zombies among them.
    fn children() -> usize {
        let me = format!(" {} ", std::process::id());
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let stats = processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
        stats
            .filter(|stat| {
                stat.contains("(passt") && stat.split(')').nth(1).is_some_and(|it| it[2..].starts_with(&me))
            })
            .count()
    }

    #[test]
    fn a_passt_that_ends_without_a_word_has_its_status_for_a_reason() {
        let status = ExitStatus::from_raw(1 << 8);
        assert_eq!(reason("No routable interface\n Started as root\n", status), "No routable interface");
        for said in ["", "\nDon't run as root\n"] {
            assert!(reason(said, status).starts_with("it gave no reason (exit status: 1); "), "{said:?}");
        }
        assert!(reason("", ExitStatus::from_raw(31)).contains("(signal: 31"));
    }

    /// A DHCP request for an offer (RFC 2131), in all its headers.
    fn discover() -> Vec<u8> {
        let mac = [2, 0, 0, 1, 2, 3];
        let mut bootp = vec![0; 236];
        bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
        bootp[28..34].copy_from_slice(&mac);
        bootp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
        let [high, low] = (8 + bootp.len() as u16).to_be_bytes();
        let udp = [&[0, 68, 0, 67, high, low, 0, 0], &bootp[..]].concat();
        let [high, low] = (20 + udp.len() as u16).to_be_bytes();
        let ip = [0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
        [&[0xff; 6][..], &mac, &[8, 0], &ip, &udp].concat()
    }

    #[test]
    fn a_guest_gets_an_address_and_passt_goes_with_its_machine() {
        if missing("a_guest_gets_an_address_and_passt_goes_with_its_machine") {
            return;
        }
        let mut network = net::parse("user,mac=02:00:00:01:02:03").unwrap().open(0).unwrap();
        watch(network.take_leftovers().programs.pop().unwrap()).unwrap();
        let mut driver = Driver::new(|_| network.new_device().unwrap());
        driver.start(0);
        assert_eq!(children(), 1);
        for at in 0..16 {
            driver.add(0, &[(BUFFERS + at * 0x1000, 0x1000, true)]);
        }
        driver.kick(0);
        let packet = [vec![0; 12], discover()].concat();
        driver.write(BUFFERS + 0x8_0000, &packet);
        driver.add(1, &[(BUFFERS + 0x8_0000, packet.len() as u32, false)]);
        driver.kick(1);
        let offer = loop {
            driver.serve_source(0);
            let used = driver.used(0).into_iter();
            let mut frames = used.map(|(head, len)| {
                driver.read(BUFFERS + u64::from(head) * 0x1000, len as usize).split_off(12)
            });
            if let Some(offer) = frames.find(|frame| frame.get(34..38) == Some(&[0, 67, 0, 68])) {
                break offer;
            }
            sleep(Duration::from_millis(1));
        };
        assert_eq!(offer[42], 2, "it is a reply");
        assert_ne!(offer[58..62], [0; 4], "it has an address");
        drop((driver, network));
        while children() > 0 {
            sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_port_in_use_is_said_at_start() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let host = taken.local_addr().unwrap().port();
        let error =
            start(&[Forward { host, guest: 80, udp: false }], None).map(drop).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot forward TCP port {host}: ")), "{error}");
        let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
        let host = taken.local_addr().unwrap().port();
        let error = start(&[Forward { host, guest: 80, udp: true }], None).map(drop).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot forward UDP port {host}: ")), "{error}");
    }

    #[test]
    fn what_a_guest_has_passt_say_is_shown_to_a_limit() {
        let shown = |text: &str| {
            let mut shown = Vec::new();
            pass_on(&mut text.as_bytes(), |line| shown.push(line.to_owned()));
            shown
        };
        assert_eq!(shown("Failed to send 9 bytes to syslog\none\n"), ["one"]);
        let shown = shown(&"again\n".repeat(1000));
        assert_eq!(shown.len() as u64, MOST_LINES + 2);
        assert_eq!(shown[MOST_LINES as usize..], ["and so on", "990 more lines were not shown"]);
    }

    #[test]
    fn what_is_said_without_end_is_told_in_pieces() {
        let said = [b"one\n\xff\xfe\n".to_vec(), vec![b'x'; 3 * LINE]].concat();
        let mut from = said.as_slice();
        let lines: Vec<_> = std::iter::from_fn(|| next_line(&mut from)).collect();
        assert_eq!(lines[..2], ["one", "\u{fffd}\u{fffd}"]);
        assert!(lines.len() == 5 && lines[2..].iter().all(|line| line.len() == LINE));
    }
}
