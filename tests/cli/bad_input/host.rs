//! Hosts that lack what kite needs.

use std::process::Command;

use crate::support::attempt::Attempt;
use crate::support::image::elf;
use crate::support::{KITE, kvm, root};

/// Runs in a new mount namespace: an empty `/dev`, then the script, in which `$0` is kite and `$1` the kernel.
fn namespace(script: &str) -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("-r");
    }
    command.args(["-m", "sh", "-c", &format!("mount -t tmpfs -o mode=755 none /dev && {script}")]);
    command
}

/// Whether this host makes mount namespaces.
fn mount_namespaces() -> Result<(), String> {
    match namespace("true").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

const RUN: &str = r#"run --force --memory 64M --kernel "$1""#;

#[test]
fn a_missing_kvm_device_is_named() {
    needs!(mount_namespaces());
    let (attempt, kernel) = Attempt::with(&elf());
    let end = attempt.end_of(namespace(&format!("exec \"$0\" {RUN}")).arg(KITE).arg(&kernel));
    end.assert_refusal("cannot open /dev/kvm: it is missing");
}

#[test]
fn something_else_in_place_of_the_kvm_device_is_refused() {
    needs!(mount_namespaces());
    let (attempt, kernel) = Attempt::with(&elf());
    for place in [": > /dev/kvm", "mkdir /dev/kvm", "ln -s kvm /dev/kvm", "ln -s \"$1\" /dev/kvm"] {
        let script = format!("{place} && exec \"$0\" {RUN}");
        attempt.end_of(namespace(&script).arg(KITE).arg(&kernel)).assert_refusal("/dev/kvm");
    }
}

#[test]
fn a_forbidden_kvm_device_is_named() {
    needs!(root());
    needs!(mount_namespaces());
    let attempt = Attempt::new();
    let (kite, kernel) = (attempt.kite(), attempt.file("kernel", &elf()));
    let nobody = "exec setpriv --reuid 65534 --regid 65534 --clear-groups";
    let script = format!("mknod -m 660 /dev/kvm c 10 232 && {nobody} \"$0\" {RUN}");
    let end = attempt.end_of(namespace(&script).arg(&kite).arg(&kernel));
    end.assert_refusal("cannot open /dev/kvm: permission denied");
}

#[test]
fn no_kernel_at_all_says_how_to_get_one() {
    needs!(mount_namespaces());
    let attempt = Attempt::new();
    std::fs::create_dir(attempt.path("empty")).unwrap();
    let script = "for folder in /boot /usr/lib/modules /lib/modules; do
        test ! -d $folder || mount --bind empty $folder || exit
    done
    exec \"$0\" run";
    let end = attempt.end_of(namespace(script).arg(KITE));
    end.assert_refusal("no kernel in ");
    end.assert_refusal("apt install");
}

#[test]
fn a_missing_proc_is_named_with_what_helps() {
    needs!(mount_namespaces());
    let attempt = Attempt::new();
    let end = attempt.end_of(namespace("mount -t tmpfs none /proc && exec \"$0\" inspect").arg(KITE));
    end.assert_refusal("mount -t proc proc /proc");
}

/// Whatever the limit, kite runs the guest or says in one line what it lacks, and what helps.
fn limited(limits: impl Iterator<Item = String>, helps: &str) {
    let (attempt, kernel) = Attempt::with(&elf());
    let (mut ran, mut refused) = (false, false);
    for limit in limits {
        let script = format!("ulimit {limit} && exec \"$0\" {RUN}");
        let end = attempt.end_of(Command::new("sh").args(["-c", &script, KITE]).arg(&kernel));
        if end.status.code() == Some(0) {
            assert_eq!(end.stderr, "", "{limit}");
            ran = true;
        } else {
            end.assert_refusal(helps);
            refused = true;
        }
    }
    assert!(ran && refused);
}

#[test]
fn too_few_file_descriptors_are_a_failure_of_the_host() {
    needs!(kvm());
    let limits = (4..64).step_by(2).map(|count| format!("-n {count}"));
    limited(limits, "ulimit -n 1024");
}

#[test]
fn too_little_address_space_is_a_failure_of_the_host() {
    needs!(kvm());
    // In KiB, around the guest's 64 MiB with what kite takes, and far from them: the first has room for kite itself.
    let limits = [32 << 10, 1000 << 10].into_iter().chain((60 << 10..120 << 10).step_by(500));
    let limits = limits.map(|size| format!("-v {size}"));
    limited(limits, "");
}
