//! What a board knows of every device: its name, and its state to be saved and loaded.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A device whose guest-visible state can be saved, and loaded into a new device that is built as this one was.
///
/// What belongs to the host is not saved: connections, what waits to be sent to them, statistics, limits of logging. Nor
/// is what the guest was built with: the board's specification has that.
pub trait Device: Send {
    /// The name, unique on the board: sections of a snapshot, statistics and threads go by it.
    fn name(&self) -> &str;

    /// The guest-visible state. What is in flight is waited for and completed first; the device goes on as before. Called
    /// while no vCPU runs.
    ///
    /// # Errors
    /// The device has something that cannot be saved.
    fn save(&mut self) -> Result<State, Error> {
        Ok(State::empty())
    }

    /// Takes over a state that is not checked: a hostile file's, perhaps. The device is new, no vCPU runs, and
    /// interrupts are not to be sent before [`Self::resume`].
    ///
    /// # Errors
    /// It is no state that such a device can have. The device is of no use then.
    fn load(&mut self, state: State) -> Result<(), Error> {
        state.take_empty()
    }

    /// Sends again what may be lost between saving and loading: interrupts that the guest has not acknowledged, and
    /// notifications to the thread that serves the device. Called once the whole machine is loaded, before vCPUs run.
    fn resume(&mut self) {}
}

/// The state of a device without any.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// A device's saved state, in a self-describing format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State(Value);

impl State {
    /// That of a device without any.
    pub fn empty() -> Self {
        Self::of(&Empty {})
    }

    /// Describes `state`, a structure of numbers, strings, lists and structures.
    pub fn of(state: &impl Serialize) -> Self {
        Self(serde_json::to_value(state).expect("a structure with named fields is a JSON object"))
    }

    /// Makes sure that this is [`Self::empty`].
    ///
    /// # Errors
    /// It has any field.
    pub fn take_empty(self) -> Result<(), Error> {
        self.take::<Empty>().map(drop)
    }

    /// The structure that this describes, its values not checked.
    ///
    /// # Errors
    /// It has other fields, or fields of other types.
    pub fn take<T: DeserializeOwned>(self) -> Result<T, Error> {
        serde_json::from_value(self.0).map_err(Error::Form)
    }
}

/// Why a device's state cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fields are missing, unknown or of the wrong type.
    #[error("the saved state is not of this device's form")]
    Form(#[source] serde_json::Error),
    /// A value is none that the device can have.
    #[error("the saved state has an invalid {0}")]
    Invalid(&'static str),
    /// The device has something that cannot be saved; the text says what, and what to do.
    #[error("{0}")]
    Unsaveable(Cow<'static, str>),
}

/// Fails with [`Error::Invalid`] unless `valid`.
///
/// # Errors
/// It is not valid; `what` names it.
pub(crate) fn check(valid: bool, what: &'static str) -> Result<(), Error> {
    if valid { Ok(()) } else { Err(Error::Invalid(what)) }
}

/// Bytes as text, in Base64: `#[serde(with = "base64_bytes")]`.
pub(crate) mod base64_bytes {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, T: TryFrom<Vec<u8>>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let bytes = BASE64_STANDARD.decode(String::deserialize(from)?).map_err(Error::custom)?;
        let len = bytes.len();
        bytes.try_into().map_err(|_| Error::custom(format_args!("{len} bytes are not as many as there are")))
    }
}

#[cfg(test)]
mod tests;
