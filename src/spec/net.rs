//! A network device: what `--net` says of one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What `--net user` begins with.
const USER: &str = "user";
/// The longest name of an interface in bytes.
pub const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;
/// The most queue pairs of a device: what the kernel's taps have.
const MOST_QUEUES: u16 = 256;
/// The least MTU that a device may have (virtio 1.2 §5.1.4.1).
const LEAST_MTU: u16 = 68;
/// The most resolvers that programs ask (resolv.conf(5), `MAXNS`).
const MOST_SERVERS: usize = 3;
/// The MAC address's form.
const MAC: &str = "a MAC address is six bytes in hexadecimal, such as 02:00:00:12:34:56";
const TAP_OPTIONS: &str =
    "a tap has mac=MAC, queues=N, mtu=N, and ip=ADDR/LEN, gw=ADDR and dns=ADDR for the guest";
const USER_OPTIONS: &str = "user has mac=MAC, mtu=N and forward=HOST:GUEST[/udp]";

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// What it is connected to.
    pub backend: NetBackend,
    /// The address of the guest's side; one that is the same at every start if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "mac")]
    pub mac: Option<[u8; 6]>,
    /// The longest packet in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How kite's own `/init` sets it up for a command; as a server on the network says if nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<NetSetup>,
}

/// What a network device is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetBackend {
    /// A tap device of the host.
    Tap {
        /// Its name.
        name: String,
        /// Pairs of queues.
        #[serde(default = "one")]
        queues: u16,
    },
    /// An interface of this network namespace, whose packets are the guest's instead.
    Interface {
        /// Its name.
        name: String,
    },
    /// passt, without privileges.
    User {
        /// Ports of the host that lead to the guest's.
        #[serde(default)]
        forwards: Vec<Forward>,
    },
}

fn one() -> u16 {
    1
}

/// A port of the host that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// UDP, not TCP.
    #[serde(default)]
    pub udp: bool,
}

/// How the guest's side of a tap is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetSetup {
    /// By these.
    Fixed {
        /// Addresses, each with the length of its network.
        addresses: Vec<InterfaceAddress>,
        /// Gateways, at most one a family.
        #[serde(default)]
        gateways: Vec<IpAddr>,
        /// Other routes, each behind those that its gateway is reached by.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        routes: Vec<RouteSpec>,
        /// Resolvers.
        #[serde(default)]
        dns: Vec<IpAddr>,
    },
    /// Not at all: the command may do it.
    None,
}

/// A network that is reached by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// The network.
    pub to: IpAddr,
    /// The length of its prefix in bits.
    pub length: u8,
    /// The gateway, unless it is on the link.
    pub via: Option<IpAddr>,
}

/// An address of an interface: `192.0.2.7/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix in bits.
    pub length: u8,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

impl From<InterfaceAddress> for String {
    fn from(it: InterfaceAddress) -> Self {
        it.to_string()
    }
}

impl TryFrom<String> for InterfaceAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for InterfaceAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("ip={text}: an address and its network's length are needed, such as 192.0.2.7/24 or none")
        };
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.parse().ok().filter(|length| (1..=most).contains(length)).ok_or_else(wrong)?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(format!("ip={text} is no address of one interface"));
        }
        Ok(Self { address, length })
    }
}

/// A MAC address that may be missing, as text.
mod mac {
    use serde::de::{Deserializer, Error};
    use serde::{Deserialize, Serialize, Serializer};

    pub fn serialize<S: Serializer>(mac: &Option<[u8; 6]>, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        mac.map(text).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 6]>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| super::parse_mac(&text)).transpose().map_err(Error::custom)
    }
}

