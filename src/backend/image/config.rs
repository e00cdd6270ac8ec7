//! An image's configuration (OCI image specification, Image Configuration), and what it makes of a command, as
//! `docker run` does it.
//!
//! Nothing here looks at the image's files: a user's name is looked up in the guest, in the passwd(5) and group(5) of its
//! root, as a program there would, and `HOME` comes from there, too.

use std::fmt;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::digest::Digest;
use super::manifest::Platform;

/// What a command finds its programs by where the image does not say: Docker's default.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The first and the last real-time signal, as C libraries and Docker count them.
const REAL_TIME: (i32, i32) = (34, 64);
/// Other names of signals, as signal(7) has them.
const OTHER_NAMES: [(&str, &str); 4] = [("CLD", "CHLD"), ("IOT", "ABRT"), ("POLL", "IO"), ("UNUSED", "SYS")];

/// An image's configuration, as far as kite uses it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ImageConfig {
    /// The processor: `amd64`. Tools of old leave it out.
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<Defaults>,
    #[serde(default)]
    rootfs: RootFs,
}

/// What a container of the image begins with.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Defaults {
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// Variables, `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// The words that a command always begins with.
    pub entrypoint: Option<Words>,
    /// The words that follow, unless the user has others.
    pub cmd: Option<Words>,
    /// The folder to start in.
    pub working_dir: Option<String>,
    /// The signal that asks the command to end.
    pub stop_signal: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// The words of a command: a list, or, in images of old, one string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Words;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of words or one word")
            }
            fn visit_str<E>(self, word: &str) -> Result<Words, E> {
                Ok(Words(vec![word.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl ImageConfig {
    /// Reads the JSON of a configuration.
    ///
    /// # Errors
    /// It is no such thing.
    pub fn parse(json: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(json).context("its configuration makes no sense")
    }

    /// What a container begins with.
    pub fn defaults(&self) -> Defaults {
        self.config.clone().unwrap_or_default()
    }

    /// The digests of the layers' uncompressed tars, the lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    /// What the image is for.
    pub fn platform(&self) -> Platform {
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        Platform {
            os: text(&self.os),
            architecture: text(&self.architecture),
            variant: self.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }
}

/// What the user says of the command in place of the image.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The words after `--`: in place of the image's `Cmd`.
    pub command: Vec<String>,
    /// In place of the image's `Entrypoint`, whose `Cmd` then does not hold either; empty for none.
    pub entrypoint: Option<String>,
    /// Variables, and those that are taken away.
    pub env: Vec<(String, Option<String>)>,
    /// The folder to start in.
    pub working_dir: Option<String>,
    /// Who runs it.
    pub user: Option<(String, Option<String>)>,
    /// The signal that asks the command to end.
    pub stop_signal: Option<String>,
}

/// A command in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerCommand {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its whole environment but `HOME` and `HOSTNAME`, which the guest adds where they are not here.
    pub env: Vec<(String, String)>,
    /// The folder to start in: absolute, made in the guest if it is not there.
    pub working_dir: String,
    /// Who runs it, with the group if one is named: names or numbers, to be looked up in the guest; root with none.
    ///
    /// A number that the guest's passwd does not have is a user of group 0; a name that it does not have is an error.
    /// Supplementary groups are those of the guest's group file, unless a group is named.
    pub user: Option<(String, Option<String>)>,
    /// The number of the signal that asks it to end.
    pub stop_signal: i32,
}

impl ContainerCommand {
    /// The command that `docker run` would make of an image's defaults and the user's options.
    ///
    /// # Errors
    /// There is no command, or the image has what no command can have: a relative folder, a signal that there is not, a
    /// NUL in a word.
    pub fn of(image: &Defaults, user: &Overrides) -> anyhow::Result<Self> {
        let command = Self {
            argv: argv(image, user)?,
            env: environment(image, user),
            working_dir: working_dir(image, user)?,
            user: user.user.clone().or_else(|| image.user.as_deref().and_then(split_user)),
            stop_signal: stop_signal(image, user)?,
        };
        let user = command.user.iter().flat_map(|(user, group)| std::iter::once(user).chain(group));
        let words = command.argv.iter().chain(command.env.iter().flat_map(|(name, value)| [name, value]));
        if words.chain([&command.working_dir]).chain(user).any(|word| word.contains('\0')) {
            bail!("the image's configuration has a NUL in a word");
        }
        Ok(command)
    }
}

fn argv(image: &Defaults, user: &Overrides) -> anyhow::Result<Vec<String>> {
    let words = |it: &Option<Words>| it.clone().unwrap_or_default().0;
    let entrypoint = match &user.entrypoint {
        Some(word) if word.is_empty() => Vec::new(),
        Some(word) => vec![word.clone()],
        // `ENTRYPOINT [""]` is what images write that take it away.
        None => Some(words(&image.entrypoint)).filter(|words| *words != [""]).unwrap_or_default(),
    };
    let command = match (&user.command[..], &user.entrypoint) {
        ([], None) => words(&image.cmd),
        (command, _) => command.to_vec(),
    };
    let argv = [entrypoint, command].concat();
    match argv.first().map(String::as_str) {
        None => bail!("the image has no command of its own: name one after `--`"),
        Some("") => bail!("the image's command begins with an empty word: name another after `--`"),
        Some(_) => Ok(argv),
    }
}

fn environment(image: &Defaults, user: &Overrides) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    let mut set = |name: &str, value: Option<&str>| match (env.iter_mut().find(|it| it.0 == name), value) {
        (Some(variable), Some(value)) => value.clone_into(&mut variable.1),
        (None, Some(value)) => env.push((name.to_owned(), value.to_owned())),
        (Some(_), None) => env.retain(|it| it.0 != name),
        (None, None) => {}
    };
    for variable in image.env.iter().flatten() {
        // A name without a value takes the variable away.
        match variable.split_once('=') {
            Some(("", _)) => {}
            Some((name, value)) => set(name, Some(value)),
            None => set(variable, None),
        }
    }
    user.env.iter().for_each(|(name, value)| set(name, value.as_deref()));
    env
}

fn working_dir(image: &Defaults, user: &Overrides) -> anyhow::Result<String> {
    let folder = user.working_dir.as_ref().or(image.working_dir.as_ref()).filter(|folder| !folder.is_empty());
    let Some(folder) = folder else { return Ok("/".to_owned()) };
    if !folder.starts_with('/') {
        bail!("the folder to start in is not absolute: {}", folder.escape_debug());
    }
    // Cleaned as Docker does it: by its text alone.
    let mut parts = Vec::new();
    for part in folder.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

fn split_user(text: &str) -> Option<(String, Option<String>)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group.to_owned()).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    (!text.is_empty()).then(|| (user.to_owned(), group))
}

fn stop_signal(image: &Defaults, user: &Overrides) -> anyhow::Result<i32> {
    match user.stop_signal.as_ref().or(image.stop_signal.as_ref()).filter(|signal| !signal.is_empty()) {
        None => Ok(Signal::SIGTERM as i32),
        Some(text) => signal(text).ok_or_else(|| anyhow!("there is no signal '{}'", text.escape_debug())),
    }
}

/// The number of a signal that is named as `SIGTERM`, `term`, `15`, `RTMIN+3` or `SIGRTMAX-1`.
pub fn signal(text: &str) -> Option<i32> {
    let (first, last) = REAL_TIME;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=last).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+').map(|offset| first + offset).filter(|signal| *signal <= last);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, '-').map(|offset| last - offset).filter(|signal| *signal >= first);
    }
    let name = OTHER_NAMES.iter().find(|(other, _)| *other == name).map_or(name, |(_, name)| name);
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests;
