//! Hears in what the guest prints how far it is.

use super::{Mark, Timeline};
use crate::guest::OWN_INIT;

/// The kernel's first line, whatever its version (Linux `init/version-timestamp.c`, `linux_banner`).
const BANNER: &[u8] = b"Linux version ";
/// What the kernel says before it starts the first process (Linux `init/main.c`, `run_init_process`).
const INIT: [&[u8]; 2] = [b"Run /", b" as init process"];
/// No line that is of interest is longer.
const LINE: usize = 256;

/// One console's listener.
#[derive(Debug, Default)]
pub struct Milestones {
    line: Vec<u8>,
    done: bool,
}

impl Milestones {
    /// Takes what the guest has printed.
    pub fn feed(&mut self, bytes: &[u8], timeline: &Timeline) {
        if self.done || bytes.is_empty() || !timeline.is_watched() {
            return;
        }
        timeline.mark(Mark::FirstOutput);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if let Some(mark) = heard(&self.line) {
                timeline.mark(mark);
                self.done |= mark == Mark::Init;
                // Not twice for one line.
                self.line.clear();
            }
            if part.ends_with(b"\n") {
                self.line.clear();
            }
        }
    }
}

/// What the line so far says.
fn heard(line: &[u8]) -> Option<Mark> {
    let has = |words: &[u8]| line.windows(words.len()).any(|part| part == words);
    if has(BANNER) {
        Some(Mark::Kernel)
    } else if INIT.into_iter().all(has) || has(OWN_INIT.as_bytes()) {
        Some(Mark::Init)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_first_line_and_its_last_before_init_are_heard() {
        for (line, mark) in [
            ("[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel", Some(Mark::Kernel)),
            ("[    1.102034] Run /init as init process\r\n", Some(Mark::Init)),
            ("[    1.102034] Run /sbin/init as init process", Some(Mark::Init)),
            ("[    1.102034] kite: init", Some(Mark::Init)),
            ("[    1.102034] Run /sbin/ini", None),
            ("[    0.000000] Linux versio", None),
            ("", None),
        ] {
            assert_eq!(heard(line.as_bytes()), mark, "{line}");
        }
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_room_than_a_line() {
        let timeline = super::super::tests::watched();
        let mut milestones = Milestones::default();
        for _ in 0..100 {
            milestones.feed(&[b'x'; 1000], &timeline);
        }
        assert!(milestones.line.len() <= LINE && timeline.moment(Mark::Kernel).is_none());
        milestones.feed(b"\n[ 0.0] Linux ver", &timeline);
        assert!(timeline.moment(Mark::Kernel).is_none());
        milestones.feed(b"sion 6.1\r\nRun /i", &timeline);
        assert!(timeline.moment(Mark::Kernel).is_some() && timeline.moment(Mark::Init).is_none());
        milestones.feed(b"nit as init process\n", &timeline);
        assert!(timeline.moment(Mark::Init).is_some() && timeline.moment(Mark::FirstOutput).is_some());
    }
}
