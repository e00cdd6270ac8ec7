//! One line of KTAP: what it is and how deep it is nested.

/// What a line says, without its indentation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A document or a subtest begins.
    Version(Dialect),
    /// How many tests there will be, and why all of them are skipped, if they are.
    Plan { count: u64, skip: Option<&'a str> },
    /// A test's end.
    Result(Outcome<'a>),
    /// What the subtest is called that begins here.
    Subtest(&'a str),
    /// The test cannot go on, and why.
    BailOut(&'a str),
    /// A diagnostic, or what somebody else printed.
    Other,
}

/// Who wrote the document: what they mean by a comment differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Comments come before the result that they explain.
    Ktap,
    /// Comments may come after it, too.
    Tap,
}

/// A result line's parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome<'a> {
    /// `ok`, not `not ok`.
    pub ok: bool,
    /// The test's number, if it has one.
    pub number: Option<u64>,
    /// What the test is called; may be empty.
    pub name: &'a str,
    /// What follows the `#`: its first word and the rest; both may be empty.
    pub directive: (&'a str, &'a str),
}

/// Where a line's text begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Columns before it.
    pub indent: usize,
    /// Whether a `#` is among them, as kselftest's runner puts it before what a test prints.
    pub commented: bool,
}

/// How often a line is looked at as the comment of an outer test.
const MOST_COMMENTS: usize = 8;

/// Takes a line apart, which has no line end and no timestamp.
pub(super) fn read(line: &str) -> (Place, Line<'_>) {
    let (first, text) = unindented(line);
    let mut place = Place { indent: first, commented: false };
    let mut rest = text;
    for _ in 0..=MOST_COMMENTS {
        let found = classify(rest);
        if found != Line::Other {
            return (place, found);
        }
        let Some(comment) = rest.strip_prefix("# ") else { break };
        let (more, text) = unindented(comment);
        place = Place { indent: place.indent + 2 + more, commented: true };
        rest = text;
    }
    (Place { indent: first, commented: false }, Line::Other)
}

/// The line without what the kernel's log puts before it: `<6>`, `[   12.345678] ` and `[  T123] `.
pub(super) fn without_timestamp(line: &str) -> &str {
    let after_level = line
        .strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
        .filter(|(level, _)| !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(line, |(_, rest)| rest);
    let Some((time, rest)) = bracketed(after_level) else { return line };
    let Some((seconds, fraction)) = time.split_once('.') else { return line };
    if !number_like(seconds) || !number_like(fraction) {
        return line;
    }
    let caller =
        bracketed(rest).filter(|(caller, _)| caller.strip_prefix(['T', 'C']).is_some_and(number_like));
    let rest = caller.map_or(rest, |(_, rest)| rest);
    rest.strip_prefix(' ').unwrap_or(rest)
}

/// What `[...]` at the line's start holds, without the blanks before it, and what follows.
fn bracketed(text: &str) -> Option<(&str, &str)> {
    let (inner, rest) = text.strip_prefix('[')?.split_once(']')?;
    Some((inner.trim_start_matches(' '), rest))
}

fn number_like(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn unindented(line: &str) -> (usize, &str) {
    let text = line.trim_start_matches([' ', '\t']);
    (line.len() - text.len(), text.trim_end())
}

fn classify(text: &str) -> Line<'_> {
    match text {
        "KTAP version 1" | "KTAP version 2" => return Line::Version(Dialect::Ktap),
        "TAP version 13" | "TAP version 14" => return Line::Version(Dialect::Tap),
        _ => {}
    }
    if let Some(name) = text.strip_prefix("# Subtest:") {
        return Line::Subtest(name.trim());
    }
    if let Some(why) = text.strip_prefix("Bail out!") {
        return Line::BailOut(why.trim());
    }
    if let Some(plan) = text.strip_prefix("1..") {
        return plan_of(plan).unwrap_or(Line::Other);
    }
    result_of(text).unwrap_or(Line::Other)
}

fn plan_of(text: &str) -> Option<Line<'_>> {
    let (count, comment) = text.split_once('#').map_or((text, None), |(count, why)| (count, Some(why)));
    let count = count.trim_end();
    if !number_like(count) {
        return None;
    }
    let skip = comment.map(words).filter(|(word, _)| is_skip(word)).map(|(_, why)| why);
    // More tests than can be counted are more than will be run.
    Some(Line::Plan { count: count.parse().unwrap_or(u64::MAX), skip })
}

