//! Requests to a registry: over TLS, or to this machine; redirections followed by hand, so that credentials go to no other
//! server; and everything bounded in time and length.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ureq::config::Config;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

use super::names::HostNames;
use super::url::{Url, shortened};

/// How many redirections are followed.
const REDIRECTS_MAX: usize = 5;
/// The longest header of an answer, in bytes.
const HEADER_MAX: usize = 32 << 10;
/// How long a connection may take, and each of reading and writing without a byte that comes or goes.
const CONNECT: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(30);
/// How long the whole of a short answer may take.
const SHORT: Duration = Duration::from_secs(120);
/// The least speed that a long answer is to have: 16 KiB in a second.
const SPEED: u64 = 16 << 10;
/// The most bytes of an error's answer that are read.
const REASON_MAX: u64 = 8 << 10;
const USER_AGENT: &str = concat!("kite/", env!("CARGO_PKG_VERSION"));

/// One request.
#[derive(Clone, Copy, Default)]
pub(super) struct Request<'a> {
    /// The media types that are understood.
    pub(super) accept: &'a [&'a str],
    /// Who asks, for the first server only.
    pub(super) authorization: Option<&'a str>,
    /// From which byte on.
    pub(super) from: u64,
    /// A form that is sent along.
    pub(super) form: Option<&'a [(&'a str, &'a str)]>,
    /// How many bytes the answer has, if it is no short one.
    pub(super) length: u64,
}

/// Sends requests.
pub(super) struct Client {
    agent: Agent,
    has_certificates: bool,
    is_insecure: bool,
}

impl Client {
    /// A client that trusts the host's certificates. An insecure one trusts every certificate, and sends unencrypted
    /// requests to any host.
    pub(super) fn new(is_insecure: bool) -> Self {
        // Another part of the process may have installed one before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = rustls_native_certs::load_native_certs().certs;
        let has_certificates = !certificates.is_empty();
        let roots: Vec<_> = certificates.iter().map(|it| Certificate::from_der(it).to_owned()).collect();
        let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots)));
        let config = Config::builder()
            .tls_config(tls.disable_verification(is_insecure).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(HEADER_MAX)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(IDLE))
            .timeout_per_write(Some(IDLE))
            .timeout_recv_response(Some(SHORT))
            .user_agent(USER_AGENT)
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::new(), HostNames);
        Self { agent, has_certificates, is_insecure }
    }

    /// Whether requests may go unencrypted to any host.
    pub(super) fn is_insecure(&self) -> bool {
        self.is_insecure
    }

    /// The answer to a request, whatever its status is but a redirection.
    ///
    /// # Errors
    /// The server is not reached, leads round in circles, or to where nothing may be asked.
    pub(super) fn send(&self, url: &Url, request: Request<'_>) -> anyhow::Result<Response<Body>> {
        let mut next = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            self.check(url, &next)?;
            let authorization = request.authorization.filter(|_| url.is_same_server(&next));
            let answer = self.send_once(&next, Request { authorization, ..request });
            let answer = answer.map_err(|error| {
                let what = format!("cannot reach {next}{}", trouble(&error).map_or("", Trouble::hint));
                anyhow::Error::new(error).context(what)
            })?;
            if !is_redirection(answer.status()) {
                return Ok(answer);
            }
            let location = answer.headers().get("location").and_then(|it| it.to_str().ok());
            let location = location.with_context(|| format!("{next} redirects to nowhere"))?;
            next = next.join(location)?;
        }
        bail!("{url} redirects more than {REDIRECTS_MAX} times")
    }

    /// Refuses what may not be asked: unencrypted requests but to this machine, and this machine where another leads to it.
    pub(super) fn check(&self, first: &Url, next: &Url) -> anyhow::Result<()> {
        if next.is_loopback() && !first.is_loopback() && !self.is_insecure {
            bail!("{first} leads to {next}, which is this machine itself");
        }
        if !next.is_https() && !next.is_loopback() && !self.is_insecure {
            bail!("{next} is not encrypted; if it is to be trusted all the same, use --insecure-registry");
        }
        if next.is_https() && !self.has_certificates && !self.is_insecure {
            bail!("this host has no certificates to trust {next} by; install the package ca-certificates");
        }
        Ok(())
    }

    fn send_once(&self, url: &Url, request: Request<'_>) -> Result<Response<Body>, ureq::Error> {
        let limit = SHORT + Duration::from_secs(request.length / SPEED);
        let authorization = request.authorization.unwrap_or_default();
        if let Some(form) = request.form {
            let post = self.agent.post(url.as_str());
            let post =
                if authorization.is_empty() { post } else { post.header("authorization", authorization) };
            let config = post.config().timeout_per_call(Some(limit));
            let config = if url.is_loopback() { config.proxy(None) } else { config };
            return config.build().send_form(form.iter().copied());
        }
        let mut get = self.agent.get(url.as_str());
        for kind in request.accept {
            get = get.header("accept", *kind);
        }
        if !authorization.is_empty() {
            get = get.header("authorization", authorization);
        }
        if request.from > 0 {
            get = get.header("range", format!("bytes={}-", request.from));
        }
        let config = get.config().timeout_per_call(Some(limit));
        // A proxy has another machine than this one.
        let config = if url.is_loopback() { config.proxy(None) } else { config };
        config.build().call()
    }
}

/// What of TLS goes wrong that the user can mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The server speaks something else.
    NoTls,
    /// No trusted authority vouches for the server.
    Certificate,
}

impl Trouble {
    fn hint(self) -> &'static str {
        match self {
            Self::NoTls => ", which speaks no TLS (if it is to be trusted all the same: --insecure-registry)",
            Self::Certificate => {
                ", whose certificate is not trusted (add its issuer's to this host's, or name that with $SSL_CERT_FILE)"
            }
        }
    }
}

/// What of TLS has gone wrong, if it is that.
pub(super) fn trouble(error: &ureq::Error) -> Option<Trouble> {
    let of_tls = match error {
        ureq::Error::Rustls(why) => why,
        ureq::Error::Io(why) => why.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    match of_tls {
        rustls::Error::InvalidMessage(_) => Some(Trouble::NoTls),
        rustls::Error::InvalidCertificate(_) => Some(Trouble::Certificate),
        _ => None,
    }
}

fn is_redirection(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The whole body of an answer.
///
/// # Errors
/// It is longer than `most` bytes, or breaks off.
pub(super) fn body(answer: Response<Body>, most: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    answer
        .into_body()
        .into_reader()
        .take(most + 1)
        .read_to_end(&mut bytes)
        .context("the answer breaks off")?;
    if bytes.len() as u64 > most {
        bail!("the answer has more than the {most} bytes that are read");
    }
    Ok(bytes)
}

/// What a server says of a request that it refuses: the first of its messages.
pub(super) fn reason(answer: Response<Body>) -> String {
    let status = answer.status();
    let mut text = Vec::new();
    // A reason that breaks off is not the failure.
    let _ = answer.into_body().into_reader().take(REASON_MAX).read_to_end(&mut text);
    let said = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|json| {
        let first = json.get("errors")?.get(0)?;
        let said = first.get("message").or_else(|| first.get("code"))?.as_str()?;
        (!said.is_empty()).then(|| shortened(said))
    });
    let status =
        status.canonical_reason().map_or(status.to_string(), |name| format!("{} {name}", status.as_u16()));
    said.map_or(status.clone(), |said| format!("{status}: {said}"))
}
