//! The image that a command runs in: obtained before kite parts in two, and what it makes of the command.

use std::ffi::OsString;

use anyhow::Context;

use crate::backend::disk::OpenDisk;
use crate::backend::image::cache::{Cache, Root, limit};
use crate::backend::image::config::{ContainerCommand, Overrides};
use crate::backend::image::obtain::{self, Options};
use crate::spec::command::{CommandSpec, ImageSpec, UserSpec};
use crate::spec::wire::User;

/// Who runs a command where neither the user nor the image says it.
const ROOT: &str = "0";

/// An image in use, and the command in it.
pub(super) struct RunImage {
    root: Root,
    pub command: ContainerCommand,
}

impl RunImage {
    /// Gets the image of a command that runs in one; from its registry or archive if the cache does not have it.
    ///
    /// # Errors
    /// There is no such image, it cannot be got, or it has no command.
    pub fn obtain(spec: &CommandSpec) -> anyhow::Result<Option<Self>> {
        let Some(image) = spec.image() else { return Ok(None) };
        let this = || -> anyhow::Result<Self> {
            let options = Options {
                is_insecure: image.insecure_registry,
                is_refreshed: image.pull,
                is_shown: true,
                limit: limit()?,
            };
            let obtained = obtain::obtain(&Cache::open()?, &image.reference, &options)?;
            let defaults = obtained.record.config()?.defaults();
            let command = ContainerCommand::of(&defaults, &overrides(spec, image)?)?;
            Ok(Self { root: obtained.root, command })
        };
        this().map(Some).with_context(|| format!("--image {}", image.reference.escape_debug()))
    }

    /// The disk with its root file system, for a machine of so many vCPUs.
    ///
    /// # Errors
    /// Its file cannot be used.
    pub fn disk(&self, cpus: u32) -> anyhow::Result<OpenDisk> {
        OpenDisk::of_image(&self.root, cpus)
    }

    /// Who runs the command, to be looked up in the guest.
    pub fn user(&self) -> User {
        let (user, group) = self.command.user.clone().unwrap_or_else(|| (ROOT.to_owned(), None));
        User::Container { user, group }
    }
}

/// What the user says of the command. Of the host's environment only the kind of terminal is the command's, too.
fn overrides(spec: &CommandSpec, image: &ImageSpec) -> anyhow::Result<Overrides> {
    let text = |word: OsString| {
        word.into_string()
            .map_err(|word| anyhow::anyhow!("{} is not UTF-8, as an image's words are", word.display()))
    };
    let mut env = Vec::new();
    for variable in &spec.env {
        let value = match &variable.value {
            Some(value) => Some(value.clone()),
            None => std::env::var_os(&variable.name).map(text).transpose()?,
        };
        env.push((variable.name.clone(), value));
    }
    Ok(Overrides {
        command: spec.argv.iter().cloned().map(text).collect::<anyhow::Result<_>>()?,
        entrypoint: image.entrypoint.clone(),
        env,
        working_dir: spec.cwd.clone().map(|folder| text(folder.into())).transpose()?,
        user: spec.user.as_ref().map(|UserSpec { user, group }| (user.clone(), group.clone())),
        stop_signal: None,
    })
}
