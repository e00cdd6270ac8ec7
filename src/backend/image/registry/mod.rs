//! Images in registries (OCI distribution specification, the pull part; Docker's registry HTTP API, version 2).
//!
//! All of this is done before a machine is there and before the sandbox is locked, so no thread of a machine's needs a
//! system call of the network for it.

mod challenge;
mod client;
mod download;
mod login;
mod names;
mod url;

use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use ureq::Body;
use ureq::http::Response;

use super::auth::Files;
use super::manifest::{self, Blobs, DOCUMENT_MAX, Descriptor, INDEX_TYPES, Image, MANIFEST_TYPES};
use super::reference::Reference;
use client::{Client, Request, Trouble, trouble};
pub use download::Tell;
use login::Login;
use url::Url;

/// What a manifest may be.
const ACCEPTED: [&str; 4] = [INDEX_TYPES[0], INDEX_TYPES[1], MANIFEST_TYPES[0], MANIFEST_TYPES[1]];
/// How often in a row a request is sent that fails in passing.
const TRIES_MAX: u32 = 5;
/// How long the first pause after such a failure is; each is twice the last.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A repository of a registry.
pub struct Registry {
    reference: Reference,
    client: Client,
    /// Where its parts are, without a slash at the end.
    base: Url,
    login: Login,
    pause: Duration,
}

/// Why there is no answer.
enum Failure {
    /// The next try may have one, after the pause that the server asks for.
    Passing(anyhow::Error, Option<Duration>),
    Lasting(anyhow::Error),
}

impl Registry {
    /// The repository of `reference`. An insecure one may be one without TLS, or with a certificate that nobody vouches for;
    /// one on this machine may be without TLS.
    ///
    /// # Errors
    /// The registry's name makes no address.
    pub fn open(reference: &Reference, is_insecure: bool) -> anyhow::Result<Self> {
        Self::with(reference, is_insecure, Files::of_user(), PAUSE)
    }

    fn with(reference: &Reference, is_insecure: bool, files: Files, pause: Duration) -> anyhow::Result<Self> {
        let client = Client::new(is_insecure);
        let host = reference.api_host();
        let [https, http] = ["https", "http"].map(|scheme| Url::parse(&format!("{scheme}://{host}")));
        let (https, http) = (https?, http?);
        let base =
            if (https.is_loopback() || is_insecure) && !has_tls(&client, &https) { http } else { https };
        let login = Login::new(reference.host(), reference.name(), files);
        Ok(Self { reference: reference.clone(), client, base, login, pause })
    }

    /// The image that the reference names, for this platform.
    ///
    /// # Errors
    /// The registry is not reached, or refuses, or what it has is no image for this platform or not what it says.
    pub fn image(&self) -> anyhow::Result<Image> {
        self.manifest().with_context(|| format!("image {}", self.reference))
    }

    fn manifest(&self) -> anyhow::Result<Image> {
        let path = format!("manifests/{}", self.reference.version());
        let answer = self.get(&path, &ACCEPTED)?;
        let header =
            |name: &str| answer.headers().get(name).and_then(|it| it.to_str().ok()).map(str::to_owned);
        let kind = header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let said = header("docker-content-digest").and_then(|digest| digest.parse().ok());
        let bytes = client::body(answer, DOCUMENT_MAX).context("cannot get its manifest")?;
        for digest in self.reference.digest().into_iter().chain(&said) {
            digest.check(&bytes).context("cannot use its manifest")?;
        }
        // Some servers call everything application/json.
        let kind = ACCEPTED.contains(&kind.as_str()).then_some(kind);
        manifest::resolve(self, bytes, kind.as_deref())
    }

