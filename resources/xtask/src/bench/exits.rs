//! VM exits, counted by the host kernel's histograms of trace events (Linux `Documentation/trace/histogram.rst`), which
//! outlive the virtual machine, unlike KVM's own statistics; they cost instructions, so that they have runs of their own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

const TRACING: &str = "/sys/kernel/tracing";
/// KVM_RUN returned: what the VMM has to answer.
pub const TO_USER: Event = ("kvm_userspace_exit", "reason");
/// The guest left the processor's guest mode, whoever answers.
pub const ALL: Event = ("kvm_exit", "exit_reason");

/// A trace event of KVM's and the fields it is counted by.
pub type Event = (&'static str, &'static str);

/// Histograms of some events, until they are dropped.
pub struct Histograms<const N: usize>([Event; N]);

impl<const N: usize> Histograms<N> {
    /// Begins to count.
    ///
    /// # Errors
    /// The kernel cannot trace, or this is not root.
    pub fn start(events: [Event; N]) -> Result<Self> {
        if !Path::new(TRACING).join("events").exists() {
            mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>)
                .context("mounting tracefs")?;
        }
        let histograms = Self(events);
        for event in events {
            trigger(event, "hist:keys=")?;
        }
        Ok(histograms)
    }

    /// What has been counted: the histograms as the kernel prints them.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(&self) -> Result<[String; N]> {
        let mut texts = [const { String::new() }; N];
        for ((event, _), text) in self.0.iter().zip(&mut texts) {
            let path = format!("{TRACING}/events/kvm/{event}/hist");
            *text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        }
        Ok(texts)
    }
}

impl<const N: usize> Drop for Histograms<N> {
    fn drop(&mut self) {
        for event in self.0 {
            // One that was not begun need not be ended.
            let _ = trigger(event, "!hist:keys=");
        }
    }
}

/// Adds a histogram to an event, or takes it away.
fn trigger((event, keys): Event, how: &str) -> Result<()> {
    let path = format!("{TRACING}/events/kvm/{event}/trigger");
    fs::write(&path, format!("{how}{keys}")).with_context(|| format!("writing {path}"))
}

/// A histogram's total: "    Hits: 770".
///
/// # Errors
/// It has none.
pub fn hits(histogram: &str) -> Result<u64> {
    let line = histogram.lines().find_map(|line| line.trim().strip_prefix("Hits:"));
    line.and_then(|hits| hits.trim().parse().ok()).context("a histogram has no total")
}
