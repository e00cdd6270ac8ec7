//! Interfaces, addresses, routes and filters by rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// Lengths of a message's head, and of one of its attributes.
const HEAD: usize = 16;
const ATTRIBUTE: usize = 4;
/// Room for what the kernel says at once.
const ROOM: usize = 16 << 10;
/// A route that leads through a gateway wherever its address lies (Linux, include/uapi/linux/rtnetlink.h).
const ONLINK: u32 = 4;
/// Who has made a route (`RTPROT_BOOT`).
const BY_BOOT: u8 = 3;
/// The most that is listed of one kind, in bytes.
const LONGEST: usize = 4 << 20;
/// An interface that has Ethernet's frames (Linux, include/uapi/linux/if_arp.h).
pub const ETHERNET: u16 = 1;
/// The place of an interface's filters for what comes in (Linux, include/uapi/linux/pkt_sched.h: `TC_H_INGRESS`), its handle, and
/// what filters name it by (`TC_H_CLSACT` with `TC_H_MIN_INGRESS`).
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_FILTERS: u32 = 0xffff_fff2;
/// Attributes of a queueing discipline and of a filter (include/uapi/linux/rtnetlink.h): their kind and options.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// What a `u32` filter selects and does (include/uapi/linux/pkt_cls.h), and the parameters of `mirred` (tc_mirred.h).
const SELECTOR: u16 = 5;
const ACTION: u16 = 7;
const PARAMETERS: u16 = 2;
/// The packet is another interface's now (`TC_ACT_STOLEN`, `TCA_EGRESS_REDIR`).
const STOLEN: u32 = 4;
const REDIRECT: u32 = 1;
/// The filter that is kite's among an interface's, the first of all.
const FIRST: u32 = 1;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its frames are, as [`ETHERNET`].
    pub kind: u16,
    /// Whether it is up.
    pub is_up: bool,
    /// Its address, if it has one of Ethernet's length.
    pub mac: Option<[u8; 6]>,
    /// Its longest packet in bytes.
    pub mtu: u32,
}

/// A socket for requests.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix in bits.
    pub length: u8,
    /// Its lifetime in seconds; nothing if for ever.
    pub lasts: Option<u32>,
}

/// A route through a gateway, or to what is on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network that it leads to.
    pub to: IpAddr,
    /// The length of its prefix in bits.
    pub length: u8,
    /// The gateway.
    pub via: Option<IpAddr>,
    /// How little it counts.
    pub priority: u32,
}

