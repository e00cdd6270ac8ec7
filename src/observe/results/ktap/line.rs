//! One line of a document: what it says, and where its text begins.

/// What a line says, without its indentation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// How many tests there are, and why all of them are skipped, if they are.
    Plan { count: u64, skip: Option<&'a str> },
    /// A test's end.
    Result(Outcome),
    /// The name of a subtest, at its start or before it.
    Subtest(&'a str),
    /// The test cannot go on, and why.
    BailOut(&'a str),
    /// A diagnostic, or foreign output.
    Other,
}

/// Who writes the document: they put comments in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Comments come before the result that they explain.
    Ktap,
    /// Comments may come after it, too.
    Tap,
    /// The same, without a version line: TAP 12.
    Plain,
}

/// A result line's parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// `ok`, not `not ok`.
    pub ok: bool,
    /// The test's number, if it has one; whatever follows it, as for `prove`.
    pub number: Option<u64>,
    /// Whether other output hardly looks like it: it is a failure, or its number is a word.
    pub is_definite: bool,
    /// The test's name; may be empty.
    pub name: String,
    pub directive: Directive,
    /// The directive as it is written, without its `#`.
    pub note: String,
    /// What follows the directive's word.
    pub why: String,
}

/// The meaning of what follows a ` # `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Directive {
    None,
    Skip,
    /// A failure is expected.
    Todo,
    /// A failure is expected, and is one whatever the line begins with.
    Xfail,
    Xpass,
    Timeout,
    Error,
    /// The exit status of a test's program.
    Exit(u64),
    /// A figure, such as a time.
    Figure,
}

/// How often a line is looked at as the comment of an outer test.
const MOST_COMMENTS: usize = 8;

/// Takes a line apart, which has no line end and no log's prefix: its indentation, blanks and the `# ` of kselftest's
/// runner, and what it says.
pub(super) fn read(line: &str) -> (&str, Line<'_>) {
    let mut text = line.trim_start_matches([' ', '\t']);
    let first = line.len() - text.len();
    for _ in 0..=MOST_COMMENTS {
        let found = classify(text.trim_end());
        if found != Line::Other {
            return (&line[..line.len() - text.len()], found);
        }
        let Some(comment) = text.strip_prefix("# ") else { break };
        text = comment.trim_start_matches([' ', '\t']);
    }
    (&line[..first], Line::Other)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn classify(text: &str) -> Line<'_> {
    if let Some(name) = text.strip_prefix("# Subtest:") {
        return Line::Subtest(name.trim());
    }
    if let Some((_, why)) =
        text.split_at_checked(9).filter(|(word, _)| word.eq_ignore_ascii_case("bail out!"))
    {
        return Line::BailOut(why.trim());
    }
    if let Some(plan) = text.strip_prefix("1..") {
        return plan_of(plan).unwrap_or(Line::Other);
    }
    result_of(text).map_or(Line::Other, Line::Result)
}

fn plan_of(text: &str) -> Option<Line<'_>> {
    let (count, comment) = text.split_once('#').map_or((text, None), |(count, why)| (count, Some(why)));
    let count = count.trim_end();
    if !is_number(count) {
        return None;
    }
    // More tests than can be counted are more than will be run.
    let count = count.parse().unwrap_or(u64::MAX);
    let why = comment.unwrap_or_default().trim();
    let (word, rest) = why.split_once(' ').unwrap_or((why, ""));
    let skip = match directive_of(word.trim_end_matches(':')) {
        Directive::Skip => Some(rest.trim()),
        // No test at all is a skip, whatever the reason.
        _ => (count == 0).then_some(why),
    };
    Some(Line::Plan { count, skip })
}

