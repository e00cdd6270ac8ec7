//! The supervisor's end, which believes nothing that comes.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::message::{FromVm, ToVm};
use super::{Received, SupervisorEnd};

/// How many messages may come at once. Each thread may have the terminal restored, a signal ends kite once, and each report
/// is a file.
const BURST: u64 = 256;
/// How many more may come in a second: reports are a millisecond apart at least.
const RATE: u64 = 2048;

/// What the VM process sends that is no message, or not one that may come then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::sandbox) enum Lie {
    #[error("a message that is too long")]
    TooLong,
    #[error("message {0}, which there is not")]
    Unknown(u8),
    #[error("message {0} of {1} bytes, which it never has")]
    Length(u8, usize),
    #[error("a signal that ends nothing, {0}")]
    Signal(i32),
    #[error("more descriptors than belong to a message")]
    ManyDescriptors,
    #[error("no descriptor where one belongs to a message")]
    NoDescriptor,
    #[error("a descriptor of another kind than belongs to a message")]
    WrongDescriptor,
    #[error("a file that was not named, {0}")]
    UnknownFile(u8),
    #[error("more after it has said how it ends")]
    AfterEnd,
    #[error("a picture of {0}x{1} pixels, which no screen has")]
    Size(u32, u32),
    #[error("an answer to what it was not asked")]
    Unasked,
    #[error("messages without end")]
    Flood,
}

impl Lie {
    /// Of bytes that are no message.
    pub(super) fn unknown(bytes: &[u8]) -> Self {
        Self::Unknown(bytes.first().copied().unwrap_or_default())
    }
}

/// The messages of a VM process.
pub(in crate::sandbox) struct Inbox {
    channel: SupervisorEnd,
    /// Nothing more is received: the VM process has gone, or has lied.
    is_over: bool,
    /// It has said how it ends.
    is_ending: bool,
    /// How many messages have come.
    count: u64,
    start: Instant,
}

impl Inbox {
    /// Of the process at the other end of the channel.
    pub fn new(channel: SupervisorEnd) -> Self {
        Self { channel, is_over: false, is_ending: false, count: 0, start: Instant::now() }
    }

    /// Lets the VM process go on, or says why not. One that has gone gets nothing of this, and is waited for like any other.
    pub fn reply(&self, message: &ToVm) {
        let _ = self.channel.send(message);
    }

    /// The next message, if one has come.
    ///
    /// # Errors
    /// The VM process lies; nothing is received from it any more.
    pub fn next(&mut self) -> Result<Option<FromVm>, Lie> {
        if self.is_over {
            return Ok(None);
        }
        let message = self.receive();
        self.is_over |= message.is_err();
        message
    }

    fn receive(&mut self) -> Result<Option<FromVm>, Lie> {
        let message = match self.channel.receive(false)? {
            Received::Message(message) => message,
            Received::Nothing => return Ok(None),
            Received::End => {
                self.is_over = true;
                return Ok(None);
            }
        };
        // Answers are bounded by what is asked.
        self.count += u64::from(!matches!(message, FromVm::Answer(_)));
        if self.count > BURST.saturating_add(RATE.saturating_mul(self.start.elapsed().as_secs())) {
            return Err(Lie::Flood);
        }
        match message {
            // A thread may be refused a call while the main one ends.
            FromVm::RestoreTerminal => {}
            _ if self.is_ending => return Err(Lie::AfterEnd),
            FromVm::EndBy(_) => self.is_ending = true,
            FromVm::File { .. } | FromVm::Answer(_) => {}
        }
        Ok(Some(message))
    }

    /// What is readable when a message has come; nothing if none can come any more.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_over).then(|| self.channel.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::super::{Answer, VmEnd, pair};
    use super::*;

    fn inbox() -> (Inbox, VmEnd) {
        let (supervisor, vm) = pair().unwrap();
        (Inbox::new(supervisor), vm)
    }

    fn memory() -> OwnedFd {
        memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap()
    }

    fn send(vm: &VmEnd, bytes: &[u8], descriptor: Option<OwnedFd>) {
        vm.socket.send(bytes, descriptor.as_ref().map(AsFd::as_fd)).unwrap();
    }

