//! UDP between the ports of DHCP on an interface that has no address yet (packet(7), RFC 791, RFC 768).
#![expect(unsafe_code, reason = "a packet socket's address has no safe interface")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const CLIENT: u16 = 68;
const SERVER: u16 = 67;
/// The longest packet that is looked at.
const LONGEST: usize = 1 << 16;

/// A socket that sees all of IPv4 on one interface.
pub struct Packets {
    socket: OwnedFd,
    mac: [u8; 6],
    room: Vec<u8>,
}

impl Packets {
    /// On the interface `index`, which has the address `mac`.
    ///
    /// # Errors
    /// The kernel has no such sockets.
    pub fn open(index: u32, mac: [u8; 6]) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol it hears nothing until it has its interface.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        // SAFETY: an address is integers, all of which may be zero.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = index as i32;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is as long as it is said to be and outlives the call.
        match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => Ok(Self { socket, mac, room: vec![0; LONGEST] }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends a client's message to all servers.
    ///
    /// # Errors
    /// The interface does not take it.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), &frame(self.mac, message), MsgFlags::empty())?;
        Ok(())
    }

    /// The message of a server's in the next packet, if there is one: a network that is flooded has packets without end, and
    /// who waits for a message looks at the time between two.
    pub fn receive(&mut self) -> Option<&[u8]> {
        let count = recv(self.socket.as_raw_fd(), &mut self.room, MsgFlags::empty()).ok()?;
        message(&self.room[..count])
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A client's message in all its headers, to everybody.
fn frame(mac: [u8; 6], message: &[u8]) -> Vec<u8> {
    let udp_length = ((UDP + message.len()) as u16).to_be_bytes();
    let length = ((IP + UDP + message.len()) as u16).to_be_bytes();
    let mut ip = [0; IP];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&length);
    (ip[8], ip[9]) = (64, libc::IPPROTO_UDP as u8);
    ip[16..20].fill(0xff);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut udp = [&CLIENT.to_be_bytes()[..], &SERVER.to_be_bytes(), &udp_length, &[0; 2], message].concat();
    let pseudo = [&ip[12..], &[0, ip[9]], &udp_length, &udp].concat();
    udp[6..8].copy_from_slice(&match checksum(&pseudo) {
        // No sum at all would be that (RFC 768).
        [0, 0] => [0xff; 2],
        sum => sum,
    });
    [&[0xff; 6][..], &mac, &(libc::ETH_P_IP as u16).to_be_bytes(), &ip, &udp].concat()
}

/// A server's message in a frame. Sums are not looked at: a host's own kernel leaves them to the hardware.
fn message(frame: &[u8]) -> Option<&[u8]> {
    let (ethernet, ip) = frame.split_at_checked(ETHERNET)?;
    let number = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let head = usize::from(ip.first()? & 0xf) * 4;
    let is_ip = number(ethernet, 12)? == libc::ETH_P_IP as u16 && ip[0] >> 4 == 4 && head >= IP;
    // A fragment has an offset, or others behind it.
    let whole = number(ip, 6)? & 0x3fff == 0;
    if !is_ip || !whole || *ip.get(9)? != libc::IPPROTO_UDP as u8 {
        return None;
    }
    let udp = ip.get(head..number(ip, 2)?.into())?;
    let ports = number(udp, 0)? == SERVER && number(udp, 2)? == CLIENT;
    ports.then(|| udp.get(UDP..number(udp, 4).unwrap_or(0).into()))?
}

/// The sum of the Internet's protocols (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::socketpair;

    use super::*;

    /// A server's frame: a client's with its ports the other way round.
    fn reply(message: &[u8]) -> Vec<u8> {
        let mut frame = frame([2; 6], message);
        frame[34..38].copy_from_slice(&[0, 67, 0, 68]);
        frame
    }

    #[test]
    fn sums_are_those_of_the_standard() {
        // RFC 1071 §3.
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d]);
        let frame = frame([2; 6], b"odd");
        assert_eq!(checksum(&frame[ETHERNET..ETHERNET + IP]), [0; 2]);
        let udp = &frame[ETHERNET + IP..];
        assert_eq!(checksum(&[&frame[26..34], &[0, 17, 0, 11], udp].concat()), [0; 2]);
    }

    #[test]
    fn a_flood_of_others_does_not_hold_up_who_waits_for_a_server() {
        let kind = SockType::SeqPacket;
        let (socket, network) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_NONBLOCK).expect("it can be made");
        let mut packets = Packets { socket, mac: [2; 6], room: vec![0; LONGEST] };
        for packet in [&b"other"[..], b"other", &reply(b"hello")] {
            send(network.as_raw_fd(), packet, MsgFlags::empty()).expect("there is room");
        }
        let taken = [(); 4].map(|()| packets.receive().map(<[u8]>::to_vec));
        assert_eq!(taken, [None, None, Some(b"hello".to_vec()), None]);
    }

    #[test]
    fn only_a_servers_whole_message_is_taken() {
        let good = reply(b"hello");
        assert_eq!(message(&good), Some(&b"hello"[..]));
        assert_eq!(message(&[&good[..], b"padding"].concat()), Some(&b"hello"[..]));
        for end in 0..good.len() {
            assert_eq!(message(&good[..end]), None, "cut at {end}");
        }
        for (at, value) in [
            (12, 9),
            (14, 0x65),
            (14, 0x44),
            (14, 0x4f),
            (17, 255),
            (20, 0x20),
            (21, 1),
            (23, 6),
            (35, 68),
            (39, 7),
        ] {
            let mut other = good.clone();
            other[at] = value;
            assert_eq!(message(&other), None, "{value} at {at}");
        }
    }
}
