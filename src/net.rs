//! `--net`: what a network device is connected to, from the command line to the device.

use std::fs::{self, File};
use std::process::Child;

use anyhow::Context;
use devices::virtio::VirtioDevice;
use devices::virtio::net::{Net, Stream, Tap};

use crate::{passt, tap};

/// The most queue pairs of a device: what the kernel's taps have.
const MOST_QUEUES: u16 = 256;

/// A network device as the command line describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    mac: Option<[u8; 6]>,
    to: To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    Tap { name: String, queues: u16 },
    User { forwards: Vec<Forward> },
}

/// A port of the host that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// UDP, not TCP.
    pub udp: bool,
}

/// Reads `tap=NAME[,mac=MAC][,queues=N]` or `user[,mac=MAC][,forward=HOST:GUEST[/udp]…]`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Spec, String> {
    let mut options = text.split(',');
    let mut mac = None;
    let to = match options.next().unwrap_or_default().split_once('=') {
        Some(("tap", name)) => To::Tap { name: tap_name(name)?, queues: 1 },
        None if text.split(',').next() == Some("user") => To::User { forwards: Vec::new() },
        _ => return Err("it starts with tap=NAME or user".to_owned()),
    };
    let mut spec = Spec { mac: None, to };
    for option in options {
        match (&mut spec.to, option.split_once('=')) {
            (_, Some(("mac", value))) => mac = Some(parse_mac(value)?),
            (To::Tap { queues, .. }, Some(("queues", value))) => *queues = parse_queues(value)?,
            (To::User { forwards }, Some(("forward", value))) => forwards.push(parse_forward(value)?),
            (To::Tap { .. }, _) => return Err(format!("{option}: a tap has mac=MAC and queues=N")),
            (To::User { .. }, _) => return Err(format!("{option}: user has mac=MAC and forward=HOST:GUEST")),
        }
    }
    spec.mac = mac;
    Ok(spec)
}

fn tap_name(name: &str) -> Result<String, String> {
    let fits = (1..=tap::LONGEST_NAME).contains(&name.len());
    let odd = |char: char| char.is_whitespace() || char.is_control() || matches!(char, '/' | ':' | '%');
    match fits && !name.contains(odd) && name != "." && name != ".." {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "an interface's name has 1 to {} bytes, none of them / : % or space",
            tap::LONGEST_NAME
        )),
    }
}

fn parse_queues(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(queues @ 1..=MOST_QUEUES) => Ok(queues),
        _ => Err(format!("queues={text}: a tap has 1 to {MOST_QUEUES} queues")),
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
        let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte = value.ok_or("a MAC address is six bytes in hexadecimal, such as 02:00:00:12:34:56")?;
    }
    if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(format!("{text} is no address of one interface"));
    }
    Ok(mac)
}

fn parse_forward(text: &str) -> Result<Forward, String> {
    let (ports, udp) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
        Some((ports, "udp")) => (ports, true),
        Some(_) => return Err(format!("forward={text}: the protocol is tcp or udp")),
    };
    let port = |text: &str| text.parse().ok().filter(|port: &u16| *port != 0);
    match ports.split_once(':').map(|(host, guest)| (port(host), port(guest))) {
        Some((Some(host), Some(guest))) => Ok(Forward { host, guest, udp }),
        _ => Err(format!("forward={text}: two ports are needed, such as forward=8080:80")),
    }
}

/// What a network device is connected to, open. Each machine built gets a device from it.
pub struct Network {
    mac: [u8; 6],
    to: Open,
}

enum Open {
    Tap(Vec<File>),
    /// And passt, until somebody watches it.
    User(Stream, Option<Child>),
}

impl Spec {
    /// Opens what it names, for the `index`-th network device of the machine.
    ///
    /// # Errors
    /// It cannot be used: with what to do.
    pub fn open(&self, index: usize) -> anyhow::Result<Network> {
        let (name, to) = match &self.to {
            To::Tap { name, queues } => (name.as_str(), Open::Tap(tap::open(name, *queues)?)),
            To::User { forwards } => {
                let (socket, passt) = passt::start(forwards, None)?;
                let stream = Stream::new(socket).context("cannot use passt's socket")?;
                ("user", Open::User(stream, Some(passt)))
            }
        };
        Ok(Network { mac: self.mac.unwrap_or_else(|| derive_mac(&machine_id(), name, index)), to })
    }
}

impl Network {
    /// passt, if this has one, to be watched by whoever has it. It goes with the last of the processes that have this.
    pub fn take_program(&mut self) -> Option<Child> {
        match &mut self.to {
            Open::User(_, passt) => passt.take(),
            Open::Tap(_) => None,
        }
    }

