//! The channel between the supervisor and the VM process: typed messages, of which some carry a descriptor (unix(7)).
//!
//! It is a pair of `SOCK_SEQPACKET` sockets. One call sends one whole message, so threads and a signal's handler send
//! without a lock and never into another message, which a stream would need framing and a lock for; a message is read whole
//! or not at all, and the end is seen when the peer has gone. The kernel bounds the queue by the socket's buffer.
//!
//! The supervisor believes nothing of what comes ([`Inbox`]): a guest may have taken over the VM process. A message that
//! makes no sense ends the conversation, and with it the machine. No message has a path: files go by their number among
//! those that were named before the fork.

mod inbox;
mod message;
mod socket;

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(super) use inbox::{Inbox, Lie};
use message::Message;
pub use message::{Answer, Question};
pub(super) use message::{FromVm, ToVm};
#[cfg(test)]
pub(super) use socket::LONGEST;
pub(super) use socket::{Packet, Socket};

/// One end of the channel, which sends one kind of message and receives another.
pub(super) struct Channel<Out, In> {
    socket: Socket,
    messages: PhantomData<(Out, In)>,
}

/// The supervisor's end.
pub(super) type SupervisorEnd = Channel<ToVm, FromVm>;
/// The VM process's end.
pub(super) type VmEnd = Channel<FromVm, ToVm>;

/// Makes both ends.
///
/// # Errors
/// The host has no descriptor left.
pub(super) fn pair() -> anyhow::Result<(SupervisorEnd, VmEnd)> {
    let (supervisor, vm) = Socket::pair().context("cannot make a pair of sockets")?;
    let messages = PhantomData;
    Ok((Channel { socket: supervisor, messages }, Channel { socket: vm, messages: PhantomData }))
}

/// What can be received.
pub(super) enum Received<In> {
    /// This message.
    Message(In),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

impl<Out: Message, In: Message> Channel<Out, In> {
    /// Sends a message, and waits for room.
    ///
    /// # Errors
    /// The peer has gone.
    pub fn send(&self, message: &Out) -> io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.socket.send(&bytes, message.descriptor())
    }

    /// The next message; waits for it if that is wanted.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn receive(&self, wait: bool) -> Result<Received<In>, Lie> {
        Ok(match self.socket.receive(wait)? {
            Packet::Nothing => Received::Nothing,
            Packet::End => Received::End,
            Packet::Of(bytes, descriptor) => Received::Message(In::decode(&bytes, descriptor)?),
        })
    }
}

impl<Out, In> AsFd for Channel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// This process's end, if it is the VM process. It is one a process, as signals' handlers use it.
static VM_END: OnceLock<VmEnd> = OnceLock::new();
/// Its descriptor, for a signal's handler.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// Makes this process the VM process.
pub(super) fn connect(end: VmEnd) {
    let number: RawFd = end.as_fd().as_raw_fd();
    DESCRIPTOR.store(number, Ordering::Relaxed);
    // A process forks once.
    let _ = VM_END.set(end);
}

/// Sends a message to the supervisor; nothing if there is none.
pub(super) fn send(message: &FromVm) -> Option<io::Result<()>> {
    VM_END.get().map(|end| end.send(message))
}

/// Has the supervisor restore the terminal, as this process is about to end. It makes one system call and takes no lock, for
/// a signal's handler; where there is no supervisor, the descriptor is none.
pub(super) fn restore_terminal_in_handler() {
    socket::send_in_handler(DESCRIPTOR.load(Ordering::Relaxed), &[message::RESTORE_TERMINAL]);
}

/// How long the kernel may take to end this process after the supervisor has gone: more than a loaded host ever takes.
const MOMENT: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(30) };
const GONE: &str = "the supervisor has gone";

impl VmEnd {
    /// Whether the supervisor has gone, whatever it has sent before.
    pub fn is_alone(&self) -> bool {
        let mut socket = [PollFd::new(self.as_fd(), PollFlags::empty())];
        poll(&mut socket, PollTimeout::ZERO).is_ok()
            && socket[0].revents().is_some_and(|it| it.contains(PollFlags::POLLHUP))
    }

