//! What `docker run` does, as a table.

use super::*;

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn list(list: Option<&[&str]>) -> Option<Words> {
    list.map(|list| Words(words(list)))
}

#[test]
fn entrypoint_and_cmd_make_the_command_that_docker_makes() {
    type List<'a> = Option<&'a [&'a str]>;
    // Entrypoint, Cmd, --entrypoint, the words after `--`, and what is run.
    type Row<'a> = (List<'a>, List<'a>, Option<&'a str>, &'a [&'a str], List<'a>);
    let rows: [Row<'_>; 18] = [
        (None, Some(&["bash"]), None, &[], Some(&["bash"])),
        (None, Some(&["bash"]), None, &["ls", "-l"], Some(&["ls", "-l"])),
        (Some(&["e"]), None, None, &[], Some(&["e"])),
        (Some(&["e"]), Some(&["c", "d"]), None, &[], Some(&["e", "c", "d"])),
        (Some(&["e", "f"]), Some(&["c"]), None, &["x"], Some(&["e", "f", "x"])),
        (Some(&["e"]), Some(&["c"]), Some("z"), &[], Some(&["z"])),
        (Some(&["e"]), Some(&["c"]), Some("z"), &["x", "y"], Some(&["z", "x", "y"])),
        (None, Some(&["c"]), Some("z"), &[], Some(&["z"])),
        (Some(&["e"]), Some(&["c"]), Some(""), &["x"], Some(&["x"])),
        (Some(&["e"]), Some(&["c"]), Some(""), &[], None),
        (Some(&["/bin/sh", "-c", "echo"]), Some(&["c"]), None, &[], Some(&["/bin/sh", "-c", "echo", "c"])),
        (Some(&[""]), Some(&["c"]), None, &[], Some(&["c"])),
        (Some(&[]), Some(&["c"]), None, &[], Some(&["c"])),
        (Some(&["e"]), Some(&[]), None, &[], Some(&["e"])),
        (None, None, None, &["x"], Some(&["x"])),
        (None, None, None, &[], None),
        (Some(&[]), Some(&[]), None, &[], None),
        (None, Some(&["", "x"]), None, &[], None),
    ];
    for (entrypoint, cmd, option, command, expected) in rows {
        let image = Defaults { entrypoint: list(entrypoint), cmd: list(cmd), ..Defaults::default() };
        let user = Overrides {
            entrypoint: option.map(str::to_owned),
            command: words(command),
            ..Overrides::default()
        };
        let argv = ContainerCommand::of(&image, &user).ok().map(|command| command.argv);
        assert_eq!(argv, expected.map(words), "{image:?} {user:?}");
    }
}

#[test]
fn the_environment_is_the_image_s_with_the_user_s_changes() {
    let path = format!("PATH={DEFAULT_PATH}");
    type Row<'a> = (&'a [&'a str], &'a [(&'a str, Option<&'a str>)], &'a [&'a str]);
    let rows: [Row<'_>; 9] = [
        (&[], &[], &[&path]),
        (&["PATH=/bin"], &[], &["PATH=/bin"]),
        (&["A=1", "B=2"], &[("A", Some("3"))], &[&path, "A=3", "B=2"]),
        (&["A=1", "A=2"], &[], &[&path, "A=2"]),
        (&["A=1"], &[("A", None)], &[&path]),
        (&["A=b=c", "E="], &[], &[&path, "A=b=c", "E="]),
        (&["A=1", "A"], &[], &[&path]),
        (&["=x", ""], &[("C", Some(""))], &[&path, "C="]),
        (&["PATH=/bin"], &[("PATH", None)], &[]),
    ];
    for (image, user, expected) in rows {
        let image = Defaults { env: Some(words(image)), cmd: list(Some(&["c"])), ..Defaults::default() };
        let env = user.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        let command = ContainerCommand::of(&image, &Overrides { env, ..Overrides::default() }).unwrap();
        let env: Vec<_> = command.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, expected, "{image:?}");
    }
}