    /// A device of a new machine; there is no other at the time.
    ///
    /// # Errors
    /// The host has no files left.
    pub fn device(&self) -> anyhow::Result<Box<dyn VirtioDevice>> {
        let backend: Box<dyn devices::virtio::net::Backend> = match &self.to {
            Open::Tap(files) => {
                let files = files.iter().map(File::try_clone).collect::<Result<_, _>>();
                Box::new(Tap::new(files.context("cannot duplicate a tap's file")?))
            }
            Open::User(stream, _) => Box::new(stream.try_clone().context("cannot duplicate passt's socket")?),
        };
        Ok(Box::new(Net::new(backend, self.mac)))
    }
}

/// What tells this host from others; nothing where it has none.
fn machine_id() -> Vec<u8> {
    fs::read("/etc/machine-id").unwrap_or_default()
}

/// An address that is the same at every start: locally administered, and another for each host, name and index.
fn derive_mac(host: &[u8], name: &str, index: usize) -> [u8; 6] {
    // FNV-1a: it need not be hard to guess.
    let seed = host.iter().chain(name.as_bytes()).chain(&[0]).copied().chain((index as u64).to_le_bytes());
    let hash = seed.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [_, _, mut mac @ ..] = hash.to_be_bytes();
    mac[0] = mac[0] & 0xfc | 2;
    mac
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_the_command_line_says_is_understood() {
        let tap = |name: &str, mac, queues| Spec { mac, to: To::Tap { name: name.to_owned(), queues } };
        assert_eq!(parse("tap=tap0"), Ok(tap("tap0", None, 1)));
        let mac = Some([2, 0, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(parse("tap=a.b-c,queues=4,mac=02:00:00:AB:cd:ef"), Ok(tap("a.b-c", mac, 4)));
        let forward = |host, guest, udp| Forward { host, guest, udp };
        let forwards = vec![forward(8080, 80, false), forward(53, 53, true), forward(1, 65535, false)];
        let text = "user,forward=8080:80,forward=53:53/udp,forward=1:65535/tcp";
        assert_eq!(parse(text), Ok(Spec { mac: None, to: To::User { forwards } }));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "tap",
            "tap=",
            "tap=sixteen-bytes-ab",
            "tap=a/b",
            "tap=..",
            "tap=a b",
            "tap=t0,queues=0",
            "tap=t0,queues=257",
            "tap=t0,forward=1:1",
            "tap=t0,",
            "tap=t0,mac=01:00:00:00:00:01",
            "tap=t0,mac=00:00:00:00:00:00",
            "tap=t0,mac=02:00:00:00:00",
            "tap=t0,mac=02:00:00:00:00:00:00",
            "tap=t0,mac=02:00:00:00:00:+1",
            "user=1",
            "user,queues=2",
            "user,forward=80",
            "user,forward=0:80",
            "user,forward=80:65536",
            "user,forward=80:80/sctp",
            "user,forward=80:80/tcp/tcp",
            "vhost",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_derived_address_is_stable_local_and_differs_by_host_name_and_index() {
        let mac = derive_mac(b"host", "tap0", 0);
        assert_eq!(mac, derive_mac(b"host", "tap0", 0));
        assert_eq!(mac[0] & 3, 2);
        let others = [(&b"other"[..], "tap0", 0), (b"host", "tap1", 0), (b"host", "tap0", 1)];
        assert!(others.iter().all(|(host, name, index)| derive_mac(host, name, *index) != mac));
    }

    #[test]
    fn a_tap_that_kite_makes_goes_with_it() {
        let name = "kitet9";
        let network = match parse("tap=kitet9,queues=2").unwrap().open(0) {
            Ok(network) => network,
            Err(error) => {
                println!("skipped: a_tap_that_kite_makes_goes_with_it: {error:#}");
                return;
            }
        };
        let path = std::path::Path::new("/sys/class/net").join(name);
        for _machine in 0..2 {
            assert_eq!(network.device().unwrap().queue_sizes().len(), 5);
        }
        let error = parse("tap=kitet9").unwrap().open(0).map(drop).map_err(|error| error.to_string());
        assert_eq!(error, Ok(()), "one queue of several will do");
        assert!(fs::read_to_string(path.join("flags")).unwrap().trim().ends_with('3'), "it is up");
        drop(network);
        // A child of another test has all open files until it has become another program.
        let deadline = Instant::now() + Duration::from_secs(60);
        while path.exists() {
            assert!(Instant::now() < deadline, "it stays");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
