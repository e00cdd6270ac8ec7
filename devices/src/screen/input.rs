//! Keys and the pointer, on their way to the guest.

/// The pointer's position at the right or lower edge of the screen; 0 is at the left or upper one.
pub const ABS_MAX: u16 = 0x7fff;

/// Something that a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key goes down or up.
    Key {
        /// Its code in Linux's `input-event-codes.h`; one that a keyboard does not have is not passed on.
        code: u16,
        /// Whether it goes down.
        down: bool,
    },
    /// The pointer is somewhere: see [`Size::position`](super::Size::position).
    Pointer {
        /// From the left edge, 0, to the right one, [`ABS_MAX`].
        x: u16,
        /// From the upper edge, 0, to the lower one, [`ABS_MAX`].
        y: u16,
    },
    /// A button of the pointer goes down or up.
    Button {
        /// Which one.
        button: Button,
        /// Whether it goes down.
        down: bool,
    },
    /// The wheel turns.
    Wheel {
        /// Steps away from the person, or to the person if negative.
        vertical: i32,
        /// Steps to the right, or to the left if negative.
        horizontal: i32,
    },
}

/// A button of the pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Button {
    /// The left one.
    Left,
    /// The right one.
    Right,
    /// The middle one.
    Middle,
    /// The one that goes back.
    Side,
    /// The one that goes forward.
    Extra,
}

/// What passes input on to the guest.
pub trait InputSink: Send + Sync {
    /// Passes on what happens at once. It never waits: if the guest does not take it, it is dropped as a whole.
    fn send(&self, group: &[Input]);
}
