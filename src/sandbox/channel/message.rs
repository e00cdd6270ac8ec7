//! The messages and how they are encoded: a byte that says which, and what belongs to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::screen::Size;

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
    /// What it was asked.
    Answer(Answer),
}

/// What the supervisor asks the VM process for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is on the screen?
    Screenshot,
    /// Pause the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
}

/// What the VM process answers; a command gets it, and believes nothing of it.
#[derive(Debug)]
pub enum Answer {
    /// This is on the screen.
    Picture {
        /// How much there is.
        size: Size,
        /// Memory that has the pixels row by row, 32 bits each.
        content: OwnedFd,
    },
    /// It is done.
    Done,
    /// It cannot, for this reason.
    Failed(String),
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
    /// A command asks this.
    Ask(Question),
}

/// [`FromVm::RestoreTerminal`], which is all of that message.
pub(super) const RESTORE_TERMINAL: u8 = 1;
const END_BY: u8 = 2;
const FILE: u8 = 3;
const PICTURE: u8 = 4;
const FAILED: u8 = 5;
const DONE: u8 = 6;

const BEGIN: u8 = 1;
const LOCKED: u8 = 2;
const NOT_LOCKED: u8 = 3;
const SCREENSHOT: u8 = 4;
const PAUSE: u8 = 5;
const RESUME: u8 = 6;

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
            Self::Answer(Answer::Picture { size, .. }) => {
                bytes.push(PICTURE);
                // A side has 12 bits.
                bytes
                    .extend([size.width, size.height].map(|side| (side as u16).to_le_bytes()).as_flattened());
            }
            Self::Answer(Answer::Done) => bytes.push(DONE),
            Self::Answer(Answer::Failed(why)) => encode_text(FAILED, why, bytes),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File { content, .. } | Self::Answer(Answer::Picture { content, .. }) => {
                Some(content.as_fd())
            }
            Self::RestoreTerminal | Self::EndBy(_) | Self::Answer(Answer::Failed(_) | Answer::Done) => None,
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
            ([PICTURE, a, b, c, d], Some(content)) => {
                let side = |low, high| u32::from(u16::from_le_bytes([low, high]));
                let (width, height) = (side(*a, *b), side(*c, *d));
                let size = Size::new(width, height).ok_or(Lie::Size(width, height))?;
                if socket::is_memory(&content) {
                    Ok(Self::Answer(Answer::Picture { size, content }))
                } else {
                    Err(Lie::WrongDescriptor)
                }
            }
            ([DONE], None) => Ok(Self::Answer(Answer::Done)),
            ([FAILED, why @ ..], None) => Ok(Self::Answer(Answer::Failed(decode_text(why)))),
            ([FILE, _] | [PICTURE, _, _, _, _], None) => Err(Lie::NoDescriptor),
            ([RESTORE_TERMINAL | DONE] | [END_BY, _] | [FAILED, ..], Some(_)) => Err(Lie::ManyDescriptors),
            ([tag @ (RESTORE_TERMINAL | END_BY | FILE | PICTURE | DONE), ..], _) => {
                Err(Lie::Length(*tag, bytes.len()))
            }
            _ => Err(Lie::unknown(bytes)),
        }
    }
}

impl Message for ToVm {
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Begin { all_users } => bytes.extend([BEGIN, u8::from(*all_users)]),
            Self::Locked => bytes.push(LOCKED),
            Self::NotLocked(why) => encode_text(NOT_LOCKED, why, bytes),
            Self::Ask(Question::Screenshot) => bytes.push(SCREENSHOT),
            Self::Ask(Question::Pause) => bytes.push(PAUSE),
            Self::Ask(Question::Resume) => bytes.push(RESUME),
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
            [NOT_LOCKED, why @ ..] => Ok(Self::NotLocked(decode_text(why))),
            [SCREENSHOT] => Ok(Self::Ask(Question::Screenshot)),
            [PAUSE] => Ok(Self::Ask(Question::Pause)),
            [RESUME] => Ok(Self::Ask(Question::Resume)),
            [tag @ (BEGIN | LOCKED | SCREENSHOT | PAUSE | RESUME), ..] => Err(Lie::Length(*tag, bytes.len())),
            _ => Err(Lie::unknown(bytes)),
        }
    }
}

/// Appends a message that is a text: as much of it as there is room for.
fn encode_text(tag: u8, text: &str, bytes: &mut Vec<u8>) {
    let cut = (0..LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    bytes.push(tag);
    bytes.extend(&text.as_bytes()[..cut]);
}

fn decode_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
            ToVm::Ask(Question::Screenshot),
            ToVm::Ask(Question::Pause),
            ToVm::Ask(Question::Resume),
        ];
        for message in messages {
            assert_eq!(ToVm::decode(&encoded(&message), None).unwrap(), message);
        }
        let end = FromVm::decode(&encoded(&FromVm::EndBy(15)), None);
        assert!(matches!(end, Ok(FromVm::EndBy(15))), "{end:?}");
        let restore = FromVm::decode(&encoded(&FromVm::RestoreTerminal), None);
        assert!(matches!(restore, Ok(FromVm::RestoreTerminal)), "{restore:?}");
        let failed = FromVm::decode(&encoded(&FromVm::Answer(Answer::Failed("ä".repeat(2000)))), None);
        assert!(
            matches!(&failed, Ok(FromVm::Answer(Answer::Failed(why))) if why.len() == LONGEST - 2),
            "{failed:?}"
        );
        let memory = || nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let size = Size { width: 4095, height: 1 };
        let picture = FromVm::Answer(Answer::Picture { size, content: memory() });
        let picture = FromVm::decode(&encoded(&picture), Some(memory()));
        let is_same =
            |it: &FromVm| matches!(it, FromVm::Answer(Answer::Picture { size: it, .. }) if *it == size);
        assert!(picture.as_ref().is_ok_and(is_same), "{picture:?}");
    }

    #[test]
    fn no_bytes_but_those_of_messages_are_any() {
        let known: Vec<_> = (0..=u8::MAX).filter(|tag| FromVm::decode(&[*tag], None).is_ok()).collect();
        assert_eq!(known, [RESTORE_TERMINAL, FAILED, DONE]);
        let pairs = (0..=u8::MAX).flat_map(|tag| (0..=u8::MAX).map(move |byte| [tag, byte]));
        let pairs = pairs.filter(|[tag, _]| *tag != FAILED);
        let known: Vec<_> = pairs.filter(|bytes| FromVm::decode(bytes, None).is_ok()).collect();
        let ending: Vec<u8> = (0..=u8::MAX).filter(|signal| signals::ends((*signal).into())).collect();
        assert!(known.iter().all(|[tag, signal]| *tag == END_BY && ending.contains(signal)), "{known:?}");
        assert_eq!(known.len(), ending.len());
        for tag in 0..=u8::MAX {
            assert!(FromVm::decode(&[tag, 0, 0], None).is_err() || tag == FAILED);
        }
    }
}
