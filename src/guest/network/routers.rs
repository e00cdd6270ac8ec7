//! What the kernel says of IPv6: addresses that it has given an interface, and the resolvers that routers name (RFC 8106).

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::sockopt::Ipv6MulticastHops;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendto, setsockopt, socket,
};

use super::names;
use crate::host::netlink::{self, messages, word};

/// Options of routers, by their kinds.
const RESOLVERS: u8 = 25;
const SEARCH: u8 = 31;
/// The most resolvers that are taken.
const MOST: usize = 3;

/// What is heard of one interface.
pub struct Routers {
    socket: OwnedFd,
    index: u32,
    /// It has an address of its link.
    pub on_link: bool,
    /// It has one that leads farther.
    pub reaches_out: bool,
    pub dns: Vec<IpAddr>,
    pub search: Vec<String>,
}

impl Routers {
    /// Hears of the interface `index` from now on.
    ///
    /// # Errors
    /// The kernel has no networking.
    pub fn new(index: u32) -> io::Result<Self> {
        // Groups of rtnetlink's (Linux, include/uapi/linux/rtnetlink.h).
        const ADDRESSES: u32 = 1 << 8;
        const OPTIONS: u32 = 1 << 19;
        let socket = netlink::open(ADDRESSES | OPTIONS)?;
        let (dns, search) = (Vec::new(), Vec::new());
        Ok(Self { socket, index, on_link: false, reaches_out: false, dns, search })
    }

    /// Hears what has been said.
    pub fn hear(&mut self) {
        // RTM_NEWNDUSEROPT (Linux, include/uapi/linux/rtnetlink.h).
        const NEW_OPTIONS: u16 = 68;
        const ROOM: usize = 16 << 10;
        let mut room = [0; ROOM];
        while let Ok(count) = recv(self.socket.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT) {
            for (kind, _, body) in messages(&room[..count]) {
                match kind {
                    libc::RTM_NEWADDR => self.take_address(body),
                    NEW_OPTIONS => self.take_options(body),
                    _ => {}
                }
            }
        }
    }

    fn take_address(&mut self, body: &[u8]) {
        // The length of what such a message begins with.
        const ADDRESS_HEAD: usize = 8;
        let [family, _, flags, scope, ..] = *body else { return };
        let ours = i32::from(family) == libc::AF_INET6 && word(body, ADDRESS_HEAD - 4) == Some(self.index);
        if ours && u32::from(flags) & libc::IFA_F_TENTATIVE == 0 {
            self.on_link |= scope == libc::RT_SCOPE_LINK;
            self.reaches_out |= scope == libc::RT_SCOPE_UNIVERSE;
        }
    }

    fn take_options(&mut self, body: &[u8]) {
        // The length of what such a message begins with.
        const OPTIONS_HEAD: usize = 16;
        let ours = word(body, 4) == Some(self.index);
        if let Some(mut rest) = body.get(OPTIONS_HEAD..).filter(|_| ours) {
            while let [kind, length, ..] = *rest
                && length > 0
                && let Some((option, more)) = rest.split_at_checked(usize::from(length) * 8)
            {
                self.take_option(kind, option);
                rest = more;
            }
        }
    }

    fn take_option(&mut self, kind: u8, option: &[u8]) {
        // What an option begins with: kind, length, two that mean nothing, and a lifetime.
        const OPTION_HEAD: usize = 8;
        let (head, data) = option.split_at(OPTION_HEAD);
        // Without a lifetime it is not to be used any more.
        if head[4..] == [0; 4] {
            return;
        }
        match kind {
            RESOLVERS => {
                let addresses = data.chunks_exact(16).filter_map(|it| <[u8; 16]>::try_from(it).ok());
                let addresses = addresses.map(Ipv6Addr::from);
                let usable =
                    addresses.filter(|it| !it.is_unspecified() && !it.is_multicast() && !it.is_loopback());
                self.dns = usable.map(IpAddr::V6).take(MOST).collect();
            }
            SEARCH => self.search = names::all(data),
            _ => {}
        }
    }
}

impl AsFd for Routers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks the routers on an interface's link to say what they have to say (RFC 4861 §4.1). The kernel does so, too, but not
/// when it is known.
///
/// # Errors
/// The kernel has no IPv6.
pub fn solicit(index: u32, mac: [u8; 6]) -> io::Result<()> {
    // All routers on a link (RFC 4291).
    const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let kind = SockType::Raw;
    let socket = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
    setsockopt(&socket, Ipv6MulticastHops, &255)?;
    // The kernel writes the sum. An option has the sender's address of the link.
    let message = [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &mac].concat();
    let to = SockaddrIn6::from(std::net::SocketAddrV6::new(ALL_ROUTERS, 0, 0, index));
    sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(options: &[u8]) -> Routers {
        let mut routers = Routers::new(7).unwrap();
        let body = [&[10, 0, 0, 0][..], &7_u32.to_ne_bytes(), &[0; 8], options].concat();
        routers.take_options(&body);
        routers
    }

    fn option(kind: u8, lasts: u8, data: &[u8]) -> Vec<u8> {
        [&[kind, 1 + data.len().div_ceil(8) as u8, 0, 0, 0, 0, 0, lasts][..], data].concat()
    }

    #[test]
    fn routers_name_resolvers_and_domains() {
        let servers = ["2001:db8::1", "fd00::2", "ff02::1", "::"].map(|it| it.parse::<Ipv6Addr>().unwrap());
        let servers = servers.map(|it| it.octets()).concat();
        let domains = b"\x07example\x03org\0\0\0\0";
        let routers = heard(&[option(RESOLVERS, 60, &servers), option(SEARCH, 60, domains)].concat());
        let expected: [IpAddr; 2] = ["2001:db8::1".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!((routers.dns, routers.search), (expected.to_vec(), vec!["example.org".to_owned()]));
        assert_eq!(heard(&option(RESOLVERS, 0, &servers)).dns, [] as [IpAddr; 0], "over");
    }

    #[test]
    fn hostile_options_are_passed_over() {
        for options in
            [&[][..], &[25], &[25, 0, 0, 0, 0, 0, 0, 0], &[25, 9, 0, 0, 0, 0, 0, 1, 1], &[25, 1, 0, 0]]
        {
            assert_eq!(heard(options).dns, [] as [IpAddr; 0], "{options:?}");
        }
        let short = option(RESOLVERS, 1, &[1; 8]);
        assert_eq!(heard(&short).dns, [] as [IpAddr; 0]);
        let many = option(RESOLVERS, 1, &[0x20; 16 * 100]);
        assert_eq!(heard(&many).dns.len(), MOST);
    }

    #[test]
    fn only_addresses_of_the_interface_that_can_be_used_count() {
        let mut routers = Routers::new(7).unwrap();
        let address = |flags, scope, index: u32| [&[10, 64, flags, scope][..], &index.to_ne_bytes()].concat();
        for other in [address(0x40, 253, 7), address(0, 0, 8), vec![2, 24, 0, 0, 7, 0, 0, 0], vec![10]] {
            routers.take_address(&other);
        }
        assert!(!routers.on_link && !routers.reaches_out);
        routers.take_address(&address(0x80, 253, 7));
        routers.take_address(&address(0, 0, 7));
        assert!(routers.on_link && routers.reaches_out);
    }
}