fn result_of(text: &str) -> Option<Outcome> {
    let (ok, rest) = match text.strip_prefix("not ok") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok")?),
    };
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim_start();
    let after = rest.trim_start_matches(|char: char| char.is_ascii_digit());
    let digits = &rest[..rest.len() - after.len()];
    let number = (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX));
    let is_definite = !ok || (number.is_some() && (after.is_empty() || after.starts_with([' ', '\t'])));
    let rest = after.trim_start();
    let (name, note, directive) = split_directive(rest, ok);
    let name = name.trim();
    let name = name.strip_prefix("- ").or_else(|| (name == "-").then_some("")).unwrap_or(name).trim();
    let why = note.split_once(' ').map_or("", |(_, rest)| rest.trim());
    Some(Outcome {
        ok,
        number,
        is_definite,
        name: unescaped(name),
        directive,
        note: unescaped(note),
        why: unescaped(why),
    })
}

/// The name, and the directive that decides: what is behind a `#` that begins a word, is not escaped, and is followed
/// by a directive's word. A figure is one only if nothing else follows.
fn split_directive(text: &str, ok: bool) -> (&str, &str, Directive) {
    let mut found: Option<(&str, &str, Directive)> = None;
    for (at, _) in text.match_indices('#') {
        if !(at == 0 || text[..at].ends_with([' ', '\t'])) {
            continue;
        }
        let note = text[at + 1..].trim();
        let word = note.split([' ', '\t']).next().unwrap_or_default().trim_end_matches(':');
        match directive_of(word) {
            directive if !decides(directive, word, ok, at) => {}
            Directive::Figure => {
                found.get_or_insert((&text[..at], note, Directive::Figure));
            }
            directive => {
                let name = found.map_or(&text[..at], |(name, ..)| name);
                return (name, note, directive);
            }
        }
    }
    found.unwrap_or((text, "", Directive::None))
}

/// Whether a word is meant as the directive that it resembles. TAP's are, in any case of letters, but that it has no
/// failed test that is skipped; kselftest and KUnit write theirs in capitals, save the `error` of a test without a name.
fn decides(directive: Directive, word: &str, ok: bool, at: usize) -> bool {
    let capitals = !word.bytes().any(|byte| byte.is_ascii_lowercase());
    match directive {
        Directive::None => false,
        Directive::Skip => ok || word == "SKIP",
        Directive::Error => capitals || (!ok && at == 0),
        Directive::Xfail | Directive::Xpass | Directive::Timeout => capitals,
        Directive::Todo | Directive::Exit(_) | Directive::Figure => true,
    }
}

/// The directive that begins with this word, in any case of letters. TAP 13 has `SKIPPED`, too.
fn directive_of(word: &str) -> Directive {
    let is = |name: &str| word.eq_ignore_ascii_case(name);
    if let Some((key, value)) = word.split_once('=') {
        return match (key, value.parse()) {
            ("exit", Ok(status)) => Directive::Exit(status),
            ("exit" | "time", _) => Directive::Figure,
            _ => Directive::None,
        };
    }
    match word {
        _ if is("SKIP") || is("SKIPPED") || is("SKIPPING") => Directive::Skip,
        _ if is("TODO") => Directive::Todo,
        _ if is("XFAIL") => Directive::Xfail,
        _ if is("XPASS") => Directive::Xpass,
        _ if is("TIMEOUT") => Directive::Timeout,
        _ if is("ERROR") => Directive::Error,
        _ => Directive::None,
    }
}

