//! A disk: what `--disk` says of one.

use std::path::{Path, PathBuf};

use devices::virtio::block::MAX_QUEUES;
use devices::virtio::block::disk::SERIAL;
use serde::{Deserialize, Serialize};

use super::text;

/// A disk.
///
/// The value of `--disk` is `PATH`, or `path=PATH[,readonly][,ephemeral][,direct][,raw][,queues=N][,id=SERIAL]`. One that
/// begins with one of these words and `=` is a list, and so is one that begins with `readonly,`, `ephemeral,`, `direct,` or
/// `raw,`; in a list `,,` stands for a comma. Any other value is a path as a whole, whatever it holds; if there is nothing
/// of that name, one that looks like a list is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The image or block device.
    #[serde(with = "text::os")]
    pub path: PathBuf,
    /// The guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// The guest writes, and the file never changes.
    #[serde(default)]
    pub ephemeral: bool,
    /// Around the host's page cache.
    #[serde(default)]
    pub direct: bool,
    /// It is raw, whatever it looks like.
    #[serde(default)]
    pub raw: bool,
    /// How many queues; the number of vCPUs, at most 16, if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The serial number that the guest sees.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
}

/// Reads the value of `--disk`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn parse(text: &str) -> Result<DiskSpec, String> {
    const KEYS: [&str; 3] = ["path=", "queues=", "id="];
    const FLAGS: [&str; 4] = ["readonly,", "ephemeral,", "direct,", "raw,"];
    let mut spec = DiskSpec::default();
    if KEYS.iter().chain(&FLAGS).any(|word| text.starts_with(word)) {
        for part in split(text) {
            spec.set(&part)?;
        }
    } else if let Some(why) = meant_as_list(text) {
        return Err(why);
    } else {
        spec.path = text.into();
    }
    spec.check().map(|()| spec)
}

/// Why a value that is the path of nothing looks like a list: it begins with another word and `=`, as QEMU's do, or ends
/// with an option.
fn meant_as_list(text: &str) -> Option<String> {
    if Path::new(text).exists() {
        return None;
    }
    if let Some(path) = text.strip_suffix(":ro").filter(|path| !path.is_empty()) {
        return Some(format!("options need a path by name: path={path},readonly"));
    }
    let (first, rest) = text.split_once(',').map_or((text, ""), |(first, rest)| (first, rest));
    let word = first.split_once('=').map_or("", |(word, _)| word);
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Some(unknown(first));
    }
    (DiskSpec::default().set(rest.split(',').next()?).is_ok() && !first.is_empty())
        .then(|| format!("options need a path by name: path={text}"))
}

/// The parts between single commas; a double one stands for a comma.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(char);
        }
    }
    parts
}

fn unknown(part: &str) -> String {
    format!(
        "unknown option '{part}'; there are path=, readonly, ephemeral, direct, raw, queues= and id=, and a comma in a path \
         is written ',,'"
    )
}

fn is_queues(count: &u16) -> bool {
    (1..=MAX_QUEUES).contains(count)
}

fn wrong_queues() -> String {
    format!("queues= is a number from 1 to {MAX_QUEUES}")
}

impl DiskSpec {
    /// Whether it can be a disk.
    ///
    /// # Errors
    /// Why it cannot, in one line.
    pub fn check(&self) -> Result<(), String> {
        if self.path.as_os_str().is_empty() {
            return Err(
                "it names no file; such as --disk disk.img or --disk path=disk.img,readonly".to_owned()
            );
        }
        if self.queues.is_some_and(|count| !is_queues(&count)) {
            return Err(wrong_queues());
        }
        if self.id.len() > SERIAL || !self.id.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(format!("id= has at most {SERIAL} characters, printable ASCII"));
        }
        Ok(())
    }

    fn set(&mut self, part: &str) -> Result<(), String> {
        match part.split_once('=') {
            None if part == "readonly" => self.readonly = true,
            None if part == "ephemeral" => self.ephemeral = true,
            None if part == "direct" => self.direct = true,
            None if part == "raw" => self.raw = true,
            Some(("path", path)) if self.path.as_os_str().is_empty() => self.path = path.into(),
            Some(("path", _)) => return Err("a second path=; give --disk once for each disk".to_owned()),
            Some(("queues", count)) => {
                self.queues = Some(count.parse().ok().filter(is_queues).ok_or_else(wrong_queues)?);
            }
            Some(("id", id)) => id.clone_into(&mut self.id),
            _ => return Err(unknown(part)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::spec::assert_refused_in_one_line;

    #[test]
    fn values_are_paths_or_lists() {
        let path = |path: &str| DiskSpec { path: path.into(), ..DiskSpec::default() };
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("x,readonly");
        fs::write(&odd, "").unwrap();
        for text in ["disk.img", "a,b=c", "readonly", "/dev/vda", "=", odd.to_str().unwrap()] {
            assert_eq!(parse(text), Ok(path(text)));
        }
        for text in ["x,readonly", "x:ro", "file=", "file=x,format=raw", "paths=x"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("path=a,,b=c,,,readonly"), Ok(DiskSpec { readonly: true, ..path("a,b=c,") }));
        let all = DiskSpec {
            readonly: true,
            ephemeral: true,
            direct: true,
            queues: Some(64),
            id: "a=b,c d".to_owned(),
            ..path("x")
        };
        assert_eq!(parse("readonly,path=x,ephemeral,direct,queues=64,id=a=b,,c d"), Ok(all));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_in_one_line() {
        assert_refused_in_one_line(
            parse,
            &[
                "",
                "path=",
                "queues=1",
                "path=x,queues=0",
                "path=x,queues=65",
                "path=x,queues=",
                "path=x,id=123456789012345678901",
                "path=x,id=\n",
                "path=x,id=é",
                "path=x,readonly=1",
                "path=x,",
                "path=x,path=y",
                "path=x,format=qcow2",
            ],
        );
    }
}
