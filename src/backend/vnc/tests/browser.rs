//! What a browser sends and gets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

const UPGRADE: &str = "GET /websockify HTTP/1.1\r\nHost: localhost:5901\r\nConnection: Upgrade\r\n\
     Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Protocol: binary\r\nOrigin: http://localhost:5901\r\n\r\n";

fn get(rig: &Rig, request: &str) -> String {
    let mut stream = connect(&rig.path);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A frame with a mask of no effect on text of the protocol.
fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let masked = content.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask);
    let head = [0x80 | kind, 0x80 | content.len() as u8, 1, 2, 3, 4];
    [&head[..], &masked.collect::<Vec<_>>()].concat()
}

/// What is in the next frame of the server's.
fn content(stream: &mut UnixStream) -> Vec<u8> {
    let head = read(stream, 2);
    assert_eq!(head[0] & 0xf0, 0x80);
    let wide = match head[1] {
        126 => read(stream, 2),
        127 => read(stream, 8),
        len => vec![len],
    };
    let len = wide.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
    read(stream, len)
}

fn upgraded(rig: &Rig) -> UnixStream {
    let mut stream = connect(&rig.path);
    stream.write_all(UPGRADE.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.extend(read(&mut stream, 1));
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("Sec-WebSocket-Protocol: binary\r\n"));
    stream
}

#[test]
fn a_browser_gets_the_page_and_novnc() {
    let rig = Rig::new(64, 48);
    let page = get(&rig, "GET /?x=y HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html"), "{page}");
    assert!(page.contains("\r\nConnection: close\r\n") && page.contains("<script type=\"module\""));
    let script = get(&rig, "GET /core/rfb.js HTTP/1.1\r\n\r\n");
    assert!(
        script.contains("text/javascript") && script.ends_with("\r\n\r\nexport default RFB;"),
        "{script}"
    );
    for path in
        ["/../../etc/passwd", "/core/../vnc.sock", "/vnc.sock", "/core/%2e%2e/x", "http://a/core/rfb.js"]
    {
        assert!(get(&rig, &format!("GET {path} HTTP/1.1\r\n\r\n")).starts_with("HTTP/1.1 404 "), "{path}");
    }
}

#[test]
fn a_connection_that_a_browser_makes_ahead_is_not_taken_for_a_viewer_s() {
    let rig = Rig::new(64, 48);
    assert!(get(&rig, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200 "));
    let mut ahead = connect(&rig.path);
    std::thread::sleep(2 * GREETING);
    ahead.write_all(b"GET /core/rfb.js HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    ahead.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A viewer that comes then waits a little longer.
    assert_eq!(read(&mut connect(&rig.path), 12), b"RFB 003.008\n");
}

#[test]
fn a_page_in_a_browser_is_a_viewer() {
    let rig = Rig::new(64, 48);
    let mut stream = upgraded(&rig);
    assert_eq!(content(&mut stream), b"RFB 003.008\n");
    stream.write_all(&frame(2, b"RFB 003.008\n")).unwrap();
    assert_eq!(content(&mut stream), [1, 1]);
    // In pieces, with a question between.
    stream.write_all(&frame(9, b"there?")).unwrap();
    assert_eq!(read(&mut stream, 8), b"\x8a\x06there?");
    stream.write_all(&[frame(2, &[1]), frame(2, &[1])].concat()).unwrap();
    let mut init = Vec::new();
    while init.len() < 32 {
        init.extend(content(&mut stream));
    }
    assert_eq!(init[..8], [0, 0, 0, 0, 0, 64, 0, 48]);
    let request = [3, 0, 0, 0, 0, 0, 0, 64, 0, 48];
    stream.write_all(&frame(2, &request[..4])).unwrap();
    stream.write_all(&frame(2, &request[4..])).unwrap();
    let mut update = Vec::new();
    while update.len() < 16 + 64 * 48 * 4 {
        update.extend(content(&mut stream));
    }
    assert_eq!(update[..16], [0, 0, 0, 1, 0, 0, 0, 0, 0, 64, 0, 48, 0, 0, 0, 0]);
    assert_eq!(update.len(), 16 + 64 * 48 * 4);
    stream.write_all(&frame(8, &[3, 232])).unwrap();
    assert!(is_closed(&mut stream));
}

#[test]
fn a_frame_that_no_browser_sends_ends_the_connection() {
    let rig = Rig::new(64, 48);
    let long = [&[0x82, 0xff][..], &(1_u64 << 63).to_be_bytes(), &[0; 4]].concat();
    for bytes in [b"\x82\x03abc".to_vec(), long, frame(1, b"text"), b"\x09\x80\0\0\0\0".to_vec()] {
        let mut stream = upgraded(&rig);
        stream.write_all(&bytes).unwrap();
        assert!(is_closed(&mut stream), "{bytes:x?}");
    }
}

#[test]
fn a_request_without_end_is_dropped() {
    let rig = Rig::new(64, 48);
    let mut stream = connect(&rig.path);
    let line = [b'a'; 1024];
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    // The server closes the connection in the midst of it, which a writer may see first.
    let sent = (0..1024).take_while(|_| stream.write_all(&line).is_ok()).count();
    assert!(sent < 1024 && is_closed(&mut stream), "{sent} KiB of a line were taken");
}

#[test]
fn a_page_that_is_taken_slowly_holds_up_no_other_viewer() {
    let rig = Rig::new(64, 48);
    let mut slow = connect(&rig.path);
    slow.write_all(b"GE").unwrap();
    Client::new(&rig.path).refresh(false);
    slow.write_all(b"T / HTTP/1.1\r\n").unwrap();
    Client::new(&rig.path).refresh(false);
    slow.write_all(b"\r\n").unwrap();
    assert_eq!(read(&mut slow, 15), b"HTTP/1.1 200 OK");
}
