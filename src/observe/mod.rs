//! What a run shows: counters, traces, crashes, test results.

pub mod crash;
pub mod kvm_stats;
pub mod results;
pub mod screenshot;
pub mod stats;
pub mod trace;