    /// Waits until this process's namespaces are set up; answers whether every user of the host is a user there.
    ///
    /// # Errors
    /// The supervisor has gone.
    pub fn wait_to_begin(&self) -> anyhow::Result<bool> {
        match self.wait()? {
            ToVm::Begin { all_users } => Ok(all_users),
            other => bail!("the supervisor sends {other:?} before the machine may begin"),
        }
    }

    /// Waits until the supervisor is locked in.
    ///
    /// # Errors
    /// It is not, and why.
    pub fn wait_until_locked(&self) -> anyhow::Result<()> {
        match self.wait()? {
            ToVm::Locked => Ok(()),
            ToVm::NotLocked(why) => bail!(why),
            // It is asked nothing before it may begin.
            other => bail!("the supervisor sends {other:?} instead"),
        }
    }

    fn wait(&self) -> anyhow::Result<ToVm> {
        match self.receive(true)? {
            Received::Message(message) => Ok(message),
            Received::Nothing | Received::End => {
                // The kernel ends this process then, too, a moment later. What it would say meanwhile is about nothing.
                std::thread::sleep(MOMENT);
                bail!(GONE)
            }
        }
    }
}

/// The VM process's end, by which it is asked what commands wish.
#[derive(Clone, Copy)]
pub struct Questions(&'static VmEnd);

impl Questions {
    /// Those of this process, if it is the VM process.
    pub(super) fn of_this_process() -> Option<Self> {
        VM_END.get().map(Self)
    }

    /// Readable when there is a question.
    pub fn readable(&self) -> BorrowedFd<'static> {
        self.0.as_fd()
    }

    /// The next question, if there is one. The supervisor is believed, and without it this process ends.
    pub fn next(&self) -> Option<Question> {
        match self.0.receive(false) {
            Ok(Received::Message(ToVm::Ask(question))) => Some(question),
            _ => None,
        }
    }

    /// Answers it. A supervisor that has gone needs no answer.
    pub fn answer(&self, answer: Answer) {
        let _ = self.0.send(&FromVm::Answer(answer));
    }
}

/// Waits until the supervisor, if there is one, is locked in.
///
/// # Errors
/// It is not, and why.
pub(super) fn wait_until_locked() -> anyhow::Result<()> {
    VM_END.get().map_or(Ok(()), VmEnd::wait_until_locked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_goes_on_when_the_supervisor_is_locked_in_or_says_why_it_is_not() {
        let answer = |message: Option<ToVm>| {
            let (supervisor, vm) = pair().unwrap();
            message.into_iter().for_each(|message| supervisor.send(&message).unwrap());
            drop(supervisor);
            vm.wait_until_locked().map_err(|error| error.to_string())
        };
        assert_eq!(answer(Some(ToVm::Locked)), Ok(()));
        assert_eq!(answer(Some(ToVm::NotLocked("no layer".to_owned()))), Err("no layer".to_owned()));
        assert!(answer(Some(ToVm::Begin { all_users: true })).unwrap_err().ends_with("instead"));
        assert_eq!(answer(None), Err(GONE.to_owned()));
    }

    #[test]
    fn a_supervisor_that_has_gone_is_noticed_whatever_it_has_sent() {
        let (supervisor, vm) = pair().unwrap();
        assert!(!vm.is_alone());
        supervisor.send(&ToVm::Begin { all_users: false }).unwrap();
        assert!(!vm.is_alone());
        drop(supervisor);
        assert!(vm.is_alone());
        assert_eq!(vm.wait_to_begin().ok(), Some(false));
    }

    #[test]
    fn a_long_reason_arrives_in_part() {
        let (supervisor, vm) = pair().unwrap();
        supervisor.send(&ToVm::NotLocked("ä".repeat(1 << 20))).unwrap();
        let why = vm.wait_until_locked().unwrap_err().to_string();
        assert!(why.len() > 1000 && why.chars().all(|char| char == 'ä'));
    }

    #[test]
    fn a_message_to_a_peer_that_has_gone_fails() {
        let (supervisor, vm) = pair().unwrap();
        drop(supervisor);
        assert_eq!(vm.send(&FromVm::EndBy(15)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