impl Netlink {
    /// A socket of this network namespace.
    ///
    /// # Errors
    /// The kernel has no networking.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: open(0)?, sequence: 0 })
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bring_up(&mut self, index: u32) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        self.ask(Message::new(libc::RTM_NEWLINK, 0).link(index, up))
    }

    /// Sets an interface's MTU.
    ///
    /// # Errors
    /// It cannot have this one.
    pub fn set_mtu(&mut self, index: u32, mtu: u16) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, 0).link(index, 0);
        self.ask(message.attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes()))
    }

    /// Gives an interface an address, or the one that it has another lifetime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_address(&mut self, index: u32, address: &Address) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let octets = octets(address.address);
        let mut body = vec![family(address.address), address.length, 0, 0];
        body.extend(index.to_ne_bytes());
        let mut message = Message::new(libc::RTM_NEWADDR, flags).bytes(&body);
        message = message.attribute(libc::IFA_LOCAL, &octets).attribute(libc::IFA_ADDRESS, &octets);
        match address.address {
            IpAddr::V4(v4) if address.length < 31 => {
                let hosts = u32::MAX >> address.length;
                message = message.attribute(libc::IFA_BROADCAST, &(v4.to_bits() | hosts).to_be_bytes());
            }
            IpAddr::V4(_) => {}
            // It was said that it is this guest's.
            IpAddr::V6(_) => {
                message = message.attribute(libc::IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes());
            }
        }
        let lasts = address.lasts.unwrap_or(u32::MAX);
        let times = [lasts, lasts, 0, 0].map(u32::to_ne_bytes).concat();
        self.ask(message.attribute(libc::IFA_CACHEINFO, &times))
    }

    /// Adds a route through an interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let scope = if route.via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        let [table, scope, kind] = [libc::RT_TABLE_MAIN, scope, libc::RTN_UNICAST];
        let mut body = vec![family(route.to), route.length, 0, 0, table, BY_BOOT, scope, kind];
        body.extend(if route.via.is_some() { ONLINK } else { 0 }.to_ne_bytes());
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut message = Message::new(libc::RTM_NEWROUTE, flags).bytes(&body);
        if route.length > 0 {
            message = message.attribute(libc::RTA_DST, &octets(route.to));
        }
        if let Some(via) = route.via {
            message = message.attribute(libc::RTA_GATEWAY, &octets(via));
        }
        if route.priority > 0 {
            message = message.attribute(libc::RTA_PRIORITY, &route.priority.to_ne_bytes());
        }
        self.ask(message.attribute(libc::RTA_OIF, &index.to_ne_bytes()))
    }

    /// The interfaces.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let found = self.list(libc::RTM_GETLINK, libc::RTM_NEWLINK)?;
        Ok(found.iter().filter_map(|body| interface(body)).collect())
    }

    /// The addresses of an interface that others than its link can reach.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<Address>> {
        let found = self.list(libc::RTM_GETADDR, libc::RTM_NEWADDR)?;
        Ok(found.iter().filter_map(|body| address(body, index)).collect())
    }

    /// The routes through an interface that were added, beside those that the kernel has by addresses and routers.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn routes(&mut self, index: u32) -> io::Result<Vec<Route>> {
        let found = self.list(libc::RTM_GETROUTE, libc::RTM_NEWROUTE)?;
        Ok(found.iter().filter_map(|body| route(body, index)).collect())
    }

    /// Has what comes in by one interface leave by another, past this host.
    ///
    /// # Errors
    /// The kernel lacks it, or refuses.
    pub fn redirect(&mut self, from: u32, to: u32) -> io::Result<()> {
        let head = |handle, parent, info| [0, from, handle, parent, info].map(u32::to_ne_bytes).concat();
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let place = Message::new(libc::RTM_NEWQDISC, flags).bytes(&head(INGRESS_HANDLE, INGRESS, 0));
        match self.ask(place.attribute(KIND, b"ingress\0")) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
        let all = u16::from_ne_bytes((libc::ETH_P_ALL as u16).to_be_bytes());
        let filter = head(0, INGRESS_FILTERS, FIRST << 16 | u32::from(all));
        // What a machine before has left leads nowhere any more.
        let _there_is_none = self.ask(Message::new(libc::RTM_DELTFILTER, 0).bytes(&filter));
        let mirred = [0, 0, STOLEN, 0, 0, REDIRECT, to].map(u32::to_ne_bytes).concat();
        let action = [
            attribute(KIND, b"mirred\0"),
            attribute(OPTIONS | libc::NLA_F_NESTED as u16, &attribute(PARAMETERS, &mirred)),
        ];
        // One key of no bits, which every packet has; a match ends the search.
        let mut selector = vec![0; 32];
        (selector[0], selector[2]) = (1, 1);
        let options = [attribute(ACTION, &attribute(1, &action.concat())), attribute(SELECTOR, &selector)];
        let message = Message::new(libc::RTM_NEWTFILTER, flags).bytes(&filter);
        self.ask(message.attribute(KIND, b"u32\0").attribute(OPTIONS, &options.concat()))
    }

    /// The bodies of all messages of kind `listed` that answer a request of kind `wanted`.
    fn list(&mut self, wanted: u16, listed: u16) -> io::Result<Vec<Vec<u8>>> {
        // Of whatever family; the longest of the heads that kernels take.
        let message = Message::new(wanted, libc::NLM_F_DUMP).bytes(&[0; 16]);
        self.exchange(message, Some(listed))
    }

    /// Sends a request and hears whether it was carried out.
    fn ask(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, None).map(drop)
    }

    /// Sends a request; gives the bodies of messages of kind `listed` that come before the kernel has answered it.
    fn exchange(&mut self, message: Message, listed: Option<u16>) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), &message.finish(self.sequence), MsgFlags::empty())?;
        let (mut room, mut found, mut len) = (vec![0; 2 * ROOM], Vec::new(), 0);
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut room, MsgFlags::empty())?;
            len += count;
            if count == 0 || len > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            for (kind, sequence, body) in messages(&room[..count]) {
                match i32::from(kind) {
                    _ if sequence != self.sequence => {}
                    libc::NLMSG_DONE => return Ok(found),
                    libc::NLMSG_ERROR => {
                        return match word(body, 0) {
                            Some(0) => Ok(found),
                            Some(error) => Err(io::Error::from_raw_os_error((error as i32).wrapping_neg())),
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    _ if Some(kind) == listed => found.push(body.to_vec()),
                    _ => {}
                }
            }
        }
    }
}

