//! What a command asks of a supervisor, and what that answers: JSON, a packet each.

use devices::screen::Size;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::id::MachineId;

/// The longest text of one field, in characters. JSON writes some of them as six bytes, and a description has two.
const LONGEST: usize = 150;

/// What a machine is, as far as commands show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its name.
    pub id: MachineId,
    /// Its supervisor.
    pub pid: u32,
    /// When it was started, in seconds since 1970.
    pub since: u64,
    /// What runs in it, if that is a command.
    pub command: Option<String>,
    /// The kernel's file.
    pub kernel: String,
    /// Whether it has a screen.
    pub screen: bool,
}

/// What a machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What it is.
    #[serde(flatten)]
    pub facts: Facts,
    /// Whether it is paused.
    pub paused: bool,
}

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What is the machine?
    Describe,
    /// What is on its screen?
    Screenshot,
    /// Pause it.
    Pause,
    /// Let it go on.
    Resume,
    /// End it, as SIGTERM does, and kill it if that takes longer than so many milliseconds. The answer is the end of the
    /// connection.
    Stop(u32),
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The machine is this.
    Description(Description),
    /// The descriptor that goes with this is memory with a picture of this size.
    Picture(Size),
    /// It is done.
    Done,
    /// It cannot, for this reason.
    Failed(String),
}

/// The bytes of a message.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("plain data can be written as JSON")
}

/// The message of these bytes, if they are one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// The beginning of a text that has no bound: what fits a message.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::channel::LONGEST as PACKET;
    use super::*;

    #[test]
    fn the_longest_description_and_failure_fit_a_packet() {
        // A control character takes most room.
        let text = cut(&"\u{1}".repeat(10_000));
        let facts = Facts {
            id: MachineId::parse(&"x".repeat(64)).unwrap(),
            pid: u32::MAX,
            since: u64::MAX,
            command: Some(text.clone()),
            kernel: text.clone(),
            screen: false,
        };
        let reply = Reply::Description(Description { facts, paused: false });
        let bytes = encode(&reply);
        assert!(bytes.len() <= PACKET, "{}", bytes.len());
        assert_eq!(decode(&bytes), Some(reply));
        assert!(encode(&Reply::Failed(text)).len() <= PACKET);
        assert_eq!(cut("ä b"), "ä b");
    }

    #[test]
    fn bytes_that_are_no_message_are_none() {
        for bytes in
            ["", "{}", "\"Describe", "\"Explode\"", "\"Describe\"\"Describe\"", "{\"Failed\": \"x\"}"]
        {
            assert_eq!(decode::<Request>(bytes.as_bytes()), None, "{bytes}");
        }
        assert_eq!(decode(b"\"Describe\""), Some(Request::Describe));
    }
}
