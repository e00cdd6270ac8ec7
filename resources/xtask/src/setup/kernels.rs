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
        let missing = ["6.1", "6.12"].map(|name| Missing {
            name: name.to_owned(),
            reason: "Debian's kernel, not to be had on Ubuntu".to_owned(),
        });
        return (
            vec![Origin::new("ubuntu", "linux-image-virtual"), Origin::new("ubuntu-hwe", &hwe)],
            missing.into(),
        );
    }
    let debian = "linux-image-cloud-amd64";
    (vec![Origin::new("6.1", debian), Origin::new("6.12", debian)], Vec::new())
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
    let mut packages = vec![image.clone()];
    let modules = image.replacen("linux-image-", "linux-modules-", 1);
    if apt.candidate(&modules, "")?.is_some() {
        packages.push(modules);
    }
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

/// Turns the packages in `folder` into `vmlinuz`, `vmlinux`, `vmlinux-nopvh` and `lib/modules`.
fn unpack(folder: &Path) -> Result<()> {
    for package in
        list(folder)?.iter().filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
    {
        output(Command::new("dpkg").arg("-x").arg(package).arg(folder))?;
        fs::remove_file(package).context("removing an unpacked package")?;
    }
    let is_image =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    let boot = list(&folder.join("boot"))?;
    let image = boot.iter().find(is_image).context("the package has no kernel image")?;
    let release = image.to_string_lossy().rsplit_once("vmlinuz-").map(|(_, release)| release.to_owned());
    fs::rename(image, folder.join("vmlinuz")).context("moving the kernel image")?;
    fs::remove_dir_all(folder.join("boot")).context("removing boot")?;
    // Packages of merged-/usr distributions have their modules below usr.
    if !folder.join("lib").exists() {
        fs::rename(folder.join("usr/lib"), folder.join("lib")).context("moving the modules")?;
    }
    let _ = fs::remove_dir_all(folder.join("usr"));
    let release = release.context("the kernel image has no version in its name")?;
    let depmod = host::program("depmod").context("kmod has no depmod")?;
    output(Command::new(depmod).arg("-b").arg(folder).arg(&release))?;
    extract(folder)
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