/// From the body of a message about an interface (`struct ifinfomsg`).
fn interface(body: &[u8]) -> Option<Interface> {
    let (head, rest) = body.split_at_checked(16)?;
    let mut interface = Interface {
        index: word(head, 4)?,
        name: String::new(),
        kind: u16::from_ne_bytes([head[2], head[3]]),
        is_up: word(head, 8)? & libc::IFF_UP as u32 != 0,
        mac: None,
        mtu: 0,
    };
    for (kind, data) in attributes(rest) {
        match kind {
            libc::IFLA_ADDRESS => interface.mac = data.try_into().ok(),
            libc::IFLA_IFNAME => {
                let name = data.split(|byte| *byte == 0).next().unwrap_or_default();
                interface.name = String::from_utf8(name.to_vec()).ok()?;
            }
            libc::IFLA_MTU => interface.mtu = word(data, 0)?,
            _ => {}
        }
    }
    Some(interface)
}

/// From the body of a message about an address (`struct ifaddrmsg`), if it is one of interface `index`.
fn address(body: &[u8], index: u32) -> Option<Address> {
    let (head, rest) = body.split_at_checked(8)?;
    if word(head, 4)? != index || head[3] >= libc::RT_SCOPE_LINK {
        return None;
    }
    let mut found = None;
    for (kind, data) in attributes(rest) {
        // Where there are two, the other is that of the peer.
        if kind == libc::IFA_LOCAL || kind == libc::IFA_ADDRESS && found.is_none() {
            found = ip(data);
        }
    }
    Some(Address { address: found?, length: head[1], lasts: None })
}

/// From the body of a message about a route (`struct rtmsg`), if it was added and leads through interface `index`.
fn route(body: &[u8], index: u32) -> Option<Route> {
    /// By the kernel itself, and by a router's word.
    const NOT_ADDED: [u8; 2] = [libc::RTPROT_KERNEL, 9];
    let (head, rest) = body.split_at_checked(12)?;
    let [family, length, _, _, table, by, _, kind] = head[..8] else { return None };
    if table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST || NOT_ADDED.contains(&by) {
        return None;
    }
    let to = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route { to, length, via: None, priority: 0 };
    let mut through = None;
    for (kind, data) in attributes(rest) {
        match kind {
            libc::RTA_DST => route.to = ip(data)?,
            libc::RTA_GATEWAY => route.via = Some(ip(data)?),
            libc::RTA_PRIORITY => route.priority = word(data, 0)?,
            libc::RTA_OIF => through = word(data, 0),
            _ => {}
        }
    }
    (through == Some(index)).then_some(route)
}

fn ip(data: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(data).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(data).ok().map(IpAddr::from))
}

/// The kinds and data of the attributes in `bytes`.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [first, second, kind @ ..] = *bytes.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([first, second]));
        let data = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(kind) & libc::NLA_TYPE_MASK as u16, data))
    })
}

/// A socket that hears of `groups`, a bit each.
///
/// # Errors
/// The kernel has no networking.
pub fn open(groups: u32) -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// The kinds, sequence numbers and bodies of the messages in `bytes`.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = word(bytes, 0)? as usize;
        let (message, _) = bytes.split_at_checked(length).filter(|_| length >= HEAD)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        Some((kind, word(message, 8)?, &message[HEAD..]))
    })
}

/// The 32 bits at `at`.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An attribute of a message, or of another attribute.
fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = ((ATTRIBUTE + data.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A request, as far as it is written.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: libc::c_int) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut head = vec![0; HEAD];
        head[4..6].copy_from_slice(&kind.to_ne_bytes());
        head[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(head)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// What a request about an interface begins with, and the flags that it is to have.
    fn link(self, index: u32, flags: u32) -> Self {
        self.bytes(&[[0, index, flags, flags].map(u32::to_ne_bytes).concat()].concat())
    }

    fn attribute(self, kind: u16, data: &[u8]) -> Self {
        self.bytes(&attribute(kind, data))
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}
