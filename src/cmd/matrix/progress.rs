//! What people see while the matrix runs, on standard error: a line for each run that ends, with the last lines of what
//! it printed if it failed; and on a terminal a line below that tells what is running.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::cell::Outcome;
use super::table::time;
use crate::host::child::Stream;
use crate::host::lock::lock;
use crate::host::messages::printable;

/// How many lines of a failed run are shown of each stream.
const LAST_LINES: usize = 20;
/// How long a line is shown, in bytes.
const LINE: usize = 4096;

/// What is going on.
pub(super) struct Progress {
    total: usize,
    verbose: bool,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
    /// Something was not written that ought to be.
    has_lost: AtomicBool,
}

#[derive(Default)]
struct State {
    done: usize,
    running: Vec<String>,
}

impl Progress {
    /// Nothing runs yet.
    pub(super) fn new(total: usize, verbose: bool) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("[{pos}/{len}] {elapsed_precise} {wide_msg}");
            bar.set_style(style.expect("the template is a constant and has only keys that there are"));
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        Self { total, verbose, bar, state: Mutex::default(), has_lost: AtomicBool::new(false) }
    }

    /// A run begins.
    pub(super) fn started(&self, name: &str) {
        let mut state = self.lock();
        state.running.push(name.to_owned());
        self.show(&state);
    }

    /// A run has ended; `printed` is the end of its standard output and error.
    pub(super) fn finished(&self, name: &str, outcome: &Outcome, printed: [&str; 2]) {
        let mut state = self.lock();
        state.running.retain(|running| running != name);
        state.done += 1;
        let mut text = String::new();
        if outcome.is_bad() && !self.verbose {
            for printed in printed {
                let lines: Vec<_> = printed.lines().collect();
                for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
                    text += &shown(name, line);
                }
            }
        }
        let (done, total) = (state.done, self.total);
        let remark = outcome.suite.remark().filter(|_| outcome.is_ended).map(|what| format!("; {what}"));
        let (told, remark) = (&outcome.told, remark.unwrap_or_default());
        text += &format!("kite: [{done}/{total}] {name}: {told}, {}{remark}\n", time(outcome.elapsed));
        let mut text = text.into_bytes();
        // Memory takes it.
        let _ = outcome.suite.annotate(&mut text);
        self.print(&text);
        if let Some(bar) = &self.bar {
            bar.set_position(state.done as u64);
        }
        self.show(&state);
    }

    /// Whether something could not be written: of what the runs have printed, or what people see.
    pub(super) fn has_lost(&self) -> bool {
        self.has_lost.load(Ordering::SeqCst)
    }

    /// Says why some of what a run has printed could not be written.
    pub(super) fn complain(&self, what: &str) {
        let _state = self.lock();
        self.has_lost.store(true, Ordering::SeqCst);
        self.print(format!("kite: {}\n", printable(what)).as_bytes());
    }

    /// Where a run's output goes, which shows it if it is to be shown.
    pub(super) fn output(&self, name: &str) -> Output<'_> {
        Output { progress: self, name: name.to_owned(), open: [Vec::new(), Vec::new()] }
    }

    /// Leaves only what stays.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&self, state: &State) {
        if let Some(bar) = &self.bar {
            bar.set_message(state.running.join(", "));
        }
    }

    /// A reader that has gone is no loss.
    fn print(&self, text: &[u8]) {
        let write = || match io::stderr().write_all(text) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                self.has_lost.store(true, Ordering::SeqCst)
            }
            _ => {}
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Held while something is printed, so that it stays together.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A line of a guest's, as a terminal may have it, and a runner of workflows that obeys what lines start with.
fn shown(name: &str, line: &str) -> String {
    format!("{name}| {}\n", printable(&line.trim_end_matches('\r').replace('\t', "        ")))
}

/// One run's output, shown line by line.
pub(super) struct Output<'a> {
    progress: &'a Progress,
    name: String,
    /// The lines that have not ended yet, of each stream.
    open: [Vec<u8>; 2],
}

impl Output<'_> {
    /// Takes what was printed next.
    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if !self.progress.verbose {
            return;
        }
        let mut text = String::new();
        let open = &mut self.open[usize::from(stream == Stream::Stderr)];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ended = piece.ends_with(b"\n");
            for part in piece.strip_suffix(b"\n").unwrap_or(piece).chunks(LINE) {
                if open.len() + part.len() > LINE {
                    text += &shown(&self.name, &String::from_utf8_lossy(open));
                    open.clear();
                }
                open.extend_from_slice(part);
            }
            if ended {
                text += &shown(&self.name, &String::from_utf8_lossy(open));
                open.clear();
            }
        }
        let _state = self.progress.lock();
        self.progress.print(text.as_bytes());
    }

    /// There is no more.
    pub(super) fn end(mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.open[usize::from(stream == Stream::Stderr)].is_empty() {
                self.take(stream, b"\n");
            }
        }
    }
}
