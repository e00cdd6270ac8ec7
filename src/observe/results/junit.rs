//! JUnit files, in the dialect that GitHub's actions, GitLab and Jenkins read
//! (<https://github.com/testmoapp/junitxml>).

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use quick_xml::writer::ElementWriter;

use super::{Case, Suite, Verdict};
use crate::host::atomic_file;

/// Writes these suites as one file; see [`atomic_file::write`].
///
/// # Errors
/// The file cannot be written there.
pub fn write(path: &Path, suites: &[Suite]) -> anyhow::Result<()> {
    atomic_file::write(path, |file| write_to(file, suites))
}

fn write_to(file: &mut dyn Write, suites: &[Suite]) -> io::Result<()> {
    let mut writer = Writer::new_with_indent(BufWriter::new(file), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let counts = suites.iter().map(Counts::of).fold(Counts::default(), Counts::plus);
    let time = suites.iter().map(|suite| suite.time).sum();
    let mut names = Names::new(suites);
    counts.element(&mut writer, "testsuites", "kite", time).write_inner_content(|writer| {
        suites.iter().try_for_each(|suite| write_suite(writer, suite, &mut names))
    })?;
    let mut file = writer.into_inner();
    file.write_all(b"\n")?;
    file.flush()
}

fn write_suite<W: Write>(writer: &mut Writer<W>, suite: &Suite, names: &mut Names) -> io::Result<()> {
    Counts::of(suite).element(writer, "testsuite", &suite.name, suite.time).write_inner_content(
        |writer| {
            if suite.remark().is_some() {
                writer.create_element("properties").write_inner_content(|writer| {
                    let attributes = [("name", "ktap"), ("value", "no document")];
                    writer.create_element("property").with_attributes(attributes).write_empty().map(drop)
                })?;
            }
            // Readers look for files at cases, and what failed first is what a picture shows best.
            let mut picture = suite.picture.as_deref();
            for case in &suite.cases {
                let attached = if case.is_bad() { picture.take() } else { None };
                write_case(writer, case, names.of(suite, case), attached)?;
            }
            for (name, text) in [("system-out", &suite.output), ("system-err", &suite.kernel_log)] {
                if !text.is_empty() {
                    writer.create_element(name).write_text_content(BytesText::new(&allowed(text)))?;
                }
            }
            Ok(())
        },
    )?;
    Ok(())
}

/// The names that the cases of a file have there. Readers merge cases of equal names and classes.
struct Names {
    /// The hashes of classes and names; two that are equal by chance cost a name a number that it does not need.
    given: HashSet<u64>,
    /// How often each was to be given.
    times: HashMap<u64, u32>,
    hasher: RandomState,
    /// Whether a case's class names its suite, too.
    are_many: bool,
}

impl Names {
    fn new(suites: &[Suite]) -> Self {
        let (given, times, hasher) = Default::default();
        Self { given, times, hasher, are_many: suites.len() > 1 }
    }

    /// The class and the name of a case, with a number if another case has them.
    fn of(&mut self, suite: &Suite, case: &Case) -> (String, String) {
        let class = match (case.group.as_str(), self.are_many) {
            ("", _) => suite.name.clone(),
            (group, true) => format!("{}.{group}", suite.name),
            (group, false) => group.to_owned(),
        };
        let (class, name) = (allowed(&class), allowed(&case.name));
        let hash = self.hasher.hash_one((&class, &name));
        let mut unique = name.clone();
        while !self.given.insert(self.hasher.hash_one((&class, &unique))) {
            let times = self.times.entry(hash).or_insert(1);
            *times = times.saturating_add(1);
            unique = format!("{name} ({times})");
        }
        (class, unique)
    }
}

fn write_case<W: Write>(
    writer: &mut Writer<W>,
    case: &Case,
    (class, name): (String, String),
    attached: Option<&Path>,
) -> io::Result<()> {
    let time = seconds(case.time);
    let attributes = [("name", &*name), ("classname", &*class), ("time", &*time)];
    let element = writer.create_element("testcase").with_attributes(attributes);
    let (tag, message, details) = match &case.verdict {
        Verdict::Passed => return element.write_empty().map(drop),
        Verdict::Skipped(why) => ("skipped", why, ""),
        Verdict::Failed(message, details) => ("failure", message, details.as_str()),
        Verdict::Error(message, details) => ("error", message, details.as_str()),
    };
    let message = allowed(message);
    element.write_inner_content(|writer| {
        let element = writer.create_element(tag).with_attribute(("message", &*message));
        match details {
            "" => element.write_empty(),
            details => element.write_text_content(BytesText::new(&allowed(details))),
        }
        .map(drop)?;
        let Some(path) = attached else { return Ok(()) };
        let line = format!("[[ATTACHMENT|{}]]", allowed(&path.to_string_lossy()));
        writer.create_element("system-out").write_text_content(BytesText::new(&line)).map(drop)
    })?;
    Ok(())
}

#[derive(Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
}

