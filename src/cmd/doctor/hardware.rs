//! Which engine is behind `/dev/kvm`, the processor's own virtualisation or another, and what that means for
//! guests.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::{Problem, Verdict};

/// What runs a guest's kernel mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Engine {
    /// The processor: AMD SVM or Intel VMX.
    Hardware,
    /// `kvm_pvm`: only kernels built for it; others are emulated one instruction after another.
    Pvm,
    /// None that is known.
    Unknown,
}

/// The processor's virtualisation flags and the KVM modules that are loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Processor {
    svm: bool,
    vmx: bool,
    /// This machine is itself a guest.
    guest: bool,
    kvm_amd: bool,
    kvm_intel: bool,
    kvm_pvm: bool,
    /// `/proc` is not there to tell.
    untold: bool,
}

impl Processor {
    /// Reads `/proc/cpuinfo` and `/sys/module`; what cannot be read counts as absent.
    pub fn of_this_machine() -> Self {
        let cpuinfo = File::open("/proc/cpuinfo").map(|file| flags(BufReader::new(file))).unwrap_or_default();
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        Self {
            kvm_amd: loaded("kvm_amd"),
            kvm_intel: loaded("kvm_intel"),
            kvm_pvm: loaded("kvm_pvm"),
            untold: cpuinfo.is_empty(),
            ..Self::from_flags(&cpuinfo)
        }
    }

    fn from_flags(flags: &str) -> Self {
        let has = |flag| flags.split_whitespace().any(|word| word == flag);
        Self { svm: has("svm"), vmx: has("vmx"), guest: has("hypervisor"), ..Self::default() }
    }

    /// What KVM runs guests with here. One engine can be behind `/dev/kvm`, and `kvm_pvm`, which no
    /// distribution builds in, is there only once loaded.
    pub fn engine(&self) -> Engine {
        match self {
            Self { kvm_pvm: true, .. } => Engine::Pvm,
            Self { svm: true, .. } | Self { vmx: true, .. } => Engine::Hardware,
            _ => Engine::Unknown,
        }
    }

    /// The processor's virtualisation and the module that drives it; a module built into the kernel shows in
    /// `/sys/module` on every processor.
    fn extension(&self) -> Option<(&'static str, &'static str, bool)> {
        match self {
            Self { svm: true, .. } => Some(("AMD SVM", "kvm_amd", self.kvm_amd)),
            Self { vmx: true, .. } => Some(("Intel VMX", "kvm_intel", self.kvm_intel)),
            _ => None,
        }
    }

    /// How to get `/dev/kvm`.
    pub(super) fn load_fix(&self) -> String {
        match self.extension() {
            Some((_, module, false)) if !self.kvm_pvm => format!("modprobe {module}"),
            None if !self.kvm_pvm => self.enable_fix().into(),
            _ => "in a container, start it with --device /dev/kvm; else mknod /dev/kvm c 10 232".into(),
        }
    }

    fn enable_fix(&self) -> &'static str {
        if self.guest {
            "turn on nested virtualisation for this virtual machine on its host, or use another machine; to develop kite \
             here: cargo xtask lab -- kite …"
        } else {
            "turn on AMD-V (SVM) or Intel VT-x in the firmware's set-up"
        }
    }
}

/// The first CPU's flags. The reader is not read further: on a large machine this file takes long to make.
fn flags(cpuinfo: impl BufRead) -> String {
    let flags = cpuinfo.lines().map_while(Result::ok).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "flags").then(|| value.to_owned())
    });
    flags.unwrap_or_default()
}

/// Whether the processor runs guests itself.
pub(super) fn virtualisation(processor: &Processor) -> Verdict {
    match (processor.extension(), processor.kvm_pvm) {
        (Some((name, module, true)), false) => Ok(format!("{name}, {module}")),
        (Some((name, module, false)), false) => {
            Err(Problem::new(format!("{name}, but {module} is not loaded"), format!("modprobe {module}")))
        }
        (Some((name, module, _)), true) => Err(Problem::new(
            format!("{name}, but KVM is kvm_pvm"),
            format!("rmmod kvm_pvm && modprobe {module}"),
        )),
        (None, true) => Err(Problem::new("no svm or vmx CPU flag; KVM is kvm_pvm", processor.enable_fix())),
        (None, false) => Err(Problem::new("no svm or vmx CPU flag", processor.enable_fix())),
    }
}

