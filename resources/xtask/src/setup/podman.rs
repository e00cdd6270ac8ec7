//! Engines of containers, made by mmdebstrap from the packages of the host's own sources: an image with podman, under
//! `target/podman`, and a root folder with all of them, under `target/engines`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Setup, Unavailable};
use crate::host::{self, Distribution};
use crate::saved_image;
use crate::step::{output, step};

/// What is made of packages.
struct Recipe {
    /// The folder and the file below `target`.
    folder: &'static str,
    file: &'static str,
    /// What it is called.
    what: &'static str,
    /// What is installed beside Debian's essential packages.
    packages: &'static str,
}

const PODMAN: Recipe = Recipe {
    folder: "podman",
    file: "image.tar",
    what: "an image with podman",
    packages: "podman,crun,uidmap,fuse-overlayfs,slirp4netns,iptables,kmod,busybox-static",
};
const ENGINES: Recipe = Recipe {
    folder: "engines",
    file: "root.tar",
    what: "a root folder with engines of containers",
    packages: "podman,crun,catatonit,uidmap,docker.io,containerd,runc,iptables,kmod,busybox-static",
};
/// What takes space, and nobody reads here.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
/// A user with numbers for their containers.
const CUSTOMIZE: &str = "chroot \"$1\" useradd --create-home --uid 1000 ann
printf 'ann:100000:65536\\n' | tee \"$1/etc/subuid\" >\"$1/etc/subgid\"";

/// The archive of the image, made if it is not there.
///
/// # Errors
/// [`Unavailable`] where no Debian can be made; or a package cannot be fetched or the archive not be written.
pub fn ensure(setup: &mut Setup) -> Result<PathBuf> {
    PODMAN.ensure(setup, |layer, archive| {
        saved_image::save(layer, &json!({ "Cmd": ["/bin/bash"] }), archive)?;
        fs::remove_file(layer).context("removing the layer")
    })
}

/// The archive of a root folder with podman, Docker and containerd, made if it is not there.
///
/// # Errors
/// Those of [`ensure`].
pub fn ensure_engines(setup: &mut Setup) -> Result<PathBuf> {
    ENGINES.ensure(setup, |layer, archive| fs::rename(layer, archive).context("naming the archive"))
}

/// Where the archive of the image is or would be.
///
/// # Errors
/// The folder around it cannot be made.
pub fn archive() -> Result<PathBuf> {
    PODMAN.archive()
}

/// Where that of engines is or would be.
///
/// # Errors
/// The folder around it cannot be made.
pub fn engines_archive() -> Result<PathBuf> {
    ENGINES.archive()
}

impl Recipe {
    fn archive(&self) -> Result<PathBuf> {
        Ok(host::target(self.folder)?.join(self.file))
    }

    fn ensure(&self, setup: &mut Setup, finish: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
        let archive = self.archive()?;
        let recipe = format!("{}\n{}\n{CUSTOMIZE}", self.packages, LEFT_OUT.join(" "));
        let written = archive.with_file_name("recipe");
        if archive.exists() && fs::read_to_string(&written).is_ok_and(|text| text == recipe) {
            return Ok(archive);
        }
        let distribution = Distribution::here()?;
        if distribution.is_ubuntu() {
            let needs =
                format!("{} is made from Debian's packages, this is {}", self.what, distribution.name);
            return Err(Unavailable(needs).into());
        }
        setup.programs(&[("mmdebstrap", "mmdebstrap")])?;
        let sources = setup.apt()?.sources();
        let layer = archive.with_file_name("layer.tar");
        step(format!("making {}", self.what), || {
            self.bootstrap(&layer, &sources, &distribution.codename)?;
            finish(&layer, &archive)?;
            // The recipe comes last, so that an interrupted run leaves nothing that looks whole.
            fs::write(&written, recipe).context("writing down the recipe")
        })?;
        Ok(archive)
    }

    fn bootstrap(&self, layer: &Path, sources: &Path, suite: &str) -> Result<()> {
        let mut command = host::as_root("mmdebstrap")?;
        command.args(["--quiet", "--variant=minbase", "--include", self.packages]);
        command.args(LEFT_OUT.map(|files| format!("--dpkgopt=path-exclude={files}")));
        command.arg(format!("--customize-hook={CUSTOMIZE}"));
        output(command.arg(suite).arg(layer).arg(sources))?;
        // It is root's otherwise, and read by the user who runs this.
        let owner =
            fs::metadata(layer.parent().context("a layer is in a folder")?).context("looking at a folder")?;
        let owner = format!("{}:{}", owner.uid(), owner.gid());
        output(host::as_root("chown")?.args([OsStr::new(&owner), layer.as_os_str()])).map(drop)
    }
}
