//! One end of a pair of sockets: packets of bounded length, with a descriptor or without (unix(7), cmsg(3)).
#![expect(
    unsafe_code,
    reason = "descriptors that come with a packet, and a signal's handler, have no safe interface"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use super::Lie;

/// The longest packet in bytes.
pub(in crate::sandbox) const LONGEST: usize = 2048;
/// The most descriptors that the kernel lets one packet have (Linux `include/net/scm.h`, SCM_MAX_FD). There is room for all,
/// so that all are closed.
const MOST: usize = 253;

/// One end.
pub(in crate::sandbox) struct Socket(OwnedFd);

/// What is received.
pub(in crate::sandbox) enum Packet {
    /// A packet, and the descriptor that came with it.
    Of(Vec<u8>, Option<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// Nothing any more. An empty packet looks the same, and its sender has nothing more to say either.
    End,
}

impl Socket {
    /// Both ends.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn pair() -> nix::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(one), Self(other)))
    }

    /// Sends one packet, and waits for room. Without a descriptor that is a write(2), which every thread may make.
    ///
    /// # Errors
    /// The peer has gone.
    pub fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let numbers = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        loop {
            let sent = match &numbers {
                None => nix::unistd::write(&self.0, bytes),
                Some(numbers) => {
                    let (data, control) = ([IoSlice::new(bytes)], [ControlMessage::ScmRights(numbers)]);
                    sendmsg::<()>(self.0.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None)
                }
            };
            match sent {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Sends one packet now, to a peer that may be anybody.
    ///
    /// # Errors
    /// There is no room, or the peer has gone.
    pub fn send_now(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let numbers: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let control: Vec<_> = descriptor.iter().map(|_| ControlMessage::ScmRights(&numbers)).collect();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None).map(drop)?)
    }

    /// The next packet; waits for it if that is wanted.
    ///
    /// # Errors
    /// It is too long, or has more than one descriptor.
    pub fn receive(&self, wait: bool) -> Result<Packet, Lie> {
        let mut bytes = [0; LONGEST];
        let mut data = [IoSliceMut::new(&mut bytes)];
        let mut control = cmsg_space!([RawFd; MOST]);
        let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
        flags.set(MsgFlags::MSG_DONTWAIT, !wait);
        let message = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut data, Some(&mut control), flags) {
                // A peer that goes with something unread is reported once, before what it has sent.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Ok(Packet::Nothing),
                Err(_) => return Ok(Packet::End),
                Ok(message) => break message,
            }
        };
        let mut descriptors = Vec::new();
        // Where this process has no room for more descriptors, that is what it fails by.
        for part in message.cmsgs().map_err(|_| Lie::ManyDescriptors)? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel has just made these, and nothing else has them.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        let (length, is_cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        if is_cut {
            return Err(Lie::TooLong);
        }
        let descriptor = descriptors.pop();
        match (length, descriptors.is_empty()) {
            (0, _) => Ok(Packet::End),
            (_, false) => Err(Lie::ManyDescriptors),
            (_, true) => Ok(Packet::Of(bytes[..length].to_vec(), descriptor)),
        }
    }
}

impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends a packet with a call that takes no lock.
pub(super) fn send_in_handler(socket: RawFd, bytes: &[u8]) {
    // SAFETY: reads the bytes. A descriptor that is none is refused.
    unsafe { libc::write(socket, bytes.as_ptr().cast(), bytes.len()) };
}

/// Whether this is memory: only that can be sealed (fcntl(2), F_GET_SEALS). To read it waits for no other process, as to read a
/// pipe would, or a file of a file system that a program serves.
pub(super) fn is_memory(descriptor: &OwnedFd) -> bool {
    fcntl(descriptor, FcntlArg::F_GET_SEALS).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn raw(socket: &Socket, bytes: &[u8], descriptors: &[RawFd]) {
        let control = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &control[..0] } else { &control[..] };
        sendmsg::<()>(socket.0.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None)
            .unwrap();
    }

    #[test]
    fn packets_and_their_descriptors_arrive_whole_in_either_direction() {
        let (one, other) = Socket::pair().unwrap();
        for (from, to) in [(&one, &other), (&other, &one)] {
            let memory = memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap();
            File::from(memory.try_clone().unwrap()).write_all(b"content").unwrap();
            from.send(b"first", Some(memory.as_fd())).unwrap();
            from.send(b"second", None).unwrap();
            let Ok(Packet::Of(bytes, Some(descriptor))) = to.receive(true) else { panic!("no packet") };
            let (mut file, mut text) = (File::from(descriptor), String::new());
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!((&bytes[..], text.as_str()), (&b"first"[..], "content"));
            let Ok(Packet::Of(bytes, None)) = to.receive(false) else { panic!("no second packet") };
            assert_eq!(bytes, b"second");
            assert!(matches!(to.receive(false), Ok(Packet::Nothing)));
        }
        drop(one);
        assert!(matches!(other.receive(true), Ok(Packet::End)));
    }

    #[test]
    fn what_a_peer_has_sent_arrives_though_it_has_gone_with_something_unread() {
        let (one, other) = Socket::pair().unwrap();
        other.send(b"unread", None).unwrap();
        one.send(b"last", None).unwrap();
        drop(one);
        let Ok(Packet::Of(bytes, None)) = other.receive(false) else { panic!("no packet") };
        assert_eq!(bytes, b"last");
        assert!(matches!(other.receive(false), Ok(Packet::End)));
    }

    #[test]
    fn packets_that_are_too_long_or_have_many_descriptors_are_refused() {
        let (from, to) = Socket::pair().unwrap();
        raw(&from, &[0; LONGEST], &[]);
        assert!(matches!(to.receive(false), Ok(Packet::Of(bytes, None)) if bytes.len() == LONGEST));
        raw(&from, &[0; LONGEST + 1], &[]);
        assert!(matches!(to.receive(false), Err(Lie::TooLong)));
        let null = File::open("/dev/null").unwrap();
        for count in [2, 3, MOST] {
            raw(&from, b"x", &vec![null.as_raw_fd(); count]);
            assert!(matches!(to.receive(false), Err(Lie::ManyDescriptors)), "{count}");
        }
        raw(&from, &[], &[null.as_raw_fd()]);
        assert!(matches!(to.receive(false), Ok(Packet::End)));
    }

    #[test]
    fn memory_is_told_from_what_may_block() {
        let memory = memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let (one, other) = Socket::pair().unwrap();
        let others = ["/dev/null", "/proc/self/status", "/"].map(|path| File::open(path).unwrap().into());
        assert!(is_memory(&memory));
        let others = others.into_iter().chain([reader.into(), writer.into(), one.0, other.0]);
        assert!(others.into_iter().all(|descriptor| !is_memory(&descriptor)));
    }
}
