//! A registry of few lines on this machine, which a test makes as hostile as it wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What was asked.
#[derive(Clone, Debug)]
pub(in crate::backend::image) struct Asked {
    pub(in crate::backend::image) method: String,
    pub(in crate::backend::image) path: String,
    pub(in crate::backend::image) headers: Vec<(String, String)>,
    pub(in crate::backend::image) body: String,
}

impl Asked {
    pub(in crate::backend::image) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// From which byte on a blob is wanted.
    pub(in crate::backend::image) fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }
}

/// What is answered.
pub(in crate::backend::image) struct Answer {
    head: String,
    body: Body,
}

enum Body {
    Bytes(Vec<u8>),
    /// The same bytes again and again, until nobody reads them.
    Endless(Vec<u8>),
}

impl Answer {
    /// A status, headers and a body, whose length is said if no header says another.
    pub(in crate::backend::image) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        Self { head: head + "\r\n", body: Body::Bytes(body.to_vec()) }
    }

    /// A good answer that has no end.
    pub(in crate::backend::image) fn endless(headers: &[(&str, &str)], piece: &[u8]) -> Self {
        let mut head = "HTTP/1.1 200 OK\r\nConnection: close\r\n".to_owned();
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        Self { head: head + "\r\n", body: Body::Endless(piece.to_vec()) }
    }

    /// A head without an end.
    pub(in crate::backend::image) fn endless_head() -> Self {
        Self {
            head: "HTTP/1.1 200 OK\r\n".to_owned(),
            body: Body::Endless(b"X-Header: xxxxxxxxxxxxxxxx\r\n".to_vec()),
        }
    }

    fn send(&self, to: &mut TcpStream) -> std::io::Result<()> {
        to.write_all(self.head.as_bytes())?;
        match &self.body {
            Body::Bytes(bytes) => to.write_all(bytes),
            Body::Endless(piece) => loop {
                to.write_all(&piece.repeat(1024))?;
            },
        }
    }
}

/// A server that answers until the process ends, and what it was asked.
pub(in crate::backend::image) struct Server {
    pub(in crate::backend::image) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// A server with these answers.
    pub(in crate::backend::image) fn start(
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (all, answer) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, answer) = (all.clone(), answer.clone());
                thread::spawn(move || serve(stream, &all, &*answer));
            }
        });
        Self { host, asked }
    }

    /// What it was asked, in this order, but for the question whether it speaks TLS.
    pub(in crate::backend::image) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(in crate::backend::image) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.path).collect()
    }
}

/// Who has gone is no concern of the server's.
fn serve(mut stream: TcpStream, all: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked) -> Answer) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = Vec::new();
    // A hello of TLS has no such line.
    reader.by_ref().take(8192).read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut asked = Asked { method, path, headers, body: String::new() };
    let length = asked.header("content-length").map_or(0, |it| it.parse().unwrap());
    let length = if asked.header("transfer-encoding").is_some() { 1 << 20 } else { length };
    if length == 1 << 20 {
        // Chunks: the first line of each is its length.
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            asked.body += std::str::from_utf8(&chunk[..size]).ok()?;
        }
    } else {
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        asked.body = String::from_utf8(body).ok()?;
    }
    all.lock().unwrap().push(asked.clone());
    answer(&asked).send(&mut stream).ok()
}