/// Reads `tap=NAME[,mac=MAC][,queues=N][,mtu=N][,ip=ADDR/LEN…][,gw=ADDR…][,dns=ADDR…]`, `tap=NAME,ip=none`, or
/// `user[,mac=MAC][,mtu=N][,forward=HOST:GUEST[/udp]…]`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<NetSpec, String> {
    let mut options = text.split(',');
    let first = options.next().unwrap_or_default();
    let backend = match first.split_once('=') {
        Some(("tap", name)) => NetBackend::Tap { name: name.to_owned(), queues: 1 },
        None if first == USER => NetBackend::User { forwards: Vec::new() },
        None if first == "tap" => return Err("a tap has a name: tap=NAME, such as tap=tap0".to_owned()),
        _ => return Err("it starts with tap=NAME or user".to_owned()),
    };
    let mut spec = NetSpec { mac: None, mtu: None, backend, guest: None };
    // Told before what is wrong with an option.
    spec.check()?;
    let mut guest = Guest::default();
    for option in options {
        match (&mut spec.backend, option.split_once('=')) {
            (_, Some(("mac", value))) => spec.mac = Some(parse_mac(value)?),
            (_, Some(("mtu", value))) => spec.mtu = Some(parse_mtu(value)?),
            (NetBackend::Tap { queues, .. }, Some(("queues", value))) => *queues = parse_queues(value)?,
            (NetBackend::Tap { .. }, Some((name @ ("ip" | "gw" | "dns"), value))) => {
                guest.take(name, value)?;
            }
            (NetBackend::User { forwards }, Some(("forward", value))) => {
                forwards.push(parse_forward(value)?);
            }
            (NetBackend::Tap { .. }, _) => return Err(format!("{option}: {TAP_OPTIONS}")),
            (NetBackend::User { .. } | NetBackend::Interface { .. }, _) => {
                return Err(format!("{option}: {USER_OPTIONS}"));
            }
        }
    }
    spec.guest = guest.setup()?;
    spec.check().map(|()| spec)
}

/// What is said of the guest's side.
#[derive(Default)]
struct Guest {
    none: bool,
    addresses: Vec<InterfaceAddress>,
    gateways: Vec<IpAddr>,
    dns: Vec<IpAddr>,
}

impl Guest {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let address =
            || value.parse().map_err(|_| format!("{name}={value}: an IPv4 or IPv6 address is needed"));
        match name {
            "ip" if value == "none" => self.none = true,
            "ip" => self.addresses.push(value.parse()?),
            "gw" => self.gateways.push(address()?),
            _ => self.dns.push(address()?),
        }
        Ok(())
    }

    /// What all of it comes to; nothing if nothing is said.
    fn setup(self) -> Result<Option<NetSetup>, String> {
        let Self { none, addresses, gateways, dns } = self;
        let (nothing, more) = (addresses.is_empty(), !gateways.is_empty() || !dns.is_empty());
        if none && (!nothing || more) {
            return Err("ip=none goes with no other ip=, gw= or dns=".to_owned());
        }
        if none {
            return Ok(Some(NetSetup::None));
        }
        Ok((!nothing || more).then_some(NetSetup::Fixed { addresses, gateways, routes: Vec::new(), dns }))
    }
}

impl NetSpec {
    /// Whether it can be a network device.
    ///
    /// # Errors
    /// Why it cannot, in one line.
    pub fn check(&self) -> Result<(), String> {
        match &self.backend {
            NetBackend::Tap { name, queues } => {
                check_tap_name(name)?;
                check_queues(&queues.to_string(), Some(*queues))?;
            }
            NetBackend::Interface { name } => check_tap_name(name)?,
            NetBackend::User { forwards } => {
                let is_wrong = |it: &&Forward| it.host == 0 || it.guest == 0;
                if let Some(Forward { host, guest, .. }) = forwards.iter().find(is_wrong) {
                    return Err(wrong_ports(&format!("{host}:{guest}")));
                }
                if self.guest.is_some() {
                    return Err(USER_OPTIONS.to_owned());
                }
            }
        }
        if let Some(mtu) = self.mtu {
            check_mtu(&mtu.to_string(), Some(mtu))?;
        }
        if let Some(mac) = self.mac {
            check_mac(mac, || mac.map(|byte| format!("{byte:02x}")).join(":"))?;
        }
        match &self.guest {
            Some(NetSetup::Fixed { addresses, gateways, routes, dns }) => {
                let fits = |it: &RouteSpec| it.length <= if it.to.is_ipv4() { 32 } else { 128 };
                if let Some(route) = routes.iter().find(|it| !fits(it)) {
                    return Err(format!("{}/{} is no network", route.to, route.length));
                }
                check_fixed(addresses, gateways, dns)
            }
            Some(NetSetup::None) | None => Ok(()),
        }
    }
}

