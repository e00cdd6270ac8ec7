//! What this host is, as far as it bears on how long an exit takes, and what about it makes the times worth less.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::exits::steal;
use crate::cmd::doctor::hardware::{Engine, Processor};

/// What this host is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The processor's name.
    pub cpu: String,
    /// Its microcode.
    pub microcode: String,
    /// The kernel's release.
    pub kernel: String,
    /// KVM.
    pub kvm: KvmFacts,
    /// Whether this machine is itself a guest.
    pub nested: bool,
    /// The time-stamp counter's rate.
    pub tsc_khz: u64,
    /// The rest, by name.
    pub settings: BTreeMap<String, String>,
    /// What makes the times worth less.
    pub warnings: Vec<String>,
}

/// KVM's module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KvmFacts {
    /// Its name.
    pub module: String,
    /// Its parameters, and those of the module below it.
    pub params: BTreeMap<String, String>,
}

/// Parameters of KVM's modules that change what an exit takes.
const PARAMETERS: [&str; 10] = [
    "npt",
    "ept",
    "avic",
    "enable_apicv",
    "enable_ipiv",
    "halt_poll_ns",
    "nested",
    "vnmi",
    "lapic_timer_advance",
    "nx_huge_pages",
];

fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

impl Facts {
    /// Asks this host.
    pub fn of_this_host(tsc_khz: u64) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| cpu_field(&cpuinfo, name).unwrap_or_default();
        let nested = field("flags").split(' ').any(|flag| flag == "hypervisor");
        let mut facts = Self {
            cpu: field("model name"),
            microcode: field("microcode"),
            kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            kvm: KvmFacts::of_this_host(),
            nested,
            tsc_khz,
            settings: settings(),
            warnings: Vec::new(),
        };
        facts.warnings = facts.warn();
        facts
    }

    fn warn(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let setting = |name: &str| self.settings.get(name).map_or("", String::as_str);
        if Processor::of_this_machine().engine() == Engine::Pvm {
            warnings
                .push("KVM is kvm_pvm: a guest's kernel mode is emulated, which most of each time is".into());
        } else if self.nested {
            warnings.push("this machine is itself a guest: the machine below takes part in each exit".into());
        }
        let governor = setting("governor");
        if !matches!(governor, "" | "performance") {
            warnings.push(format!("the CPUs' governor is {governor}: cpupower frequency-set -g performance"));
        }
        let load: f64 =
            setting("load average").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
        if load > 0.5 {
            warnings.push(format!("other work is running: the load average is {load:.2}"));
        }
        if !matches!(setting("clocksource"), "" | "tsc" | "kvm-clock") {
            warnings.push(format!(
                "the kernel does not trust the time-stamp counter: it uses {}",
                setting("clocksource")
            ));
        }
        let stolen = fs::read_to_string("/proc/stat").map_or(0, |stat| steal(&stat));
        if stolen > 0 {
            warnings.push("the machine below has taken CPU time from this one since it was started".into());
        }
        warnings
    }
}

impl KvmFacts {
    fn of_this_host() -> Self {
        let modules = ["kvm_pvm", "kvm_intel", "kvm_amd"];
        let module = modules.into_iter().find(|module| Path::new("/sys/module").join(module).exists());
        let mut params = BTreeMap::new();
        for module in module.into_iter().chain(["kvm"]) {
            for name in PARAMETERS {
                if let Some(value) = text(format!("/sys/module/{module}/parameters/{name}")) {
                    params.insert(format!("{module}.{name}"), value);
                }
            }
        }
        Self { module: module.unwrap_or("kvm").to_owned(), params }
    }
}

/// The first CPU's.
fn cpu_field(cpuinfo: &str, name: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn settings() -> BTreeMap<String, String> {
    const CPU: &str = "/sys/devices/system/cpu";
    let mut settings = BTreeMap::new();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            settings.insert(name.to_owned(), value);
        }
    };
    put("governor", text(format!("{CPU}/cpu0/cpufreq/scaling_governor")));
    put("turbo off", text(format!("{CPU}/intel_pstate/no_turbo")));
    put("boost", text(format!("{CPU}/cpufreq/boost")));
    put("SMT", text(format!("{CPU}/smt/active")));
    put("isolated CPUs", text(format!("{CPU}/isolated")));
    put("CPUs", text(format!("{CPU}/online")));
    put("huge pages", text("/sys/kernel/mm/transparent_hugepage/enabled"));
    put("clocksource", text("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
    put("load average", text("/proc/loadavg"));
    put("mitigations", mitigations());
    settings
}

/// Those that are on.
fn mitigations() -> Option<String> {
    let folder = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").ok()?;
    let mut names: Vec<_> = folder
        .filter_map(Result::ok)
        .filter(|file| text(file.path()).is_some_and(|state| state.starts_with("Mitigation")))
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Some(names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_the_first_cpus() {
        let cpuinfo = "model name\t: One: two\nflags\t: a b\n\nmodel name\t: Other\n";
        assert_eq!(cpu_field(cpuinfo, "model name").as_deref(), Some("One: two"));
        assert_eq!(cpu_field(cpuinfo, "microcode"), None);
    }

    #[test]
    fn a_loaded_host_and_a_slow_governor_are_told() {
        let settings =
            [("governor", "powersave"), ("load average", "1.75 1 1 2/3 4"), ("clocksource", "hpet")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let warnings = Facts { settings, ..Facts::default() }.warn().join("\n");
        for word in ["powersave", "1.75", "hpet"] {
            assert!(warnings.contains(word), "{warnings}");
        }
    }
}
