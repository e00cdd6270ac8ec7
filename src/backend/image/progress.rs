//! What people see on a terminal while an image is got and merged. Where standard error is no terminal, nothing.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is shown while there are bytes to come.
const BYTES: &str = "{msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}";
/// What is shown while something else is waited for.
const WAIT: &str = "{msg} {elapsed}";

/// A line that shows how far something is.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// A line without anything yet; and never with anything unless `is_wanted`.
    pub fn new(is_wanted: bool) -> Self {
        let bar = (is_wanted && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(WAIT));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self(bar)
    }

    /// Shows what is waited for.
    pub fn wait(&self, what: String) {
        self.show(what, WAIT, 0);
    }

    /// Shows what is being done with so many bytes, and how far it is.
    pub fn begin(&self, what: String, bytes: u64) {
        self.show(what, BYTES, bytes);
    }

    fn show(&self, what: String, template: &str, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_style(style(template));
            bar.set_length(bytes);
            bar.set_position(0);
            bar.reset_eta();
            bar.set_message(what);
        }
    }

    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// So many bytes that were done are to be done again.
    pub fn take_back(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.dec(bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.expect("the template is a constant and has only keys that there are").progress_chars("=> ")
}
