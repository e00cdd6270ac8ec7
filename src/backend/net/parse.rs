//! The value of `--net`.

use std::net::IpAddr;

use super::{Forward, Spec, To, USER};
use crate::backend::tap;
use crate::spec::task;

/// The most queue pairs of a device: what the kernel's taps have.
const MOST_QUEUES: u16 = 256;
/// The least MTU that a device may have (virtio 1.2 §5.1.4.1).
const LEAST_MTU: u16 = 68;
/// The most resolvers that programs ask (resolv.conf(5), `MAXNS`).
const MOST_SERVERS: usize = 3;
const TAP_OPTIONS: &str =
    "a tap has mac=MAC, queues=N, mtu=N, and ip=ADDR/LEN, gw=ADDR and dns=ADDR for the guest";
const USER_OPTIONS: &str = "user has mac=MAC, mtu=N and forward=HOST:GUEST[/udp]";

/// Reads `tap=NAME[,mac=MAC][,queues=N][,mtu=N][,ip=ADDR/LEN…][,gw=ADDR…][,dns=ADDR…]`, `tap=NAME,ip=none`, or
/// `user[,mac=MAC][,mtu=N][,forward=HOST:GUEST[/udp]…]`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Spec, String> {
    let mut options = text.split(',');
    let first = options.next().unwrap_or_default();
    let to = match first.split_once('=') {
        Some(("tap", name)) => To::Tap { name: tap_name(name)?, queues: 1 },
        None if first == USER => To::User { forwards: Vec::new() },
        None if first == "tap" => return Err("a tap has a name: tap=NAME, such as tap=tap0".to_owned()),
        _ => return Err("it starts with tap=NAME or user".to_owned()),
    };
    let mut spec = Spec { mac: None, mtu: None, to, guest: None };
    let mut guest = Guest::default();
    for option in options {
        match (&mut spec.to, option.split_once('=')) {
            (_, Some(("mac", value))) => spec.mac = Some(parse_mac(value)?),
            (_, Some(("mtu", value))) => spec.mtu = Some(parse_mtu(value)?),
            (To::Tap { queues, .. }, Some(("queues", value))) => *queues = parse_queues(value)?,
            (To::Tap { .. }, Some((name @ ("ip" | "gw" | "dns"), value))) => guest.take(name, value)?,
            (To::User { forwards }, Some(("forward", value))) => forwards.push(parse_forward(value)?),
            (To::Tap { .. }, _) => return Err(format!("{option}: {TAP_OPTIONS}")),
            (To::User { .. }, _) => return Err(format!("{option}: {USER_OPTIONS}")),
        }
    }
    spec.guest = guest.setup()?;
    Ok(spec)
}

/// What is said of the guest's side.
#[derive(Default)]
struct Guest {
    none: bool,
    addresses: Vec<(IpAddr, u8)>,
    gateways: Vec<IpAddr>,
    dns: Vec<IpAddr>,
}

impl Guest {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let address =
            || value.parse().map_err(|_| format!("{name}={value}: an IPv4 or IPv6 address is needed"));
        match name {
            "ip" if value == "none" => self.none = true,
            "ip" => self.addresses.push(parse_address(value)?),
            "gw" => self.gateways.push(address()?),
            _ => self.dns.push(address()?),
        }
        Ok(())
    }

    /// What all of it comes to; nothing if nothing is said.
    fn setup(self) -> Result<Option<task::Setup>, String> {
        let of = |v4: bool| move |address: &&IpAddr| address.is_ipv4() == v4;
        let more = !self.gateways.is_empty() || !self.dns.is_empty();
        if self.none {
            return match self.addresses.is_empty() && !more {
                true => Ok(Some(task::Setup::None)),
                false => Err("ip=none goes with no other ip=, gw= or dns=".to_owned()),
            };
        }
        if self.addresses.is_empty() {
            return match more {
                true => Err("gw= and dns= need ip=ADDR/LEN; without it a server says them".to_owned()),
                false => Ok(None),
            };
        }
        for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let gateways = self.gateways.iter().filter(of(v4)).count();
            if gateways > 1 {
                return Err(format!("there is more than one {family} gw="));
            }
            if gateways == 1 && !self.addresses.iter().any(|(address, _)| address.is_ipv4() == v4) {
                return Err(format!("an {family} gw= needs an {family} ip=ADDR/LEN"));
            }
        }
        if self.dns.len() > MOST_SERVERS {
            return Err(format!("programs ask {MOST_SERVERS} resolvers at most: leave out the last dns="));
        }
        let Self { addresses, gateways, dns, .. } = self;
        Ok(Some(task::Setup::Fixed { addresses, gateways, dns }))
    }
}

