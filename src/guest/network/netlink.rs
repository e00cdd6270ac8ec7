//! Interfaces, addresses and routes by rtnetlink(7).

use std::io;
use std::net::IpAddr;
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

/// A socket for requests.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// An address's lifetime in seconds, and whether the kernel has to look who else has it.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub address: IpAddr,
    pub length: u8,
    /// Nothing if for ever.
    pub lasts: Option<u32>,
}

/// A route through a gateway, or to what is on the link.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub to: IpAddr,
    pub length: u8,
    pub via: Option<IpAddr>,
    pub priority: u32,
}

impl Netlink {
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

    /// Sends a request and hears whether it was carried out.
    fn ask(&mut self, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), &message.finish(self.sequence), MsgFlags::empty())?;
        let mut room = [0; ROOM];
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut room, MsgFlags::empty())?;
            for (kind, sequence, body) in messages(&room[..count]) {
                if kind == libc::NLMSG_ERROR as u16 && sequence == self.sequence {
                    return match word(body, 0) {
                        Some(0) => Ok(()),
                        Some(error) => Err(io::Error::from_raw_os_error((error as i32).wrapping_neg())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
            }
        }
    }
}

/// A socket that hears of `groups`, a bit each.
///
/// # Errors
/// The kernel has no networking.
pub(super) fn open(groups: u32) -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// The kinds, sequence numbers and bodies of the messages in `bytes`.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = word(bytes, 0)? as usize;
        let (message, _) = bytes.split_at_checked(length).filter(|_| length >= HEAD)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        Some((kind, word(message, 8)?, &message[HEAD..]))
    })
}

/// The 32 bits at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
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

    fn attribute(mut self, kind: u16, data: &[u8]) -> Self {
        self.0.extend(((ATTRIBUTE + data.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}
