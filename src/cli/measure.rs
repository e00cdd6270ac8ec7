//! The options of `kite run` that say what to measure.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::ValueParser;

use crate::spec::{MeasureSpec, StatsSpec, duration};

/// What to measure, and where to tell it.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Options for measuring")]
pub struct MeasureOptions {
    /// Count and time the guest's exits, by reason, address and device, beside KVM's own counters; tell at the end and
    /// on SIGUSR1, on standard error or as JSON in a file
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = ValueParser::new(file)
    )]
    pub stats: Option<Option<PathBuf>>,
    /// Tell again each time that so much time has passed, such as 10s
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "stats", value_parser = ValueParser::new(duration::parse))]
    pub stats_interval: Option<Duration>,
    /// Write when the boot came to what, and the exits until then, as JSON that ui.perfetto.dev shows
    #[arg(long, value_name = "FILE", value_parser = ValueParser::new(file))]
    pub trace: Option<PathBuf>,
    /// Write what is on the screen as a PNG file when kite ends with another exit code than 0
    #[arg(long, value_name = "FILE", requires = "screen", value_parser = ValueParser::new(file))]
    pub screenshot_on_failure: Option<PathBuf>,
}

impl MeasureOptions {
    pub(super) fn spec(&self) -> MeasureSpec {
        let stats = |file: &Option<PathBuf>| StatsSpec { file: file.clone(), interval: self.stats_interval };
        MeasureSpec {
            stats: self.stats.as_ref().map(stats),
            trace: self.trace.clone(),
            screenshot_on_failure: self.screenshot_on_failure.clone(),
        }
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("it names no file".to_owned()),
        text => Ok(text.into()),
    }
}
