//! A command: what `kite run -- COMMAND` runs in the guest, on which files, and what becomes of its results.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::container::ContainerSpec;
use super::text;

/// A command to run in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// The program and its arguments; with an image, the words in place of its `Cmd`, if there are any.
    #[serde(default, with = "text::os_list")]
    pub argv: Vec<OsString>,
    /// The guest's root folder; the host's if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootSpec>,
    /// The guest's folder to start in; the image's, or else the one that kite was started in, if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub cwd: Option<PathBuf>,
    /// Variables beside, or instead of, the host's; with an image, its own.
    #[serde(default)]
    pub env: Vec<VariableSpec>,
    /// Pass on no variable of the host's but TERM and those that `env` names.
    #[serde(default)]
    pub clear_env: bool,
    /// Who runs it; the image's user, or else the same ids as kite's, if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// How long it may take.
    #[serde(
        default,
        rename = "timeout_ms",
        skip_serializing_if = "Option::is_none",
        with = "text::milliseconds"
    )]
    pub timeout: Option<Duration>,
    /// How long it may neither run nor print.
    #[serde(
        default,
        rename = "idle_timeout_ms",
        skip_serializing_if = "Option::is_none",
        with = "text::milliseconds"
    )]
    pub idle_timeout: Option<Duration>,
    /// The JUnit file for what came of it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub junit: Option<PathBuf>,
    /// Whether failed cases of what it prints make it fail.
    #[serde(default)]
    pub fail_on_ktap: FailOnKtap,
    /// The file for the kernel's messages.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub kernel_log: Option<PathBuf>,
    /// The container that it is the process of, whose variables are `env` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerSpec>,
}

/// The guest's root folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSpec {
    /// A folder of the host's.
    Folder(#[serde(with = "text::os")] PathBuf),
    /// The first disk.
    Disk,
    /// The image of a container.
    Image(ImageSpec),
}

/// The image of a container, and what holds in place of what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Where it is: a folder with an OCI layout, an archive, or a name in a registry, with a tag if need be.
    pub reference: String,
    /// The word in place of its `Entrypoint`; none at all if it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// Its registry is trusted without TLS, or with any certificate.
    #[serde(default)]
    pub insecure_registry: bool,
    /// Its registry is asked although there is an image of that name.
    #[serde(default)]
    pub pull: bool,
}

impl ImageSpec {
    /// The image that this names, as it says itself.
    pub fn new(reference: &str) -> Self {
        Self { reference: reference.to_owned(), entrypoint: None, insecure_registry: false, pull: false }
    }

    fn check(&self) -> Result<(), String> {
        let words = self.entrypoint.iter().chain([&self.reference]);
        if self.reference.is_empty() {
            return Err("--image: it names no image".to_owned());
        }
        if words.into_iter().any(|word| word.contains('\0')) {
            return Err("--image and --entrypoint cannot hold a NUL".to_owned());
        }
        Ok(())
    }

    /// Has `reference`, if it is a path of something in `folder`, begin there.
    pub fn rebase(reference: &mut String, folder: &Path) {
        let colons = reference.rmatch_indices(':').map(|(at, _)| at);
        let mut ends = std::iter::once(reference.len()).chain(colons);
        let is_path = ends.any(|end| end > 0 && folder.join(&reference[..end]).exists());
        if let Some(path) = folder.join(&*reference).to_str().filter(|_| is_path) {
            *reference = path.to_owned();
        }
    }
}

/// A variable of the command's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariableSpec {
    /// Its name.
    pub name: String,
    /// Its value; the host's if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Who runs a command: names of the guest's, or numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// The user.
    pub user: String,
    /// The group; the user's own if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Whether failed cases of a command's output make it fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FailOnKtap {
    /// Where results are written, a failed case makes the command fail.
    #[default]
    Auto,
    /// A failed case makes the command fail, and so does an output without a document.
    Always,
    /// The command's own status is all that counts.
    Never,
}

