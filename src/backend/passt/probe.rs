//! Whether passt is there: it is asked for addresses of its network, and answers once it serves.
//!
//! Its `--pid` would say the same, but where passt may write depends on its version and on who starts it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Who asks: an address of no guest, so that a guest passes over answers that come late.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
/// The longest answer that is read.
const LONGEST: usize = 65535;

/// What came of asking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It serves.
    Ready,
    /// It has gone.
    Gone,
    /// It has said nothing for so long.
    Late,
}

/// Asks at the other end of `socket`, in the frames of [`devices::virtio::net::Stream`], and waits for an answer.
///
/// # Errors
/// The socket is of no use.
pub(super) fn ask(mut socket: &UnixStream, limit: Duration) -> io::Result<Answer> {
    socket.set_read_timeout(Some(limit))?;
    let questions =
        [arp(), solicitation()].map(|frame| [&(frame.len() as u32).to_be_bytes()[..], &frame].concat());
    let answered = socket.write_all(&questions.concat()).and_then(|()| {
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        // What follows is the guest's to get, from the beginning of a frame.
        let mut answer = vec![0; (u32::from_be_bytes(length) as usize).min(LONGEST)];
        socket.read_exact(&mut answer)
    });
    match answered {
        Ok(()) => Ok(Answer::Ready),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(Answer::Late),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Ok(Answer::Gone)
            }
            _ => Err(error),
        },
    }
}

/// Who has an address of the link, in IPv4 (RFC 826, RFC 5227 §1.1)?
fn arp() -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    [&BROADCAST[..], &MAC, &head, &MAC, &[0; 4], &[0; 6], &[169, 254, 1, 2]].concat()
}

/// The same in IPv6 (RFC 4861 §4.3), where there is no IPv4.
fn solicitation() -> Vec<u8> {
    let address = |end: u8| [&[0xfe, 0x80][..], &[0; 13], &[end]].concat();
    let (from, target) = (address(0xfe), address(0xfd));
    let to = [&[0xff, 2][..], &[0; 9], &[1, 0xff, 0, 0, 0xfd]].concat();
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &[1, 1], &MAC].concat();
    let length = message.len() as u8;
    let sum = [&from[..], &to, &[0, 0, 0, length, 0, 0, 0, 58], &message].concat();
    let sum: u32 = sum.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let multicast = [0x33, 0x33, 0xff, 0, 0, 0xfd];
    [&multicast[..], &MAC, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, 255], &from, &to, &message].concat()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What comes of asking a peer that does this once it was asked, and what the peer leaves to be read.
    fn asked(peer: impl FnOnce(UnixStream) + Send + 'static) -> (Answer, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            (&theirs).read_exact(&mut [0; 4 + 42 + 4 + 86]).unwrap();
            peer(theirs);
        });
        let answer = ask(&ours, Duration::from_secs(60)).unwrap();
        peer.join().unwrap();
        (answer, ours)
    }

    #[test]
    fn an_answer_is_read_to_its_end_and_no_farther() {
        let (answer, mut rest) = asked(|mut peer| peer.write_all(b"\0\0\0\x03abc\0\0\0\x01d").unwrap());
        assert_eq!(answer, Answer::Ready);
        let mut next = Vec::new();
        rest.read_to_end(&mut next).unwrap();
        assert_eq!(next, b"\0\0\0\x01d");
    }

    #[test]
    fn a_peer_that_goes_or_says_nothing_is_known() {
        assert_eq!(asked(drop).0, Answer::Gone);
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(ask(&ours, Duration::from_millis(1)).unwrap(), Answer::Late);
        drop(theirs);
        assert_eq!(ask(&ours, Duration::from_secs(60)).unwrap(), Answer::Gone);
    }
}
