//! The header's block: fields of fixed places.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use boot::erofs::Time;

use super::BLOCK;
use super::sparse::Area;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MODIFIED: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const TARGET: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
/// star's prefix is shorter, as times follow it.
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;
/// Of GNU's format: four places of a sparse file's data, whether more follow the header, and the file's size.
const GNU_AREA: Range<usize> = 386..483;
const GNU_SIZE: Range<usize> = 483..495;

/// Which fields a header has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header with a right checksum.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    format: Format,
}

impl<'a> Header<'a> {
    /// The header in a block.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Result<Self> {
        let said = number(&block[CHECKSUM]).unwrap_or(-1);
        // Some programs have added up signed bytes.
        let sum = |byte: fn(u8) -> i64| -> i64 {
            let with_blanks = block.iter().enumerate();
            with_blanks.map(|(at, it)| byte(if CHECKSUM.contains(&at) { b' ' } else { *it })).sum()
        };
        let is_right = said == sum(i64::from) || said == sum(|byte| byte.cast_signed().into());
        ensure!(is_right, "it is no tar archive, or damaged: a header's checksum is wrong");
        let format = match &block[MAGIC] {
            [b'u', b's', b't', b'a', b'r', 0, ..] if &block[STAR_TRAILER] == b"tar\0" => Format::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            b"ustar  \0" => Format::Gnu,
            _ => Format::V7,
        };
        Ok(Self { block, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[TYPE]
    }

    /// The name, with what precedes it.
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.format {
            Format::Ustar => text(&self.block[PREFIX]),
            Format::Star => text(&self.block[STAR_PREFIX]),
            Format::V7 | Format::Gnu => b"",
        };
        let name = text(&self.block[NAME]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn target(&self) -> Vec<u8> {
        text(&self.block[TARGET]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16> {
        let mode = number(&self.block[MODE]).context("its mode is no number")?;
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<i64> {
        number(&self.block[UID]).context("its user is no number")
    }

    pub(super) fn gid(&self) -> Result<i64> {
        number(&self.block[GID]).context("its group is no number")
    }

    pub(super) fn size(&self) -> Result<u64> {
        size(&self.block[SIZE])
    }

    pub(super) fn modified(&self) -> Result<Time> {
        let seconds = number(&self.block[MODIFIED]).context("its time is no number")?;
        Ok(Time { seconds, nanoseconds: 0 })
    }

    pub(super) fn device(&self) -> Result<(u32, u32)> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        let part = |field: Range<usize>| number(&self.block[field]).and_then(|it| u32::try_from(it).ok());
        let device = part(MAJOR).zip(part(MINOR));
        device.context("its device has no number")
    }

    /// The places of a sparse file's data, and the file's size.
    pub(super) fn sparse(&self) -> Result<(Area<'a>, u64)> {
        if self.format != Format::Gnu {
            bail!("it is sparse, but not of GNU's format");
        }
        Ok((Area::new(&self.block[GNU_AREA]), size(&self.block[GNU_SIZE])?))
    }
}

/// A number that is not negative.
pub(super) fn size(field: &[u8]) -> Result<u64> {
    let size = number(field).and_then(|size| u64::try_from(size).ok());
    size.context("its size makes no sense")
}

/// A text up to its NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal digits, or of two's complement behind a bit that says so, big end first.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The bit below is the sign.
        let start = i64::from((first << 1).cast_signed() >> 1);
        return rest.iter().try_fold(start, |number, byte| Some(number.checked_mul(256)? | i64::from(*byte)));
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    text(&field[start..end]).iter().try_fold(0_i64, |number, byte| match byte {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_binary_with_a_sign() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"12\x009", Some(0o12)),
            (b"8", None),
            (b"-1", None),
            (b"0x1f", None),
            (b"\x80\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\x00", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
