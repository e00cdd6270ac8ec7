//! An image of this host's files: what [`Target`] names and no registry has.

use std::path::Path;

use anyhow::{Context, bail};

use super::archive::{self, Archive};
use super::blob::Section;
use super::layout::{Folder, Layout};
use super::manifest::{Image, Layer};
use super::reference::Target;

/// Where the layers of a local image are.
pub enum Local {
    /// In an OCI layout's folder.
    Folder(Layout<Folder>),
    /// In an OCI layout in a tar.
    Tar(Layout<archive::TarFiles>),
    /// In a `docker-archive`, in their order.
    Sections(Vec<Section>),
}

impl Local {
    /// The image that a layout or an archive has, and where its layers are.
    ///
    /// # Errors
    /// The target is a registry's, there is no such image, or it is damaged.
    pub fn open(target: &Target) -> anyhow::Result<(Image, Self)> {
        match target {
            Target::Layout { folder, tag } => {
                Self::in_folder(folder, tag.as_deref()).with_context(|| format!("image {}", folder.display()))
            }
            Target::Archive { file, tag } => {
                Self::in_archive(file, tag.as_deref()).with_context(|| format!("image {}", file.display()))
            }
            Target::Registry(reference) => bail!("{reference} is in a registry"),
        }
    }

    fn in_folder(folder: &Path, tag: Option<&str>) -> anyhow::Result<(Image, Self)> {
        let layout = Layout::open(Folder::new(folder))?;
        Ok((layout.image(tag)?, Self::Folder(layout)))
    }

    fn in_archive(file: &Path, tag: Option<&str>) -> anyhow::Result<(Image, Self)> {
        match Archive::open(file)? {
            Archive::Oci(layout) => Ok((layout.image(tag)?, Self::Tar(layout))),
            Archive::Docker(files) => {
                let (image, sections) = archive::docker_image(&files, tag)?;
                Ok((image, Self::Sections(sections)))
            }
        }
    }

    /// The blob of the layer at this index, of the length that was said, its digest not checked.
    ///
    /// # Errors
    /// There is none, or it has another length.
    pub fn layer(&self, index: usize, layer: &Layer) -> anyhow::Result<Section> {
        match self {
            Self::Folder(layout) => layout.layer(layer),
            Self::Tar(layout) => layout.layer(layer),
            Self::Sections(sections) => sections.get(index).cloned().context("there is no such layer"),
        }
    }
}
