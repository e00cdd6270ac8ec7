//! Stock kernels under `target/kernels`: a distribution's package unpacked, its modules' dependencies listed,
//! and the ELF kernel taken out of its bzImage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Setup;
use crate::host::{self, Distribution};
use crate::step::{output, step};
use crate::vmlinux;

/// What the lab's own kernel is called.
pub const LAB: &str = "lab";
/// What the newest of Debian's kernels is called, of which the quick run tries little.
pub const TODAY: &str = "7.3";

/// A kernel ready to be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is called here, and where it lies under `target/kernels`: `6.1`, or `lab` for the lab's own.
    pub name: String,
    /// Its release, such as `6.1.0-50-cloud-amd64`.
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel of this release in `folder`.
    pub fn at(name: &str, release: &str, folder: &Path) -> Self {
        Self { name: name.to_owned(), release: release.to_owned(), folder: folder.to_owned() }
    }

    /// The kernel of this name, if it has been unpacked.
    ///
    /// # Errors
    /// Its folder cannot be read.
    pub fn open(name: &str) -> Result<Option<Self>> {
        let folder = host::target("kernels")?.join(name);
        let Ok(mut modules) = fs::read_dir(folder.join("lib/modules")) else { return Ok(None) };
        let release = modules.next().context("looking for modules")??.file_name();
        Ok(Some(Self::at(name, &release.to_string_lossy(), &folder)))
    }

    /// The bzImage.
    pub fn bz_image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The ELF kernel.
    pub fn elf(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The ELF kernel with its PVH note hidden.
    pub fn elf_without_pvh(&self) -> PathBuf {
        self.folder.join("vmlinux-nopvh")
    }

    /// The folder of its modules, the one that has `modules.dep`.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

/// Where a kernel comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// What it is to be called.
    pub name: String,
    /// The package that depends on the newest kernel image.
    package: String,
    /// What its version starts with.
    version: String,
}

impl Origin {
    fn new(name: &str, package: &str) -> Self {
        let is_series = name.starts_with(|first: char| first.is_ascii_digit());
        let version = if is_series { format!("{name}.") } else { String::new() };
        Self { name: name.into(), package: package.into(), version }
    }
}

