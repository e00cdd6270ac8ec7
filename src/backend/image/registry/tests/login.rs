//! Names, passwords and tokens, and who gets to see them.

use std::fs;

use tempfile::TempDir;

use super::*;

const TOKEN: &str = "token-of-this-test";

/// Credentials for a server, as docker writes them.
fn credentials(host: &str, entry: &str) -> (TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, format!(r#"{{"auths":{{"{host}":{entry}}}}}"#)).unwrap();
    (folder, Files::only(path))
}

fn password() -> String {
    // me:secret
    r#"{"auth":"bWU6c2VjcmV0"}"#.to_owned()
}

/// A registry that wants a header.
fn wants(header: &'static str, challenge: impl Fn() -> String + Send + Sync + 'static) -> Server {
    let contents = repository(b"the layer");
    Server::start(move |asked| match asked.header("authorization") {
        Some(shown) if shown == header => good(&contents, asked),
        _ => Answer::new(401, &[("WWW-Authenticate", &challenge())], b"{}"),
    })
}

/// A token server, which says what it was asked.
fn token_server() -> Server {
    Server::start(|_| {
        Answer::new(200, &[], format!(r#"{{"access_token":"{TOKEN}","expires_in":60}}"#).as_bytes())
    })
}

#[test]
fn a_password_is_shown_where_it_is_asked_for() {
    let server = wants("Basic bWU6c2VjcmV0", || r#"Basic realm="x""#.to_owned());
    let (_folder, files) = credentials(&server.host, &password());
    let registry = open_with(&server, "", files);
    let image = registry.image().unwrap();
    assert_eq!(download(&registry, &image.layers[0]).unwrap(), b"the layer");
    // Nothing is shown before it is asked for.
    assert!(server.asked()[0].header("authorization").is_none());
    let refused = error(open(&server, "").image());
    assert!(refused.contains("gives no access: 401") && refused.contains("podman login"), "{refused}");
}

#[test]
fn a_token_is_got_for_the_repository_with_the_password_or_without() {
    let tokens = token_server();
    let realm = format!("http://{}/token?a=b", tokens.host);
    let challenge =
        move || format!(r#"Bearer realm="{realm}",service="the registry",scope="repository:other:push""#);
    let server = wants("Bearer token-of-this-test", challenge);
    open(&server, "").image().unwrap();
    let (_folder, files) = credentials(&server.host, &password());
    open_with(&server, "", files).image().unwrap();
    let (_folder, files) = credentials(&server.host, r#"{"identitytoken":"identity"}"#);
    open_with(&server, "", files).image().unwrap();
    let asked = tokens.asked();
    let query = "/token?a=b&service=the%20registry&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!((asked[0].path.as_str(), asked[0].header("authorization")), (query, None));
    assert_eq!(
        (asked[1].path.as_str(), asked[1].header("authorization")),
        (query, Some("Basic bWU6c2VjcmV0"))
    );
    assert_eq!((asked[2].method.as_str(), asked[2].path.as_str()), ("POST", "/token?a=b"));
    for part in ["grant_type=refresh_token", "refresh_token=identity", "scope=repository%3Ateam%2Fapp%3Apull"]
    {
        assert!(asked[2].body.contains(part), "{}", asked[2].body);
    }
}

#[test]
fn a_redirection_to_another_server_takes_no_credentials_along() {
    let contents = repository(b"the layer");
    let storage = Server::start(move |asked| good(&contents, asked));
    let elsewhere = storage.host.clone();
    let server = Server::start(move |asked| match asked.header("authorization") {
        None => Answer::new(401, &[("WWW-Authenticate", "Basic realm=x")], b""),
        Some(_) => Answer::new(307, &[("Location", &format!("http://{elsewhere}{}", asked.path))], b""),
    });
    let (_folder, files) = credentials(&server.host, &password());
    let registry = open_with(&server, "", files);
    let image = registry.image().unwrap();
    assert_eq!(download(&registry, &image.layers[0]).unwrap(), b"the layer");
    assert!(server.asked().iter().any(|asked| asked.header("authorization").is_some()));
    assert!(!storage.asked().is_empty());
    assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn a_token_that_has_run_out_is_got_anew() {
    let tokens = token_server();
    let realm = format!("http://{}/token", tokens.host);
    let contents = repository(b"the layer");
    let shown = Mutex::new(0);
    let server = Server::start(move |asked| {
        let mut shown = shown.lock().unwrap();
        *shown += usize::from(asked.header("authorization").is_some());
        // The first token is good for two requests.
        match asked.header("authorization") {
            Some(_) if *shown != 3 => good(&contents, asked),
            _ => Answer::new(401, &[("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))], b""),
        }
    });
    let registry = open(&server, ":one");
    let image = registry.image().unwrap();
    let refused = download(&registry, &image.layers[0]);
    // The same token again is no better; a token server gives another.
    assert!(refused.is_err());
    assert_eq!(tokens.paths().len(), 2);
    assert_eq!(download(&registry, &image.layers[0]).unwrap(), b"the layer");
}

#[test]
fn token_servers_that_lie_or_flood_are_one_error() {
    type Row = (fn(&Asked) -> Answer, &'static str);
    let answers: [Row; 7] = [
        (|_| Answer::new(200, &[], b"{}"), "without a token"),
        (|_| Answer::new(200, &[], b"nonsense"), "without a token"),
        (|_| Answer::new(200, &[], br#"{"token":"a\r\nX-Injected: b"}"#), "without a token"),
        (
            |_| Answer::new(200, &[], format!(r#"{{"token":"{}"}}"#, "x".repeat(30_000)).as_bytes()),
            "without a token",
        ),
        (
            |_| Answer::new(401, &[], br#"{"errors":[{"message":"who?"}]}"#),
            "gives no token: 401 Unauthorized: who?",
        ),
        (|_| Answer::endless(&[], b"xxxx"), "more than the 1048576 bytes"),
        (|_| Answer::new(302, &[("Location", "/token")], b""), "redirects more than"),
    ];
    for (answer, why) in answers {
        let tokens = Server::start(answer);
        let realm = format!("http://{}/token", tokens.host);
        let server = wants("never", move || format!("Bearer realm=\"{realm}\""));
        let refused = error(open(&server, "").image());
        assert!(refused.contains(why), "{why}: {refused}");
    }
    for (realm, why) in
        [("http://tokens.example/", "is not encrypted"), ("gopher://x/", "no address"), ("", "no address")]
    {
        let server = wants("never", move || format!("Bearer realm=\"{realm}\""));
        let refused = error(open(&server, "").image());
        assert!(refused.contains(why), "{realm}: {refused}");
    }
}

#[test]
fn credentials_that_cannot_be_had_are_said_only_where_they_are_missing() {
    let entry = r#"{"auth":"!"}"#;
    let server = wants("never", || "Basic realm=x".to_owned());
    let (_folder, files) = credentials(&server.host, entry);
    assert!(error(open_with(&server, "", files).image()).contains("no NAME:PASSWORD"));
    let contents = repository(b"the layer");
    let server = Server::start(move |asked| good(&contents, asked));
    let (_folder, files) = credentials(&server.host, entry);
    open_with(&server, "", files).image().unwrap();
}
