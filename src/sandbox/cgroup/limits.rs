//! `--limit`: what a machine may take of its host, as data; and the files and words that both versions of cgroups have
//! for it (the kernel's admin-guide/cgroup-v2 and cgroup-v1, cgroups(7)).

use std::path::PathBuf;

use crate::cli;

/// What a limit of CPU time is measured over, in microseconds.
pub const PERIOD: u64 = 100_000;
/// The least CPU time in a period that a kernel takes, in microseconds.
const LEAST_QUOTA: u64 = 1000;
const EXAMPLES: &str = "a limit is cpu=CPUS, memory=SIZE, pids=N or io=DEVICE:RATE..., such as \
                        cpu=1.5,memory=600M,pids=64 or io=/dev/sda:rbps=10M:wiops=100";
const IO: &str = "an io limit is DEVICE and one or more of :rbps=SIZE, :wbps=SIZE, :riops=N and :wiops=N, such as \
                  io=/dev/sda:rbps=10M:wiops=100 or io=8:0:wbps=5M";

/// What a machine may take of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time, in microseconds of each [`PERIOD`]; one CPU's is a whole period.
    pub cpu: Option<u64>,
    /// Memory and swap together, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Rates of I/O.
    pub io: Vec<IoLimit>,
}

/// How fast a device may be read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoLimit {
    /// Which.
    pub device: Device,
    /// Each rate at most once.
    pub rates: Vec<(Rate, u64)>,
}

/// What a rate counts, each a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
}

/// A device, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// By its numbers.
    Number(u32, u32),
    /// A block device, or a file whose file system is on one.
    Path(PathBuf),
}

/// What limits something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// I/O.
    Io,
}

impl Controller {
    /// Those that are taken if nothing is limited: they only count.
    pub const COUNTING: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// What version 2 calls it, and `--limit`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    /// What version 1 calls it.
    pub fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }
}

impl Rate {
    const ALL: [Self; 4] = [Self::ReadBytes, Self::WriteBytes, Self::Reads, Self::Writes];

    /// What version 2 calls it, and `--limit`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadBytes => "rbps",
            Self::WriteBytes => "wbps",
            Self::Reads => "riops",
            Self::Writes => "wiops",
        }
    }

    /// The file of version 1.
    pub fn v1_file(self) -> &'static str {
        match self {
            Self::ReadBytes => "blkio.throttle.read_bps_device",
            Self::WriteBytes => "blkio.throttle.write_bps_device",
            Self::Reads => "blkio.throttle.read_iops_device",
            Self::Writes => "blkio.throttle.write_iops_device",
        }
    }
}

/// Reads the value of `--limit`: limits between commas.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn parse(text: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or(EXAMPLES)?;
        let mut one = Limits::default();
        match name {
            "cpu" => one.cpu = Some(cpus(value)?),
            "memory" => one.memory = Some(positive(name, cli::memory_limit(value)?)?),
            "pids" => one.pids = Some(positive(name, number(value).ok_or("pids is a whole number")?)?),
            "io" => one.io.push(io(value)?),
            other => return Err(format!("there is no limit {other:?}: {EXAMPLES}")),
        }
        limits.add(one)?;
    }
    Ok(limits)
}

impl Limits {
    /// Adds others.
    ///
    /// # Errors
    /// Something would be limited twice, in one line.
    pub fn add(&mut self, more: Self) -> Result<(), String> {
        only(&mut self.cpu, more.cpu, "cpu")?;
        only(&mut self.memory, more.memory, "memory")?;
        only(&mut self.pids, more.pids, "pids")?;
        for limit in more.io {
            if self.io.iter().any(|it| it.device == limit.device) {
                return Err("the io of a device is limited twice: give all its rates at once".to_owned());
            }
            self.io.push(limit);
        }
        Ok(())
    }

    /// What has to be there for them.
    pub fn controllers(&self) -> Vec<Controller> {
        let needed = [
            (Controller::Cpu, self.cpu.is_some()),
            (Controller::Memory, self.memory.is_some()),
            (Controller::Pids, self.pids.is_some()),
            (Controller::Io, !self.io.is_empty()),
        ];
        needed.into_iter().filter(|(_, needed)| *needed).map(|(controller, _)| controller).collect()
    }
}

fn only(limit: &mut Option<u64>, more: Option<u64>, name: &str) -> Result<(), String> {
    match (&limit, more) {
        (Some(_), Some(_)) => Err(format!("{name} is limited twice")),
        (_, None) => Ok(()),
        (None, more) => {
            *limit = more;
            Ok(())
        }
    }
}