    #[test]
    fn messages_come_in_their_order_until_the_end() {
        let (mut inbox, vm) = inbox();
        assert!(inbox.next().unwrap().is_none() && inbox.readable().is_some());
        vm.send(&FromVm::File { index: 7, content: memory() }).unwrap();
        vm.send(&FromVm::EndBy(15)).unwrap();
        vm.send(&FromVm::RestoreTerminal).unwrap();
        drop(vm);
        assert!(matches!(inbox.next(), Ok(Some(FromVm::File { index: 7, .. }))));
        assert!(matches!(inbox.next(), Ok(Some(FromVm::EndBy(15)))));
        assert!(matches!(inbox.next(), Ok(Some(FromVm::RestoreTerminal))));
        assert!(inbox.next().unwrap().is_none() && inbox.readable().is_none());
    }

    #[test]
    fn each_lie_ends_the_conversation() {
        let null = || Some(File::open("/dev/null").unwrap().into());
        let pipe = || Some(std::io::pipe().unwrap().0.into());
        let long = [3; 4096];
        let lies: [(&[u8], Option<OwnedFd>, Lie); 19] = [
            (&[0], None, Lie::Unknown(0)),
            (&[7], None, Lie::Unknown(7)),
            (&[0xff, 1, 2], memory().into(), Lie::Unknown(0xff)),
            (&[2], None, Lie::Length(2, 1)),
            (&[3], memory().into(), Lie::Length(3, 1)),
            (&[1, 0], None, Lie::Length(1, 2)),
            (&[2, 15, 0], None, Lie::Length(2, 3)),
            (&long, None, Lie::TooLong),
            (&[2, 9], None, Lie::Signal(9)),
            (&[1], memory().into(), Lie::ManyDescriptors),
            (&[2, 15], null(), Lie::ManyDescriptors),
            (&[3, 0], None, Lie::NoDescriptor),
            (&[3, 0], null(), Lie::WrongDescriptor),
            (&[3, 0], pipe(), Lie::WrongDescriptor),
            (&[4, 1, 0, 1, 0], None, Lie::NoDescriptor),
            (&[4, 1, 0, 1, 0], pipe(), Lie::WrongDescriptor),
            (&[4, 1, 0, 0, 0x10], memory().into(), Lie::Size(1, 4096)),
            (&[4, 1, 0, 1], memory().into(), Lie::Length(4, 4)),
            (&[5, b'x'], memory().into(), Lie::ManyDescriptors),
        ];
        for (bytes, descriptor, lie) in lies {
            let (mut inbox, vm) = inbox();
            send(&vm, bytes, descriptor);
            vm.send(&FromVm::EndBy(15)).unwrap();
            assert_eq!(inbox.next().unwrap_err(), lie);
            // What comes after it is not looked at.
            assert!(inbox.next().unwrap().is_none() && inbox.readable().is_none(), "{lie}");
        }
    }

    #[test]
    fn the_channel_itself_is_no_file() {
        let (mut inbox, vm) = inbox();
        let end = vm.as_fd().try_clone_to_owned().unwrap();
        send(&vm, &[3, 0], Some(end));
        assert_eq!(inbox.next().unwrap_err(), Lie::WrongDescriptor);
    }

    #[test]
    fn a_message_after_the_last_is_a_lie() {
        let answer = FromVm::Answer(Answer::Failed(String::new()));
        for more in [FromVm::EndBy(2), FromVm::File { index: 0, content: memory() }, answer] {
            let (mut inbox, vm) = inbox();
            vm.send(&FromVm::EndBy(15)).unwrap();
            vm.send(&more).unwrap();
            assert!(matches!(inbox.next(), Ok(Some(FromVm::EndBy(15)))));
            assert_eq!(inbox.next().unwrap_err(), Lie::AfterEnd);
        }
    }

    #[test]
    fn messages_without_end_are_a_lie() {
        let (mut inbox, vm) = inbox();
        let mut count = 0;
        let lie = loop {
            vm.send(&FromVm::RestoreTerminal).unwrap();
            match inbox.next() {
                Ok(message) => count += u64::from(message.is_some()),
                Err(lie) => break lie,
            }
            // As slow as this machine may be.
            assert!(count <= BURST + RATE * (1 + inbox.start.elapsed().as_secs()));
        };
        assert!((BURST..).contains(&count) && lie == Lie::Flood, "{count}");
    }

    #[test]
    fn what_is_not_read_waits_in_bounded_memory() {
        let (_inbox, vm) = inbox();
        nix::fcntl::fcntl(vm.as_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let sent = (0..1 << 20).take_while(|_| vm.send(&FromVm::RestoreTerminal).is_ok()).count();
        assert!((1..1 << 16).contains(&sent), "{sent}");
    }
}
