//! `cargo xtask package`: what users get without a compiler: an archive, a Debian package, and their checksums.
//!
//! Both are the same, byte by byte, whenever they are made of the same kite (reproducible-builds.org,
//! SOURCE_DATE_EPOCH).

use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host;
use crate::step::{output, step};
use crate::test::{build_kite_for_all_to_see, cargo};

/// The version of this tree, which is kite's.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A Debian package's own format (deb(5)).
const DEB_FORMAT: &str = "2.0\n";

/// Builds kite and packs it; answers what was made.
///
/// # Errors
/// kite does not build, or the host has no `tar`, `gzip` or `sha256sum`.
pub fn run() -> Result<Vec<PathBuf>> {
    let kite = build_kite_for_all_to_see()?;
    ensure!(is_static(&kite)?, "{} is linked dynamically: no guest could run it", kite.display());
    let folder = host::target("package")?;
    step("packing", || pack(&kite, &folder))
}

/// Whether an executable needs no loader: whether it has no PT_INTERP (System V ABI, "Program Header").
fn is_static(program: &Path) -> Result<bool> {
    let headers = output(Command::new("readelf").arg("--program-headers").arg(program));
    Ok(!headers.context("install binutils, which has readelf")?.contains("INTERP"))
}

/// Packs this kite into `folder`.
fn pack(kite: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let made = [archive(kite, folder)?, debian(kite, folder)?];
    let mut all = Vec::new();
    for path in made {
        let name = path.file_name().unwrap_or_default();
        // With the bare name, for `sha256sum --check` beside it.
        let sum = output(Command::new("sha256sum").arg(name).current_dir(folder))?;
        let beside = folder.join(format!("{}.sha256", name.display()));
        fs::write(&beside, sum).with_context(|| format!("writing {}", beside.display()))?;
        all.extend([path, beside]);
    }
    Ok(all)
}

/// Where a shell looks for a completion script below `share`, by what `kite completions` calls it.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/kite"),
    ("zsh", "zsh/vendor-completions/_kite"),
    ("fish", "fish/vendor_completions.d/kite.fish"),
];

/// What `kite` prints for these arguments.
fn printed(kite: &Path, arguments: &[&str]) -> Result<String> {
    output(Command::new(kite).args(arguments))
}

