//! What a browser asks for: noVNC's files, the page that uses them, and the way to WebSocket (RFC 9112, RFC 6455 §4).

use super::novnc::Pages;
use super::websocket;

/// The most bytes of a request's head.
pub const HEAD_MAX: usize = 8 << 10;
/// The subprotocol of noVNC and its like.
const SUBPROTOCOL: &str = "binary";

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It ends with this.
    Last(Vec<u8>),
    /// It goes on as a WebSocket after this.
    Upgrade(Vec<u8>),
}

/// A request's head.
struct Head<'a> {
    method: &'a str,
    path: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Head<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        if !words.next()?.starts_with("HTTP/1.") || words.next().is_some() {
            return None;
        }
        let fields = lines.take_while(|line| !line.is_empty()).map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name, value.trim()))
        });
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Some(Self { method, path, fields: fields.collect::<Option<_>>()? })
    }

    /// The field of this name, if there is one.
    fn field(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// Whether a field's list has this word.
    fn has(&self, name: &str, word: &str) -> bool {
        self.field(name).is_some_and(|list| list.split(',').any(|it| it.trim().eq_ignore_ascii_case(word)))
    }

    /// Whether a page that this server has sent asks, and not one of another that a browser shows as well: that could
    /// use the screen of everybody who visits it. A name that is not the host's own may lead anywhere, and be another's.
    fn is_from_here(&self, any_name: bool) -> bool {
        let Some(host) = self.field("Host") else { return false };
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_address = name.starts_with('[') || name.parse::<std::net::Ipv4Addr>().is_ok();
        let origin = self.field("Origin");
        let is_same = origin.is_none_or(|origin| origin.split_once("://").is_some_and(|(_, it)| it == host));
        is_same && (any_name || is_address || name == "localhost")
    }
}

/// How much of `bytes` a request's head is, if it has come whole.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    bytes.windows(END.len()).position(|it| it == END).map(|at| at + END.len())
}

/// Answers a request. `any_name` says that the server may be reached by any name: it asks for a password.
pub fn answer(head: &[u8], pages: &Pages, any_name: bool) -> Answer {
    let Some(head) = Head::parse(head) else {
        return error("400 Bad Request", "That is no request of HTTP.");
    };
    if head.method != "GET" {
        return error("405 Method Not Allowed", "There is nothing here but to GET.");
    }
    if head.has("Upgrade", "websocket") {
        return upgrade(&head, any_name);
    }
    match pages.get(head.path) {
        Some(page) => Answer::Last(response("200 OK", page.kind, page.content)),
        None => match pages.missing(head.path) {
            Some(why) => Answer::Last(response("404 Not Found", "text/html; charset=utf-8", why.as_bytes())),
            None => error("404 Not Found", "There is no such page."),
        },
    }
}

fn upgrade(head: &Head<'_>, any_name: bool) -> Answer {
    let Some(key) = head.field("Sec-WebSocket-Key").filter(|key| key.len() == 24) else {
        return error("400 Bad Request", "A WebSocket needs a key.");
    };
    if head.field("Sec-WebSocket-Version") != Some("13") || !head.has("Connection", "upgrade") {
        return error("426 Upgrade Required", "The WebSocket is of another version than 13.");
    }
    if !head.is_from_here(any_name) {
        return error("403 Forbidden", "The page that asks is not of this server.");
    }
    let protocol = match head.has("Sec-WebSocket-Protocol", SUBPROTOCOL) {
        true => format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"),
        false => String::new(),
    };
    let accept = websocket::accept(key);
    let text = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
    );
    Answer::Upgrade(text.into_bytes())
}

fn error(status: &str, why: &str) -> Answer {
    Answer::Last(response(status, "text/plain; charset=utf-8", format!("{why}\n").as_bytes()))
}

fn response(status: &str, kind: &str, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\
         Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: frame-ancestors 'none'\r\n\r\n"
    );
    [head.as_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: Answer) -> String {
        match answer {
            Answer::Last(bytes) | Answer::Upgrade(bytes) => String::from_utf8(bytes).unwrap(),
        }
    }

    fn ask(head: &str) -> String {
        text(answer(head.replace('\n', "\r\n").as_bytes(), &Pages::default(), false))
    }

    const UPGRADE: &str = "GET /websockify HTTP/1.1\nHost: 127.0.0.1:5901\nConnection: keep-alive, Upgrade\n\
         Upgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n";

    #[test]
    fn a_websocket_is_opened_with_the_subprotocol_that_is_offered() {
        let plain = ask(&format!("{UPGRADE}\n"));
        assert!(plain.starts_with("HTTP/1.1 101 "), "{plain}");
        assert!(plain.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(!plain.contains("Sec-WebSocket-Protocol") && plain.ends_with("\r\n\r\n"));
        let chosen = ask(&format!("{UPGRADE}sec-websocket-protocol: base64, binary\n\n"));
        assert!(chosen.contains("\r\nSec-WebSocket-Protocol: binary\r\n"), "{chosen}");
    }

    #[test]
    fn a_page_of_another_server_gets_no_websocket() {
        let status = |fields: &str, any_name| {
            let head = UPGRADE.replace("Host: 127.0.0.1:5901\n", fields).replace('\n', "\r\n") + "\r\n";
            text(answer(head.as_bytes(), &Pages::default(), any_name))[9..12].to_owned()
        };
        assert_eq!(status("Host: 127.0.0.1:5901\nOrigin: http://127.0.0.1:5901\n", false), "101");
        assert_eq!(status("Host: localhost:5901\nOrigin: http://localhost:5901\n", false), "101");
        assert_eq!(status("Host: [::1]:5901\nOrigin: http://[::1]:5901\n", false), "101");
        assert_eq!(status("Host: 127.0.0.1:5901\nOrigin: https://evil.example\n", false), "403");
        assert_eq!(status("Host: 127.0.0.1:5901\nOrigin: null\n", true), "403");
        // A name that its owner has lead to this host.
        let renamed = "Host: evil.example:5901\nOrigin: http://evil.example:5901\n";
        assert_eq!((status(renamed, false), status(renamed, true)), ("403".into(), "101".into()));
        assert_eq!(status("", true), "403");
    }

    #[test]
    fn a_request_that_is_none_is_answered_by_an_error() {
        let cases = [
            ("\n", "400"),
            ("GET\n\n", "400"),
            ("GET / HTTP/2\n\n", "400"),
            ("GET / x HTTP/1.1\n\n", "400"),
            ("GET / HTTP/1.1\nno colon\n\n", "400"),
            ("POST / HTTP/1.1\n\n", "405"),
            ("GET /no HTTP/1.1\n\n", "404"),
        ];
        for (head, status) in cases {
            assert_eq!(ask(head)[9..12], *status, "{head:?}");
        }
        assert_eq!(ask(&UPGRADE.replace("Version: 13", "Version: 8"))[9..12], *"426");
        assert_eq!(ask(&UPGRADE.replace("dGhl", ""))[9..12], *"400");
        assert_eq!(answer(b"GET /\xff HTTP/1.1\r\n\r\n", &Pages::default(), false), {
            error("400 Bad Request", "That is no request of HTTP.")
        });
    }

    #[test]
    fn a_head_ends_at_the_first_empty_line() {
        assert_eq!(head_len(b"GET / HTTP/1.1\r\n\r\nrest\r\n\r\n"), Some(18));
        assert_eq!(head_len(b"GET / HTTP/1.1\r\n\r"), None);
    }
}