fn parse_address(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong =
        || format!("ip={text}: an address and its network's length are needed, such as 192.0.2.7/24 or none");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.parse().ok().filter(|length| (1..=most).contains(length)).ok_or_else(wrong)?;
    match address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        true => Err(format!("ip={text} is no address of one interface")),
        false => Ok((address, length)),
    }
}

fn parse_mtu(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(mtu @ LEAST_MTU..) => Ok(mtu),
        _ => Err(format!("mtu={text}: an MTU is {LEAST_MTU} to {}", u16::MAX)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_says_is_understood() {
        let tap = |name: &str, mac, queues| Spec {
            mac,
            mtu: None,
            to: To::Tap { name: name.to_owned(), queues },
            guest: None,
        };
        assert_eq!(parse("tap=tap0"), Ok(tap("tap0", None, 1)));
        let mac = Some([2, 0, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(parse("tap=a.b-c,queues=4,mac=02:00:00:AB:cd:ef"), Ok(tap("a.b-c", mac, 4)));
        let forward = |host, guest, udp| Forward { host, guest, udp };
        let forwards = vec![forward(8080, 80, false), forward(53, 53, true), forward(1, 65535, false)];
        let text = "user,forward=8080:80,forward=53:53/udp,forward=1:65535/tcp";
        assert_eq!(parse(text), Ok(Spec { mac: None, mtu: None, to: To::User { forwards }, guest: None }));
    }

    #[test]
    fn the_guests_side_of_a_tap_is_said_in_both_families() {
        let spec = parse("tap=t0,mtu=9000,ip=192.0.2.7/24,ip=2001:db8::7/64,gw=192.0.2.1,gw=fe80::1,dns=::2")
            .unwrap();
        let ip = |text: &str| text.parse().unwrap();
        let addresses = vec![(ip("192.0.2.7"), 24), (ip("2001:db8::7"), 64)];
        let gateways = vec![ip("192.0.2.1"), ip("fe80::1")];
        assert_eq!(spec.guest, Some(task::Setup::Fixed { addresses, gateways, dns: vec![ip("::2")] }));
        assert_eq!(spec.mtu, Some(9000));
        assert_eq!(parse("tap=t0,ip=none").unwrap().guest, Some(task::Setup::None));
        assert_eq!(parse("tap=t0,mtu=68").unwrap().guest, None);
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
            "tap=t0,mtu=67",
            "tap=t0,mtu=65536",
            "user,mtu=",
            "user,ip=192.0.2.7/24",
            "tap=t0,ip=192.0.2.7",
            "tap=t0,ip=192.0.2.7/33",
            "tap=t0,ip=192.0.2.7/0",
            "tap=t0,ip=0.0.0.0/8",
            "tap=t0,ip=ff02::1/64",
            "tap=t0,ip=2001:db8::7/129",
            "tap=t0,gw=192.0.2.1",
            "tap=t0,dns=192.0.2.1",
            "tap=t0,ip=192.0.2.7/24,gw=here",
            "tap=t0,ip=192.0.2.7/24,gw=2001:db8::1",
            "tap=t0,ip=192.0.2.7/24,gw=192.0.2.1,gw=192.0.2.2",
            "tap=t0,ip=none,dns=192.0.2.1",
            "tap=t0,ip=192.0.2.7/24,dns=::1,dns=::2,dns=::3,dns=::4",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
