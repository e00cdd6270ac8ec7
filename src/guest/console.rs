//! The move to the virtio console, once its driver is up: a byte over the serial port costs an exit, a page over a ring
//! costs one. What the kernel prints stays where it is, so that nothing comes twice.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The virtio console's terminal.
const TERMINAL: &str = "/dev/hvc0";
/// How long the driver may take to make the terminal. Without one the serial port stays.
const PATIENCE: Duration = Duration::from_secs(2);

/// Moves standard input and output to the virtio console, if there is one.
pub fn take() {
    let start = Instant::now();
    while !Path::new(TERMINAL).exists() {
        if start.elapsed() > PATIENCE {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    let Ok(terminal) = File::options().read(true).write(true).open(TERMINAL) else { return };
    // They fail only for descriptors that there are not.
    let _ = dup2_stdin(&terminal).and_then(|()| dup2_stdout(&terminal)).and_then(|()| dup2_stderr(&terminal));
}
