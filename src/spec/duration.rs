//! Durations as the command line and matrix files take them: `90`, `90s`, `5m`, `1h30m`.

use std::time::Duration;

/// A unit's letters and how many milliseconds it has, longest first: each may be there once, in this order.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// What `parse` refuses with: it is one line and names examples.
const EXPLANATION: &str = "a duration is a number and ms, s, m, h or d, such as 90s, 5m or 1h30m";

/// A duration from whole numbers with units, longest unit first; a number alone is in seconds.
///
/// # Errors
/// One line for the user if the text is no such thing, is zero, or is more milliseconds than 64 bits hold.
pub fn parse(text: &str) -> Result<Duration, String> {
    if let Some(seconds) = number(text) {
        return whole(seconds.and_then(|seconds| seconds.checked_mul(1000)));
    }
    let (mut rest, mut units, mut total) = (text, UNITS.iter(), Some(0_u64));
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (count, after) = rest.split_at(digits);
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(letters);
        // The iterator stays behind what it found, so that a unit cannot come twice or after a shorter one.
        let (_, milliseconds) = units.find(|(name, _)| *name == unit).ok_or(EXPLANATION)?;
        let part = number(count).ok_or(EXPLANATION)?.and_then(|count| count.checked_mul(*milliseconds));
        total = total.zip(part).and_then(|(total, part)| total.checked_add(part));
        rest = after;
    }
    match text.is_empty() {
        true => Err(EXPLANATION.to_owned()),
        false => whole(total),
    }
}

/// The digits' value: `None` if they are no digits, `Some(None)` if it is too great.
fn number(digits: &str) -> Option<Option<u64>> {
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())
}

fn whole(milliseconds: Option<u64>) -> Result<Duration, String> {
    match milliseconds {
        None => Err("it is longer than any run lasts".to_owned()),
        Some(0) => Err("a duration of nothing would be over at once".to_owned()),
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_alone_are_seconds_and_units_add_up() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("250ms", 250),
            ("0h1s", 1_000),
            ("007", 7_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", " ", "s", "m5", "5 m", "5x", "-5s", "+5s", "1.5h", "5m1h", "5m5m", "1h30", "5M", "٣s", "5s "]
        {
            assert_eq!(parse(text), Err(EXPLANATION.to_owned()), "{text}");
        }
    }

    #[test]
    fn nothing_and_for_ever_are_refused() {
        for text in [
            "0",
            "0s",
            "0h0m",
            "99999999999999999999",
            "18446744073709551615",
            "999999999999999d",
            "18446744073709551615ms1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("18446744073709551615ms").is_ok());
    }
}
