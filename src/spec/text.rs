//! How a spec's values that JSON has no type for are written: names of the host, durations, addresses.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::marker::PhantomData;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A name or a word of the host: text, or a list of bytes where it is no UTF-8.
struct OsText(OsString);

impl Serialize for OsText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for OsText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match one_or_list(deserializer, "a string, or a list of bytes if it is not UTF-8")? {
            OneOrList::One(text) => text.into_bytes(),
            OneOrList::List(bytes) => bytes,
        };
        // No system call takes a name with a NUL.
        if bytes.contains(&0) {
            return Err(de::Error::custom("a name or a word cannot hold a NUL"));
        }
        Ok(Self(OsString::from_vec(bytes)))
    }
}

/// A string, or a list.
pub enum OneOrList<T> {
    /// A string.
    One(String),
    /// A list.
    List(Vec<T>),
}

/// Reads a string or a list.
///
/// # Errors
/// It is neither: what was `expected` is named.
pub fn one_or_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<OneOrList<T>, D::Error> {
    struct Either<T>(&'static str, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
        type Value = OneOrList<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(OneOrList::One(text.to_owned()))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrList::List)
        }
    }
    deserializer.deserialize_any(Either(expected, PhantomData))
}

/// A path or another name.
pub(super) mod os {
    use super::*;

    pub fn serialize<S: Serializer>(value: &impl AsRef<OsStr>, serializer: S) -> Result<S::Ok, S::Error> {
        OsText(value.as_ref().to_owned()).serialize(serializer)
    }

    pub fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        OsText::deserialize(deserializer).map(|text| T::from(text.0))
    }
}

/// One that may be missing.
pub(super) mod os_option {
    use super::*;

    pub fn serialize<S: Serializer>(
        value: &Option<impl AsRef<OsStr>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(|value| OsText(value.as_ref().to_owned())).serialize(serializer)
    }

    pub fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        Ok(Option::<OsText>::deserialize(deserializer)?.map(|text| T::from(text.0)))
    }
}

/// Several of them.
pub(super) mod os_list {
    use super::*;

    pub fn serialize<S: Serializer>(values: &[impl AsRef<OsStr>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| OsText(value.as_ref().to_owned())))
    }

    pub fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let list = Vec::<OsText>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|text| T::from(text.0)).collect())
    }
}

/// A duration that may be missing, in milliseconds.
pub(super) mod milliseconds {
    use std::time::Duration;

    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|value| u64::try_from(value.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        match Option::<u64>::deserialize(deserializer)? {
            Some(0) => Err(de::Error::custom("a duration of nothing would be over at once")),
            value => Ok(value.map(Duration::from_millis)),
        }
    }
}