/// Writes the completion scripts and manual pages of this kite where a distribution has them below `share`.
fn shared(kite: &Path, share: &Path) -> Result<()> {
    for (shell, path) in COMPLETIONS {
        write(&share.join(path), &printed(kite, &["completions", shell])?)?;
    }
    let mut commands: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(words) = commands.pop() {
        let name = ["kite"].into_iter().chain(words.iter().map(String::as_str)).collect::<Vec<_>>().join("-");
        let arguments: Vec<_> = ["man"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let page = printed(kite, &arguments)?;
        ensure!(page.contains(&format!(".TH {name} 1 ")), "kite has printed another page for {name}");
        for subcommand in subcommands(&page, &name) {
            commands.push(words.iter().cloned().chain([subcommand]).collect());
        }
        write(&share.join("man/man1").join(format!("{name}.1")), &page)?;
    }
    Ok(())
}

/// The subcommands that a page names: `NAME-SUBCOMMAND(1)` alone on a line (man(7): a hyphen is `\-`).
fn subcommands(page: &str, name: &str) -> Vec<String> {
    let prefix = format!("{name}-");
    let own =
        |line: &str| Some(line.replace(r"\-", "-").strip_suffix("(1)")?.strip_prefix(&prefix)?.to_owned());
    page.lines().filter_map(own).collect()
}

/// `kite-VERSION-x86_64-linux.tar.gz`: a folder with kite, its completion scripts and manual pages, the README and the
/// licence.
fn archive(kite: &Path, folder: &Path) -> Result<PathBuf> {
    let name = format!("kite-{VERSION}-x86_64-linux");
    let work = tempfile::tempdir().context("making a folder")?;
    let root = host::root();
    place(kite, &work.path().join(&name).join("kite"), 0o755)?;
    shared(kite, &work.path().join(&name).join("share"))?;
    for file in ["README.md", "LICENSE"] {
        place(&root.join(file), &work.path().join(&name).join(file), 0o644)?;
    }
    let path = folder.join(format!("{name}.tar.gz"));
    tar(work.path(), OsStr::new(&name), &path)?;
    Ok(path)
}

/// `kite_VERSION_amd64.deb`: kite in /usr/bin, its completion scripts and manual pages. It depends on nothing, as it is
/// static.
fn debian(kite: &Path, folder: &Path) -> Result<PathBuf> {
    let work = tempfile::tempdir().context("making a folder")?;
    let (data, control) = (work.path().join("data"), work.path().join("control"));
    place(kite, &data.join("usr/bin/kite"), 0o755)?;
    shared(kite, &data.join("usr/share"))?;
    pack_pages(&data.join("usr/share/man/man1"))?;
    let root = host::root();
    for (file, name) in [("README.md", "README.md"), ("LICENSE", "copyright")] {
        place(&root.join(file), &data.join("usr/share/doc/kite").join(name), 0o644)?;
    }
    let size = size(&data)?.div_ceil(1024);
    fs::create_dir(&control).context("making a folder")?;
    fs::write(control.join("control"), description(size)).context("writing the description")?;
    let members = ["control.tar.gz", "data.tar.gz"].map(|name| (name, work.path().join(name)));
    tar(&control, OsStr::new("."), &members[0].1)?;
    tar(&data, OsStr::new("."), &members[1].1)?;
    let time = date()?;
    let mut package = b"!<arch>\n".to_vec();
    member(&mut package, "debian-binary", time, DEB_FORMAT.as_bytes());
    for (name, path) in &members {
        member(&mut package, name, time, &fs::read(path).with_context(|| format!("reading {name}"))?);
    }
    let path = folder.join(format!("kite_{VERSION}_amd64.deb"));
    fs::write(&path, package).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Packs manual pages as Debian has them (Debian Policy 12.1), the same whenever it is done.
fn pack_pages(folder: &Path) -> Result<()> {
    let mut gzip = Command::new("gzip");
    for entry in fs::read_dir(folder).context("looking for manual pages")? {
        gzip.arg(entry.context("looking for manual pages")?.path());
    }
    output(gzip.arg("-9n")).map(drop)
}

/// How many bytes the files below a folder have.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("looking into {}", folder.display()))? {
        let entry = entry.context("looking at what is packed")?;
        let metadata = entry.metadata().context("looking at what is packed")?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// The package's control file (Debian Policy 5.3); `size` is in KiB.
fn description(size: u64) -> String {
    format!(
        "Package: kite\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: the maintainers of kite\n\
         Installed-Size: {size}\nRecommends: passt\nSection: admin\nPriority: optional\n\
         Description: runs commands and Linux kernels in KVM guests of their own\n \
         kite opens /dev/kvm, builds a small PC and boots a Linux kernel in it, or runs\n \
         a command there, on a view of the host's files.\n"
    )
}

/// Appends a member to an archive (ar(5)).
fn member(archive: &mut Vec<u8>, name: &str, time: u64, content: &[u8]) {
    let header = format!("{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, "100644", content.len());
    archive.extend(header.as_bytes());
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(2), b'\n');
}

/// Writes a file, with its folders.
fn write(path: &Path, text: &str) -> Result<()> {
    let what = || format!("writing {}", path.display());
    path.parent().map_or(Ok(()), fs::create_dir_all).with_context(what)?;
    fs::write(path, text).with_context(what)?;
    fs::set_permissions(path, Permissions::from_mode(0o644)).with_context(what)
}

/// Copies a file to where it gets its folders and its mode.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let what = || format!("copying {} to {}", from.display(), to.display());
    to.parent().map_or(Ok(()), fs::create_dir_all).with_context(what)?;
    fs::copy(from, to).with_context(what)?;
    fs::set_permissions(to, Permissions::from_mode(mode)).with_context(what)
}

/// Packs `name` of `folder`, the same whoever does it and when.
fn tar(folder: &Path, name: &OsStr, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--owner=root:0", "--group=root:0"]);
    tar.arg("--mode=go-w").arg(format!("--mtime=@{}", date()?)).args(["--use-compress-program", "gzip -9n"]);
    output(tar.arg("--file").arg(archive).arg("--directory").arg(folder).arg(name)).map(drop)
}

/// When what is packed was made: SOURCE_DATE_EPOCH, else the commit's time, else the year 2000.
fn date() -> Result<u64> {
    const NONE: u64 = 946_684_800;
    if let Ok(named) = env::var("SOURCE_DATE_EPOCH") {
        return named.parse().context("SOURCE_DATE_EPOCH is no number of seconds");
    }
    let git = ["log", "-1", "--format=%ct"];
    let time = output(Command::new("git").args(git).current_dir(host::root()));
    Ok(time.ok().and_then(|time| time.trim().parse().ok()).unwrap_or(NONE))
}

/// Packs kite, and installs it from a clone as `cargo install --git` does, which reads no configuration of this tree.
///
/// # Errors
/// One of the two fails, or what comes of it is not what a guest can run.
pub fn check() -> Result<()> {
    let made = run()?;
    ensure!(made.iter().all(|path| path.is_file()), "not all was made: {made:?}");
    let root = host::target("installed")?;
    let tree = host::root().canonicalize().context("finding the source tree")?;
    let mut install = cargo();
    install.args(["install", "--debug", "--locked", "--quiet", "--force", "--root"]).arg(&root);
    install.arg("--git").arg(format!("file://{}", tree.display())).arg("kite").current_dir("/");
    install.env_remove("RUSTFLAGS");
    step("installing kite from a clone", || output(&mut install))?;
    let kite = root.join("bin/kite");
    ensure!(is_static(&kite)?, "cargo install has made a dynamic kite");
    let version = output(Command::new(&kite).arg("--version"))?;
    ensure!(version.contains('('), "cargo install has made a kite that names no commit: {version}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the place of kite.
    const STAND_IN: &str = r#"#!/bin/sh
case $* in
    man) printf '.TH kite 1 \nkite\\-bench(1)\n' ;;
    'man bench') printf '.TH kite-bench 1 \nkite\\-bench\\-two\\-words(1)\nkite(1)\n' ;;
    'man bench two-words') echo '.TH kite-bench-two-words 1 ' ;;
    completions*) echo "$*" ;;
    '') echo kite ;;
    *) exit 1 ;;
