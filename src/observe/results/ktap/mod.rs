//! The Kernel Test Anything Protocol (Linux Documentation/dev-tools/ktap.rst) and TAP up to 14
//! (<https://testanything.org>), as kselftest, KUnit, bats and Perl's Test::More print them, read from a stream into
//! cases.
//!
//! A document begins with a version line, at the end of whatever line, or, as TAP 12 does, with a plan or a first result.
//! Other output between its lines explains the next case that fails. A test with subtests is a case of its own only if
//! it failed and none of them did, or if it ended in a way that they do not explain. A document whose results are not
//! those that its plan and their numbers promise has a failed case, `the plan`, as `prove` fails it.

mod cases;
mod level;
mod line;
mod prefix;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::Case;
use cases::{Cases, Recent};
use line::{Dialect, Line};
use prefix::Prefix;
use stream::{Sink, Stream};

/// What is looked at of a line, in bytes.
const LINE: usize = 4096;
/// How much of that is the end of a longer line, which may hold a directive.
const LINE_END: usize = 512;
/// What takes the place of such a line's middle.
const CUT: &[u8] = b"...";
/// How many logs with a prefix of their own are followed at a time.
const STREAMS: usize = 8;

/// Reads a command's output.
pub(super) struct Parser {
    line: Vec<u8>,
    /// The output's documents, by the prefix of their lines.
    streams: Vec<Stream>,
    /// How many lines were recognised.
    clock: u64,
    sink: Sink,
}

/// What an output has of documents.
pub(super) struct Found {
    pub cases: Vec<Case>,
    /// Whether there is any document, be it empty.
    pub documents: bool,
}

impl Parser {
    pub(super) fn new() -> Self {
        let (cases, recent) = (Cases::new(), Recent::default());
        let sink = Sink { cases, recent, last: Duration::ZERO, documents: false };
        // The lines of standard output itself have no prefix.
        Self { line: Vec::new(), streams: vec![Stream::new(Prefix::new(""))], clock: 0, sink }
    }