/// The text with `\#` and `\\` as the characters that they are.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '\\' => chars.next_if(|next| matches!(next, '#' | '\\')).unwrap_or(char),
            char => char,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(line: &str) -> Outcome {
        match read(line).1 {
            Line::Result(outcome) => outcome,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn results_have_a_number_a_name_and_a_directive() {
        use Directive::{Error, Exit, Figure, None as Nothing, Skip, Timeout, Todo};
        for (line, ok, number, name, directive, note) in [
            ("ok 1 a_test", true, Some(1), "a_test", Nothing, ""),
            ("not ok 2 - a test # TODO later on", false, Some(2), "a test", Todo, "TODO later on"),
            ("ok", true, None, "", Nothing, ""),
            ("not ok # SKIP: no", false, None, "", Skip, "SKIP: no"),
            ("ok 3 # SKIP no such device", true, Some(3), "", Skip, "SKIP no such device"),
            ("not ok 1 selftests: x: y # exit=139", false, Some(1), "selftests: x: y", Exit(139), "exit=139"),
            ("not ok 4 x # TIMEOUT 45 seconds", false, Some(4), "x", Timeout, "TIMEOUT 45 seconds"),
            (
                "ok 4 - mp_join: single join #2 # time=99ms",
                true,
                Some(4),
                "mp_join: single join #2",
                Figure,
                "time=99ms",
            ),
            ("ok 4 x # time=1ms # SKIP no", true, Some(4), "x", Skip, "SKIP no"),
            ("ok 4 x # skip no # TODO y", true, Some(4), "x", Skip, "skip no # TODO y"),
            ("not ok 6 # error broke", false, Some(6), "", Error, "error broke"),
            ("ok 99999999999999999999 x", true, Some(u64::MAX), "x", Nothing, ""),
        ] {
            let outcome = result(line);
            assert_eq!((outcome.ok, outcome.number), (ok, number), "{line}");
            assert_eq!(
                (&*outcome.name, outcome.directive, &*outcome.note),
                (name, directive, note),
                "{line}"
            );
        }
    }

    #[test]
    fn a_number_sign_without_a_directive_belongs_to_the_name() {
        for (line, name) in [
            ("ok 4 issue \\# 5", "issue # 5"),
            ("ok 4 a \\\\ b \\n \\# SKIP x", "a \\ b \\n # SKIP x"),
            ("not ok 4 regression #12", "regression #12"),
            ("not ok 1 - issue #123 is fixed", "issue #123 is fixed"),
            ("ok 2 - C# binding", "C# binding"),
            ("ok 3 - port # 5 opens", "port # 5 opens"),
            ("ok 3 - a # skipjack swims", "a # skipjack swims"),
            ("ok 3 - C#skip", "C#skip"),
            ("ok 3 - # a heading", "# a heading"),
            ("ok 3 - x # key=value", "x # key=value"),
            ("ok 3 - x #", "x #"),
        ] {
            let outcome = result(line);
            assert_eq!((&*outcome.name, outcome.directive), (name, Directive::None), "{line}");
        }
        assert_eq!(result("not ok 4 - todo list \\# 5 # TODO: rewrite").name, "todo list # 5");
    }

    #[test]
    fn plans_subtests_and_bails_are_recognised() {
        assert_eq!(read("1..4").1, Line::Plan { count: 4, skip: None });
        assert_eq!(read("1..0").1, Line::Plan { count: 0, skip: Some("") });
        assert_eq!(read("1..0 # Skipped: no root").1, Line::Plan { count: 0, skip: Some("no root") });
        assert_eq!(read("1..0 # no root").1, Line::Plan { count: 0, skip: Some("no root") });
        assert_eq!(read("1..3 # SKIP no").1, Line::Plan { count: 3, skip: Some("no") });
        assert_eq!(read("Bail out! no memory").1, Line::BailOut("no memory"));
        assert_eq!(read("bail out!").1, Line::BailOut(""));
        assert_eq!(read("    # Subtest: example"), ("    ", Line::Subtest("example")));
    }

    #[test]
    fn a_comment_may_hold_a_line_of_a_nested_test() {
        assert_eq!(read("# # 1..2"), ("# # ", Line::Plan { count: 2, skip: None }));
        assert_eq!(read("#   # Subtest: x"), ("#   ", Line::Subtest("x")));
        assert_eq!(read("  # a comment"), ("  ", Line::Other));
        assert_eq!(read(&"# ".repeat(3000)).1, Line::Other);
    }

    #[test]
    fn other_output_is_none_of_these() {
        for line in
            ["okay", "oks 1", "not okay", "1..x", "1...4", "", "# ", "okok 1 x", "#ok 1", "bail out", "é"]
        {
            assert_eq!(read(line).1, Line::Other, "{line}");
        }
    }
}