impl Counts {
    fn of(suite: &Suite) -> Self {
        let mut counts = Self { tests: suite.cases.len(), ..Self::default() };
        for case in &suite.cases {
            match case.verdict {
                Verdict::Passed => {}
                Verdict::Skipped(_) => counts.skipped += 1,
                Verdict::Failed(..) => counts.failures += 1,
                Verdict::Error(..) => counts.errors += 1,
            }
        }
        counts
    }

    fn plus(self, other: Self) -> Self {
        Self {
            tests: self.tests + other.tests,
            failures: self.failures + other.failures,
            errors: self.errors + other.errors,
            skipped: self.skipped + other.skipped,
        }
    }

    /// Begins an element that has these counts.
    fn element<'a, W: Write>(
        &self,
        writer: &'a mut Writer<W>,
        tag: &'static str,
        name: &str,
        time: Duration,
    ) -> ElementWriter<'a, W> {
        let element = writer.create_element(tag).with_attribute(("name", &*allowed(name)));
        let counts = [
            ("tests", self.tests),
            ("failures", self.failures),
            ("errors", self.errors),
            ("skipped", self.skipped),
        ];
        let element = counts
            .into_iter()
            .fold(element, |element, (name, count)| element.with_attribute((name, &*count.to_string())));
        element.with_attribute(("time", &*seconds(time)))
    }
}

/// Seconds with three decimals, as all readers take them.
fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}

