//! PAX records: what an extended header says about the entry behind it.

use anyhow::{Context, Result, bail, ensure};
use boot::erofs::Time;

use super::Attributes;

/// What the names of extended attributes follow, as star and all container tools write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// What records say; an empty value says nothing.
#[derive(Default, PartialEq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) modified: Option<Time>,
    pub(super) xattrs: Attributes,
    pub(super) sparse: Option<Sparse>,
}

/// What is said about a sparse file.
#[derive(Default, PartialEq)]
pub(super) struct Sparse {
    /// The format's version, which the first ones have not said.
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The name; the entry's own is made up for programs that know nothing of this.
    pub(super) name: Option<Vec<u8>>,
    /// The file's size with what is not there.
    pub(super) size: Option<u64>,
    /// Offsets and sizes in turn.
    pub(super) map: Vec<u64>,
}

impl Pax {
    /// Reads records: the length of all, a blank, `KEY=VALUE` and a line's end.
    ///
    /// # Errors
    /// They make no sense.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let (record, rest) = split(data).context("an extended header makes no sense")?;
            data = rest;
            let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
            let equals = equals.context("an extended header has a record without a name")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if !value.is_empty() {
                pax.set(key, value).with_context(|| format!("record {}", super::shown(key)))?;
            } else if let Some(name) = key.strip_prefix(XATTR) {
                pax.xattrs.insert(name.into(), Box::default());
            }
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.target = Some(name(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?.try_into()?),
            b"gid" => self.gid = Some(decimal(value)?.try_into()?),
            b"mtime" => self.modified = Some(time(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.into(), value.into());
                } else if let Some(key) = key.strip_prefix(SPARSE) {
                    self.sparse.get_or_insert_default().set(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// Checks that records for all entries to come say nothing that matters: `git archive` writes a comment.
    ///
    /// # Errors
    /// They do. Docker ignores them then, which others do not.
    pub(super) fn check_global(&self) -> Result<()> {
        ensure!(*self == Self::default(), "a header for all entries says more than a comment");
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(name(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"realsize" => self.size = self.size.or(Some(decimal(value)?)),
            b"offset" | b"numbytes" => {
                ensure!((key == b"offset") == self.map.len().is_multiple_of(2), "out of turn");
                self.map.push(decimal(value)?);
            }
            b"map" => self.map = value.split(|byte| *byte == b',').map(decimal).collect::<Result<_>>()?,
            // How many places there are is seen.
            _ => {}
        }
        Ok(())
    }
}

/// The first record without its length and its line's end, and what follows it.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = data.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&data[..blank]).ok()?).ok()?;
    let record = data.get(blank + 1..len)?.strip_suffix(b"\n")?;
    Some((record, &data[len..]))
}

fn name(value: &[u8]) -> Result<Vec<u8>> {
    ensure!(!value.contains(&0), "a name has a NUL");
    Ok(value.to_vec())
}

/// A number of decimal digits.
pub(super) fn decimal(value: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.with_context(|| format!("'{}' is no number", super::shown(value)))
}

/// A time: seconds, perhaps negative, and perhaps a fraction, of which nanoseconds are taken.
fn time(value: &[u8]) -> Result<Time> {
    let (is_negative, digits) = match value {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        bail!("'{}' is no time", super::shown(value));
    }
    let digit = |at| fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |number, at| number * 10 + digit(at));
    Ok(match (is_negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(records: &[(&str, &str)]) -> Result<Pax> {
        let mut data = Vec::new();
        for (key, value) in records {
            data.extend(super::super::testing::record(key.as_bytes(), value.as_bytes()));
        }
        Pax::parse(&data)
    }

    #[test]
    fn times_have_a_sign_and_nanoseconds() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("12", 12, 0),
            ("12.", 12, 0),
            ("12.5", 12, 500_000_000),
            ("12.0000000019", 12, 1),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.1", -1, 900_000_000),
            ("9223372036854775807", i64::MAX, 0),
        ] {
            let expected = Time { seconds, nanoseconds };
            assert_eq!(parse(&[("mtime", text)]).unwrap().modified, Some(expected), "{text}");
        }
        for text in ["-", ".5", "1.x", "1e3", "+1", "9223372036854775808"] {
            assert!(parse(&[("mtime", text)]).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_of_equal_records_counts_and_an_empty_one_says_nothing() {
        let pax =
            parse(&[("path", "a"), ("path", "b"), ("path", ""), ("uid", ""), ("unknown", "x")]).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.uid, None);
    }

    #[test]
    fn an_attribute_may_be_empty_or_binary() {
        let binary = "\0\u{1}=\n";
        let pax =
            parse(&[("SCHILY.xattr.user.a", ""), ("SCHILY.xattr.security.capability", binary)]).unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]].as_ref(), b"");
        assert_eq!(pax.xattrs[&b"security.capability"[..]].as_ref(), binary.as_bytes());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for data in [
            "7 a=b\n",
            "6a=b\n",
            "6 a=b ",
            "6 =bc\n",
            "6 abc\n",
            "-6 a=b\n",
            "99999999999999999999 a=b\n",
            "0 \n",
            "a",
        ] {
            assert!(Pax::parse(data.as_bytes()).is_err(), "{data:?}");
        }
        for (key, value) in [
            ("size", "-1"),
            ("size", "18446744073709551616"),
            ("uid", "-1"),
            ("path", "a\0b"),
            ("linkpath", "\0"),
            ("GNU.sparse.numbytes", "1"),
            ("GNU.sparse.map", "1,,2"),
        ] {
            assert!(parse(&[(key, value)]).is_err(), "{key}={value:?}");
        }
        assert!(Pax::parse(b"6 a=b\n").is_ok());
    }

    #[test]
    fn a_header_for_all_may_have_a_comment_only() {
        parse(&[("comment", "0123456789abcdef")]).unwrap().check_global().unwrap();
        assert!(parse(&[("uid", "5")]).unwrap().check_global().is_err());
        assert!(parse(&[("SCHILY.xattr.user.a", "b")]).unwrap().check_global().is_err());
    }
}