/// A kernel that cannot be had here.
#[derive(Clone, Debug)]
pub struct Missing {
    /// What it would be called.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The kernels guests are tested with here, and those that cannot be had, with the reason.
pub fn origins(distribution: &Distribution) -> (Vec<Origin>, Vec<Missing>) {
    if distribution.is_ubuntu() {
        let hwe = format!("linux-image-virtual-hwe-{}", distribution.version);
        let missing = ["6.1", "6.12", TODAY].map(|name| Missing {
            name: name.to_owned(),
            reason: "Debian's kernel, not to be had on Ubuntu".to_owned(),
        });
        return (
            vec![Origin::new("ubuntu", "linux-image-virtual"), Origin::new("ubuntu-hwe", &hwe)],
            missing.into(),
        );
    }
    let debian = "linux-image-cloud-amd64";
    (["6.1", "6.12", TODAY].map(|name| Origin::new(name, debian)).into(), Vec::new())
}

/// The lab's kernel: a full one, since Debian's cloud kernels have no 9p.
pub fn lab_origin(distribution: &Distribution) -> Origin {
    match distribution.is_ubuntu() {
        true => Origin::new(LAB, "linux-image-virtual"),
        false => Origin { version: "6.1.".into(), ..Origin::new(LAB, "linux-image-amd64") },
    }
}

/// The kernel of `origin`, fetched and unpacked if it is not there; `None` if no package has it.
///
/// # Errors
/// The package cannot be fetched or unpacked, or does not hold what a kernel package holds.
pub fn ensure(setup: &mut Setup, origin: &Origin) -> Result<Option<Kernel>> {
    if let Some(kernel) = Kernel::open(&origin.name)? {
        return Ok(Some(kernel));
    }
    let apt = setup.apt()?;
    let Some(meta) = apt.candidate(&origin.package, &origin.version)? else { return Ok(None) };
    let images = |name: &&String| {
        name.strip_prefix("linux-image-")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let image =
        meta.depends.iter().find(images).with_context(|| format!("{} names no image", origin.package))?;
    let depends = apt.candidate(image, "")?.map(|found| found.depends).unwrap_or_default();
    let packages = parts(image, &depends);
    // The finished folder appears in one step, so that an interrupted run leaves nothing that looks whole.
    let kernels = host::target("kernels")?;
    let (part, whole) = (kernels.join(format!("{}.part", origin.name)), kernels.join(&origin.name));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    step(format!("fetching kernel {} ({})", origin.name, packages.join(" ")), || {
        apt.download(&packages, &part)
    })?;
    if host::program("depmod").is_none() {
        apt.install(&["kmod"], None)?;
    }
    step(format!("unpacking kernel {}", origin.name), || unpack(&part))?;
    fs::rename(&part, &whole).with_context(|| format!("renaming {}", part.display()))?;
    Kernel::open(&origin.name)
}

/// The packages that a kernel comes in: its image's, and those of the same release which that depends on. Ubuntu has its
/// modules apart; Debian, from Linux 6.19 on, modules, image and the rest.
fn parts(image: &str, depends: &[String]) -> Vec<String> {
    let release = image.trim_start_matches("linux-image");
    let own = depends.iter().filter(|name| name.starts_with("linux-") && name.ends_with(release));
    std::iter::once(image.to_owned()).chain(own.cloned()).collect()
}

/// Turns the packages in `folder` into `vmlinuz`, `vmlinux`, `vmlinux-nopvh` and `lib/modules`.
fn unpack(folder: &Path) -> Result<()> {
    for package in
        list(folder)?.iter().filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
    {
        output(Command::new("dpkg").arg("-x").arg(package).arg(folder))?;
        fs::remove_file(package).context("removing an unpacked package")?;
    }
    // Packages of merged-/usr distributions have their modules below usr.
    if !folder.join("lib").exists() {
        fs::rename(folder.join("usr/lib"), folder.join("lib")).context("moving the modules")?;
    }
    let (image, release) = image(folder)?;
    fs::rename(&image, folder.join("vmlinuz")).context("moving the kernel image")?;
    for rest in ["boot", "usr"] {
        let _ = fs::remove_dir_all(folder.join(rest));
    }
    let depmod = host::program("depmod").context("kmod has no depmod")?;
    output(Command::new(depmod).arg("-b").arg(folder).arg(&release))?;
    extract(folder)
}

/// The unpacked image and its release: in `boot`, or, from Debian's 6.19 on, beside the modules.
fn image(folder: &Path) -> Result<(PathBuf, String)> {
    let in_boot = list(&folder.join("boot")).unwrap_or_default().into_iter().find_map(|path| {
        let release = path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Some((path, release))
    });
    let beside_modules = || {
        list(&folder.join("lib/modules")).unwrap_or_default().into_iter().find_map(|path| {
            let (image, release) = (path.join("vmlinuz"), path.file_name()?.to_str()?.to_owned());
            image.is_file().then_some((image, release))
        })
    };
    in_boot.or_else(beside_modules).context("the packages have no kernel image")
}

/// Writes the two ELF kernels.
fn extract(folder: &Path) -> Result<()> {
    let image = fs::read(folder.join("vmlinuz")).context("reading the kernel image")?;
    let mut elf = vmlinux::extract(&image).context("extracting the ELF kernel")?;
    fs::write(folder.join("vmlinux"), &elf).context("writing vmlinux")?;
    if !vmlinux::hide_pvh(&mut elf)? {
        bail!("the kernel has no PVH note");
    }
    fs::write(folder.join("vmlinux-nopvh"), &elf).context("writing vmlinux-nopvh")
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_fetched_with_all_the_packages_of_its_release() {
        let packages = |image: &str, depends: &[&str]| {
            parts(image, &depends.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let old = "linux-image-6.12.95+deb12-cloud-amd64";
        assert_eq!(packages(old, &["kmod", "linux-base", "initramfs-tools"]), [old]);
        let new =
            ["image", "base", "binary", "modules"].map(|part| format!("linux-{part}-7.3.4+deb13-amd64"));
        let depends = ["dracut", "linux-initramfs-tool", &new[1], &new[2], &new[3]];
        assert_eq!(packages(&new[0], &depends), new);
        let ubuntu = ["linux-image-6.8.0-90-generic", "linux-modules-6.8.0-90-generic"];
        assert_eq!(packages(ubuntu[0], &["kmod", "linux-base", ubuntu[1]]), ubuntu);
    }

    #[test]
    fn an_image_is_found_in_boot_and_beside_its_modules() {
        for (path, release) in [
            ("boot/vmlinuz-6.12.95+deb12-cloud-amd64", "6.12.95+deb12-cloud-amd64"),
            ("lib/modules/7.3.4+deb13-cloud-amd64/vmlinuz", "7.3.4+deb13-cloud-amd64"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join(path);
            fs::create_dir_all(folder.path().join("lib/modules").join(release)).unwrap();
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            assert!(image(folder.path()).is_err());
            fs::write(&file, "").unwrap();
            assert_eq!(image(folder.path()).unwrap(), (file, release.to_owned()));
        }
    }
}
