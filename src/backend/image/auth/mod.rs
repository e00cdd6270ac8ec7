//! The credentials that container tools have put by: podman's `auth.json` (containers-auth.json(5)), Docker's
//! `config.json`, and the programs `docker-credential-NAME` that both name.

mod helper;

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use nix::fcntl::OFlag;
use serde::Deserialize;

use super::reference::DEFAULT_HOST;

/// What Docker calls its own registry in its configuration.
const DEFAULT_SERVER: &str = "https://index.docker.io/v1/";
/// Other names of the same.
const DEFAULT_NAMES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", DEFAULT_HOST];
/// The longest file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// The user name of a secret that is a token.
const TOKEN_USER: &str = "<token>";
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who one is to a registry. Not shown, as it is secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token server takes in exchange for others.
    Identity(String),
}

/// The files that may have credentials, the first that has them goes.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity: Option<String>,
}

impl Files {
    /// Those of this user: `$REGISTRY_AUTH_FILE` alone if it is set; else podman's, then Docker's.
    pub fn of_user() -> Self {
        Self::of(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    /// None.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { paths: Vec::new() }
    }

    /// One file alone.
    #[cfg(test)]
    pub(super) fn only(path: PathBuf) -> Self {
        Self { paths: vec![path] }
    }

    fn of(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        if let Some(path) = variable("REGISTRY_AUTH_FILE") {
            return Self { paths: vec![path] };
        }
        let home = |rest: &str| variable("HOME").map(|home| home.join(rest));
        let places = [
            variable("XDG_RUNTIME_DIR").map(|it| it.join("containers/auth.json")),
            variable("XDG_CONFIG_HOME").or_else(|| home(".config")).map(|it| it.join("containers/auth.json")),
            variable("DOCKER_CONFIG").or_else(|| home(".docker")).map(|it| it.join("config.json")),
        ];
        Self { paths: places.into_iter().flatten().collect() }
    }

    /// The credentials for a repository of a registry, if there are any.
    ///
    /// # Errors
    /// A file makes no sense, or a helper that it names does not answer.
    pub fn find(&self, host: &str, name: &str) -> anyhow::Result<Option<Credentials>> {
        for path in &self.paths {
            let Some(config) = read(path)? else { continue };
            let found =
                config.find(host, name).with_context(|| format!("credentials of {}", path.display()))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The configuration in a file, if there is one.
fn read(path: &Path) -> anyhow::Result<Option<Config>> {
    let what = || format!("cannot read {}", path.display());
    let file = match File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(what),
    };
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text).with_context(what)?;
    if text.len() as u64 > FILE_MAX {
        bail!("{}: it is longer than {} KiB", path.display(), FILE_MAX >> 10);
    }
    // podman makes an empty one.
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // What is wrong is said by its place alone: the text is secret.
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|error| {
        anyhow!("{}: it is no JSON of credentials, at line {}", path.display(), error.line())
    })
}

impl Config {
    fn find(&self, host: &str, name: &str) -> anyhow::Result<Option<Credentials>> {
        let helper = self.helpers.iter().flatten().find(|(key, _)| server(key) == host);
        if let Some((key, helper)) = helper {
            return helper::ask(helper, key);
        }
        let entry = keys(host, name)
            .into_iter()
            .find_map(|wanted| self.auths.iter().flatten().find(|(key, _)| is_key(key, &wanted)));
        let own = entry.map(|(_, entry)| entry.credentials()).transpose()?.flatten();
        match (own, &self.store) {
            (Some(own), _) => Ok(Some(own)),
            (None, Some(store)) if !store.is_empty() => {
                let default = if host == DEFAULT_HOST { DEFAULT_SERVER } else { host };
                helper::ask(store, entry.map_or(default, |(key, _)| key))
            }
            (None, _) => Ok(None),
        }
    }
}

impl Entry {
    /// What it says; it may say nothing where a helper knows.
    fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = said(&self.identity) {
            return Ok(Some(Credentials::Identity(token)));
        }
        if let (Some(user), Some(password)) = (said(&self.username), said(&self.password)) {
            return Ok(Some(of_user(user, password)));
        }
        let Some(auth) = said(&self.auth) else { return Ok(None) };
        let wrong = || anyhow!("'auth' is no NAME:PASSWORD in base64");
        let text = BASE64.decode(auth.trim()).map_err(|_| wrong())?;
        let text = String::from_utf8(text).map_err(|_| wrong())?;
        let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or_else(wrong)?;
        Ok(Some(of_user(user.to_owned(), password.to_owned())))
    }
}

fn of_user(user: String, password: String) -> Credentials {
    match user.as_str() {
        TOKEN_USER => Credentials::Identity(password),
        _ => Credentials::Password { user, password },
    }
}

/// What a repository may be called in a file, the most special first: podman has credentials for parts of a registry.
fn keys(host: &str, name: &str) -> Vec<String> {
    let whole = format!("{host}/{name}");
    let ends = whole.rmatch_indices('/').map(|(at, _)| at);
    std::iter::once(whole.len()).chain(ends).map(|end| whole[..end].to_owned()).collect()
}

/// Whether a key of a file means `wanted`; those with a scheme, or a path of the API, mean a whole registry.
fn is_key(key: &str, wanted: &str) -> bool {
    key == wanted || server(key) == wanted
}

/// The registry that a key means, unless it means a part of one.
fn server(key: &str) -> &str {
    let (rest, is_url) = match key.split_once("://") {
        Some((_, rest)) => (rest, true),
        None => (key, false),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_whole = is_url || matches!(path, "" | "v1" | "v1/" | "v2" | "v2/");
    match host {
        host if is_whole && DEFAULT_NAMES.contains(&host) => DEFAULT_HOST,
        host if is_whole => host,
        _ => key,
    }
}

#[cfg(test)]
mod tests;
