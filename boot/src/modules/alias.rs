//! Modules by what the kernel asks for: a module's name, or an alias (`modules.alias`, `request_module()`).

use std::ops::ControlFlow::Continue;

use super::{Error, ModuleFile, Modules, is_same, scan, split_at};

/// The list of a folder's aliases, which `depmod` writes.
const ALIASES: &str = "modules.alias";

impl Modules {
    /// The files of the module of this name, or of those that have it as an alias, in the order to load them, and what they
    /// need with them. There are none of a name that nothing has.
    ///
    /// # Errors
    /// A list cannot be read, or is none.
    pub fn of_request(&self, name: &str) -> Result<Vec<ModuleFile>, Error> {
        let files = self.resolve(&[], &[name])?;
        let list = self.dir.join(ALIASES);
        if !files.is_empty() || !list.is_file() {
            return Ok(files);
        }
        let mut modules: Vec<String> = Vec::new();
        scan(&list, |line| {
            let fields = line.strip_prefix(b"alias ").and_then(|rest| split_at(rest, b' '));
            if let Some((_, module)) = fields.filter(|(pattern, _)| matches(pattern, name.as_bytes())) {
                modules.push(String::from_utf8_lossy(module).into_owned());
            }
            Continue(())
        })?;
        self.resolve(&[], &modules.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Whether a pattern, in which `*` is for any bytes and `?` for any one, is of this name. Others that fnmatch(3) knows are of
/// aliases of hardware, by which the kernel itself does not ask.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    // Behind the last star, and where the name goes on there.
    let mut star = None;
    loop {
        match (pattern.get(at), name.get(here)) {
            (Some(b'*'), _) => {
                at += 1;
                star = Some((at, here));
            }
            (Some(wanted), Some(byte)) if *wanted == b'?' || is_same(*wanted, *byte) => {
                at += 1;
                here += 1;
            }
            (None, None) => return true,
            _ => match star {
                Some((behind, from)) if from < name.len() => {
                    (at, here) = (behind, from + 1);
                    star = Some((behind, from + 1));
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LIST: &str = "\
kernel/drivers/net/tun.ko:
kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko
kernel/fs/fat/fat.ko:
kernel/drivers/md/md-mod.ko.xz:
";
    const ALIASES: &str = "\
# Aliases extracted from modules themselves.
alias char-major-10-200 tun
alias fs-vfat vfat
alias block-major-9-* md_mod
alias both tun
alias both fat
alias gone no_such_module
alias broken
alias
";

    #[test]
    fn what_the_kernel_asks_for_is_a_name_or_an_alias() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), LIST).unwrap();
        let modules = Modules::open(dir.path()).unwrap();
        let names = |request: &str| -> Vec<String> {
            modules.of_request(request).unwrap().into_iter().map(|file| file.name).collect()
        };
        // Without a list of aliases there are names.
        assert_eq!(
            (names("vfat").as_slice(), names("fs-vfat").len()),
            (&["fat", "vfat"].map(String::from)[..], 0)
        );
        fs::write(dir.path().join("modules.alias"), ALIASES).unwrap();
        for (request, expected) in [
            ("tun", &["tun"][..]),
            ("md-mod", &["md_mod"]),
            ("char-major-10-200", &["tun"]),
            ("char_major_10_200", &["tun"]),
            ("fs-vfat", &["fat", "vfat"]),
            ("block-major-9-127", &["md_mod"]),
            ("both", &["tun", "fat"]),
            ("gone", &[]),
            ("broken", &[]),
            ("fs-ext4", &[]),
            ("char-major-10-2000", &[]),
            ("../tun", &[]),
            ("", &[]),
        ] {
            assert_eq!(names(request), expected, "{request}");
        }
        fs::write(dir.path().join("modules.alias"), "alias x").unwrap();
        assert!(matches!(modules.of_request("y"), Err(Error::Malformed { .. })), "it is cut short");
    }

    #[test]
    fn stars_and_question_marks_are_for_any_bytes() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("*", "", true),
            ("*", "anything", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("a**b", "ab", true),
            ("net-pf-10", "net_pf_10", true),
            ("a", "ab", false),
            ("ab", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        // Many stars take no more than the product of the lengths.
        assert!(!matches(&b"*a".repeat(1000), &[b"a".repeat(999), b"b".to_vec()].concat()));
    }
}
