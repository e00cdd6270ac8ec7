//! The control messages of a console with several ports (virtio 1.2 §5.3.6.2).

use serde::{Deserialize, Serialize};

use super::port::Port;

/// The driver is up. From the driver.
pub const DEVICE_READY: u16 = 0;
/// There is a port.
pub const PORT_ADD: u16 = 1;
/// The port can be used. From the driver.
pub const PORT_READY: u16 = 3;
/// The port is a console.
pub const CONSOLE_PORT: u16 = 4;
/// The console's terminal has this size.
pub const RESIZE: u16 = 5;
/// The port is open at the other end, or it is not. Both ways.
pub const PORT_OPEN: u16 = 6;
/// The port's name.
pub const PORT_NAME: u16 = 7;

/// A message without what may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The port's number.
    pub id: u32,
    /// What it is about.
    pub event: u16,
    /// 0 or 1.
    pub value: u16,
}

impl Message {
    /// The length in bytes.
    pub const LEN: usize = 8;

    /// Reads a message as the driver writes it.
    pub fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            id: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// The message as it is sent.
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = self.id.to_le_bytes().to_vec();
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes
    }
}

/// The messages that the driver has yet to get about one port: a bit each, so that they are bounded however long the driver
/// has no room for them. The lowest comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Notices(u8);

impl Notices {
    /// The port exists.
    pub const ADD: Self = Self(1);
    /// It is a console.
    pub const CONSOLE: Self = Self(2);
    /// It has a name.
    pub const NAME: Self = Self(4);
    /// The terminal has a size.
    pub const SIZE: Self = Self(8);
    /// The host's end has closed.
    pub const CLOSED: Self = Self(16);
    /// The host's end is open.
    pub const OPENED: Self = Self(32);

    /// Whether each bit is a message.
    pub fn is_valid(self) -> bool {
        self.0 < 2 * Self::OPENED.0
    }

    /// Adds what `other` has.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Takes `other` away; answers whether it was there.
    pub fn remove(&mut self, other: Self) -> bool {
        let before = self.0;
        self.0 &= !other.0;
        before != self.0
    }

    /// What comes first.
    pub fn first(self) -> Option<Self> {
        (self.0 != 0).then(|| Self(1 << self.0.trailing_zeros()))
    }

    /// The message that says this of port `id`, whose terminal has `size` columns and rows.
    pub fn message(self, id: u32, port: &Port, size: (u16, u16)) -> Vec<u8> {
        let head = |event, value| Message { id, event, value }.encode();
        match self {
            Self::ADD => head(PORT_ADD, 1),
            Self::CONSOLE => head(CONSOLE_PORT, 1),
            Self::NAME => [head(PORT_NAME, 1), port.name().into()].concat(),
            // Rows first: the specification has it the other way round, but drivers, of which Linux's was first, do not.
            Self::SIZE => {
                [head(RESIZE, 0), size.1.to_le_bytes().into(), size.0.to_le_bytes().into()].concat()
            }
            Self::CLOSED => head(PORT_OPEN, 0),
            _ => head(PORT_OPEN, 1),
        }
    }
}