impl CommandSpec {
    /// What people know it by: its words, or the image whose own command it is.
    pub fn to_string_lossy(&self) -> String {
        match self.image().filter(|_| self.argv.is_empty()) {
            Some(image) => image.reference.clone(),
            None => self.argv.join(" ".as_ref()).to_string_lossy().into_owned(),
        }
    }

    /// Whether it can be run.
    ///
    /// # Errors
    /// Why it cannot, in one line.
    pub(super) fn check(&self) -> Result<(), String> {
        let image = self.image();
        match self.argv.first() {
            None if image.is_none() => return Err("there is no command: its argv is empty".to_owned()),
            None => {}
            Some(program) if program.is_empty() && image.is_none() => {
                return Err(
                    "the command after `--` begins with an empty word, which names no program".to_owned()
                );
            }
            Some(_) => {}
        }
        if let Some(image) = image {
            image.check()?;
        }
        if let Some(RootSpec::Folder(folder)) = &self.root
            && folder.as_os_str().is_empty()
        {
            return Err("--root: it names no folder".to_owned());
        }
        self.env.iter().try_for_each(VariableSpec::check).map_err(|why| format!("--env: {why}"))?;
        self.user.as_ref().map_or(Ok(()), UserSpec::check).map_err(|why| format!("--user: {why}"))
    }

    /// The image that it runs in, if it is one.
    pub fn image(&self) -> Option<&ImageSpec> {
        match &self.root {
            Some(RootSpec::Image(image)) => Some(image),
            _ => None,
        }
    }

    /// Has relative paths of the host's begin at `folder`.
    pub(super) fn rebase(&mut self, folder: &Path) {
        if let Some(RootSpec::Image(image)) = &mut self.root {
            ImageSpec::rebase(&mut image.reference, folder);
        }
        let root = match &mut self.root {
            Some(RootSpec::Folder(path)) => Some(path),
            Some(RootSpec::Disk | RootSpec::Image(_)) | None => None,
        };
        let files = [&mut self.junit, &mut self.kernel_log].into_iter().flatten();
        root.into_iter().chain(files).for_each(|path| *path = folder.join(&*path));
    }
}

impl RootSpec {
    /// Reads the value of `--root`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it names no folder".to_owned()),
            "disk" => Ok(Self::Disk),
            folder => Ok(Self::Folder(folder.into())),
        }
    }
}

impl VariableSpec {
    /// Reads the value of `--env`: `NAME=VALUE` or `NAME`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let variable = Self { name: name.to_owned(), value };
        variable.check().map(|()| variable)
    }

    fn check(&self) -> Result<(), String> {
        let has_nul = self.name.contains('\0') || self.value.as_ref().is_some_and(|it| it.contains('\0'));
        if self.name.is_empty() || self.name.contains('=') || has_nul {
            return Err("a variable is NAME=VALUE or NAME".to_owned());
        }
        Ok(())
    }
}

impl UserSpec {
    /// Reads the value of `--user`: `USER` or `USER:GROUP`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = Self { user: user.to_owned(), group: group.map(str::to_owned) };
        user.check().map(|()| user)
    }

    fn check(&self) -> Result<(), String> {
        let fits = |name: &str| !name.is_empty() && !name.contains([':', '\n']);
        if fits(&self.user) && self.group.as_deref().is_none_or(fits) {
            return Ok(());
        }
        Err("a user is USER or USER:GROUP, names or numbers".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_have_a_group() {
        let user = |user: &str, group: Option<&str>| {
            Ok(UserSpec { user: user.to_owned(), group: group.map(str::to_owned) })
        };
        assert_eq!(UserSpec::parse("ann"), user("ann", None));
        assert_eq!(UserSpec::parse("0:5"), user("0", Some("5")));
        for text in ["", ":", "a:", ":b", "a:b:c"] {
            assert!(UserSpec::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_has_a_name() {
        let variable =
            |value: Option<&str>| Ok(VariableSpec { name: "A".to_owned(), value: value.map(str::to_owned) });
        assert_eq!(VariableSpec::parse("A=b=c"), variable(Some("b=c")));
        assert_eq!(VariableSpec::parse("A"), variable(None));
        assert!(VariableSpec::parse("=b").is_err() && VariableSpec::parse("").is_err());
    }
}
