//! Who kite is to a registry: nobody, a name with a password, or the bearer of a token (the distribution project's token
//! authentication specification; its OAuth2 form for identity tokens).

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::{HeaderMap, Uri};

use super::challenge::Challenge;
use super::client::{self, Client, Request};
use super::url::Url;
use crate::backend::image::auth::{Credentials, Files};

/// The longest answer of a token server, in bytes, and the longest token in it.
const ANSWER_MAX: u64 = 1 << 20;
const TOKEN_MAX: usize = 24 << 10;
/// What kite calls itself to a token server.
const CLIENT: &str = "kite";

/// Who kite is to one repository of one registry.
pub(super) struct Login {
    /// The registry as credentials go by it.
    host: String,
    /// The repository.
    name: String,
    files: Files,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The value of the header that requests have.
    authorization: Option<String>,
    /// Why credentials that there may be could not be had.
    trouble: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Login {
    /// Nobody yet.
    pub(super) fn new(host: &str, name: &str, files: Files) -> Self {
        Self { host: host.to_owned(), name: name.to_owned(), files, state: Mutex::default() }
    }

    /// The header that requests to the registry have.
    pub(super) fn authorization(&self) -> Option<String> {
        self.lock().authorization.clone()
    }

    /// Why credentials could not be had that there may be.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Logs in as the registry's answer to a request asks for, unless another thread has, since that request. Gives
    /// whether it is worth asking again.
    ///
    /// # Errors
    /// The token server is not reached, or refuses.
    pub(super) fn answer(
        &self,
        client: &Client,
        registry: &Url,
        headers: &HeaderMap,
        sent: Option<&str>,
    ) -> anyhow::Result<bool> {
        let mut state = self.lock();
        if state.authorization.as_deref() != sent {
            return Ok(true);
        }
        let values = headers.get_all("www-authenticate").into_iter().filter_map(|value| value.to_str().ok());
        let Some(challenge) = Challenge::of(values) else { return Ok(false) };
        let credentials = self.files.find(&self.host, &self.name).unwrap_or_else(|error| {
            state.trouble = Some(format!("{error:#}"));
            None
        });
        let authorization = match (challenge, credentials) {
            (Challenge::Basic, Some(Credentials::Password { user, password })) => {
                Some(basic(&user, &password))
            }
            (Challenge::Basic, _) => None,
            (Challenge::Bearer { realm, service }, credentials) => {
                let realm = registry.join(&realm).context("the registry's token server")?;
                let service = service.unwrap_or_default();
                Some(format!("Bearer {}", self.token(client, registry, &realm, &service, credentials)?))
            }
        };
        let is_new = authorization.is_some() && authorization != state.authorization;
        state.authorization = authorization;
        Ok(is_new)
    }

    fn token(
        &self,
        client: &Client,
        registry: &Url,
        realm: &Url,
        service: &str,
        credentials: Option<Credentials>,
    ) -> anyhow::Result<String> {
        if realm.is_loopback() && !registry.is_loopback() && !client.is_insecure() {
            bail!("the registry's token server is {realm}, which is this machine itself");
        }
        // The registry's own wish for a scope is not asked: it could be for another's repository.
        let scope = format!("repository:{}:pull", self.name);
        let answer = match credentials {
            Some(Credentials::Identity(identity)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", CLIENT),
                    ("scope", &scope),
                    ("refresh_token", &identity),
                ];
                client.send(realm, Request { form: Some(&form), ..Request::default() })?
            }
            credentials => {
                let url = with_query(realm, &[("service", service), ("scope", &scope)])?;
                let authorization = credentials.map(|it| match it {
                    Credentials::Password { user, password } => basic(&user, &password),
                    Credentials::Identity(_) => String::new(),
                });
                client
                    .send(&url, Request { authorization: authorization.as_deref(), ..Request::default() })?
            }
        };
        if !answer.status().is_success() {
            bail!("{realm} gives no token: {}{}", client::reason(answer), self.hint());
        }
        let bytes = client::body(answer, ANSWER_MAX).with_context(|| format!("the token of {realm}"))?;
        // What is wrong with it is not said: the text is secret.
        let answer = serde_json::from_slice::<Answer>(&bytes).ok();
        let token = answer.and_then(|it| it.token.filter(|token| !token.is_empty()).or(it.access_token));
        let is_token = |token: &String| {
            !token.is_empty() && token.len() <= TOKEN_MAX && token.bytes().all(|byte| byte.is_ascii_graphic())
        };
        token.filter(is_token).with_context(|| format!("{realm} gives an answer without a token"))
    }

    /// What helps against a refusal.
    pub(super) fn hint(&self) -> String {
        format!(
            "; if it is not for everybody, log in first: podman login {0}, or docker login {0}",
            self.host
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// An address with these values behind its question mark.
fn with_query(url: &Url, values: &[(&str, &str)]) -> anyhow::Result<Url> {
    let mut text = url.as_str().to_owned();
    let has_query = text.parse::<Uri>().is_ok_and(|uri| uri.query().is_some());
    for (index, (name, value)) in values.iter().filter(|(_, value)| !value.is_empty()).enumerate() {
        text.push(if has_query || index > 0 { '&' } else { '?' });
        text += name;
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte))
                }
                byte => text += &format!("%{byte:02X}"),
            }
        }
    }
    Url::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_behind_an_address_whole() {
        let values = [("service", "a b&c"), ("empty", ""), ("scope", "repository:x/y:pull")];
        for (url, expected) in [
            ("https://a/t", "https://a/t?service=a%20b%26c&scope=repository%3Ax%2Fy%3Apull"),
            ("https://a/t?x=y", "https://a/t?x=y&service=a%20b%26c&scope=repository%3Ax%2Fy%3Apull"),
        ] {
            assert_eq!(with_query(&Url::parse(url).unwrap(), &values).unwrap().as_str(), expected);
        }
    }
}
