//! What a command prints, as KTAP, TAP or anything, in any pieces: what its cases are does not depend on the pieces, and a
//! JUnit file of them is text that a reader takes.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use kite::observe::results::{Case, Ending, FailOnKtap, Recorder, Suite};

use crate::{bytes, list};

/// Parts of lines.
const PARTS: [&str; 32] = [
    "KTAP version 1\n",
    "TAP version 13\n",
    "1..3\n",
    "1..0 # SKIP none\n",
    "1..4294967296\n",
    "ok 1 a\n",
    "ok 2 - b # SKIP why\n",
    "not ok 3 c # TODO later\n",
    "not ok 1 a\n",
    "ok\n",
    "not ok 18446744073709551616 \\# d\n",
    "ok 4 e # TIMEOUT\n",
    "# Subtest: f\n",
    "# diagnostics\n",
    "Bail out! it burns\n",
    "    ",
    "  ",
    "\t",
    "[    1.234567] ",
    "[  520.899558] [   T3919] ",
    "<6>",
    "6,123,456,-;",
    "\n",
    "\r\n",
    "ok ",
    "not ",
    " # ",
    "\0",
    "\u{1b}[31m",
    "]]>&<\"",
    "selftests: net: g.sh",
    "ok 1..2 ok\n",
];

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Part(u8),
    Parts([u8; 8]),
    Bytes(#[arbitrary(with = bytes)] &'a [u8]),
    /// Part after part.
    Many(u8, u8),
}

impl Piece<'_> {
    fn add_to(&self, out: &mut Vec<u8>) {
        let part = |index: u8| PARTS[usize::from(index) % PARTS.len()].as_bytes();
        match self {
            Self::Part(index) => out.extend(part(*index)),
            Self::Parts(indexes) => indexes.iter().for_each(|index| out.extend(part(*index))),
            Self::Bytes(bytes) => out.extend(*bytes),
            Self::Many(index, count) => out.extend(part(*index).repeat((*count).into())),
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    #[arbitrary(with = list)]
    pieces: Vec<Piece<'a>>,
    status: u8,
    always: bool,
    /// How much is fed at once.
    chunk: u8,
}

fn suite(input: &Input<'_>, printed: &[u8], chunk: usize) -> Suite {
    let mut recorder = Recorder::new("run", if input.always { FailOnKtap::Always } else { FailOnKtap::Auto });
    printed.chunks(chunk).for_each(|piece| recorder.feed(piece));
    recorder.finish(&Ending::Exited(input.status), Duration::ZERO, "")
}

pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let mut printed = Vec::new();
    input.pieces.iter().for_each(|piece| piece.add_to(&mut printed));
    let whole = suite(&input, &printed, printed.len().max(1));
    let cut = suite(&input, &printed, usize::from(input.chunk) + 1);
    let known = |case: &Case| (case.group.clone(), case.name.clone(), case.verdict.clone());
    assert_eq!(
        whole.cases().iter().map(known).collect::<Vec<_>>(),
        cut.cases().iter().map(known).collect::<Vec<_>>()
    );
    // A selftest that skipped everything ends with 4 (Linux `tools/testing/selftests/kselftest.h`, KSFT_SKIP).
    assert!(matches!(input.status, 0 | 4) || whole.bad() > 0, "{whole:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("junit.xml");
    whole.write_junit(&path).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    // XML 1.0 §2.2: no control characters but these.
    assert!(text.chars().all(|it| !it.is_control() || "\n\r\t".contains(it) || it > '\u{7e}'), "{text:?}");
    assert_eq!(text.matches("<testcase ").count(), whole.cases().len());
}
