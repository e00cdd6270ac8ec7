//! Programs on a share.
use std::path::Path;
use std::process::Command;

use super::super::Share;
use super::bridge::mounted;

#[test]
fn play() {
    let dir = std::env::var("PLAY_DIR").unwrap();
    let share = Share::new("x", std::fs::File::open(&dir).unwrap().into(), std::env::var_os("RW").is_some());
    mounted(share, |path: &Path| {
        let ok = Command::new("sh").arg("-c").arg(std::env::var("PLAY").unwrap()).current_dir(path).status();
        println!("{ok:?}");
    });
}
