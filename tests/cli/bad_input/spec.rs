//! Specs that make no sense, and what does not go with one.

use crate::support::attempt::Attempt;

#[test]
fn a_file_that_is_no_spec_is_refused_with_its_name_and_the_place() {
    let attempt = Attempt::new();
    for (text, expected) in [
        (&b""[..], "--spec spec.json: line 1, column 0: EOF while parsing a value"),
        (b"\x7fELF\0\0", "--spec spec.json: line 1, column 1: expected value"),
        (b"{\"version\": 1, \"kernel\": \"x\"}", "column 23: unknown field `kernel`, expected one of"),
        (b"{\"version\": 9}", "it has version 9, and this kite knows version 1"),
        (b"{\"version\": 1, \"a\\n\\u001b[2J\": 1}", "unknown field `a"),
        (b"{\"version\": 1, \"machine\": {\"cpus\": -1}}", "invalid value: integer `-1`, expected u32"),
        (b"{\"version\": 1, \"machine\": {\"cpus\": 0}}", "--cpus: it is a whole number, at least 1"),
        (b"{\"version\": 1, \"command\": {\"argv\": [\"a\", 7]}}", "expected a string, or a list of bytes"),
        (b"{\"version\": 1, \"command\": {\"argv\": [[300]]}}", "expected u8"),
    ] {
        attempt.file("spec.json", text);
        for options in [&[][..], &["--print-spec"]] {
            attempt.refused([&["run", "--spec", "spec.json"], options].concat(), expected);
        }
    }
}

#[test]
fn a_spec_that_is_too_long_or_cannot_be_read_is_refused() {
    let attempt = Attempt::new();
    attempt.sparse("spec.json", b"{", (1 << 20) + 1);
    attempt.refused(["run", "--spec", "spec.json"], "--spec spec.json: it is longer than 1024 KiB");
    attempt.refused(["run", "--spec", "/dev/zero"], "--spec /dev/zero: it is longer than 1024 KiB");
    attempt.refused(["run", "--spec", "none.json"], "--spec none.json: cannot read it: No such file");
    attempt.refused(["run", "--spec", "."], "--spec .: cannot read it: Is a directory");
    attempt.refused(["run", "--spec", "-"], "--spec -: line 1, column 0: EOF");
}

#[test]
fn options_beside_a_spec_are_refused() {
    let attempt = Attempt::new();
    attempt.file("spec.json", b"{\"version\": 1}");
    for (options, expected) in [
        (&["--memory", "1G"][..], "'--spec <FILE>' cannot be used with"),
        (&["--verbose"], "'--spec <FILE>' cannot be used with"),
        (&["--", "true"], "'--spec <FILE>' cannot be used with"),
    ] {
        attempt.refused([&["run", "--spec", "spec.json"], options].concat(), expected);
    }
}

#[test]
fn a_spec_of_a_file_that_is_not_there_is_refused_as_options_are() {
    let attempt = Attempt::new();
    attempt
        .file("folder/spec.json", b"{\"version\": 1, \"machine\": {\"boot\": {\"kernel\": \"sub/none\"}}}");
    attempt.refused(["run", "--spec", "folder/spec.json"], "folder/sub/none");
}
