//! What Perl's `prove` says of the same documents.

use std::fs;
use std::process::Command;

use super::*;

#[test]
fn numbers_and_plans_are_judged_as_prove_does() {
    for (text, expected) in [
        ("ok 1\nok 1\n1..2\n", "out of sequence: 1 where 2"),
        ("1..2\nok 2\nok 1\n", "out of sequence: 2 where 1"),
        ("1..3\nok 1\nok 3\nok 4\n", "out of sequence: 3 where 2"),
        ("1..2\nok 1\n", "1 of 2 planned tests did not run: 2"),
        ("1..1\nok 1\nok 2\n", "2 tests ran and 1 were planned"),
        ("ok 1\nok 2\n", "there is no plan"),
        ("TAP version 13\nok 1\n", "there is no plan"),
        ("KTAP version 1\n", "there is no plan"),
        ("1..3\nok 1\n1..3\nok 2\nok 3\n", "more than one plan"),
        ("ok 1\n1..3\nok 2\nok 3\n", "neither at the beginning nor at the end"),
        ("1..2\nok 2\ta\nok 1-b\n", "out of sequence: 2 where 1"),
        ("1..1\nok 2.\n", "out of sequence: 2 where 1"),
        ("1..1 # SKIP no\nok 1\n", "planned to be skipped"),
        ("ok 1\n1..1\nok 2\n", "2 tests ran and 1 were planned"),
    ] {
        let cases = cases(text);
        let last = cases.last().unwrap();
        assert_eq!(last.name, "the plan", "{text}");
        assert!(message(last).contains(expected), "{text}: {}", message(last));
    }
    for text in [
        "1..2\nok\nok\n",
        "1..2\nok 1\ta\nok 2-b\n",
        "1..2\nok\nok 2\n",
        "ok 1\nok 2\n1..2\n",
        "1..0\n",
        "TAP version 13\nok 1\n1..1\n",
    ] {
        assert!(!cases(text).iter().any(Case::is_bad), "{text}");
    }
}

/// Documents that are nearly right, by a fixed sequence of pseudo-random numbers.
pub(super) fn documents() -> Vec<String> {
    let mut state = 7_u32;
    let mut below = |limit: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % limit
    };
    let mut documents = Vec::new();
    for _ in 0..400 {
        let count = below(5);
        let mut lines: Vec<_> = (1..=count)
            .map(|number| {
                let ok = if below(8) == 0 { "not ok" } else { "ok" };
                let number = if below(5) == 0 { String::new() } else { format!(" {number}") };
                let names = [
                    "",
                    " - a",
                    " issue #12",
                    " C# x",
                    " \\# 5 # TODO y",
                    " b # skip no",
                    " x # time",
                    " # todo",
                ];
                format!("{ok}{number}{}", names[below(8) as usize])
            })
            .collect();
        let plan = format!("1..{}", if below(6) == 0 { count + 1 } else { count });
        match below(4) {
            0 => lines.push(plan),
            1 if below(4) == 0 => {}
            _ => lines.insert(0, plan),
        }
        if below(5) == 0 && !lines.is_empty() {
            let (from, to) = (below(lines.len() as u32) as usize, below(lines.len() as u32) as usize);
            lines.swap(from, to);
        }
        if below(8) == 0 && !lines.is_empty() {
            lines.remove(below(lines.len() as u32) as usize);
        }
        if below(3) == 0 {
            lines.insert(0, "TAP version 13".to_owned());
        }
        if below(4) == 0 {
            lines.insert(lines.len(), "# a comment".to_owned());
        }
        if below(20) == 0 {
            lines.push("Bail out! no disk".to_owned());
        }
        // Where there is no document, the command's status decides.
        if lines.iter().any(|line| !line.starts_with('#')) {
            documents.push(lines.join("\n") + "\n");
        }
    }
    documents
}

/// For each file: whether `prove` would fail it.
const JUDGE: &str = r#"
use TAP::Parser;
for my $file (@ARGV) {
    open(my $handle, '<', $file) or die "$file: $!";
    local $/;
    my $parser = TAP::Parser->new({ tap => <$handle> });
    my $bad = 0;
    while (my $line = $parser->next) { $bad ||= $line->is_bailout }
    print $bad || $parser->has_problems ? "bad\n" : "good\n";
}
"#;

#[test]
fn prove_agrees_on_documents_that_are_nearly_right() {
    let folder = tempfile::tempdir().unwrap();
    let documents = documents();
    let files: Vec<_> =
        (0..documents.len()).map(|index| folder.path().join(format!("{index}.tap"))).collect();
    files.iter().zip(&documents).for_each(|(file, text)| fs::write(file, text).unwrap());
    let output = match Command::new("perl").args(["-e", JUDGE]).args(&files).output() {
        Ok(output) if output.status.success() => output,
        other => {
            return println!(
                "skipped: prove_agrees_on_documents_that_are_nearly_right: no TAP::Parser: {other:?}"
            );
        }
    };
    let judged = String::from_utf8(output.stdout).unwrap();
    assert_eq!(judged.lines().count(), documents.len());
    let mut good = 0;
    for (document, judged) in documents.iter().zip(judged.lines()) {
        let cases = cases(document);
        // It may be ordinary output.
        if cases.is_empty() {
            continue;
        }
        assert_eq!(cases.iter().any(Case::is_bad), judged == "bad", "{judged}: {document}{cases:#?}");
        good += usize::from(judged == "good");
    }
    assert!((50..350).contains(&good), "{good} of {} are good", documents.len());
}