fn check_fixed(addresses: &[InterfaceAddress], gateways: &[IpAddr], dns: &[IpAddr]) -> Result<(), String> {
    if addresses.is_empty() {
        return Err("gw= and dns= need ip=ADDR/LEN; without it a server says them".to_owned());
    }
    for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let count = gateways.iter().filter(|gateway| gateway.is_ipv4() == v4).count();
        if count > 1 {
            return Err(format!("there is more than one {family} gw="));
        }
        if count == 1 && !addresses.iter().any(|it| it.address.is_ipv4() == v4) {
            return Err(format!("an {family} gw= needs an {family} ip=ADDR/LEN"));
        }
    }
    if dns.len() > MOST_SERVERS {
        return Err(format!("programs ask {MOST_SERVERS} resolvers at most: leave out the last dns="));
    }
    Ok(())
}

fn parse_mtu(text: &str) -> Result<u16, String> {
    check_mtu(text, text.parse().ok())
}

fn check_mtu(text: &str, mtu: Option<u16>) -> Result<u16, String> {
    mtu.filter(|mtu| *mtu >= LEAST_MTU)
        .ok_or_else(|| format!("mtu={text}: an MTU is {LEAST_MTU} to {}", u16::MAX))
}

fn check_tap_name(name: &str) -> Result<(), String> {
    let fits = (1..=LONGEST_NAME).contains(&name.len());
    let odd = |char: char| char.is_whitespace() || char.is_control() || matches!(char, '/' | ':' | '%');
    if fits && !name.contains(odd) && name != "." && name != ".." {
        return Ok(());
    }
    Err(format!("an interface's name has 1 to {LONGEST_NAME} bytes, none of them / : % or space"))
}

fn parse_queues(text: &str) -> Result<u16, String> {
    check_queues(text, text.parse().ok())
}

fn check_queues(text: &str, queues: Option<u16>) -> Result<u16, String> {
    queues
        .filter(|queues| (1..=MOST_QUEUES).contains(queues))
        .ok_or_else(|| format!("queues={text}: a tap has 1 to {MOST_QUEUES} queues"))
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
        *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(MAC)?;
    }
    match parts.next() {
        Some(_) => Err(not_one_interface(text)),
        None => check_mac(mac, || text.to_owned()),
    }
}

fn check_mac(mac: [u8; 6], text: impl Fn() -> String) -> Result<[u8; 6], String> {
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(not_one_interface(&text()));
    }
    Ok(mac)
}

fn not_one_interface(text: &str) -> String {
    format!("{text} is no address of one interface")
}

fn wrong_ports(text: &str) -> String {
    format!("forward={text}: two ports are needed, such as forward=8080:80")
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
        _ => Err(wrong_ports(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_says_is_understood() {
        let tap = |name: &str, mac, queues| NetSpec {
            mac,
            mtu: None,
            backend: NetBackend::Tap { name: name.to_owned(), queues },
            guest: None,
        };
        assert_eq!(parse("tap=tap0"), Ok(tap("tap0", None, 1)));
        let mac = Some([2, 0, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(parse("tap=a.b-c,queues=4,mac=02:00:00:AB:cd:ef"), Ok(tap("a.b-c", mac, 4)));
        let forward = |host, guest, udp| Forward { host, guest, udp };
        let forwards = vec![forward(8080, 80, false), forward(53, 53, true), forward(1, 65535, false)];
        let text = "user,forward=8080:80,forward=53:53/udp,forward=1:65535/tcp";
        let backend = NetBackend::User { forwards };
        assert_eq!(parse(text), Ok(NetSpec { mac: None, mtu: None, backend, guest: None }));
    }

    #[test]
    fn the_guests_side_of_a_tap_is_said_in_both_families() {
        let spec = parse("tap=t0,mtu=9000,ip=192.0.2.7/24,ip=2001:db8::7/64,gw=192.0.2.1,gw=fe80::1,dns=::2")
            .unwrap();
        let ip = |text: &str| text.parse().unwrap();
        let addresses = ["192.0.2.7/24", "2001:db8::7/64"].map(|text| text.parse().unwrap()).to_vec();
        let gateways = vec![ip("192.0.2.1"), ip("fe80::1")];
        assert_eq!(
            spec.guest,
            Some(NetSetup::Fixed { addresses, gateways, routes: Vec::new(), dns: vec![ip("::2")] })
        );
        assert_eq!(spec.mtu, Some(9000));
        assert_eq!(parse("tap=t0,ip=none").unwrap().guest, Some(NetSetup::None));
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