fn result_of(text: &str) -> Option<Line<'_>> {
    let (ok, rest) = match text.strip_prefix("not ok") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok")?),
    };
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    let rest = rest.trim_start();
    let (first, after) = rest.split_once(' ').unwrap_or((rest, ""));
    let (number, rest) = match number_like(first) {
        true => (Some(first.parse().unwrap_or(u64::MAX)), after.trim_start()),
        false => (None, rest),
    };
    let (name, directive) = split_directive(rest);
    let name = name.strip_prefix("- ").or_else(|| (name == "-").then_some("")).unwrap_or(name).trim();
    Some(Line::Result(Outcome { ok, number, name, directive: words(directive) }))
}

/// The name, and what is behind the first `#` that stands alone before a word, not escaped.
fn split_directive(text: &str) -> (&str, &str) {
    if let Some(directive) = text.strip_prefix('#') {
        return ("", directive);
    }
    text.split_once(" #").map_or((text, ""), |(name, directive)| (name.trim_end(), directive))
}

/// The first word and the rest. kselftest writes `exit=1` as the word, TAP `SKIP: why`.
fn words(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    (word.trim_end_matches(':'), rest.trim())
}

/// TAP 13 knows `SKIP`, `skip`, `SKIPPED` and `skip:`.
pub(super) fn is_skip(word: &str) -> bool {
    word.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("skip"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(line: &str) -> (bool, Option<u64>, &str, (&str, &str)) {
        match read(line).1 {
            Line::Result(r) => (r.ok, r.number, r.name, r.directive),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn results_have_a_number_a_name_and_a_directive() {
        assert_eq!(result("ok 1 a_test"), (true, Some(1), "a_test", ("", "")));
        assert_eq!(
            result("not ok 2 - a test # TODO later on"),
            (false, Some(2), "a test", ("TODO", "later on"))
        );
        assert_eq!(result("ok"), (true, None, "", ("", "")));
        assert_eq!(result("not ok # SKIP: no"), (false, None, "", ("SKIP", "no")));
        assert_eq!(result("ok 3 # SKIP no such device"), (true, Some(3), "", ("SKIP", "no such device")));
        assert_eq!(
            result("not ok 1 selftests: x: y # exit=1"),
            (false, Some(1), "selftests: x: y", ("exit=1", ""))
        );
        assert_eq!(result("ok 4 issue \\# 5"), (true, Some(4), "issue \\# 5", ("", "")));
        assert_eq!(result("ok 99999999999999999999 x").1, Some(u64::MAX));
    }

    #[test]
    fn plans_versions_and_bails_are_told_apart() {
        assert_eq!(read("1..4").1, Line::Plan { count: 4, skip: None });
        assert_eq!(read("1..0 # Skipped: no root").1, Line::Plan { count: 0, skip: Some("no root") });
        assert_eq!(read("KTAP version 1").1, Line::Version(Dialect::Ktap));
        assert_eq!(read("TAP version 13").1, Line::Version(Dialect::Tap));
        assert_eq!(read("Bail out! no memory").1, Line::BailOut("no memory"));
        assert_eq!(
            read("    # Subtest: example"),
            (Place { indent: 4, commented: false }, Line::Subtest("example"))
        );
    }

    #[test]
    fn a_comment_may_hold_a_line_of_a_nested_test() {
        assert_eq!(
            read("# TAP version 13"),
            (Place { indent: 2, commented: true }, Line::Version(Dialect::Tap))
        );
        assert_eq!(read("# # 1..2").0, Place { indent: 4, commented: true });
        assert_eq!(
            read("#  RUN           global.x ..."),
            (Place { indent: 0, commented: false }, Line::Other)
        );
    }

    #[test]
    fn what_only_looks_like_it_is_something_else() {
        for line in [
            "okay",
            "not okay",
            "notok 1",
            "1..",
            "1..x",
            "1...4",
            "TAP version 12",
            "",
            "# ",
            "okok 1 x",
            "#ok 1",
        ] {
            assert_eq!(read(line).1, Line::Other, "{line}");
        }
    }

    #[test]
    fn what_the_kernel_log_puts_before_a_line_goes() {
        for (line, text) in [
            ("[    1.234567]     ok 1 x", "    ok 1 x"),
            ("<6>[   12.345678] 1..2", "1..2"),
            ("[    1.234567][   T45] # x", "# x"),
            ("[    1.234567][    C0] # x", "# x"),
            ("[    1.234567]", ""),
            ("[x] 1..2", "[x] 1..2"),
            ("[1] 1..2", "[1] 1..2"),
            ("[ ok ] x", "[ ok ] x"),
            ("<b>[1.2] x", "<b>[1.2] x"),
        ] {
            assert_eq!(without_timestamp(line), text, "{line}");
        }
    }
}
