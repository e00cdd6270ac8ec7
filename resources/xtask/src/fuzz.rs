//! `cargo xtask fuzz`: a target of `tests/fuzz` in the hands of libFuzzer.
//!
//! Coverage comes from LLVM's own pass, which the stable compiler can be told to run. AddressSanitizer cannot be had
//! there; what it would find in guest memory, the guard pages and the account of RAM in the targets find.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::host;
use crate::setup::Setup;
use crate::step::{output, step};
use crate::test::cargo;

/// Every edge has a counter and a place in a table, and what is compared is told (LLVM's SanitizerCoverage).
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// What to run, and how long.
#[derive(Args)]
pub struct Options {
    /// The target
    target: String,
    /// Stop after this many seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Run these inputs once each instead
    inputs: Vec<PathBuf>,
}

impl Options {
    /// This target for so many seconds.
    pub fn brief(target: &str, seconds: u64) -> Self {
        Self { target: target.to_owned(), seconds, inputs: Vec::new() }
    }
}

/// The names of all targets, as their list has them.
///
/// # Errors
/// It cannot be read.
pub fn targets() -> Result<Vec<String>> {
    let path = host::root().join("tests/fuzz/src/lib.rs");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (_, list) = text.split_once("TARGETS").context("there is no list of fuzz targets")?;
    let lines = list.split_once("];").map_or("", |(list, _)| list).lines();
    Ok(lines
        .filter_map(|line| Some(line.trim().strip_prefix("(\"")?.split_once('"')?.0.to_owned()))
        .collect())
}

/// Builds the target and runs it.
///
/// # Errors
/// It cannot be built, or there is no such target.
pub fn run(options: &Options) -> Result<ExitCode> {
    Setup::new().programs(&[("c++", "g++")])?;
    let program = step("building the fuzz targets", build)?;
    let mut fuzzer = Command::new(program);
    fuzzer.env("KITE_FUZZ_TARGET", &options.target).env("RUST_BACKTRACE", "1");
    fuzzer.args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-len_control=0"]);
    if !options.inputs.is_empty() {
        let status = fuzzer.args(&options.inputs).status().context("running the fuzz target")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let [corpus, findings] =
        ["corpus", "findings"].map(|folder| host::target(&format!("fuzz/{}/{folder}", options.target)));
    let (corpus, findings) = (corpus?, findings?);
    let known = files(&findings)?;
    fuzzer.arg(format!("-max_total_time={}", options.seconds));
    fuzzer.arg(format!("-artifact_prefix={}/", findings.display()));
    // The first folder is written, those behind it are only read.
    fuzzer.arg(&corpus).args(Some(regressions(&options.target)).filter(|folder| folder.is_dir()));
    let status = fuzzer.status().context("running the fuzz target")?;
    let new: Vec<PathBuf> = files(&findings)?.difference(&known).cloned().collect();
    for input in &new {
        println!("found: {}", input.display());
        println!("  again:  cargo xtask fuzz {} {}", options.target, input.display());
        println!("  keep:   cp {} {}", input.display(), regressions(&options.target).display());
    }
    match (status.success(), new.is_empty()) {
        (true, true) => {
            println!("{}: nothing found in {} s", options.target, options.seconds);
            Ok(ExitCode::SUCCESS)
        }
        (_, false) => Ok(ExitCode::FAILURE),
        (false, true) => bail!("the fuzz target failed without a finding ({status})"),
    }
}

/// The inputs that `cargo test` runs.
fn regressions(target: &str) -> PathBuf {
    Path::new("tests/fuzz/corpus").join(target)
}

fn build() -> Result<PathBuf> {
    let folder = host::target("fuzz/build")?;
    let mut build = cargo();
    build.args(["build", "--package", "fuzz", "--features", "libfuzzer", "--bin", "libfuzzer"]);
    build.args(["--profile", "fuzz", "--target", "x86_64-unknown-linux-gnu", "--target-dir"]).arg(&folder);
    // In place of the configuration's, which link statically.
    build.env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    output(&mut build)?;
    Ok(folder.join("x86_64-unknown-linux-gnu/fuzz/libfuzzer"))
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_read_from_their_list() {
        let targets = targets().unwrap();
        assert!(targets.len() >= 12 && targets.iter().any(|it| it == "queue"), "{targets:?}");
        assert!(targets.iter().all(|it| it.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')));
    }
}
