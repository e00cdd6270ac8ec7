//! The text that a log puts before each line of a document: timestamps, levels, a host's name.
//!
//! As the kernel's own parser does (tools/testing/kunit), a version line is found at the end of any line, and the lines
//! after it lose as many characters as it has before it. Where numbers of the prefix change their width, its punctuation
//! says where it ends.

use super::line::Dialect;

/// The longest prefix, in characters.
const LONGEST: usize = 256;
/// How many kinds of prefix of one width a stream has.
const SHAPES: usize = 4;

/// The parts of a line that ends with a version line.
pub(super) struct Version<'a> {
    /// The log's own text, which ends with something other than a blank; empty if there is none.
    pub prefix: &'a str,
    /// The document's indentation: blanks and the `#` of outer documents.
    pub lead: &'a str,
    pub dialect: Dialect,
}

/// Finds `KTAP version N` or `TAP version N` at the line's end.
pub(super) fn version(line: &str) -> Option<Version<'_>> {
    let line = line.trim_end();
    let before = line.trim_end_matches(|char: char| char.is_ascii_digit());
    let before = before.strip_suffix("TAP version ").filter(|_| before.len() < line.len())?;
    let (before, dialect) = match before.strip_suffix('K') {
        Some(before) => (before, Dialect::Ktap),
        None => (before, Dialect::Tap),
    };
    let prefix = before.trim_end_matches([' ', '\t', '#']);
    (prefix.chars().count() <= LONGEST).then(|| Version { prefix, lead: &before[prefix.len()..], dialect })
}

/// One piece of a prefix's shape.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// This character.
    Mark(char),
    /// Letters, digits, blanks and signs: at least one.
    Field,
}

/// A prefix, as the lines of one log share it.
#[derive(Debug)]
pub(super) struct Prefix {
    /// The shapes that were seen, all of the same width.
    shapes: Vec<Vec<Piece>>,
    /// The width, in characters.
    width: usize,
    /// Whether it looks like a log's, not like a sentence that happens to end with a version line.
    pub is_log: bool,
}

impl Prefix {
    pub(super) fn new(text: &str) -> Self {
        let is_log = text.is_empty()
            || (text.contains(|char: char| char.is_ascii_digit())
                && text.ends_with([']', ';', ':', '|', '>']));
        Self { shapes: vec![shape(text)], width: text.chars().count(), is_log }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.width == 0
    }

    /// Whether this text is the prefix, too; learns its shape if only the width is the same.
    pub(super) fn admits(&mut self, text: &str) -> bool {
        if text.is_empty() || self.is_empty() {
            return text.is_empty() == self.is_empty();
        }
        if self.strip(text).is_some_and(str::is_empty) {
            return true;
        }
        let same_width = text.chars().count() == self.width;
        if same_width && self.shapes.len() < SHAPES {
            self.shapes.push(shape(text));
        }
        same_width
    }

    /// The line without the prefix, if it has one of its shapes.
    pub(super) fn strip<'a>(&self, line: &'a str) -> Option<&'a str> {
        self.shapes.iter().find_map(|shape| strip(shape, line))
    }

    /// The line without as many characters as the prefix has. A `not` that would be cut from its `ok` is part of the
    /// text, whatever the width.
    pub(super) fn cut<'a>(&self, line: &'a str) -> Option<&'a str> {
        let end = match self.width {
            0 => 0,
            width => line.char_indices().nth(width - 1).map(|(at, char)| at + char.len_utf8())?,
        };
        let before = line[..end].trim_end();
        match before.ends_with("not") {
            true => line.get(before.len() - 3..),
            false => line.get(end..),
        }
    }
}

fn is_field(char: char) -> bool {
    char.is_alphanumeric() || matches!(char, ' ' | '-' | '+' | '_')
}

fn shape(text: &str) -> Vec<Piece> {
    let mut shape = Vec::new();
    for char in text.chars() {
        match is_field(char) {
            true if shape.last() == Some(&Piece::Field) => {}
            true => shape.push(Piece::Field),
            false => shape.push(Piece::Mark(char)),
        }
    }
    shape
}

/// A shape that ends with a field has no end of its own.
fn strip<'a>(shape: &[Piece], line: &'a str) -> Option<&'a str> {
    if matches!(shape.last(), Some(Piece::Field)) {
        return None;
    }
    let mut rest = line;
    for piece in shape {
        rest = match piece {
            Piece::Mark(char) => rest.strip_prefix(*char)?,
            Piece::Field => {
                let after = rest.trim_start_matches(is_field);
                (after.len() < rest.len()).then_some(after)?
            }
        };
    }
    Some(rest)
}

