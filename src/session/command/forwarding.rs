//! The signals that kite passes on to a command, as container engines do, instead of ending.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::host::signals::Interrupts;

/// How long a command may take that was asked to end; less than the supervisor gives the VM process.
const GRACE: Duration = Duration::from_secs(8);
/// Those that are passed on whenever they come.
const ALWAYS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// What becomes of signals.
pub(super) struct Forwarding {
    /// What the command gets for SIGTERM.
    stop_signal: i32,
    /// When the command was asked to end.
    asked: Option<Instant>,
    interrupts: Interrupts,
}

impl Forwarding {
    pub fn new(stop_signal: i32) -> Self {
        Self { stop_signal, asked: None, interrupts: Interrupts::default() }
    }

    /// What the command gets for a signal, if it gets any.
    pub fn take(&mut self, signal: i32) -> Option<i32> {
        let signal = Signal::try_from(signal).ok()?;
        if signal == Signal::SIGTERM {
            let is_first = self.asked.is_none();
            self.asked.get_or_insert_with(Instant::now);
            return is_first.then_some(self.stop_signal);
        }
        let is_new = self.interrupts.take(signal) == Some(false);
        (is_new || ALWAYS.contains(&signal)).then_some(signal as i32)
    }

    /// How much longer a command may run that was asked to end; nothing if for ever.
    pub fn left(&self) -> Option<Duration> {
        self.asked.map(|asked| GRACE.saturating_sub(asked.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_end_becomes_the_image_s_signal_and_ends_kite_the_second_time() {
        let mut forwarding = Forwarding::new(38);
        assert_eq!(forwarding.left(), None);
        assert_eq!(forwarding.take(Signal::SIGTERM as i32), Some(38));
        assert!(forwarding.left().is_some_and(|left| left <= GRACE));
        assert_eq!(forwarding.take(Signal::SIGTERM as i32), None);
    }

    #[test]
    fn an_interrupt_is_passed_on_once_and_a_user_s_signal_always() {
        let mut forwarding = Forwarding::new(15);
        let mut taken = |signal: Signal| forwarding.take(signal as i32).is_some();
        let came = [Signal::SIGINT, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR1];
        assert_eq!(came.map(&mut taken), [true, false, true, true, true]);
        assert!(!taken(Signal::SIGALRM) && !taken(Signal::SIGXCPU));
    }
}