/// A number of CPUs, with three decimals at most, as microseconds of each period.
fn cpus(text: &str) -> Result<u64, String> {
    const EXPLANATION: &str = "cpu is a number of CPUs, such as 1.5 or 0.25, and at least 0.01";
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let thousandths = match decimals.len() {
        1..=3 => number(&format!("{decimals:0<3}")),
        _ => None,
    };
    let quota = number(whole)
        .zip(thousandths)
        .and_then(|(whole, part)| whole.checked_mul(1000)?.checked_add(part)?.checked_mul(PERIOD / 1000))
        .ok_or(EXPLANATION)?;
    // What no machine has is refused before the kernel's own arithmetic meets it.
    match (LEAST_QUOTA..=u64::from(u32::MAX)).contains(&quota) {
        true => Ok(quota),
        false => Err(EXPLANATION.to_owned()),
    }
}

fn io(text: &str) -> Result<IoLimit, String> {
    let mut device = text;
    let mut rates = Vec::new();
    // From the end: a device's path may hold what parts the rates.
    while let Some((rest, last)) = device.rsplit_once(':') {
        let Some((rate, value)) = rate(last) else { break };
        let value = match rate {
            Rate::ReadBytes | Rate::WriteBytes => cli::bytes(value)?,
            Rate::Reads | Rate::Writes => number(value).ok_or(IO)?,
        };
        if rates.iter().any(|(it, _)| *it == rate) {
            return Err(format!("{} is limited twice", rate.name()));
        }
        rates.insert(0, (rate, positive(rate.name(), value)?));
        device = rest;
    }
    if rates.is_empty() || device.is_empty() {
        return Err(IO.to_owned());
    }
    Ok(IoLimit { device: Device::parse(device), rates })
}

fn rate(text: &str) -> Option<(Rate, &str)> {
    let (name, value) = text.split_once('=')?;
    Some((Rate::ALL.into_iter().find(|rate| rate.name() == name)?, value))
}

impl Device {
    fn parse(text: &str) -> Self {
        let part = |text: &str| number(text).and_then(|number| u32::try_from(number).ok());
        match text.split_once(':').and_then(|(major, minor)| part(major).zip(part(minor))) {
            Some((major, minor)) => Self::Number(major, minor),
            None => Self::Path(text.into()),
        }
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn positive(name: &str, value: u64) -> Result<u64, String> {
    // The kernel's counters have a sign.
    match value > 0 && value <= i64::MAX as u64 {
        true => Ok(value),
        false => Err(format!("a limit of {name} is more than 0, and no more than any host has")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_between_commas() {
        let all = parse("cpu=1.5,memory=600M,pids=64,io=8:16:rbps=10M:wiops=100,io=/a:b=c/d:wbps=1").unwrap();
        assert_eq!((all.cpu, all.memory, all.pids), (Some(150_000), Some(600 << 20), Some(64)));
        let rates = vec![(Rate::ReadBytes, 10 << 20), (Rate::Writes, 100)];
        assert_eq!(all.io[0], IoLimit { device: Device::Number(8, 16), rates });
        assert_eq!(all.io[1].device, Device::Path("/a:b=c/d".into()));
        let names: Vec<_> = all.controllers().into_iter().map(Controller::v1_name).collect();
        assert_eq!(names, ["cpu", "memory", "pids", "blkio"]);
        assert!(Limits::default().controllers().is_empty());
    }

    #[test]
    fn a_number_of_cpus_has_three_decimals_at_most() {
        for (text, quota) in [("1", 100_000), ("0.01", 1000), ("0.5", 50_000), ("2.125", 212_500)] {
            assert_eq!(cpus(text), Ok(quota), "{text}");
        }
        for text in
            ["", "0", "0.0", "0.009", ".5", "1.", "1.2345", "-1", "1e3", "99999999999999999999", "50000"]
        {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused_in_one_line() {
        for text in [
            "",
            "cpu",
            "cpu=",
            "cpus=1",
            "memory=0",
            "memory=",
            "memory=1.5G",
            "memory=9223372036854775808",
            "pids=0",
            "pids=x",
            "pids=1,pids=2",
            "memory=1M,",
            "io=",
            "io=8:0",
            "io=8:0:rbps=0",
            "io=8:0:rbps=1:rbps=2",
            "io=:rbps=1",
            "io=8:0:xbps=1",
            "io=8:0:riops=1M",
            "io=8:0:rbps=1,io=8:0:wbps=1",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn limits_given_apart_are_together() {
        let mut limits = parse("cpu=1").unwrap();
        limits.add(parse("memory=1M").unwrap()).unwrap();
        assert_eq!((limits.cpu, limits.memory), (Some(100_000), Some(1 << 20)));
        assert!(limits.add(parse("cpu=1").unwrap()).unwrap_err().contains("cpu is limited twice"));
    }
}