/// The text with what XML 1.0 cannot hold in any form replaced (its section 2.2); the writer escapes the rest.
fn allowed(text: &str) -> String {
    let allowed = |char: char| matches!(char, '\t' | '\n' | ' '..='\u{7e}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    // The end of a line may be a carriage return and a line feed; a reader of XML makes that one line feed.
    text.replace("\r\n", "\n").chars().map(|char| if allowed(char) { char } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use quick_xml::Reader;

    use super::super::{Ending, FailOnKtap, Recorder};
    use std::fs::File;

    use super::*;

    fn suite(name: &str, output: &[u8], ending: &Ending) -> Suite {
        let mut recorder = Recorder::new(name, FailOnKtap::Auto);
        recorder.feed(output);
        recorder.finish(ending, Duration::from_millis(1500), "log <end>")
    }

    /// The file's text, after it was read as XML to its end.
    fn written(suites: &[Suite]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("junit.xml");
        write(&path, suites).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let text = fs::read_to_string(path).unwrap();
        let mut reader = Reader::from_str(&text);
        reader.config_mut().check_end_names = true;
        loop {
            match reader.read_event().unwrap() {
                Event::Eof => break,
                Event::Start(element) | Event::Empty(element) => {
                    element.attributes().for_each(|attribute| drop(attribute.unwrap()));
                }
                _ => {}
            }
        }
        text
    }

    #[test]
    fn a_picture_is_at_the_case_that_failed_first() {
        let output = b"TAP version 13\n1..3\nok 1 a\nnot ok 2 b\nnot ok 3 c\n";
        let mut suite = suite("s", output, &Ending::Exited(1));
        suite.attach(Path::new("shots/a <b>.png"));
        let text = written(&[suite]);
        let line = "<system-out>[[ATTACHMENT|shots/a &lt;b&gt;.png]]</system-out>";
        assert_eq!(text.matches("ATTACHMENT").count(), 1, "{text}");
        let (before, after) = text.split_once(line).unwrap();
        assert!(before.rsplit_once("<testcase ").unwrap().1.starts_with("name=\"b\""), "{text}");
        assert!(after.trim_start().starts_with("</testcase>"), "{text}");
    }

    #[test]
    fn suites_have_their_cases_and_sums() {
        let output = b"TAP version 13\n1..3\nok 1 a\nnot ok 2 b\n# why\nok 3 c # SKIP no\n";
        let suites = [
            suite("one", output, &Ending::Exited(1)),
            suite("two", b"", &Ending::TimedOut("it took 5s".to_owned())),
        ];
        let text = written(&suites);
        let text = text.replace("\n", "").replace("  ", "");
        let expected = concat!(
            r#"<?xml version="1.0" encoding="UTF-8"?>"#,
            r#"<testsuites name="kite" tests="4" failures="1" errors="1" skipped="1" time="3.000">"#,
            r#"<testsuite name="one" tests="3" failures="1" errors="0" skipped="1" time="1.500">"#,
            r#"<testcase name="a" classname="one" time="0.000"/>"#,
            r#"<testcase name="b" classname="one" time="0.000"><failure message="not ok"># why</failure></testcase>"#,
            r#"<testcase name="c" classname="one" time="0.000"><skipped message="no"/></testcase>"#,
            r#"<system-out>TAP version 131..3ok 1 anot ok 2 b# whyok 3 c # SKIP no</system-out>"#,
            r#"<system-err>log &lt;end&gt;</system-err></testsuite>"#,
            r#"<testsuite name="two" tests="1" failures="0" errors="1" skipped="0" time="1.500">"#,
            r#"<properties><property name="ktap" value="no document"/></properties>"#,
            r#"<testcase name="two" classname="two" time="1.500"><error message="it took 5s"/></testcase>"#,
            r#"<system-err>log &lt;end&gt;</system-err></testsuite></testsuites>"#,
        );
        assert_eq!(text, expected);
    }

    /// The class and name of each case.
    fn names(text: &str) -> Vec<(&str, &str)> {
        let value = |line: &'static str, text: &str| text.find(line).map(|at| at + line.len());
        let attribute = |key, line: &'_ str| -> Option<(usize, usize)> {
            let from = value(key, line)?;
            Some((from, from + line[from..].find('"')?))
        };
        let cases = text.lines().filter(|line| line.trim_start().starts_with("<testcase "));
        cases
            .map(|line| {
                let (name, class) = (attribute(" name=\"", line), attribute(" classname=\"", line));
                let ((from, to), (begin, end)) = (name.unwrap(), class.unwrap());
                (&line[begin..end], &line[from..to])
            })
            .collect()
    }

    #[test]
    fn cases_of_equal_names_get_a_number() {
        let output =
            b"TAP version 13\n1..5\nok 1 retry\nnot ok 2 retry\nok 3 retry (2)\nok 4 retry\nok 5 x\n";
        let text = written(&[suite("c", output, &Ending::Exited(1))]);
        assert_eq!(
            names(&text),
            [("c", "retry"), ("c", "retry (2)"), ("c", "retry (2) (2)"), ("c", "retry (3)"), ("c", "x")]
        );
        let many = "not ok same\n".repeat(20_000);
        let text = written(&[suite("c", many.as_bytes(), &Ending::Exited(1))]);
        let names: HashSet<_> = names(&text).into_iter().collect();
        assert_eq!(names.len(), 20_001);
    }

    #[test]
    fn the_same_subtests_of_two_runs_are_not_merged() {
        let output = b"KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a\nok 1 s\n";
        let suites = ["6.1/c", "6.12/c"].map(|name| suite(name, output, &Ending::Exited(0)));
        assert_eq!(names(&written(&suites[..1])), [("s", "a")]);
        assert_eq!(names(&written(&suites)), [("6.1/c.s", "a"), ("6.12/c.s", "a")]);
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        let text = written(&[suite(
            "]]> \u{0}\u{1b}\u{fffe}\"<&",
            b"\x1b[31m]]>\xff\xfe\0 </system-out>",
            &Ending::Exited(2),
        )]);
        assert!(text.contains("name=\"]]&gt; \u{fffd}\u{fffd}\u{fffd}&quot;&lt;&amp;\""), "{text}");
        assert!(text.contains("\u{fffd}[31m]]&gt;\u{fffd}\u{fffd}\u{fffd} &lt;/system-out&gt;"), "{text}");
        assert!(!text.contains("]]>"), "{text}");
    }

    #[test]
    fn a_link_is_neither_followed_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("junit.xml"));
        fs::write(&target, "precious").unwrap();
        for to in [target.as_path(), Path::new("dangling")] {
            symlink(to, &link).unwrap();
            let error = write(&link, &[]).unwrap_err().to_string();
            assert!(error.ends_with("junit.xml: is a symbolic link; name the file itself"), "{error}");
            fs::remove_file(&link).unwrap();
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, expected) in [
            (Path::new("/dev/null").to_owned(), "is not a regular file"),
            (folder.path().to_owned(), "is not a regular file"),
            (folder.path().join("none/junit.xml"), "there is no folder"),
            (file.join("junit.xml"), "is not a folder"),
            (PathBuf::new(), "is not the name of a file"),
        ] {
            let error = write(&path, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_of_before_is_replaced_and_others_may_read_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("junit.xml");
        fs::write(&path, "old").unwrap();
        let before = File::open(&path).unwrap();
        write(&path, &[suite("x", b"", &Ending::Exited(0))]).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("<?xml"));
        // Whoever has the old one open keeps it whole.
        assert_eq!(io::read_to_string(before).unwrap(), "old");
        let plain = File::create(folder.path().join("plain")).unwrap().metadata().unwrap().permissions();
        assert_eq!(fs::metadata(&path).unwrap().permissions(), plain);
    }
}
