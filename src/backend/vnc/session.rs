//! One viewer's talk with the server (RFB 3.3, 3.7 and 3.8: RFC 6143 §7.1 to §7.3), bytes in and bytes out: the handshake, and
//! then the messages of [`View`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::screen::{InputSink, Screen};
use rustix::rand::{GetRandomFlags, getrandom};

use super::password::{CHALLENGE, Password};
use super::view::{View, Wait};

/// What the server says first.
const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// The minor version without a list of security types, and the one with reasons.
const WITHOUT_LIST: u8 = 3;
const WITH_REASONS: u8 = 8;
/// The security types: none, and VNC authentication.
const NONE: u8 = 1;
const VNC: u8 = 2;
/// How long a viewer with the wrong password waits for its answer.
pub const REFUSAL: Duration = Duration::from_secs(2);

/// What viewers look at, and what they need to.
pub struct Display {
    /// The screen.
    pub screen: Arc<Screen>,
    /// Where keys and the pointer go.
    pub input: Arc<dyn InputSink>,
    /// What viewers have to know, if anything.
    pub password: Option<Password>,
    /// How the screen is called.
    pub name: String,
}

/// How far it has come.
enum Stage {
    Version,
    Security {
        minor: u8,
    },
    Answer {
        minor: u8,
        challenge: [u8; CHALLENGE],
    },
    /// The answer was wrong, which is said later.
    Refused {
        minor: u8,
        at: Instant,
    },
    Init,
    Viewing(Box<View>),
    Over,
}

/// A viewer's session.
pub struct Session {
    display: Arc<Display>,
    stage: Stage,
    /// What of a message has come.
    message: Vec<u8>,
    /// So many bytes that come are of no interest.
    skip: u64,
}

impl Session {
    /// A session; `out` gets how it begins.
    pub fn new(display: Arc<Display>, out: &mut Vec<u8>) -> Self {
        out.extend(VERSION);
        Self { display, stage: Stage::Version, message: Vec::new(), skip: 0 }
    }

    /// Whether the viewer has got in.
    pub fn is_admitted(&self) -> bool {
        matches!(self.stage, Stage::Viewing(_))
    }

    /// Whether the server has said its last word.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Takes what the viewer says, and appends what is answered at once to `out`.
    ///
    /// # Errors
    /// That is no viewer, or not one of kite's: what is wrong.
    pub fn receive(&mut self, mut bytes: &[u8], now: Instant, out: &mut Vec<u8>) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            bytes = &bytes[skipped as usize..];
            let Some(len) = self.message_len()? else { return Ok(()) };
            let (part, rest) = bytes.split_at(bytes.len().min(len - self.message.len()));
            self.message.extend(part);
            bytes = rest;
            // The length may be known better now.
            if self.message_len()? == Some(self.message.len()) {
                let message = std::mem::take(&mut self.message);
                self.take(&message, now, out)?;
            }
        }
        Ok(())
    }

    /// How long the message is that begins so, or the part of it by which that is known; none if nothing is listened to.
    fn message_len(&self) -> Result<Option<usize>, &'static str> {
        Ok(Some(match &self.stage {
            Stage::Version => VERSION.len(),
            Stage::Security { .. } | Stage::Init => 1,
            Stage::Answer { .. } => CHALLENGE,
            Stage::Viewing(view) => view.message_len(&self.message)?,
            Stage::Refused { .. } | Stage::Over => return Ok(None),
        }))
    }

    fn take(&mut self, message: &[u8], now: Instant, out: &mut Vec<u8>) -> Result<(), &'static str> {
        match &mut self.stage {
            Stage::Version => self.choose_version(message, out),
            Stage::Security { minor } => {
                let minor = *minor;
                if message != [self.security_type()] {
                    return Err("it chose a security type that it was not offered");
                }
                self.authenticate(minor, out)
            }
            Stage::Answer { minor, challenge } => {
                let answer = message.try_into().map_err(|_| "its answer has another length")?;
                let is_right =
                    self.display.password.as_ref().is_some_and(|it| it.is_proved(challenge, answer));
                self.stage = if is_right {
                    out.extend([0; 4]);
                    Stage::Init
                } else {
                    log::debug!(target: "vnc", "a viewer has the wrong password");
                    Stage::Refused { minor: *minor, at: now + REFUSAL }
                };
                Ok(())
            }
            // Whether it shares the screen is not for the viewer to say: it always does.
            Stage::Init => self.admit(now, out),
            Stage::Viewing(view) => {
                self.skip = view.take(message)?;
                Ok(())
            }
            Stage::Refused { .. } | Stage::Over => Ok(()),
        }
    }

    fn security_type(&self) -> u8 {
        if self.display.password.is_some() { VNC } else { NONE }
    }

    fn choose_version(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u16>().ok();
        let versions = match message {
            [b'R', b'F', b'B', b' ', a, b, c, b'.', d, e, f, b'\n'] => {
                number(&[*a, *b, *c]).zip(number(&[*d, *e, *f]))
            }
            _ => None,
        };
        let minor = match versions {
            Some((3, 8..) | (4.., _)) => WITH_REASONS,
            Some((3, 7)) => 7,
            Some((3, _)) => WITHOUT_LIST,
            _ => return Err("it is no viewer: it doesn't say which version of RFB it speaks"),
        };
        let kind = self.security_type();
        if minor == WITHOUT_LIST {
            out.extend([0, 0, 0, kind]);
            return self.authenticate(minor, out);
        }
        out.extend([1, kind]);
        self.stage = Stage::Security { minor };
        Ok(())
    }

    fn authenticate(&mut self, minor: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
        if self.display.password.is_none() {
            if minor == WITH_REASONS {
                out.extend([0; 4]);
            }
            self.stage = Stage::Init;
            return Ok(());
        }
        let mut challenge = [0; CHALLENGE];
        if getrandom(&mut challenge, GetRandomFlags::empty()) != Ok(CHALLENGE) {
            return Err("the host has no random numbers to ask it with");
        }
        out.extend(challenge);
        self.stage = Stage::Answer { minor, challenge };
        Ok(())
    }

    fn admit(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let viewer = self.display.screen.attach().map_err(|_| "the host has no room for another viewer")?;
        let view = View::new(viewer, self.display.input.clone(), now);
        view.introduce(&self.display.name, out);
        self.stage = Stage::Viewing(Box::new(view));
        Ok(())
    }

    /// Appends what goes to the viewer now, at most a rectangle. To be called when all that was appended before has gone.
    pub fn produce(&mut self, now: Instant, out: &mut Vec<u8>) {
        match &mut self.stage {
            Stage::Viewing(view) => view.produce(now, out),
            Stage::Refused { minor, at } if *at <= now => {
                const REASON: &[u8] = b"the password is wrong";
                out.extend([0, 0, 0, 1]);
                if *minor == WITH_REASONS {
                    out.extend((REASON.len() as u32).to_be_bytes());
                    out.extend(REASON);
                }
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }

    /// What [`Self::produce`] has to be called for again.
    pub fn wait(&self) -> Wait<'_> {
        match &self.stage {
            Stage::Viewing(view) => view.wait(),
            Stage::Refused { at, .. } => Wait::Until(*at),
            _ => Wait::Never,
        }
    }

    /// The screen has changed, as [`Wait::Change`] waits for.
    pub fn notice_change(&mut self) {
        if let Stage::Viewing(view) = &mut self.stage {
            view.notice_change();
        }
    }
}
