//! A whole Debian on a disk, under `target/debian`: an ext4 image with systemd, a stock kernel and its stock initrd, made
//! by mmdebstrap from the packages of the host's own sources, and the programs that tests run on it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Setup, Unavailable};
use crate::host::{self, Distribution};
use crate::step::{output, step};

/// The disk's size in bytes; the file is sparse.
const SIZE: u64 = 1 << 30;
/// What is installed beside Debian's essential packages.
const PACKAGES: &str = "systemd-sysv,udev,linux-image-cloud-amd64,initramfs-tools,zstd,kmod,e2fsprogs,iproute2,\
                        iputils-ping,fio,iperf3";
/// What takes space, and nobody reads here.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
/// What is set up on the new system, whose root folder is the first argument.
const CUSTOMIZE: &str = include_str!("debian.sh");
/// The password of root.
pub const PASSWORD: &str = "kite";

/// The disk and what boots it.
#[derive(Clone, Debug)]
pub struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// The disk that was made from what this program says, if it was.
    ///
    /// # Errors
    /// There is no folder for it.
    pub fn open() -> Result<Option<Self>> {
        let debian = Self { folder: host::target("")?.join("debian") };
        let recipe = fs::read_to_string(debian.folder.join("recipe")).unwrap_or_default();
        Ok((recipe == self::recipe()).then_some(debian))
    }

    /// The image. Whoever writes takes a copy.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// The kernel of the system on the disk.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Its stock initrd.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }
}

/// What the disk is made from: another recipe makes another disk.
fn recipe() -> String {
    format!("{SIZE}\n{PACKAGES}\n{}\n{CUSTOMIZE}", LEFT_OUT.join(" "))
}

/// The disk, made if it is not there.
///
/// # Errors
/// [`Unavailable`] where no Debian can be made; or a package cannot be fetched or the disk not be written.
pub fn ensure(setup: &mut Setup) -> Result<Debian> {
    if let Some(debian) = Debian::open()? {
        return Ok(debian);
    }
    let distribution = Distribution::here()?;
    if distribution.is_ubuntu() {
        let needs = format!("a Debian disk is made from Debian's packages, this is {}", distribution.name);
        return Err(Unavailable(needs).into());
    }
    setup.programs(&[("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("systemctl", "systemd")])?;
    let sources = setup.apt()?.sources();
    // The finished folder appears in one step, so that an interrupted run leaves nothing that looks whole.
    let target = host::target("")?;
    let (part, whole) = (target.join("debian.part"), target.join("debian"));
    for folder in [&part, &whole].into_iter().filter(|folder| folder.exists()) {
        as_root("rm", ["-rf".as_ref(), folder.as_os_str()])?;
    }
    fs::create_dir(&part).with_context(|| format!("making {}", part.display()))?;
    let tree = part.join("tree");
    step("installing Debian into a folder", || bootstrap(&tree, &sources, &distribution.codename))?;
    step("making a disk of it", || disk(&tree, &part))?;
    as_root("rm", ["-rf".as_ref(), tree.as_os_str()])?;
    fs::write(part.join("recipe"), recipe()).context("writing down the recipe")?;
    fs::rename(&part, &whole).with_context(|| format!("renaming {}", part.display()))?;
    Ok(Debian { folder: whole })
}

fn as_root<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<()> {
    output(host::as_root(program)?.args(arguments)).map(drop)
}

/// Installs everything into the folder `tree`.
fn bootstrap(tree: &Path, sources: &Path, suite: &str) -> Result<()> {
    let hook = tree.with_file_name("customize");
    fs::write(&hook, CUSTOMIZE).context("writing the set-up of the new system")?;
    let mut command = host::as_root("mmdebstrap")?;
    command.args(["--quiet", "--variant=minbase", "--include", PACKAGES]);
    command.args(LEFT_OUT.map(|files| format!("--dpkgopt=path-exclude={files}")));
    command.arg(format!("--customize-hook=sh '{}' \"$1\"", hook.display()));
    output(command.arg(suite).arg(tree).arg(sources)).map(drop)
}

/// Makes the image of `tree` in the folder `into`, and puts the kernel and its initrd beside it.
fn disk(tree: &Path, into: &Path) -> Result<()> {
    let boot = tree.join("boot");
    for entry in fs::read_dir(&boot).with_context(|| format!("listing {}", boot.display()))? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = match name.split_once('-') {
            Some(("vmlinuz", _)) => "vmlinuz",
            Some(("initrd.img", _)) => "initrd",
            _ => continue,
        };
        fs::copy(&file, into.join(to)).with_context(|| format!("copying {}", file.display()))?;
    }
    for name in ["vmlinuz", "initrd"] {
        fs::metadata(into.join(name)).with_context(|| format!("the new system's {name}"))?;
    }
    let image = into.join("disk.img");
    // Made by this user before root writes it.
    File::create(&image).and_then(|file| file.set_len(SIZE)).context("making the image")?;
    let (tree, file) = (tree.as_os_str(), image.as_os_str());
    as_root("mke2fs", ["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), "-d".as_ref(), tree, file])?;
    let used = fs::metadata(&image).context("looking at the image")?.blocks() * 512;
    eprintln!("xtask: the disk takes {} MiB of its {}", used >> 20, SIZE >> 20);
    Ok(())
}
