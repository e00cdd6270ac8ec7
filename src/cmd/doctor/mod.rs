//! `kite doctor`: what this machine has of what kite uses, and how to get the rest.
//!
//! A check is a pure function from facts to a [`Verdict`]; this file gathers the facts and names the checks.
//! Nothing is created or changed on the host: devices other than `/dev/kvm` are not even opened, because
//! opening a node loads its driver.

mod capabilities;
mod device;
pub mod hardware;
mod isolation;
mod kernel;
mod report;
mod speed;
mod syscalls;

use std::env;
use std::path::Path;

use kvm_ioctls::Kvm;
use nix::errno::Errno;
use serde::Serialize;

use crate::backend::passt;
use crate::host::confinement::{Problem, is_filtered, text};
use crate::spec::machine::KERNEL_VARIABLE;
use device::Node;
pub use hardware::{Engine, Processor};

/// What a check found to be good, or the [`Problem`].
type Verdict = Result<String, Problem>;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// `kite run` works; something else does not, or is slower.
    Warn,
    /// `kite run` does not work.
    Fail,
}

/// One line of the report. Every status but [`Status::Ok`] comes with a fix.
#[derive(Debug, Serialize)]
struct Check {
    /// Stable: scripts select by it.
    name: &'static str,
    status: Status,
    /// Whether `kite run` needs it.
    needed: bool,
    found: String,
    fix: Option<String>,
}

impl Check {
    fn needed(name: &'static str, verdict: Verdict) -> Self {
        Self::new(name, true, verdict)
    }

    fn optional(name: &'static str, verdict: Verdict) -> Self {
        Self::new(name, false, verdict)
    }

    fn new(name: &'static str, needed: bool, verdict: Verdict) -> Self {
        let (status, found, fix) = match verdict {
            Ok(found) => (Status::Ok, found, None),
            Err(problem) if needed => (Status::Fail, problem.found, Some(problem.fix)),
            Err(problem) => (Status::Warn, problem.found, Some(problem.fix)),
        };
        Self { name, status, needed, found, fix }
    }
}

/// Checks this machine and prints the report, as JSON if asked to.
///
/// Returns the exit status: 0, or 1 if something is missing that `kite run` needs.
///
/// # Errors
/// The report cannot be written, unless its reader has gone.
pub fn run(json: bool) -> anyhow::Result<u8> {
    let mut checks = kvm_checks();
    checks.extend(host_checks());
    checks.extend(boot_checks());
    report::print(&checks, json)?;
    Ok(u8::from(!report::passed(&checks)))
}

/// The host kernel's version of Landlock; none if it has none or hides it.
pub(crate) fn landlock_abi() -> Option<i64> {
    syscalls::landlock_abi().ok()
}

fn kvm_checks() -> Vec<Check> {
    let processor = Processor::of_this_machine();
    let node = Node::at("/dev/kvm");
    let kvm = Kvm::new().map_err(|error| Errno::from_raw(error.errno()));
    let api = kvm.as_ref().map(Kvm::get_api_version).map_err(|errno| *errno);
    let opened = device::kvm(api, node.as_ref(), &processor);
    // Without KVM every capability is missing for one reason, which is the first line's.
    let kvm = kvm.ok().filter(|_| opened.is_ok());
    vec![
        Check::needed("/dev/kvm", opened),
        Check::needed("kvm-capabilities", capabilities::needed(kvm.as_ref())),
        Check::optional("kvm-extras", capabilities::extras(kvm.as_ref())),
        Check::needed("kvm-vcpus", capabilities::vcpus(kvm.as_ref())),
        Check::needed("kvm-vm", capabilities::machine(kvm.as_ref())),
        Check::optional("virtualisation", hardware::virtualisation(&processor)),
        Check::needed("stock-kernels", hardware::stock_kernels(&processor)),
    ]
}

fn host_checks() -> Vec<Check> {
    let status = text("/proc/self/status").unwrap_or_default();
    vec![
        Check::optional("tun", device::tun(Node::at("/dev/net/tun").as_ref(), &status)),
        Check::optional("passt", device::passt(passt::find())),
        Check::optional(
            "io-uring",
            speed::io_uring(
                syscalls::io_uring_setup_error(),
                text("/proc/sys/kernel/io_uring_disabled").as_deref(),
                is_filtered(&status),
            ),
        ),
        Check::optional("huge-pages", speed::huge_pages(&speed::HugePages::of_this_machine())),
        Check::optional("user-namespaces", isolation::user_namespaces_here()),
        Check::optional("cgroup", isolation::cgroup(&isolation::Cgroup::mounted_here())),
        Check::optional("landlock", isolation::landlock(syscalls::landlock_abi())),
        Check::optional(
            "seccomp",
            isolation::seccomp(text("/proc/sys/kernel/seccomp/actions_avail").as_deref(), &status),
        ),
    ]
}

fn boot_checks() -> Vec<Check> {
    let kernel = kernel::kernel(env::var_os(KERNEL_VARIABLE), Path::new("/"));
    vec![Check::optional("kernel", kernel.image), Check::optional("modules", kernel.modules)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_needed_check_fails() {
        let needed = Check::needed("x", Err(Problem::new("gone", "bring it back")));
        let optional = Check::optional("x", Err(Problem::new("gone", "bring it back")));
        assert_eq!((needed.status, optional.status), (Status::Fail, Status::Warn));
        assert!(!report::passed(&[needed]));
        assert!(report::passed(&[optional]));
    }
}
