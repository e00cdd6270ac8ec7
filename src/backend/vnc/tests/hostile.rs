//! Viewers that lie, flood or sleep.

use std::io::Write;

use super::super::session::{Display, Session};
use super::*;

/// A session without a socket, behind the handshake.
fn session(screen: &Arc<Screen>) -> Session {
    let display = Display {
        screen: screen.clone(),
        input: Arc::new(Log::default()),
        password: None,
        name: TITLE.to_owned(),
    };
    let (mut out, now) = (Vec::new(), Instant::now());
    let mut session = Session::new(Arc::new(display), &mut out);
    session.receive(b"RFB 003.008\n\x01\x01", now, &mut out).unwrap();
    assert!(session.is_admitted() && !session.is_over());
    session
}

fn screen(width: u32, height: u32) -> Arc<Screen> {
    let screen = Arc::new(Screen::new(Size::new(width, height).unwrap()).unwrap());
    put_up(&screen, width, height);
    screen
}

#[test]
fn a_viewer_is_understood_wherever_its_messages_are_cut() {
    let screen = screen(8, 4);
    let messages = [
        &[0, 0, 0, 0][..],
        &XRGB.bytes(),
        &[2, 0, 0, 2],
        &ZRLE.to_be_bytes(),
        &RAW.to_be_bytes(),
        &[6, 0, 0, 0, 0, 0, 0, 5],
        b"\x03text",
        &[251, 0, 0, 8, 0, 4, 1, 0],
        &[3; 16],
        &[255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1],
        &[4, 0, 0, 0, 0, 0, 0, b'a'],
        &[5, 0, 0, 0, 0, 0],
        &[3, 0, 0, 0, 0, 0, 0, 8, 0, 4],
    ]
    .concat();
    let now = Instant::now();
    for cut in 0..messages.len() {
        let (mut session, mut out) = (session(&screen), Vec::new());
        for part in [&messages[..cut], &messages[cut..]] {
            session.receive(part, now, &mut out).unwrap();
        }
        session.produce(now + std::time::Duration::from_secs(1), &mut out);
        assert_eq!(out[..16], [0, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0, 4, 0, 0, 0, 16], "cut at {cut}");
    }
}

#[test]
fn what_no_viewer_says_ends_the_connection() {
    let rig = Rig::new(64, 48);
    let mut formats = [XRGB.bytes(); 3];
    (formats[0][0], formats[1][3], formats[2][10]) = (24, 0, 200);
    let [bits, map, shift] = formats.map(|format| [&[0; 4][..], &format].concat());
    for bytes in [vec![1], vec![7], vec![150, 1], vec![255, 1], vec![255, 255], bits, map, shift] {
        let mut client = Client::new(&rig.path);
        client.send(&bytes);
        assert!(is_closed(&mut client.stream), "{bytes:?}");
    }
    for bytes in [&b"RFB 002.008\n"[..], b"RFB xxx.yyy\n", b"RFB 003.008 ", b"Rubbish-----"] {
        let mut stream = connect(&rig.path);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream), "{bytes:?}");
    }
}

#[test]
fn lists_and_texts_of_any_length_take_no_memory() {
    let rig = Rig::new(64, 48);
    let mut client = Client::new(&rig.path);
    let mut list = vec![2, 0, 0xff, 0xff];
    list.extend((0..65535).flat_map(|_| 0x1234_5678_i32.to_be_bytes()));
    client.send(&list);
    client.refresh(false);
    client.send(&[6, 0, 0, 0, 0, 0x10, 0, 0]);
    client.send(&vec![0xff; 1 << 20]);
    client.refresh(false);
    rig.assert_shown(&client);
    // It says 4 GiB and sends a part: it is heard no more, and holds up no other.
    client.send(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    client.send(&vec![3; 1 << 20]);
    Client::new(&rig.path).refresh(false);
}

#[test]
fn a_viewer_that_takes_nothing_costs_one_rectangle_and_holds_up_nobody() {
    let rig = Rig::new(1024, 768);
    rig.draw(0..768, 4);
    let mut stalled = Client::new(&rig.path);
    for _ in 0..1000 {
        stalled.request(false);
    }
    let mut client = Client::new(&rig.path);
    for seed in 5..8 {
        rig.draw(0..768, seed);
        client.refresh(true);
        rig.assert_shown(&client);
    }
    // Its keys are heard all the same.
    stalled.send(&[4, 1, 0, 0, 0, 0, 0, b'a']);
    assert_eq!(rig.log.wait_for(1).len(), 1);
    stalled.update();
}

#[test]
fn a_flood_of_requests_gets_one_picture_at_a_time() {
    const LARGEST: usize = 4 + 12 + 4000 * 64 * 4;
    let screen = screen(4000, 256);
    let mut session = session(&screen);
    let (mut out, mut now) = (Vec::new(), Instant::now());
    let request = [3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let mut made = 0;
    for _ in 0..200 {
        session.receive(&request.repeat(100), now, &mut out).unwrap();
        assert_eq!(out.len(), 0, "a request is not answered before there is room");
        session.produce(now, &mut out);
        assert!(out.len() <= LARGEST, "{} bytes at once", out.len());
        made += usize::from(!out.is_empty());
        out.clear();
        now += std::time::Duration::from_millis(1);
    }
    // Four rectangles a picture, and a pause before the next begins.
    assert!((40..=52).contains(&made), "{made} rectangles");
}

#[test]
fn rows_that_are_not_there_are_never_sent() {
    let screen = screen(8, 4);
    let mut session = session(&screen);
    let (mut out, now) = (Vec::new(), Instant::now());
    for request in [[3, 0, 0, 0, 0, 4, 0, 8, 0, 1], [3, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        session.receive(&request, now, &mut out).unwrap();
        session.produce(now + std::time::Duration::from_secs(1), &mut out);
        assert!(out.is_empty(), "{out:?}");
    }
}

#[test]
fn connections_without_end_leave_room_for_viewers() {
    let rig = Rig::new(64, 48);
    let mut viewer = Client::new(&rig.path);
    let idle: Vec<_> = (0..3 * CONNECTIONS_MAX).map(|_| connect(&rig.path)).collect();
    let mut other = Client::new(&rig.path);
    other.refresh(false);
    viewer.refresh(false);
    rig.assert_shown(&viewer);
    drop(idle);
    // As many viewers as there is room for; another one waits until one of them goes.
    let mut others: Vec<_> = (2..CONNECTIONS_MAX).map(|_| Client::new(&rig.path)).collect();
    let mut waiting = connect(&rig.path);
    others.iter_mut().for_each(|it| assert!(!it.refresh(false).is_empty()));
    drop(viewer);
    assert_eq!(read(&mut waiting, 12), b"RFB 003.008\n");
}

#[test]
fn a_viewer_that_goes_at_any_moment_leaves_the_others_alone() {
    let rig = Rig::new(64, 48);
    let hello = b"RFB 003.008\n\x01\x01\x03\0\0\0\0\0\0\x40\0\x30";
    for len in 0..hello.len() {
        connect(&rig.path).write_all(&hello[..len]).unwrap();
    }
    let mut client = Client::new(&rig.path);
    client.refresh(false);
    rig.assert_shown(&client);
}
