//! Numbers and sizes as text, refused in words.

use std::ops::RangeBounds;

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;
const LEAST_MEMORY: u64 = 64 * MIB;
const MOST_MEMORY: u64 = 1 << 52;
const PAGE: u64 = 4096;
/// What `bytes` refuses with.
const SIZE: &str = "a size is a whole number and K, M, G or T, such as 512M";

/// A parser of whole numbers within a range, which says in words what is wrong with a value.
pub fn whole<T: TryFrom<u64>>(
    range: impl RangeBounds<u64> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let least = match range.start_bound() {
        Included(least) => Some(*least),
        Excluded(below) => below.checked_add(1),
        Unbounded => None,
    };
    let most = match range.end_bound() {
        Included(most) => Some(*most),
        Excluded(above) => above.checked_sub(1),
        Unbounded => None,
    };
    let bounds = match (least, most) {
        (Some(least), Some(most)) => format!(" from {least} to {most}"),
        (Some(least), None) => format!(", at least {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        (None, None) => String::new(),
    };
    move |text| {
        let wrong = || format!("it is a whole number{bounds}");
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number = text.parse().ok().filter(|number| range.contains(number)).ok_or_else(wrong)?;
        T::try_from(number).map_err(|_| format!("{number} is more than any machine has"))
    }
}

/// The guest's RAM in bytes, rounded up to whole pages.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn memory_size(text: &str) -> Result<u64, String> {
    let size = bytes(text)?.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
    check_memory(size).map(|()| size).map_err(|why| match meant(text).filter(|_| size < LEAST_MEMORY) {
        Some(meant) => format!("{text} is bytes, and a guest needs at least 64M; do you mean {meant}?"),
        None => why,
    })
}

/// Whether a guest can have so many bytes of RAM.
pub(super) fn check_memory(size: u64) -> Result<(), String> {
    match size {
        0..LEAST_MEMORY => Err("a guest needs at least 64M".to_owned()),
        MOST_MEMORY.. => Err("no processor addresses that much memory".to_owned()),
        size if !size.is_multiple_of(PAGE) => Err(format!("memory is whole pages of {PAGE} bytes")),
        _ => Ok(()),
    }
}

/// A limit of memory in bytes.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn memory_limit(text: &str) -> Result<u64, String> {
    match (bytes(text)?, meant(text)) {
        (1..=0xffff, Some(meant)) => Err(format!("{text} is bytes; do you mean {meant}?")),
        (size, _) => Ok(size),
    }
}

/// What a small number without a unit stands for in the head of a user.
fn meant(text: &str) -> Option<String> {
    match text.parse() {
        Ok(1..=63) => Some(format!("{text}G")),
        Ok(64..=0x10_0000) => Some(format!("{text}M")),
        _ => None,
    }
}

/// Bytes, from a number with an optional binary suffix; what is too great for 64 bits is as much as they hold.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(SIZE.to_owned()),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match (digits.parse::<u64>(), is_number) {
        (Ok(number), true) => Ok(number.saturating_mul(1 << shift)),
        (Err(_), true) => Ok(u64::MAX),
        (_, false) => Err(match fraction(digits, shift) {
            Some(meant) => format!("{SIZE}; do you mean {meant}?"),
            None => SIZE.to_owned(),
        }),
    }
}

/// A size with up to three decimals, as a whole number of a smaller unit.
fn fraction(digits: &str, shift: u32) -> Option<String> {
    let (whole, decimals) = digits.split_once('.')?;
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(decimals) || decimals.len() > 3 {
        return None;
    }
    let unit = 1_u64.checked_shl(shift)?;
    let scale = 10_u64.pow(u32::try_from(decimals.len()).ok()?);
    let thousandths = whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(decimals.parse().ok()?)?;
    let size = thousandths.checked_mul(unit)? / scale;
    match size {
        0 => None,
        size if size >= MIB => Some(format!("{}M", size >> 20)),
        size => Some(format!("{}K", size >> 10)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes_and_are_whole_pages() {
        for (text, size) in [
            ("512M", 512 * MIB),
            ("512m", 512 * MIB),
            ("512MB", 512 * MIB),
            ("512mb", 512 * MIB),
            ("512MiB", 512 * MIB),
            ("4g", 4096 * MIB),
            ("1GB", 1024 * MIB),
            ("1GiB", 1024 * MIB),
            ("65536K", 64 * MIB),
            ("65536kB", 64 * MIB),
            ("100000001", 100_003_840),
        ] {
            assert_eq!(memory_size(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn sizes_that_no_machine_has_are_refused() {
        for text in [
            "",
            "M",
            "MB",
            "x",
            "1",
            "0",
            "63M",
            "-1",
            "+1G",
            "1.5G",
            "512 M",
            "99999999T",
            "99999999999999999999",
            "512Q",
            "512MBB",
        ] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_that_lacks_its_unit_or_is_no_whole_number_is_answered_with_the_right_one() {
        for (text, meant) in [
            ("512", "do you mean 512M?"),
            ("4096", "do you mean 4096M?"),
            ("2", "do you mean 2G?"),
            ("1.5G", "do you mean 1536M?"),
            ("0.25gb", "do you mean 256M?"),
        ] {
            assert!(memory_size(text).unwrap_err().ends_with(meant), "{text}");
        }
        assert!(memory_limit("600").unwrap_err().ends_with("do you mean 600M?"));
        assert_eq!(memory_limit("64K"), Ok(65536));
        for text in ["1.5", "1.2345G", ".5G", "1.G", "1.5.5G", "99999999999999999999.5G"] {
            assert!(!memory_size(text).unwrap_err().contains("999"), "{text}");
        }
    }

    #[test]
    fn ranges_are_told_in_words() {
        let runs = whole::<u32>(3..=1000);
        assert_eq!((runs("3"), runs("1000")), (Ok(3), Ok(1000)));
        for text in ["2", "1001", "x", "", "-1", "+5", "1.5", "99999999999999999999999"] {
            assert_eq!(runs(text), Err("it is a whole number from 3 to 1000".to_owned()), "{text}");
        }
        assert_eq!(whole::<u32>(1..)("0"), Err("it is a whole number, at least 1".to_owned()));
        assert_eq!(whole::<usize>(..)("x"), Err("it is a whole number".to_owned()));
        assert!(whole::<u16>(1..)("65536").unwrap_err().contains("65536"));
    }
}