esac
"#;

    /// What a program prints, or `None` if there is no such program.
    fn said(folder: &Path, program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program).args(arguments).current_dir(folder).output().ok()?;
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn archive_and_package_hold_kite_and_match_their_checksums() {
        let (work, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kite = work.path().join("built");
        fs::write(work.path().join("script"), STAND_IN).unwrap();
        // By another process: a program that this one has open for writing, or a child of it, cannot be run.
        said(work.path(), "install", &["-m", "755", "script", "built"]).unwrap();
        let made = pack(&kite, work.path()).unwrap();
        let names: Vec<_> = made.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        let [archive, archive_sum, package, package_sum] = names[..] else { panic!("{names:?}") };
        assert_eq!(archive, format!("kite-{VERSION}-x86_64-linux.tar.gz"));
        assert_eq!(package, format!("kite_{VERSION}_amd64.deb"));
        for sum in [archive_sum, package_sum] {
            said(work.path(), "sha256sum", &["--check", "--strict", sum]).unwrap();
        }
        let listed = said(work.path(), "tar", &["--list", "--verbose", "--file", archive]).unwrap();
        assert!(
            listed
                .lines()
                .any(|line| line.starts_with("-rwxr-xr-x root/root") && line.ends_with("x86_64-linux/kite")),
            "{listed}"
        );
        // As ar(1) and dpkg read it, where there are such.
        let bytes = fs::read(work.path().join(package)).unwrap();
        assert!(bytes.starts_with(b"!<arch>\ndebian-binary   "));
        if let Some(members) = said(work.path(), "ar", &["t", package]) {
            assert_eq!(members, "debian-binary\ncontrol.tar.gz\ndata.tar.gz\n");
        }
        if let Some(field) = said(work.path(), "dpkg-deb", &["--field", package, "Package", "Version"]) {
            assert_eq!(field, format!("Package: kite\nVersion: {VERSION}\n"));
            let listed = said(work.path(), "dpkg-deb", &["--contents", package]).unwrap();
            for path in [
                "bin/kite",
                "share/doc/kite/copyright",
                "share/bash-completion/completions/kite",
                "share/zsh/vendor-completions/_kite",
                "share/fish/vendor_completions.d/kite.fish",
                "share/man/man1/kite.1.gz",
                "share/man/man1/kite-bench.1.gz",
                "share/man/man1/kite-bench-two-words.1.gz",
            ] {
                assert!(listed.contains(&format!("./usr/{path}\n")), "{path}: {listed}");
            }
            said(work.path(), "dpkg-deb", &["--extract", package, "extracted"]).unwrap();
            assert_eq!(said(work.path(), "extracted/usr/bin/kite", &[]).unwrap(), "kite\n");
        }
        installed_as_the_readme_says(work.path());
        for path in pack(&kite, again.path()).unwrap() {
            let first = work.path().join(path.file_name().unwrap());
            assert_eq!(fs::read(&path).unwrap(), fs::read(first).unwrap(), "{}", path.display());
        }
    }

    /// Runs the README's lines about these files, for a user who is not root.
    fn installed_as_the_readme_says(folder: &Path) {
        let readme = fs::read_to_string(host::root().join("README.md")).unwrap();
        let mut count = 0;
        for line in readme.lines().filter_map(|line| line.strip_prefix("    ")) {
            // apt wants root and its lists: dpkg-deb reads the same file.
            let line = line.replace("sudo apt install", "dpkg-deb --contents").replace("sudo ", "");
            if line.contains(VERSION)
                && (!line.starts_with("dpkg-deb") || host::program("dpkg-deb").is_some())
            {
                said(folder, "sh", &["-ec", &line.replace("/usr/local/bin", "installed")]).unwrap();
                count += 1;
            }
        }
        assert!(count >= 2, "the README does not name the files of version {VERSION}");
        assert_eq!(said(folder, "./installed", &[]).unwrap(), "kite\n");
    }
}
