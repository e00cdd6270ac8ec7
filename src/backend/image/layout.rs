//! OCI layouts (OCI image specification, Image Layout): a folder, or a tar that holds the same files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use serde::Deserialize;

use super::blob::Section;
use super::digest::Digest;
use super::manifest::{self, Blobs, DOCUMENT_MAX, Descriptor, Image, Layer, check_length, choose};

/// The file that says that it is a layout, and of which version.
const MARK: &str = "oci-layout";
/// The file that names the images.
const INDEX: &str = "index.json";
/// The annotation with a tag.
const TAG: &str = "org.opencontainers.image.ref.name";
/// The annotation with a whole name, of containerd and Docker.
const NAME: &str = "io.containerd.image.name";
/// The most tags that an error lists.
const SHOWN_MAX: usize = 16;

/// Files by their names in a layout.
pub trait Files {
    /// The content of a file.
    ///
    /// # Errors
    /// There is no such regular file.
    fn open(&self, name: &str) -> anyhow::Result<Section>;
}

/// A layout in a folder.
pub struct Folder(PathBuf);

impl Folder {
    /// The one at `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Files for Folder {
    fn open(&self, name: &str) -> anyhow::Result<Section> {
        // A link could lead to a file that only root may read, whose content an error might then show.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let path = self.0.join(name);
        let what = || format!("cannot open {}", path.display());
        let file = File::options().read(true).custom_flags(flags.bits()).open(&path).with_context(what)?;
        let metadata = file.metadata().with_context(what)?;
        if !metadata.is_file() {
            bail!("{} is no regular file", path.display());
        }
        Ok(Section::new(Arc::new(file), 0, metadata.len()))
    }
}

/// A layout: what its index names, and the blobs.
pub struct Layout<F> {
    files: F,
}

impl<F: Files> Layout<F> {
    /// The layout of these files.
    ///
    /// # Errors
    /// They are none, or of a version to come.
    pub fn open(files: F) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mark {
            image_layout_version: String,
        }
        let mark = document(&files, MARK)?;
        let mark: Mark = serde_json::from_slice(&mark).with_context(|| format!("{MARK} makes no sense"))?;
        if !mark.image_layout_version.starts_with("1.") {
            bail!("the layout is of version {}, not 1", mark.image_layout_version.escape_debug());
        }
        Ok(Self { files })
    }

    /// The image of this tag, or the only one.
    ///
    /// # Errors
    /// There is no such image, there are several, or one is damaged.
    pub fn image(&self, tag: Option<&str>) -> anyhow::Result<Image> {
        let index = document(&self.files, INDEX)?;
        let all = manifest::index(&index).context(INDEX)?;
        let chosen = match tag {
            Some(tag) => {
                let named: Vec<_> = all.iter().filter(|it| is_named(it, tag)).cloned().collect();
                if named.is_empty() {
                    bail!("there is no image '{}', only {}", tag.escape_debug(), names(&all));
                }
                named
            }
            None => all,
        };
        let chosen = match &chosen[..] {
            [only] => only,
            [] => bail!("{INDEX} names no image"),
            // One image for several platforms, or several images.
            several if one_name(several) => choose(several)?,
            several => bail!("there are several images: name one of {}", names(several)),
        };
        let what = || format!("blob {}", chosen.digest);
        if chosen.size > DOCUMENT_MAX {
            bail!("{} is said to have {} bytes, and at most {DOCUMENT_MAX} are read", what(), chosen.size);
        }
        let bytes = self.document(chosen).with_context(what)?;
        check_length(bytes.len() as u64, chosen.size).with_context(what)?;
        chosen.digest.check(&bytes).with_context(what)?;
        manifest::resolve(self, bytes, chosen.media_type.as_deref())
    }

    /// A layer's blob, whose length was checked, but not its digest.
    ///
    /// # Errors
    /// There is none, or it has another length.
    pub fn layer(&self, layer: &Layer) -> anyhow::Result<Section> {
        let digest = layer.digest.as_ref().context("the layer has no digest")?;
        let section = self.files.open(&path(digest))?;
        check_length(section.length(), layer.size).with_context(|| format!("blob {digest}"))?;
        Ok(section)
    }
}

impl<F: Files> Blobs for Layout<F> {
    fn document(&self, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
        document(&self.files, &path(&descriptor.digest))
    }
}

/// The file of a blob.
fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The whole of a small file.
///
/// # Errors
/// It cannot be read, or is too long.
pub(super) fn document(files: &dyn Files, name: &str) -> anyhow::Result<Vec<u8>> {
    let section = files.open(name)?;
    if section.length() > DOCUMENT_MAX {
        bail!("{name} has {} bytes, and at most {DOCUMENT_MAX} are read", section.length());
    }
    let mut bytes = Vec::new();
    section.take(DOCUMENT_MAX).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    Ok(bytes)
}

/// Whether a tag or name is this descriptor's: its tag, its whole name, or the end of that.
fn is_named(descriptor: &Descriptor, wanted: &str) -> bool {
    let is_end = |name: &str| {
        name.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with([':', '/']))
    };
    descriptor.annotation(TAG) == Some(wanted) || descriptor.annotation(NAME).is_some_and(is_end)
}

fn name(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotation(NAME).or_else(|| descriptor.annotation(TAG))
}

/// Whether all are called the same, or nothing.
fn one_name(descriptors: &[Descriptor]) -> bool {
    descriptors.windows(2).all(|pair| name(&pair[0]) == name(&pair[1]))
}

/// What images are called, for an error.
fn names(descriptors: &[Descriptor]) -> String {
    let mut names: Vec<_> =
        descriptors.iter().filter_map(name).map(|it| it.escape_debug().to_string()).collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(SHOWN_MAX);
    names.truncate(SHOWN_MAX);
    match (names.is_empty(), more) {
        (true, _) => "images without a name".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}