/// The log's prefix of a line that has no version: `[   12.345678]`, with a level before it or a caller after it, what
/// journalctl and syslog write, or a record of /dev/kmsg. Empty if it has none.
pub(super) fn guess(line: &str) -> &str {
    // A test may show the log in its own comments.
    let log = line.trim_start_matches(['#', ' ']);
    let log = if line.starts_with("# ") { log } else { line };
    let end = record(log).or_else(|| syslog(log)).unwrap_or_else(|| log.len() - without_level(log).len());
    let mut rest = &log[end..];
    let mut stamped = false;
    if let Some(after) = iso(rest.trim_start_matches(' ')) {
        rest = after;
        stamped = true;
    }
    while let Some(after) = stamp(rest.trim_start_matches(' '), stamped) {
        rest = after;
        stamped = true;
    }
    // Comments alone are no log.
    if rest.len() == log.len() { "" } else { &line[..line.len() - rest.len()] }
}

/// The log's prefix of a line that ends with the name of a subtest, indented as KUnit does. Empty if it has none.
pub(super) fn before_subtest(line: &str) -> &str {
    let Some((before, _)) = line.split_once("# Subtest: ") else { return "" };
    let indented = before.ends_with("    ") || before.ends_with('\t');
    let prefix = before.trim_end_matches([' ', '\t', '#']);
    if indented && prefix.chars().count() <= LONGEST { prefix } else { "" }
}

/// The end of `6,123,4567,-;`.
fn record(line: &str) -> Option<usize> {
    let end = line.find(';')?;
    let mut fields = line[..end].split(',');
    let number = |field: Option<&str>| field.is_some_and(is_number);
    (number(fields.next()) && number(fields.next()) && number(fields.next()) && fields.next().is_some())
        .then_some(end + 1)
}

/// What is behind `2026-11-28T05:30:16,123456+00:00`.
fn iso(text: &str) -> Option<&str> {
    let (stamp, _) = text.split_once(' ')?;
    let digits = stamp.bytes().filter(u8::is_ascii_digit).count();
    let others = stamp.bytes().all(|byte| byte.is_ascii_digit() || b"-T:,.+Z".contains(&byte));
    (digits >= 14 && others && stamp.contains('T') && stamp.contains(':')).then(|| &text[stamp.len()..])
}

/// The end of `Nov 28 05:30:16 host kernel:`.
fn syslog(line: &str) -> Option<usize> {
    let at = line.find(" kernel:")?;
    let before = &line[..at];
    let stamped = before.contains(':') || before.starts_with('[');
    (before.len() <= LONGEST && stamped && before.contains(|char: char| char.is_ascii_digit()))
        .then_some(at + " kernel:".len())
}

/// The line without `<6>` or dmesg's `kern  :info  : `, whose first word is six characters long.
fn without_level(line: &str) -> &str {
    let number = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    if let Some((level, rest)) = number
        && is_number(level)
    {
        return rest;
    }
    let mut fields = line.splitn(3, ':');
    match (fields.next(), fields.next(), fields.next()) {
        (Some(facility), Some(level), Some(rest))
            if facility.len() == 6 && is_word(facility) && is_word(level) =>
        {
            rest
        }
        _ => line,
    }
}

/// What is behind `[...]`. The first holds a time; a caller may follow.
fn stamp(text: &str, later: bool) -> Option<&str> {
    let (inner, rest) = text.strip_prefix('[')?.split_once(']')?;
    let inner = inner.trim();
    let caller = inner.strip_prefix(['T', 'C']).is_some_and(is_number);
    let time = inner.contains(['.', ':']) && inner.contains(|char: char| char.is_ascii_digit());
    (caller && later || time && !later).then_some(rest)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_word(text: &str) -> bool {
    let text = text.trim_end();
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// The line without the colours that dmesg and test runners write (ECMA-48's control sequences, and what tput(1) adds to
/// them).
pub(super) fn without_colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        text.push_str(before);
        rest = behind_sequence(after);
    }
    text + rest
}

