//! What makes guests quick: io_uring for block devices, huge pages for memory.

use nix::errno::Errno;

use super::{Problem, Verdict, text};

/// io_uring may be used. `refusal` is how io_uring_setup(2) refused a null pointer, `disabled` the sysctl's
/// text, and `filtered` whether a container may hide it.
pub(super) fn io_uring(refusal: Errno, disabled: Option<&str>, filtered: bool) -> Verdict {
    match (refusal, disabled) {
        (Errno::EFAULT | Errno::EINVAL, _) => Ok("available".into()),
        (Errno::ENOSYS, _) if filtered => Err(Problem::new(
            "hidden by a seccomp filter, or not in this host kernel",
            "allow io_uring in the container's seccomp profile, or boot a kernel with CONFIG_IO_URING",
        )),
        (Errno::ENOSYS, _) => Err(Problem::new("not in this host kernel", "boot one with CONFIG_IO_URING")),
        (_, Some("1" | "2")) => Err(Problem::new(
            "turned off by kernel.io_uring_disabled",
            "sysctl -w kernel.io_uring_disabled=0",
        )),
        (errno, _) => Err(Problem::new(
            format!("forbidden: {}", errno.desc()),
            "allow io_uring in the container's seccomp profile",
        )),
    }
}

/// Both kinds of huge pages as the kernel tells them.
#[derive(Debug, Default)]
pub(super) struct HugePages {
    /// `/sys/kernel/mm/transparent_hugepage/enabled`.
    transparent: Option<String>,
    /// Reserved pages of 2 MiB: how many, and how many are free.
    reserved: Option<(String, String)>,
}

impl HugePages {
    pub(super) fn of_this_machine() -> Self {
        let reserved = |file| text(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}"));
        Self {
            transparent: text("/sys/kernel/mm/transparent_hugepage/enabled"),
            reserved: reserved("nr_hugepages").zip(reserved("free_hugepages")),
        }
    }
}

/// Guest memory can be of huge pages without being reserved.
pub(super) fn huge_pages(pages: &HugePages) -> Verdict {
    let mode = pages.transparent.as_deref().and_then(chosen);
    let reserved = match &pages.reserved {
        Some((all, free)) => format!("{all} reserved of 2 MiB each, {free} free"),
        None => "none can be reserved".into(),
    };
    match mode {
        Some(mode @ ("always" | "madvise")) => Ok(format!("transparent: {mode}; {reserved}")),
        Some(mode) => Err(Problem::new(
            format!("transparent: {mode}; {reserved}"),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )),
        None => Err(Problem::new(
            format!("no transparent ones; {reserved}"),
            "boot a host kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        )),
    }
}

/// The word in brackets, as sysfs marks the choice.
fn chosen(choices: &str) -> Option<&str> {
    choices.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_uring_works_if_it_looked_at_the_pointer() {
        assert!(io_uring(Errno::EFAULT, Some("0"), false).is_ok());
        assert!(io_uring(Errno::EFAULT, Some("1"), false).is_ok(), "a member of io_uring_group");
    }

    #[test]
    fn every_way_to_lack_io_uring_has_its_own_fix() {
        assert!(io_uring(Errno::ENOSYS, None, false).unwrap_err().fix.starts_with("boot one"));
        assert!(
            io_uring(Errno::ENOSYS, None, true).unwrap_err().fix.contains("container"),
            "podman's answer"
        );
        assert!(io_uring(Errno::EPERM, Some("2"), false).unwrap_err().fix.contains("sysctl"));
        assert!(io_uring(Errno::EPERM, Some("0"), false).unwrap_err().fix.contains("seccomp"));
    }

    #[test]
    fn the_bracketed_mode_counts() {
        let pages = |mode: &str| HugePages {
            transparent: Some(mode.into()),
            reserved: Some(("4".into(), "3".into())),
        };
        assert_eq!(
            huge_pages(&pages("always [madvise] never")),
            Ok("transparent: madvise; 4 reserved of 2 MiB each, 3 free".into())
        );
        assert!(huge_pages(&pages("[always] madvise never")).is_ok());
        assert!(huge_pages(&pages("always madvise [never]")).unwrap_err().fix.contains("echo madvise"));
        assert!(huge_pages(&pages("garbage ] [")).unwrap_err().fix.contains("CONFIG"));
        assert!(huge_pages(&HugePages::default()).is_err());
    }
}
