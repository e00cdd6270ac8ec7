//! `--cgroup` and `--limit`: what a machine may take of its host, as data; and the files and words that both versions of
//! cgroups have for it (the kernel's admin-guide/cgroup-v2 and cgroup-v1, cgroups(7)).

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{number, text};

/// What a limit of CPU time is measured over, in microseconds.
pub const PERIOD: u64 = 100_000;
/// The longest name of a group.
const NAME_MAX: usize = 64;
/// What CPU time in a period a kernel takes, in microseconds. What no machine has is refused before the kernel's own
/// arithmetic meets it.
const QUOTAS: RangeInclusive<u64> = 1000..=u32::MAX as u64;
const CPU: &str = "cpu is a number of CPUs, such as 1.5 or 0.25, and at least 0.01";
const EXAMPLES: &str = "a limit is cpu=CPUS, memory=SIZE, pids=N or io=DEVICE:RATE..., such as \
                        cpu=1.5,memory=600M,pids=64 or io=/dev/sda:rbps=10M:wiops=100";
const IO: &str = "an io limit is DEVICE and one or more of :rbps=SIZE, :wbps=SIZE, :riops=N and :wiops=N, such as \
                  io=/dev/sda:rbps=10M:wiops=100 or io=8:0:wbps=5M";

/// What a machine may take of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// CPU time, in microseconds of each [`PERIOD`]; one CPU's is a whole period.
    #[serde(default, rename = "cpu_us", skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// Memory and swap together, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Rates of I/O.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub io: Vec<IoLimit>,
}

/// How fast a device may be read and written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "IoLimitFields", into = "IoLimitFields")]
pub struct IoLimit {
    /// Which.
    pub device: Device,
    /// Each rate at most once, in the order of [`Rate::ALL`].
    pub rates: Vec<(Rate, u64)>,
}

/// The same as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IoLimitFields {
    #[serde(with = "text::os")]
    device: OsString,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rbps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wbps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    riops: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wiops: Option<u64>,
}

impl From<IoLimit> for IoLimitFields {
    fn from(limit: IoLimit) -> Self {
        let rate = |rate| limit.rates.iter().find(|(it, _)| *it == rate).map(|(_, most)| *most);
        Self {
            rbps: rate(Rate::ReadBytes),
            wbps: rate(Rate::WriteBytes),
            riops: rate(Rate::Reads),
            wiops: rate(Rate::Writes),
            device: match limit.device {
                Device::Number(major, minor) => format!("{major}:{minor}").into(),
                Device::Path(path) => path.into(),
            },
        }
    }
}

impl TryFrom<IoLimitFields> for IoLimit {
    type Error = String;

    fn try_from(fields: IoLimitFields) -> Result<Self, String> {
        let rates = [fields.rbps, fields.wbps, fields.riops, fields.wiops];
        let rates: Vec<_> =
            Rate::ALL.into_iter().zip(rates).filter_map(|(rate, most)| Some((rate, most?))).collect();
        if rates.is_empty() || fields.device.is_empty() {
            return Err("an io limit is a device and one or more of rbps, wbps, riops and wiops".to_owned());
        }
        Ok(Self { device: Device::of(&fields.device), rates })
    }
}

/// A name for a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupName(String);