/// Whether KVM here can boot a distribution's kernel: what lacks is virtualisation, and so is the fix.
pub(super) fn stock_kernels(processor: &Processor) -> Verdict {
    match (processor.engine(), virtualisation(processor)) {
        (Engine::Hardware, _) | (_, Ok(_)) => Ok("yes, the processor runs them".into()),
        (Engine::Pvm, Err(Problem { fix, .. })) => {
            Err(Problem::new("no, kvm_pvm runs only kernels built for it", fix))
        }
        (Engine::Unknown, Err(_)) if processor.untold => Ok("unknown without /proc/cpuinfo".into()),
        (Engine::Unknown, Err(Problem { fix, .. })) => {
            Err(Problem::new("no, there is no hardware virtualisation", fix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nflags\t\t: fpu svm hypervisor\nvmx flags\t: vnmi\n\n\
        processor\t: 1\nflags\t\t: vmx\n";

    fn processor(flags: &str) -> Processor {
        Processor::from_flags(flags)
    }

    #[test]
    fn flags_are_the_first_processors_whole_words() {
        assert_eq!(
            processor(&flags(CPUINFO.as_bytes())),
            Processor { svm: true, guest: true, ..Default::default() }
        );
        assert_eq!(processor("svm_lock vmxish"), Processor::default());
        assert_eq!(flags(&b"vmx flags\t: vnmi\n\xff\xfe"[..]), "");
    }

    #[test]
    fn an_extension_and_its_module_run_stock_kernels() {
        for (flag, module) in [("svm", "AMD SVM, kvm_amd"), ("vmx", "Intel VMX, kvm_intel")] {
            let built_in = Processor { kvm_amd: true, kvm_intel: true, ..processor(flag) };
            assert_eq!(virtualisation(&built_in), Ok(module.into()));
            assert!(stock_kernels(&built_in).is_ok());
        }
    }

    #[test]
    fn a_module_of_the_other_vendor_does_not_count() {
        let problem = virtualisation(&Processor { kvm_intel: true, ..processor("svm") }).unwrap_err();
        assert_eq!(problem.fix, "modprobe kvm_amd");
    }

    #[test]
    fn pvm_does_not_run_stock_kernels_and_the_report_says_how_to_go_on() {
        for flags in ["", "svm"] {
            let pvm = Processor { kvm_pvm: true, ..processor(flags) };
            assert_eq!(pvm.engine(), Engine::Pvm);
            assert!(virtualisation(&pvm).unwrap_err().found.contains("kvm_pvm"));
            assert_eq!(stock_kernels(&pvm).unwrap_err().fix, virtualisation(&pvm).unwrap_err().fix);
        }
        let guest = Processor { kvm_pvm: true, ..processor("hypervisor") };
        assert!(stock_kernels(&guest).unwrap_err().fix.contains("xtask lab"));
        assert!(stock_kernels(&processor("fpu")).is_err());
        assert!(stock_kernels(&Processor { untold: true, ..processor("") }).is_ok());
    }

    #[test]
    fn a_missing_device_is_fixed_by_what_is_missing_below_it() {
        let loaded = Processor { kvm_amd: true, ..processor("svm") };
        assert!(loaded.load_fix().contains("--device /dev/kvm"));
        assert_eq!(processor("svm").load_fix(), "modprobe kvm_amd");
        assert_eq!(processor("vmx").load_fix(), "modprobe kvm_intel");
        assert!(processor("fpu").load_fix().contains("firmware"));
        let pvm = Processor { kvm_pvm: true, ..processor("fpu") };
        assert!(pvm.load_fix().contains("--device /dev/kvm"));
    }

    #[test]
    fn a_guest_is_sent_to_its_host_and_a_real_machine_to_its_firmware() {
        assert!(virtualisation(&processor("hypervisor")).unwrap_err().fix.contains("nested"));
        assert!(virtualisation(&processor("fpu")).unwrap_err().fix.contains("firmware"));
        assert_eq!(processor("fpu").engine(), Engine::Unknown);
    }
}