/// What is behind a control sequence, whose first character, the escape, is gone. One may be cut off.
fn behind_sequence(text: &str) -> &str {
    let mut chars = text.chars();
    let behind_last = |text: &str, middle: fn(char) -> bool| {
        let last = text.trim_start_matches(middle);
        last.len() - last.chars().next().map_or(0, char::len_utf8)
    };
    let left = match chars.next() {
        Some('[') => behind_last(chars.as_str(), |char| matches!(char, '0'..='?')),
        // The choice of a character set.
        Some('(' | ')') => behind_last(chars.as_str(), |_| false),
        // A window's title.
        Some(']') => behind_last(chars.as_str(), |char| !matches!(char, '\u{7}' | '\u{1b}')),
        _ => text.len(),
    };
    &text[text.len() - left..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> Option<(&str, &str, Dialect)> {
        version(line).map(|version| (version.prefix, version.lead, version.dialect))
    }

    #[test]
    fn a_version_is_found_at_the_end_of_any_line() {
        for (line, expected) in [
            ("KTAP version 1", ("", "", Dialect::Ktap)),
            ("    TAP version 14", ("", "    ", Dialect::Tap)),
            ("# # TAP version 13 ", ("", "# # ", Dialect::Tap)),
            ("[    0.5]     KTAP version 2", ("[    0.5]", "     ", Dialect::Ktap)),
            ("[ 0.5] # TAP version 13", ("[ 0.5]", " # ", Dialect::Tap)),
            ("6,1,2,-;KTAP version 1", ("6,1,2,-;", "", Dialect::Ktap)),
            ("Mär 28 host kernel: KTAP version 1", ("Mär 28 host kernel:", " ", Dialect::Ktap)),
        ] {
            assert_eq!(parts(line), Some(expected), "{line}");
        }
        for line in
            ["KTAP version", "KTAP version ", "TAP version 13 x", "TAP version x", "version 1", "13", ""]
        {
            assert_eq!(parts(line), None, "{line}");
        }
    }

    #[test]
    fn numbers_of_another_width_have_the_same_shape() {
        let kmsg = Prefix::new("6,999,4567,-;");
        assert_eq!(kmsg.strip("4,1000,12345678,c;    ok 1"), Some("    ok 1"));
        assert_eq!(kmsg.strip("4,1000;    ok 1"), None);
        let clock = Prefix::new("[99999.999999] [   T3919]");
        assert_eq!(clock.strip("[100000.000001] [      C0] ok 1"), Some(" ok 1"));
        // A sentence has no shape.
        assert_eq!(Prefix::new("a prefix").strip("b prefix ok"), None);
    }

    #[test]
    fn a_cut_never_makes_a_failure_a_success() {
        let prefix = Prefix::new("[    0.5]");
        assert_eq!(prefix.cut("123456789ok 1"), Some("ok 1"));
        assert_eq!(prefix.cut("äöüäöüäöüok 1"), Some("ok 1"));
        assert_eq!(prefix.cut("12345 not ok 1"), Some("not ok 1"));
        assert_eq!(prefix.cut("123456not ok 1"), Some("not ok 1"));
        assert_eq!(prefix.cut("1234567not ok 1"), Some("t ok 1"));
        assert_eq!(prefix.cut("1234"), None);
    }

    #[test]
    fn a_line_without_a_version_has_a_prefix_of_the_usual_logs_only() {
        for (line, expected) in [
            ("[    1.234567]     ok 1 x", "[    1.234567]"),
            ("<6>[   12.345678] 1..2", "<6>[   12.345678]"),
            ("[    1.234567][   T45] # x", "[    1.234567][   T45]"),
            ("[    1.234567] [    C0] # x", "[    1.234567] [    C0]"),
            ("[Sat Nov 28 05:30:16 2026] ok 1", "[Sat Nov 28 05:30:16 2026]"),
            ("kern  :info  : [    1.2] ok 1", "kern  :info  : [    1.2]"),
            ("Nov 28 05:30:16 host kernel: ok 1", "Nov 28 05:30:16 host kernel:"),
            ("Nov 28 05:30:16 host kernel: [    1.2] ok 1", "Nov 28 05:30:16 host kernel: [    1.2]"),
            ("6,123,4567,-;ok 1", "6,123,4567,-;"),
            ("6,123,4567,-,caller=T1;ok 1", "6,123,4567,-,caller=T1;"),
            ("[x] 1..2", ""),
            ("[1] 1..2", ""),
            ("[ ok ] x", ""),
            ("a:b:ok 1", ""),
            ("ok 1 [ 1.2] x", ""),
            ("", ""),
        ] {
            assert_eq!(guess(line), expected, "{line}");
        }
    }

    #[test]
    fn colours_go() {
        assert_eq!(without_colours("\u{1b}[32m[ 0.5] \u{1b}[0mok 1\u{1b}[1;31m x\u{1b}["), "[ 0.5] ok 1 x");
        assert_eq!(without_colours("plain"), "plain");
        assert_eq!(without_colours("\u{1b}[31mnot ok\u{1b}(B\u{1b}[m 1\u{1b}"), "not ok 1");
        assert_eq!(without_colours("\u{1b}]0;title\u{7}ok\u{1b}]0;title"), "ok");
    }
}
