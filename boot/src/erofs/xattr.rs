//! Extended attributes, as they are put behind an inode (`struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`).

use std::collections::BTreeMap;

use super::{Error, NAME_MAX};

/// What precedes the attributes: no bloom filter, no shared attributes.
const HEADER: usize = 12;
/// What attributes are aligned to, and their size is counted in.
const UNIT: usize = 4;
/// The most bytes that all attributes of an inode may take: `i_xattr_icount` has 16 bits.
pub(super) const MAX: usize = HEADER + UNIT * (u16::MAX as usize - 1);

/// The beginnings of names, and their numbers. Of those that end with a dot a rest must follow, others are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The extended attributes of a file, encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Box<[u8]>);

impl Xattrs {
    /// Whether Linux can show an attribute of this name on EROFS; others have no number there.
    pub fn can_be(name: &[u8]) -> bool {
        split(name).is_some()
    }

    /// Encodes attributes, without those that cannot be ([`Xattrs::can_be`]).
    ///
    /// # Errors
    /// [`Error::XattrValue`], [`Error::Xattrs`]
    pub fn new(attributes: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> Result<Self, Error> {
        let mut bytes = vec![0; HEADER];
        for (name, value) in attributes {
            let Some((index, rest)) = split(name) else { continue };
            let too_long = || Error::XattrValue(String::from_utf8_lossy(name).into_owned(), value.len());
            let size = u16::try_from(value.len()).map_err(|_| too_long())?;
            bytes.extend_from_slice(&[rest.len() as u8, index]);
            bytes.extend_from_slice(&size.to_le_bytes());
            bytes.extend_from_slice(rest);
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
        }
        match bytes.len() {
            HEADER => Ok(Self::default()),
            len if len > MAX => Err(Error::Xattrs(len)),
            _ => Ok(Self(bytes.into())),
        }
    }

    /// The bytes behind the inode.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The size as inodes have it: none, or the header and one more for each unit.
    pub(super) fn count(&self) -> u16 {
        let units = self.0.len().saturating_sub(HEADER) / UNIT;
        if self.0.is_empty() { 0 } else { units as u16 + 1 }
    }
}

/// The number of a name's beginning, and the rest.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let fits = |prefix: &[u8], rest: &[u8]| {
        prefix.ends_with(b".") != rest.is_empty() && rest.len() <= NAME_MAX && !rest.contains(&0)
    };
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        fits(prefix, rest).then_some((*index, rest))
    })
}
