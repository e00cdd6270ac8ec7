//! Files as docker and podman write them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn find(json: &str, host: &str, name: &str) -> anyhow::Result<Option<Credentials>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, json).unwrap();
    Files { paths: vec![folder.path().join("absent.json"), path] }.find(host, name)
}

fn encoded(user: &str, password: &str) -> String {
    BASE64.encode(format!("{user}:{password}"))
}

fn user(credentials: Option<Credentials>) -> Option<String> {
    credentials.map(|it| match it {
        Credentials::Password { user, password } => format!("{user} {password}"),
        Credentials::Identity(token) => format!("token {token}"),
    })
}

#[test]
fn a_registry_s_entry_is_found_however_its_tool_calls_it() {
    for (key, host, expected) in [
        ("https://index.docker.io/v1/", "docker.io", true),
        ("docker.io", "docker.io", true),
        ("registry-1.docker.io", "docker.io", true),
        ("localhost:5000", "localhost:5000", true),
        ("https://localhost:5000", "localhost:5000", true),
        ("http://localhost:5000/v2/", "localhost:5000", true),
        ("localhost:5000", "localhost:5001", false),
        ("localhost", "localhost:5000", false),
        ("quay.io", "evil.quay.io", false),
        ("quay.io/team", "quay.io", true),
        ("quay.io/team/app", "quay.io", true),
        ("quay.io/tea", "quay.io", false),
        ("quay.io/other", "quay.io", false),
    ] {
        let json = format!(r#"{{"auths":{{"{key}":{{"auth":"{}"}}}}}}"#, encoded("me", "a:b"));
        let found = user(find(&json, host, "team/app").unwrap());
        assert_eq!(found.as_deref(), expected.then_some("me a:b"), "{key} for {host}");
    }
}

#[test]
fn the_most_special_entry_goes_and_tokens_are_tokens() {
    let json = format!(
        r#"{{"auths":{{"quay.io":{{"auth":"{}"}},"quay.io/team":{{"auth":"{}"}},
            "a.example":{{"auth":"x","identitytoken":"abc"}},"b.example":{{"username":"u","password":"p"}},
            "c.example":{{"auth":"{}"}},"d.example":{{}}}}}}"#,
        encoded("all", "1"),
        encoded("team", "2"),
        encoded("<token>", "def"),
    );
    let found = |host: &str, name: &str| user(find(&json, host, name).unwrap());
    assert_eq!(found("quay.io", "team/app").as_deref(), Some("team 2"));
    assert_eq!(found("quay.io", "else/app").as_deref(), Some("all 1"));
    assert_eq!(found("a.example", "x").as_deref(), Some("token abc"));
    assert_eq!(found("b.example", "x").as_deref(), Some("u p"));
    assert_eq!(found("c.example", "x").as_deref(), Some("token def"));
    assert_eq!(found("d.example", "x"), None);
}

#[test]
fn files_that_make_no_sense_are_named_and_not_quoted() {
    for (json, why) in [
        ("{\n\"auths\": secret", "at line 2"),
        (r#"{"auths":{"a":{"auth":"secret!"}}}"#, "no NAME:PASSWORD"),
        (r#"{"auths":{"a":{"auth":"c2VjcmV0"}}}"#, "no NAME:PASSWORD"),
        (r#"{"credHelpers":{"a":"../secret"}}"#, "no name of a credential helper"),
    ] {
        let error = match find(json, "a", "b") {
            Ok(_) => panic!("{json} was taken"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains(why) && error.contains("config.json"), "{json}: {error}");
        assert!(!error.contains("secret") || why.contains("helper"), "{error}");
    }
    for json in ["", " \n", "{}", r#"{"auths":null,"HttpHeaders":{},"credsStore":""}"#] {
        assert!(find(json, "a", "b").unwrap().is_none(), "{json}");
    }
}

#[test]
fn the_files_are_those_of_podman_and_then_docker_s() {
    let with = |set: &[(&str, &str)]| {
        let files = Files::of(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
        files.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
    };
    let home = ("HOME", "/h");
    assert_eq!(with(&[home]), ["/h/.config/containers/auth.json", "/h/.docker/config.json"]);
    let all = with(&[home, ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")]);
    assert_eq!(all, ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json"]);
    assert_eq!(with(&[home, ("REGISTRY_AUTH_FILE", "/f")]), ["/f"]);
}

/// The tests' helper, asked by its whole path: a name cannot have one, so `PATH` of this process need not change.
fn helper(script: &str, server: &str) -> anyhow::Result<Option<Credentials>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker-credential-test");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    loop {
        match helper::ask_program(&path, server) {
            // Another test's child had the file open for writing, from before its exec.
            Err(error) if format!("{error:#}").contains("Text file busy") => {}
            answer => return answer,
        }
    }
}

#[test]
fn a_helper_is_asked_for_the_registry() {
    let script = r#"read -r server; printf '{"ServerURL":"%s","Username":"%s","Secret":"%s"}' "$server" "$1" "$server""#;
    assert_eq!(user(helper(script, "a.example").unwrap()).as_deref(), Some("get a.example"));
    let token = r#"echo '{"Username":"<token>","Secret":"abc"}'"#;
    assert_eq!(user(helper(token, "a").unwrap()).as_deref(), Some("token abc"));
    let unknown = "echo credentials not found in native keychain; exit 1";
    assert_eq!(user(helper(unknown, "a").unwrap()), None);
}

#[test]
fn a_helper_that_fails_or_floods_is_one_error() {
    for (script, why) in [
        ("echo locked; exit 3", "locked"),
        ("echo nonsense", "makes no sense"),
        ("head -c 100000000 /dev/zero", "makes no sense"),
        ("kill -9 $$", "signal: 9"),
    ] {
        let error = match helper(script, "a") {
            Ok(_) => panic!("{script} was taken"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains(why), "{script}: {error}");
    }
    assert!(
        helper::ask("no-such-helper-here", "a").is_err_and(|error| error.to_string().contains("cannot run"))
    );
}
