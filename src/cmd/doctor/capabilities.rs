//! What KVM can do beyond its API version: `KVM_CHECK_EXTENSION`
//! (Linux `Documentation/virt/kvm/api.rst` §4.4).

use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm};
use nix::errno::Errno;

use super::{Problem, Verdict};

/// Without one of these `kite run` cannot build or run its machine.
const NEEDED: [(u32, &str); 12] = [
    (KVM_CAP_IRQCHIP, "IRQCHIP"),
    (KVM_CAP_HLT, "HLT"),
    (KVM_CAP_USER_MEMORY, "USER_MEMORY"),
    (KVM_CAP_SYNC_MMU, "SYNC_MMU"),
    (KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR"),
    (KVM_CAP_SET_IDENTITY_MAP_ADDR, "SET_IDENTITY_MAP_ADDR"),
    (KVM_CAP_EXT_CPUID, "EXT_CPUID"),
    (KVM_CAP_MP_STATE, "MP_STATE"),
    (KVM_CAP_PIT2, "PIT2"),
    (KVM_CAP_IRQFD, "IRQFD"),
    (KVM_CAP_IOEVENTFD, "IOEVENTFD"),
    (KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"),
];

/// Without these a guest is slower or lacks a feature.
const EXTRAS: [(u32, &str); 15] = [
    (KVM_CAP_CLOCKSOURCE, "CLOCKSOURCE"),
    (KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK"),
    (KVM_CAP_GET_TSC_KHZ, "GET_TSC_KHZ"),
    (KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER"),
    (KVM_CAP_X2APIC_API, "X2APIC_API"),
    (KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI"),
    (KVM_CAP_IRQFD_RESAMPLE, "IRQFD_RESAMPLE"),
    (KVM_CAP_COALESCED_PIO, "COALESCED_PIO"),
    (KVM_CAP_X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR"),
    (KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"),
    (KVM_CAP_XCRS, "XCRS"),
    (KVM_CAP_XSAVE2, "XSAVE2"),
    (KVM_CAP_READONLY_MEM, "READONLY_MEM"),
    (KVM_CAP_DIRTY_LOG_RING, "DIRTY_LOG_RING"),
    (KVM_CAP_BINARY_STATS_FD, "BINARY_STATS_FD"),
];

/// Every capability that `kite run` needs is there.
pub(super) fn needed(kvm: Option<&Kvm>) -> Verdict {
    let kvm = kvm.ok_or_else(unknown)?;
    all_of(&NEEDED, |capability| kvm.check_extension_raw(capability.into()) > 0)
}

/// Every capability that makes a guest better is there.
pub(super) fn extras(kvm: Option<&Kvm>) -> Verdict {
    let kvm = kvm.ok_or_else(unknown)?;
    all_of(&EXTRAS, |capability| kvm.check_extension_raw(capability.into()) > 0)
}

fn all_of(table: &[(u32, &str)], has: impl Fn(u32) -> bool) -> Verdict {
    let missing: Vec<_> = table.iter().filter(|(number, _)| !has(*number)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(format!("all {}", table.len()));
    }
    let found = format!("{} of {}, without {}", table.len() - missing.len(), table.len(), missing.join(", "));
    Err(Problem::new(found, "boot a newer host kernel"))
}

/// KVM gives a guest at least one vCPU.
pub(super) fn vcpus(kvm: Option<&Kvm>) -> Verdict {
    let kvm = kvm.ok_or_else(unknown)?;
    vcpu_limit(kvm.check_extension_int(Cap::MaxVcpus), kvm.check_extension_int(Cap::NrVcpus))
}

fn vcpu_limit(most: i32, recommended: i32) -> Verdict {
    match most {
        ..1 => Err(Problem::new("KVM gives no vCPU", "see the host kernel's log: dmesg | grep -i kvm")),
        _ => Ok(format!("up to {most}, at best {recommended}")),
    }
}

/// A virtual machine can be made. It is dropped at once; nothing but this process sees it.
pub(super) fn machine(kvm: Option<&Kvm>) -> Verdict {
    let kvm = kvm.ok_or_else(unknown)?;
    vm_made(kvm.create_vm().map(drop).map_err(|error| Errno::from_raw(error.errno())))
}

fn vm_made(made: Result<(), Errno>) -> Verdict {
    let Err(errno) = made else { return Ok("can be made".into()) };
    let fix = match errno {
        Errno::EBUSY => {
            "stop the other hypervisor (VirtualBox, VMware) that holds the processor's virtualisation"
        }
        Errno::ENOMEM => "free some memory",
        _ => "see the host kernel's log: dmesg | grep -i kvm",
    };
    Err(Problem::new(format!("cannot be made: {}", errno.desc()), fix))
}

fn unknown() -> Problem {
    Problem::new("unknown without /dev/kvm", "make /dev/kvm work first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let problem = all_of(&NEEDED, |number| ![KVM_CAP_IRQFD, KVM_CAP_HLT].contains(&number)).unwrap_err();
        assert_eq!(problem.found, "10 of 12, without HLT, IRQFD");
        assert_eq!(all_of(&EXTRAS, |_| true), Ok("all 15".into()));
    }

    #[test]
    fn no_capability_is_listed_twice() {
        let mut numbers: Vec<_> = NEEDED.iter().chain(&EXTRAS).map(|(number, _)| number).collect();
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn no_vcpu_is_a_problem() {
        assert!(vcpu_limit(0, 0).is_err());
        assert!(vcpu_limit(-1, 0).is_err());
        assert_eq!(vcpu_limit(1024, 2), Ok("up to 1024, at best 2".into()));
    }

    #[test]
    fn a_busy_processor_points_to_the_other_hypervisor() {
        assert!(vm_made(Err(Errno::EBUSY)).unwrap_err().fix.contains("VirtualBox"));
        assert!(vm_made(Err(Errno::EINVAL)).unwrap_err().fix.contains("dmesg"));
        assert!(vm_made(Ok(())).is_ok());
    }

    #[test]
    fn without_kvm_nothing_is_claimed() {
        for verdict in [needed(None), extras(None), vcpus(None), machine(None)] {
            assert_eq!(verdict, Err(unknown()));
        }
    }
}