impl CgroupName {
    /// Reads the value of `--cgroup`.
    ///
    /// # Errors
    /// It is no such name, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-:@".contains(&byte);
        // The kernel's own files begin so.
        let reserved = ["cgroup.", "cpu.", "cpuacct.", "cpuset.", "memory.", "pids.", "io.", "blkio."];
        let files = ["tasks", "release_agent", "notify_on_release"];
        let fits = !text.is_empty()
            && text.len() <= NAME_MAX
            && text.bytes().all(allowed)
            && !text.starts_with(['.', '-'])
            && !reserved.iter().any(|prefix| text.starts_with(prefix))
            && !files.contains(&text);
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "a group's name is up to {NAME_MAX} letters, digits and _ . - : @, begins with a letter or digit, and \
                 is no file of the kernel's, such as memory.max"
            )),
        }
    }

    /// The default name of a group.
    pub fn of_this_process() -> Self {
        Self(format!("kite-{}", std::process::id()))
    }

    /// The process whose kite made up this name, if one did.
    pub fn process(name: &str) -> Option<i32> {
        name.strip_prefix("kite-")?.parse().ok().filter(|process| *process > 0)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CgroupName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<CgroupName> for String {
    fn from(name: CgroupName) -> Self {
        name.0
    }
}

/// What a rate counts, each a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ReadBytes, Self::WriteBytes, Self::Reads, Self::Writes];

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
            "memory" => one.memory = Some(positive(name, number::memory_limit(value)?)?),
            "pids" => one.pids = Some(positive(name, digits(value).ok_or("pids is a whole number")?)?),
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

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they can hold.
    ///
    /// # Errors
    /// Why they cannot, in one line.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.cpu.is_some_and(|quota| !QUOTAS.contains(&quota)) {
            return Err(CPU.to_owned());
        }
        let counts = [("memory", self.memory), ("pids", self.pids)].into_iter();
        let counts = counts.filter_map(|(name, most)| Some((name, most?)));
        let rates = self.io.iter().flat_map(|limit| &limit.rates).map(|(rate, most)| (rate.name(), *most));
        counts.chain(rates).try_for_each(|(name, most)| positive(name, most).map(drop))?;
        // Nothing is limited twice.
        Self::default().add(self.clone())
    }

    /// Has relative paths begin at `folder`.
    pub(super) fn rebase(&mut self, folder: &Path) {
        for limit in &mut self.io {
            if let Device::Path(path) = &mut limit.device {
                *path = folder.join(&*path);
            }
        }
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
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let thousandths = match decimals.len() {
        1..=3 => digits(&format!("{decimals:0<3}")),
        _ => None,
    };
    let quota = digits(whole)
        .zip(thousandths)
        .and_then(|(whole, part)| whole.checked_mul(1000)?.checked_add(part)?.checked_mul(PERIOD / 1000))
        .ok_or(CPU)?;
    QUOTAS.contains(&quota).then_some(quota).ok_or_else(|| CPU.to_owned())
}

fn io(text: &str) -> Result<IoLimit, String> {
    let mut device = text;
    let mut rates = Vec::new();
    // From the end: a device's path may hold what parts the rates.
    while let Some((rest, last)) = device.rsplit_once(':') {
        let Some((rate, value)) = rate(last) else { break };
        let value = match rate {
            Rate::ReadBytes | Rate::WriteBytes => number::bytes(value)?,
            Rate::Reads | Rate::Writes => digits(value).ok_or(IO)?,
        };
        if rates.iter().any(|(it, _)| *it == rate) {
            return Err(format!("{} is limited twice", rate.name()));
        }
        rates.push((rate, positive(rate.name(), value)?));
        device = rest;
    }
    if rates.is_empty() || device.is_empty() {
        return Err(IO.to_owned());
    }
    rates.sort();
    Ok(IoLimit { device: Device::of(OsStr::new(device)), rates })
}

fn rate(text: &str) -> Option<(Rate, &str)> {
    let (name, value) = text.split_once('=')?;
    Some((Rate::ALL.into_iter().find(|rate| rate.name() == name)?, value))
}

impl Device {
    fn of(name: &OsStr) -> Self {
        let part = |text: &str| digits(text).and_then(|number| u32::try_from(number).ok());
        let numbers = name.to_str().and_then(|text| text.split_once(':'));
        match numbers.and_then(|(major, minor)| part(major).zip(part(minor))) {
            Some((major, minor)) => Self::Number(major, minor),
            None => Self::Path(name.into()),
        }
    }
}

/// Digits and nothing else.
fn digits(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
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
    use crate::spec::assert_refused_in_one_line;

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
        assert_refused_in_one_line(
            parse,
            &[
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
            ],
        );
    }

    #[test]
    fn limits_given_apart_are_together() {
        let mut limits = parse("cpu=1").unwrap();
        limits.add(parse("memory=1M").unwrap()).unwrap();
        assert_eq!((limits.cpu, limits.memory), (Some(100_000), Some(1 << 20)));
        assert!(limits.add(parse("cpu=1").unwrap()).unwrap_err().contains("cpu is limited twice"));
    }
}