#[test]
fn the_user_is_what_the_guest_is_to_look_up() {
    for (text, expected) in [
        ("", None),
        ("www", Some(("www", None))),
        ("1000", Some(("1000", None))),
        ("1000:100", Some(("1000", Some("100")))),
        ("www:data", Some(("www", Some("data")))),
        ("www:", Some(("www", None))),
        (":100", Some(("0", Some("100")))),
    ] {
        let image = Defaults { user: Some(text.to_owned()), cmd: list(Some(&["c"])), ..Defaults::default() };
        let command = ContainerCommand::of(&image, &Overrides::default()).unwrap();
        let user = command.user.as_ref().map(|(user, group)| (user.as_str(), group.as_deref()));
        assert_eq!(user, expected, "{text}");
        let other = Some(("other".to_owned(), None));
        let user = Overrides { user: other.clone(), ..Overrides::default() };
        assert_eq!(ContainerCommand::of(&image, &user).unwrap().user, other);
    }
}

#[test]
fn the_folder_to_start_in_is_absolute_and_clean() {
    for (image, user, expected) in [
        (None, None, Some("/")),
        (Some(""), None, Some("/")),
        (Some("/app"), None, Some("/app")),
        (Some("/app"), Some("/b"), Some("/b")),
        (Some("/a//b/./../c/"), None, Some("/a/c")),
        (Some("/../../etc"), None, Some("/etc")),
        (Some("app"), None, None),
        (Some("/app"), Some("b"), None),
    ] {
        let text = |it: Option<&str>| it.map(str::to_owned);
        let image = Defaults { working_dir: text(image), cmd: list(Some(&["c"])), ..Defaults::default() };
        let user = Overrides { working_dir: text(user), ..Overrides::default() };
        let folder = ContainerCommand::of(&image, &user).ok().map(|command| command.working_dir);
        assert_eq!(folder.as_deref(), expected, "{image:?}");
    }
}

#[test]
fn a_stop_signal_has_a_name_or_a_number() {
    for (text, number) in [
        ("SIGTERM", Some(15)),
        ("TERM", Some(15)),
        ("sigquit", Some(3)),
        ("9", Some(9)),
        ("64", Some(64)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMIN", Some(34)),
        ("SIGRTMAX-1", Some(63)),
        ("rtmax", Some(64)),
        ("IOT", Some(6)),
        ("SIGWINCH", Some(28)),
        ("0", None),
        ("65", None),
        ("-1", None),
        ("SIGRTMIN+31", None),
        ("SIGRTMIN-1", None),
        ("SIGRTMIN+", None),
        ("SIGFOO", None),
        ("SIGSIGTERM", None),
    ] {
        assert_eq!(signal(text), number, "{text}");
    }
    let image = Defaults { cmd: list(Some(&["c"])), ..Defaults::default() };
    assert_eq!(ContainerCommand::of(&image, &Overrides::default()).unwrap().stop_signal, 15);
    let image = Defaults { stop_signal: Some("nonsense\n".to_owned()), ..image };
    let error = ContainerCommand::of(&image, &Overrides::default()).unwrap_err().to_string();
    assert_eq!(error, "there is no signal 'nonsense\\n'");
}

#[test]
fn a_configuration_of_any_tool_is_read() {
    let docker = br#"{"architecture":"amd64","os":"linux","config":{"Hostname":"","Env":["PATH=/bin"],
        "Cmd":["bash"],"ArgsEscaped":true,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,
        "OnBuild":null,"Labels":{},"StopSignal":"SIGINT"},"rootfs":{"type":"layers","diff_ids":[]},
        "history":null,"created":"0001-01-01T00:00:00Z"}"#;
    let config = ImageConfig::parse(docker).unwrap();
    assert_eq!(config.defaults().cmd, list(Some(&["bash"])));
    assert_eq!(config.defaults().stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(config.platform().to_string(), "linux/amd64");
    let old = br#"{"config":{"Cmd":"/bin/run","Entrypoint":null}}"#;
    assert_eq!(ImageConfig::parse(old).unwrap().defaults().cmd, list(Some(&["/bin/run"])));
    assert!(ImageConfig::parse(br#"{"config":null}"#).unwrap().defaults().cmd.is_none());
    for nonsense in [&b"3"[..], b"{", br#"{"config":{"Env":{}}}"#, br#"{"rootfs":{"diff_ids":["x"]}}"#] {
        assert!(ImageConfig::parse(nonsense).is_err());
    }
}

#[test]
fn a_nul_in_a_word_is_refused() {
    let image = Defaults { cmd: list(Some(&["a\0b"])), ..Defaults::default() };
    assert!(ContainerCommand::of(&image, &Overrides::default()).unwrap_err().to_string().contains("NUL"));
}
