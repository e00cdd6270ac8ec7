//! The log: what goes wrong while a guest runs and is no reason to end it, a line each on standard error. A guest can
//! bring about most of it, and so each device, or whatever else a line's target names, has ten lines for the whole run.

use std::collections::BTreeMap;
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::host::lock::lock;
use crate::host::messages::{self, printable};
use crate::host::terminal;

/// How many lines a target has.
const MOST: u64 = 10;
/// How many targets have lines of their own.
const TARGETS: usize = 256;

/// How many lines each target has said or wanted to say. A process has one log.
static SAID: Mutex<Said> = Mutex::new(Said(BTreeMap::new()));

#[derive(Default)]
struct Said(BTreeMap<String, u64>);

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Shown,
    /// It is the last that is shown.
    Last,
    Counted,
}

impl Said {
    /// Counts a line of `target`.
    fn count(&mut self, target: &str) -> Fate {
        let known = self.0.contains_key(target);
        // The rest share their lines.
        let target = if known || self.0.len() < TARGETS { target } else { "others" };
        let count = match self.0.get_mut(target) {
            Some(count) => count,
            None => self.0.entry(target.to_owned()).or_default(),
        };
        *count = count.saturating_add(1);
        match *count {
            ..MOST => Fate::Shown,
            MOST => Fate::Last,
            _ => Fate::Counted,
        }
    }

    /// A line for each target that has said more than was shown.
    fn sums(&mut self) -> Vec<String> {
        let sum = |(target, count): (String, u64)| {
            let more = count.saturating_sub(MOST);
            let lines = if more == 1 { "line like it was" } else { "lines like these were" };
            (more > 0).then(|| format!("{target}: {more} more {lines} left out"))
        };
        std::mem::take(&mut self.0).into_iter().filter_map(sum).collect()
    }
}

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What virtio-queue logs, a guest can make it log without end; the device says it in its own words.
        !metadata.target().starts_with("virtio_queue")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // An error is nothing that a guest can bring about again and again.
        let fate = match record.level() {
            Level::Error => Fate::Shown,
            _ => said().count(record.target()),
        };
        let more = match fate {
            Fate::Shown => "",
            Fate::Last => "; and so on",
            Fate::Counted => return,
        };
        let line = printable(&format!("{}{more}", record.args()));
        messages::log(terminal::ended(&format!("kite: {line}")));
    }

    fn flush(&self) {}
}

fn said() -> std::sync::MutexGuard<'static, Said> {
    lock(&SAID)
}

/// Begins to log warnings and errors.
pub fn start() {
    // Set before only by a test.
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Says how many lines were left out, at the end.
pub fn sum_up() {
    let sums = said().sums();
    sums.iter().for_each(|sum| terminal::tell(sum));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_ten_lines_and_its_neighbours_have_theirs() {
        let mut said = Said::default();
        let fates: Vec<_> = (0..500).map(|_| said.count("virtio 3 (net)")).collect();
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Shown).count(), 9);
        assert_eq!((fates[9], fates[10], fates[499]), (Fate::Last, Fate::Counted, Fate::Counted));
        assert_eq!(said.count("virtio 4 (net)"), Fate::Shown);
        assert_eq!(said.sums(), ["virtio 3 (net): 490 more lines like these were left out"]);
        assert_eq!(said.sums(), [""; 0]);
    }

    #[test]
    fn targets_without_end_take_no_memory_without_end() {
        let mut said = Said::default();
        let shown = (0..10_000).filter(|it| said.count(&it.to_string()) != Fate::Counted).count();
        assert_eq!((shown, said.0.len()), (TARGETS + MOST as usize, TARGETS + 1));
    }
}
