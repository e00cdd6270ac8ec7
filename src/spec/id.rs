//! The name by which commands find a machine that runs, as `--id` gives it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name in bytes.
const LONGEST: usize = 64;

/// The name of a machine that runs: that of a socket in the user's folder of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

impl MachineId {
    /// Reads the value of `--id`.
    ///
    /// # Errors
    /// It is no such name, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = !text.is_empty()
            && text.len() <= LONGEST
            && text.bytes().all(allowed)
            && !text.starts_with(['.', '-']);
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "a machine's name is up to {LONGEST} letters, digits and _ . -, and begins with a letter, a digit or _"
            )),
        }
    }

    /// The name of a machine that is given none: its supervisor's number.
    pub fn of_this_process() -> Self {
        Self(std::process::id().to_string())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for MachineId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_a_file_and_no_option() {
        for text in ["a", "A.b_c-9", "_", "4242", &"x".repeat(LONGEST)] {
            assert_eq!(MachineId::parse(text).unwrap().as_str(), text);
        }
        let long = "x".repeat(LONGEST + 1);
        let wrong = ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\0", &long];
        crate::spec::assert_refused_in_one_line(MachineId::parse, &wrong);
    }
}