    /// The good answer for a part of the repository.
    fn get(&self, path: &str, accept: &[&str]) -> anyhow::Result<Response<Body>> {
        let mut tries = 0;
        loop {
            match self.try_get(path, Request { accept, ..Request::default() }) {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.wait(failure, &mut tries)?,
            }
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure lasts, or there were enough tries.
    fn wait(&self, failure: Failure, tries: &mut u32) -> anyhow::Result<()> {
        let (error, wish) = match failure {
            Failure::Lasting(error) => return Err(error),
            Failure::Passing(error, wish) => (error, wish),
        };
        *tries += 1;
        if *tries >= TRIES_MAX {
            return Err(error);
        }
        let own = self.pause * 2_u32.saturating_pow(*tries - 1);
        thread::sleep(wish.filter(|_| !self.pause.is_zero()).unwrap_or(own).min(PAUSE_MAX));
        Ok(())
    }

    /// One try, and another as whoever the registry wants to see.
    fn try_get(&self, path: &str, request: Request<'_>) -> Result<Response<Body>, Failure> {
        let name = self.reference.name();
        let url =
            Url::parse(&format!("{}/v2/{name}/{path}", self.base.as_str())).map_err(Failure::Lasting)?;
        let mut is_first = true;
        loop {
            let sent = self.login.authorization();
            let request = Request { authorization: sent.as_deref(), ..request };
            let answer = self.client.send(&url, request).map_err(of_network)?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let is_login = answer.status() == 401 && is_first;
            is_first = false;
            if is_login {
                let again = self.login.answer(&self.client, &self.base, answer.headers(), sent.as_deref());
                if again.map_err(of_network)? {
                    continue;
                }
            }
            return Err(self.refusal(answer));
        }
    }

    fn refusal(&self, answer: Response<Body>) -> Failure {
        let status = answer.status().as_u16();
        let wish = answer.headers().get("retry-after").and_then(|it| it.to_str().ok()?.parse().ok());
        let wish = wish.map(Duration::from_secs);
        let host = self.reference.host();
        let reason = client::reason(answer);
        match status {
            401 | 403 => {
                let trouble = self.login.trouble().map_or_else(String::new, |why| format!("; {why}"));
                Failure::Lasting(anyhow!("{host} gives no access: {reason}{}{trouble}", self.login.hint()))
            }
            404 => Failure::Lasting(anyhow!("{host} has no such image: {reason}{}", self.login.hint())),
            429 => Failure::Passing(
                anyhow!("{host} wants fewer requests: {reason}; try again later, or log in"),
                wish,
            ),
            500..=599 => Failure::Passing(anyhow!("{host} failed: {reason}"), wish),
            _ => Failure::Lasting(anyhow!("{host} refuses: {reason}")),
        }
    }
}

impl Blobs for Registry {
    fn document(&self, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
        let kind = descriptor.media_type.as_deref().unwrap_or_default();
        let is_manifest = ACCEPTED.contains(&kind);
        let path = format!("{}/{}", if is_manifest { "manifests" } else { "blobs" }, descriptor.digest);
        let answer = self.get(&path, if is_manifest { &ACCEPTED } else { &[] })?;
        client::body(answer, descriptor.size.min(DOCUMENT_MAX))
    }
}

/// Whether a registry speaks TLS, also with a certificate that is not trusted. What it answers is not looked at.
fn has_tls(client: &Client, https: &Url) -> bool {
    let ping = Url::parse(&format!("{}/v2/", https.as_str()));
    match ping.and_then(|ping| client.send(&ping, Request::default())) {
        Ok(_) => true,
        Err(error) => error.downcast_ref().and_then(trouble) == Some(Trouble::Certificate),
    }
}

/// Whether it is worth asking again: not where the server shows a wrong certificate, or leads elsewhere than it may.
fn of_network(error: anyhow::Error) -> Failure {
    let is_passing = match error.downcast_ref::<ureq::Error>() {
        Some(ureq::Error::Io(why)) => why.kind() != std::io::ErrorKind::InvalidData,
        Some(ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed) => true,
        _ => false,
    };
    if is_passing { Failure::Passing(error, None) } else { Failure::Lasting(error) }
}

#[cfg(test)]
pub(super) mod tests;
