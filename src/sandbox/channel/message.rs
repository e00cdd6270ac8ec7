//! The messages and how they are encoded: a byte that says which, and what belongs to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::socket::LONGEST;
use super::{Lie, socket};
use crate::host::signals;

/// What the VM process asks of its supervisor.
#[derive(Debug)]
pub(in crate::sandbox) enum FromVm {
    /// Restore the terminal, as this process is about to end.
    RestoreTerminal,
    /// End by this signal once this process has ended.
    EndBy(i32),
    /// Write a file.
    File {
        /// Its number among those that were named before the fork.
        index: u8,
        /// Memory that holds the whole of it (memfd_create(2)).
        content: OwnedFd,
    },
}

/// What the supervisor lets the VM process know.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum ToVm {
    /// The namespaces are set up.
    Begin {
        /// Every user of the host is a user there.
        all_users: bool,
    },
    /// The supervisor is locked in.
    Locked,
    /// It is not, and why.
    NotLocked(String),
}

/// [`FromVm::RestoreTerminal`], which is all of that message.
pub(super) const RESTORE_TERMINAL: u8 = 1;
const END_BY: u8 = 2;
const FILE: u8 = 3;

const BEGIN: u8 = 1;
const LOCKED: u8 = 2;
const NOT_LOCKED: u8 = 3;

/// One direction's messages.
pub(in crate::sandbox) trait Message: Sized {
    /// Appends the message's bytes, at most [`LONGEST`].
    fn encode(&self, bytes: &mut Vec<u8>);

    /// The descriptor that goes with it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// The message of these bytes and this descriptor.
    ///
    /// # Errors
    /// There is no such message.
    fn decode(bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<Self, Lie>;
}

impl Message for FromVm {
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::RestoreTerminal => bytes.push(RESTORE_TERMINAL),
            Self::EndBy(signal) => bytes.extend([END_BY, *signal as u8]),
            Self::File { index, .. } => bytes.extend([FILE, *index]),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File { content, .. } => Some(content.as_fd()),
            Self::RestoreTerminal | Self::EndBy(_) => None,
        }
    }

    fn decode(bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<Self, Lie> {
        match (bytes, descriptor) {
            ([RESTORE_TERMINAL], None) => Ok(Self::RestoreTerminal),
            ([END_BY, signal], None) => {
                let signal = i32::from(*signal);
                // To stop or to be killed is nothing that a machine asks for.
                if signals::ends(signal) { Ok(Self::EndBy(signal)) } else { Err(Lie::Signal(signal)) }
            }
            ([FILE, index], Some(content)) => {
                // Whatever else is read may block, or is not the machine's.
                if socket::is_memory(&content) {
                    Ok(Self::File { index: *index, content })
                } else {
                    Err(Lie::WrongDescriptor)
                }
            }
            ([FILE, _], None) => Err(Lie::NoDescriptor),
            ([RESTORE_TERMINAL] | [END_BY, _], Some(_)) => Err(Lie::ManyDescriptors),
            ([tag @ (RESTORE_TERMINAL | END_BY | FILE), ..], _) => Err(Lie::Length(*tag, bytes.len())),
            _ => Err(Lie::unknown(bytes)),
        }
    }
}

impl Message for ToVm {
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Begin { all_users } => bytes.extend([BEGIN, u8::from(*all_users)]),
            Self::Locked => bytes.push(LOCKED),
            Self::NotLocked(why) => {
                let cut = (0..LONGEST).rev().find(|end| why.is_char_boundary(*end)).unwrap_or_default();
                bytes.push(NOT_LOCKED);
                bytes.extend(&why.as_bytes()[..cut]);
            }
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn decode(bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<Self, Lie> {
        if descriptor.is_some() {
            return Err(Lie::ManyDescriptors);
        }
        match bytes {
            [BEGIN, all_users @ (0 | 1)] => Ok(Self::Begin { all_users: *all_users != 0 }),
            [LOCKED] => Ok(Self::Locked),
            [NOT_LOCKED, why @ ..] => Ok(Self::NotLocked(String::from_utf8_lossy(why).into_owned())),
            [tag @ (BEGIN | LOCKED), ..] => Err(Lie::Length(*tag, bytes.len())),
            _ => Err(Lie::unknown(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &impl Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let messages = [
            ToVm::Begin { all_users: false },
            ToVm::Begin { all_users: true },
            ToVm::Locked,
            ToVm::NotLocked("why".to_owned()),
        ];
        for message in messages {
            assert_eq!(ToVm::decode(&encoded(&message), None).unwrap(), message);
        }
        let end = FromVm::decode(&encoded(&FromVm::EndBy(15)), None);
        assert!(matches!(end, Ok(FromVm::EndBy(15))), "{end:?}");
        let restore = FromVm::decode(&encoded(&FromVm::RestoreTerminal), None);
        assert!(matches!(restore, Ok(FromVm::RestoreTerminal)), "{restore:?}");
    }

    #[test]
    fn no_bytes_but_those_of_messages_are_any() {
        let known: Vec<_> = (0..=u8::MAX).filter(|tag| FromVm::decode(&[*tag], None).is_ok()).collect();
        assert_eq!(known, [RESTORE_TERMINAL]);
        let pairs = (0..=u8::MAX).flat_map(|tag| (0..=u8::MAX).map(move |byte| [tag, byte]));
        let known: Vec<_> = pairs.filter(|bytes| FromVm::decode(bytes, None).is_ok()).collect();
        let ending: Vec<u8> = (0..=u8::MAX).filter(|signal| signals::ends((*signal).into())).collect();
        assert!(known.iter().all(|[tag, signal]| *tag == END_BY && ending.contains(signal)), "{known:?}");
        assert_eq!(known.len(), ending.len());
        for tag in 0..=u8::MAX {
            assert!(FromVm::decode(&[tag, 0, 0], None).is_err());
        }
    }
}
