//! WebSocket (RFC 6455), the server's side: what a browser wraps the protocol in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// What a key is joined with before it is hashed (§1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The most bytes of a message's frame; no viewer has that much to say at once.
const FRAME_MAX: u64 = 16 << 20;
/// The most bytes of a control frame (§5.5).
const CONTROL_MAX: usize = 125;
/// The bit of a frame that is its message's last, and of one that is masked.
const TOP: u8 = 0x80;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a server answers to a key, to prove that it speaks WebSocket.
pub fn accept(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Makes what `out` has from `start` on a frame, unless there is nothing.
pub fn wrap(start: usize, out: &mut Vec<u8>) {
    if start < out.len() {
        let head = head(BINARY, out.len() - start);
        out.splice(start..start, head);
    }
}

/// The head of a frame with so many bytes.
fn head(kind: u8, len: usize) -> Vec<u8> {
    let mut head = vec![TOP | kind];
    match len {
        ..=125 => head.push(len as u8),
        126..=0xffff => {
            head.push(126);
            head.extend((len as u16).to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend((len as u64).to_be_bytes());
        }
    }
    head
}

/// What has come beside data.
#[derive(Debug, PartialEq, Eq)]
pub enum Control {
    /// The browser wants to know whether the server is there: the frame that says so.
    Ping(Vec<u8>),
    /// The browser ends the connection.
    Close,
}

/// Takes a browser's frames apart, in whatever pieces they come.
#[derive(Default)]
pub struct Unwrapper {
    /// What of a frame's head has come.
    head: Vec<u8>,
    /// The frame whose content comes.
    frame: Option<Frame>,
    /// A message has begun, and goes on in another frame.
    is_open: bool,
}

struct Frame {
    kind: u8,
    remaining: u64,
    mask: [u8; 4],
    /// The mask's byte for the next one of the content.
    at: usize,
    /// A control frame's content.
    control: Vec<u8>,
}

impl Unwrapper {
    /// Takes `bytes`, appends data to `data`, and hands the rest to `control`.
    ///
    /// # Errors
    /// The frames are not as a browser sends them.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        data: &mut Vec<u8>,
        control: &mut dyn FnMut(Control),
    ) -> Result<(), &'static str> {
        loop {
            if let Some(frame) = &mut self.frame {
                let len = frame.remaining.min(bytes.len() as u64) as usize;
                let (now, later) = bytes.split_at(len);
                bytes = later;
                let into = if frame.kind & CLOSE == 0 { &mut *data } else { &mut frame.control };
                for byte in now {
                    into.push(byte ^ frame.mask[frame.at]);
                    frame.at = (frame.at + 1) % 4;
                }
                frame.remaining -= len as u64;
                if frame.remaining > 0 {
                    return Ok(());
                }
                match self.frame.take().map(|it| (it.kind, it.control)) {
                    Some((PING, content)) => {
                        control(Control::Ping([head(PONG, content.len()), content].concat()));
                    }
                    Some((CLOSE, _)) => control(Control::Close),
                    _ => {}
                }
            }
            let Some((byte, later)) = bytes.split_first() else { return Ok(()) };
            bytes = later;
            self.head.push(*byte);
            self.frame = self.begin()?;
        }
    }

    /// The frame whose head has come, if it is whole.
    fn begin(&mut self) -> Result<Option<Frame>, &'static str> {
        let (&[first, second], rest) = match self.head.split_first_chunk() {
            Some(it) => it,
            None => return Ok(None),
        };
        let (is_last, kind) = (first & TOP != 0, first & 0xf);
        if first & 0x70 != 0 || second & TOP == 0 {
            return Err("a WebSocket frame has an extension, or no mask");
        }
        let wide = match second & !TOP {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if rest.len() < wide + 4 {
            return Ok(None);
        }
        let len = match wide {
            0 => u64::from(second & !TOP),
            _ => rest[..wide].iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
        };
        match kind {
            CONTINUATION if self.is_open => self.is_open = !is_last,
            BINARY if !self.is_open => self.is_open = !is_last,
            CLOSE | PING | PONG if is_last && len <= CONTROL_MAX as u64 => {}
            _ => return Err("a WebSocket frame is of no kind that belongs there"),
        }
        if len > FRAME_MAX {
            return Err("a WebSocket frame is too long");
        }
        let mask = [rest[wide], rest[wide + 1], rest[wide + 2], rest[wide + 3]];
        self.head.clear();
        Ok(Some(Frame { kind, remaining: len, mask, at: 0, control: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a browser sends it.
    fn masked(first: u8, content: &[u8]) -> Vec<u8> {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        let mut head = head(0, content.len());
        head[0] = first;
        head[1] |= TOP;
        let content = content.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        [&head[..], &MASK, &content.collect::<Vec<_>>()].concat()
    }

    /// What comes of `bytes` in pieces of `step`.
    fn taken(bytes: &[u8], step: usize) -> Result<(Vec<u8>, Vec<Control>), &'static str> {
        let (mut unwrapper, mut data, mut controls) = (Unwrapper::default(), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            unwrapper.take(piece, &mut data, &mut |control| controls.push(control))?;
        }
        Ok((data, controls))
    }

    #[test]
    fn a_key_is_answered_as_the_specification_shows() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_are_taken_apart_in_whatever_pieces_they_come() {
        let long = vec![7; 70_000];
        let bytes = [
            masked(0x82, b"one"),
            masked(0x02, b"two"),
            masked(0x89, b"there?"),
            masked(0x00, b""),
            masked(0x80, &[3; 300]),
            masked(0x8a, b"pong"),
            masked(0x82, &long),
            masked(0x88, &[3, 232]),
        ]
        .concat();
        for step in [1, 2, 7, 4096, bytes.len()] {
            let (data, controls) = taken(&bytes, step).unwrap();
            assert!(data == [&b"onetwo"[..], &[3; 300], &long].concat(), "in pieces of {step}");
            assert_eq!(controls, [Control::Ping(b"\x8a\x06there?".to_vec()), Control::Close]);
        }
    }

    #[test]
    fn frames_that_no_browser_sends_are_refused() {
        let mut bare = b"no mask".to_vec();
        wrap(0, &mut bare);
        let long = |len: u64| [&[0x82, 0xff][..], &len.to_be_bytes(), &[0; 4]].concat();
        let wrong = [
            bare,
            long(1 << 63),
            long(FRAME_MAX + 1),
            masked(0xc2, b"extension"),
            masked(0x81, b"text"),
            masked(0x83, b"kind"),
            masked(0x80, b"nothing to continue"),
            masked(0x09, b"fragmented ping"),
            masked(0x89, &[0; 126]),
            [masked(0x02, b"open"), masked(0x82, b"another")].concat(),
        ];
        for bytes in wrong {
            assert!(taken(&bytes, bytes.len()).is_err(), "{:x?}", &bytes[..bytes.len().min(16)]);
            assert!(taken(&bytes, 1).is_err());
        }
        assert_eq!(taken(&long(FRAME_MAX), 3), Ok((vec![], vec![])));
    }

    #[test]
    fn what_is_sent_has_the_shortest_head() {
        let head = |len| {
            let mut out = vec![1; 3 + len];
            wrap(3, &mut out);
            assert_eq!((&out[..3], &out[out.len() - len..]), (&[1; 3][..], &vec![1; len][..]));
            out[3..out.len() - len].to_vec()
        };
        assert!(head(0).is_empty());
        assert_eq!(head(125), [0x82, 125]);
        assert_eq!(head(126), [0x82, 126, 0, 126]);
        assert_eq!(head(0x1_0000), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
