//! Registries that lie, flood, lead round in circles, or lead to where nothing may be asked.

use super::*;
use crate::backend::image::manifest::MANIFEST_TYPES;

/// A good registry but for what is at paths that contain `part`.
fn but(part: &'static str, bad: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Server {
    let contents = repository(b"the layer");
    Server::start(move |asked| if asked.path.contains(part) { bad(asked) } else { good(&contents, asked) })
}

#[test]
fn a_manifest_that_is_another_than_it_says_is_refused() {
    let other = repository(b"other")["manifests/one"].1.clone();
    let digest = Digest::of(b"the one that was said").to_string();
    let (bytes, said) = (other.clone(), digest.clone());
    let headers = move |bytes: &[u8]| {
        Answer::new(200, &[("Content-Type", MANIFEST), ("Docker-Content-Digest", &said)], bytes)
    };
    let server = but("/manifests/", move |_| headers(&bytes));
    assert!(error(open(&server, "").image()).contains("damaged or forged"));
    let server = but("/manifests/", move |_| Answer::new(200, &[("Content-Type", MANIFEST)], &other));
    assert!(error(open(&server, &format!("@{digest}")).image()).contains("damaged or forged"));
}

#[test]
fn a_blob_that_is_another_than_it_says_is_refused() {
    let image = |server: &Server| open(server, "").image();
    let server = but("/blobs/", |_| Answer::new(200, &[], b"{}"));
    assert!(error(image(&server)).contains("was said to have"));
    let layer = Digest::of(b"the layer").to_string();
    let of_layer =
        move |answer: fn(&Asked) -> Answer| {
            let contents = repository(b"the layer");
            let layer = layer.clone();
            let server = Server::start(move |asked| {
                if asked.path.ends_with(&layer) { answer(asked) } else { good(&contents, asked) }
            });
            let registry = open(&server, "");
            let layer = registry.image().unwrap().layers[0].clone();
            error(download(&registry, &layer))
        };
    assert!(of_layer(|_| Answer::new(200, &[], b"the lawyer")).contains("sends 10 bytes of it, not 9"));
    assert!(of_layer(|_| Answer::new(200, &[], b"the lever")).contains("damaged or forged"));
    assert!(of_layer(|_| Answer::new(200, &[("Content-Length", "99999999999999")], b"")).contains("not 9"));
    assert!(
        of_layer(|_| Answer::new(206, &[("Content-Range", "bytes 5-8/9")], b"the layer"))
            .contains("another part")
    );
    assert!(of_layer(|_| Answer::endless(&[], b"the layer")).contains("more than the 9 bytes"));
    let short = of_layer(|_| Answer::new(200, &[("Content-Length", "9")], b"the"));
    assert!(short.contains("breaks off after 3 of 9 bytes"), "{short}");
}

#[test]
fn answers_without_end_are_cut_off() {
    let server = but("/manifests/", |_| Answer::endless(&[("Content-Type", MANIFEST)], b"[[[[[[[["));
    assert!(error(open(&server, "").image()).contains("more than the 4194304 bytes"));
    let server = but("/manifests/", |_| Answer::endless_head());
    let flood = error(open(&server, "").image());
    assert!(flood.contains("cannot reach"), "{flood}");
    let server = but("/manifests/", |_| {
        let padding = "x".repeat(40_000);
        Answer::new(200, &[("X-Padding", &padding)], b"")
    });
    assert!(error(open(&server, "").image()).contains("cannot reach"));
    let deep = format!("{{\"mediaType\":\"{}\",\"x\":{}", MANIFEST_TYPES[0], "[".repeat(200_000));
    let server = but("/manifests/", move |_| Answer::new(200, &[], deep.as_bytes()));
    assert!(error(open(&server, "").image()).contains("makes no sense"));
}

#[test]
fn redirections_have_an_end_and_lead_to_no_other_protocol() {
    let server =
        but("/manifests/", |asked| Answer::new(302, &[("Location", &format!("{}x", asked.path))], b""));
    assert!(error(open(&server, "").image()).contains("redirects more than 5 times"));
    for (location, why) in [
        ("http://registry.example/", "is not encrypted"),
        ("file:///etc/passwd", "no address of a registry"),
        ("https://user:password@127.0.0.1/", "no address of a registry"),
        ("", "no address of a registry"),
    ] {
        let server = but("/manifests/", move |_| Answer::new(307, &[("Location", location)], b""));
        let refused = error(open(&server, "").image());
        assert!(refused.contains(why), "{location}: {refused}");
    }
    let server = but("/manifests/", |_| Answer::new(301, &[], b""));
    assert!(error(open(&server, "").image()).contains("redirects to nowhere"));
}

#[test]
fn another_s_registry_leads_to_nothing_on_this_machine() {
    let url = |text: &str| Url::parse(text).unwrap();
    let client = Client::new(false);
    let registry = url("https://registry.example/");
    for target in ["http://127.0.0.1:1/", "https://localhost:1/", "http://[::1]:1/"] {
        let refused = error(client.check(&registry, &url(target)));
        assert!(refused.contains("this machine itself"), "{target}: {refused}");
    }
    client.check(&url("http://127.0.0.1:5000/"), &url("http://localhost:1/")).unwrap();
    Client::new(true).check(&registry, &url("http://other.example/")).unwrap();
}

#[test]
fn a_reason_is_one_line_however_long_it_is() {
    let server = Server::start(|_| {
        let message = "\\u001b[2J\\n".repeat(500);
        Answer::new(403, &[], format!("{{\"errors\":[{{\"message\":\"{message}\"}}]}}").as_bytes())
    });
    let refused = error(open(&server, "").image());
    assert!(!refused.contains(['\u{1b}', '\n']) && refused.len() < 1000, "{refused}");
    let server = Server::start(|_| Answer::endless(&[("X", "y")], b"<html>"));
    assert!(!error(open(&server, "").image()).is_empty());
}

#[test]
fn what_says_nothing_is_an_error() {
    let server = Server::start(|_| Answer::new(200, &[], b""));
    assert!(error(open(&server, "").image()).contains("makes no sense"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reference = format!("{nobody}/a").parse().unwrap();
    let registry = Registry::with(&reference, false, Files::none(), Duration::ZERO).unwrap();
    let refused = error(registry.image());
    assert!(refused.contains("cannot reach") && refused.contains("refused"), "{refused}");
}

#[test]
fn a_server_without_tls_is_one_error_that_says_what_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/v2/", listener.local_addr().unwrap());
    // As servers answer a hello of TLS that do not know it.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.0 400 Bad Request\r\n\r\n");
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        }
    });
    // An insecure client needs none of this host's certificates.
    let refused = error(Client::new(true).send(&Url::parse(&url).unwrap(), Request::default()));
    assert!(refused.contains("speaks no TLS (if it is to be trusted"), "{refused}");
}