    /// Reads on; `now` is the time since the start.
    pub(super) fn feed(&mut self, bytes: &[u8], now: Duration) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            for part in text.chunks(LINE) {
                self.shorten_line();
                self.line.extend_from_slice(part);
            }
            if text.len() < piece.len() {
                self.end_line(now);
            }
        }
    }

    /// The cases, once the output has ended.
    pub(super) fn finish(mut self) -> Found {
        if !self.line.is_empty() {
            self.end_line(self.sink.last);
        }
        self.streams.iter_mut().for_each(|stream| stream.finish(&mut self.sink));
        Found { cases: self.sink.cases.finish(), documents: self.sink.documents }
    }

    /// Cuts the middle out of a line that is too long.
    fn shorten_line(&mut self) {
        let end = self.line.len().saturating_sub(LINE_END);
        let begin = LINE - LINE_END - CUT.len();
        if begin + CUT.len() < end {
            self.line.splice(begin..end, CUT.iter().copied());
        }
    }

    fn end_line(&mut self, now: Duration) {
        self.shorten_line();
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let text = prefix::without_colours(text.trim_end_matches('\r'));
        self.read(&text, now);
        self.line = bytes;
        self.line.clear();
    }

    /// Reads a line: as one of the stream whose prefix it has, or of one whose prefix has the same width.
    fn read(&mut self, line: &str, now: Duration) {
        // The stream of the last line comes first; that without a prefix last, as every line could be its.
        let mut order: Vec<_> = (0..self.streams.len()).collect();
        order.sort_by_key(|index| {
            let stream = &self.streams[*index];
            (stream.prefix.is_empty(), u64::MAX - stream.used)
        });
        let own = order.iter().find_map(|index| Some((*index, self.streams[*index].prefix.strip(line)?)));
        if let Some((index, text)) = own
            && self.streams[index].in_yaml(text, &mut self.sink)
        {
            return self.used(index);
        }
        let is_result = prefix::version(line).is_some() && self.is_result(line, own);
        if !is_result && self.version(line) {
            return;
        }
        if let Some((index, text)) = own
            && self.accept(index, text, true, now)
        {
            return;
        }
        for index in order {
            let stream = &self.streams[index];
            let cut = if stream.prefix.is_empty() { None } else { stream.prefix.cut(line) };
            if cut.is_some_and(|text| self.accept(index, text, false, now)) {
                return;
            }
        }
        if own.is_some_and(|(index, _)| self.streams[index].prefix.is_empty()) && self.begin_in_log(line, now)
        {
            return;
        }
        if is_result && self.version(line) {
            return;
        }
        // Whatever the line resembles, it may belong to no log.
        if own.is_some_and(|(index, _)| !self.streams[index].prefix.is_empty())
            && self.accept(0, line, true, now)
        {
            return;
        }
        self.comment(own);
    }

    /// Whether the line may be a result, whose name may end with a version.
    fn is_result(&self, line: &str, own: Option<(usize, &str)>) -> bool {
        let logs = self.streams.iter().filter(|stream| !stream.prefix.is_empty());
        let guessed = line.get(prefix::guess(line).len()..);
        let texts = own.map(|(_, text)| text).into_iter().chain(guessed);
        let mut texts = texts.chain(logs.filter_map(|stream| stream.prefix.cut(line)));
        texts.any(|text| matches!(line::read(text).1, Line::Result(_)))
    }

    fn accept(&mut self, index: usize, text: &str, begin: bool, now: Duration) -> bool {
        let accepted = self.streams[index].accept(text, begin, now, &mut self.sink);
        if accepted {
            self.used(index);
        }
        accepted
    }

    fn used(&mut self, index: usize) {
        self.clock += 1;
        self.streams[index].used = self.clock;
    }

    /// Takes a version line, which may make a stream known.
    fn version(&mut self, line: &str) -> bool {
        let Some(version) = prefix::version(line) else { return false };
        let index = self.stream(version.prefix);
        let accepted = self.streams[index].version(version.lead, version.dialect, &mut self.sink);
        self.used(index);
        accepted
    }

    /// The stream of the lines with this prefix; a new one takes the place of that which was silent for longest.
    fn stream(&mut self, prefix: &str) -> usize {
        if let Some(index) = self.streams.iter_mut().position(|stream| stream.prefix.admits(prefix)) {
            return index;
        }
        let stream = Stream::new(Prefix::new(prefix));
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let oldest = (1..self.streams.len()).min_by_key(|index| self.streams[*index].used).unwrap_or(1);
        let mut before = std::mem::replace(&mut self.streams[oldest], stream);
        before.finish(&mut self.sink);
        oldest
    }

    /// Begins a document with a line of a log that has shown no version: KUnit's modules print none up to Linux 6.1, and
    /// the beginning of a log may be lost.
    fn begin_in_log(&mut self, line: &str, now: Duration) -> bool {
        let known = prefix::guess(line);
        let prefix = if known.is_empty() { prefix::before_subtest(line) } else { known };
        if prefix.is_empty() || matches!(line::read(&line[prefix.len()..]).1, Line::Other) {
            return false;
        }
        let text = &line[prefix.len()..];
        let index = self.stream(prefix);
        self.streams[index].is_unsure = known.is_empty();
        self.accept(index, text, true, now)
    }

    /// Takes a line that is none of the protocol's, for the cases around it.
    fn comment(&mut self, own: Option<(usize, &str)>) {
        let Some((index, text)) = own.filter(|(_, text)| !text.trim().is_empty()) else { return };
        let (dialect, lead) = self.streams[index].surroundings();
        if dialect.is_some_and(|dialect| dialect != Dialect::Ktap) {
            self.sink.cases.comment(text.strip_prefix(lead).unwrap_or(text));
        }
        // A log's blank between its prefix and the text is no indentation.
        self.sink.recent.push(text.strip_prefix(lead).unwrap_or(text));
    }
}
