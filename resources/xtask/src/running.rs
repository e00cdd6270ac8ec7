//! A machine that runs: what it says is kept as it comes and can be waited for, what is typed goes to its console, and
//! it ends with its owner.

use std::io::{PipeReader, Read, Write, pipe};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program whose standard output and error are its machine's console.
pub struct Running {
    child: Child,
    keyboard: Option<ChildStdin>,
    said: Arc<Said>,
    reader: Option<JoinHandle<()>>,
    /// How much of what was said has been waited for.
    heard: usize,
}

#[derive(Default)]
struct Said {
    state: Mutex<Text>,
    more: Condvar,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Starts `command`; with `shown`, what it says is passed on, too.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, shown: bool) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (from, into) = pipe().context("making a pipe")?;
        command.stdin(Stdio::piped()).stdout(into.try_clone().context("sharing a pipe")?).stderr(into);
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        // The pipe ends when the program does, not with this copy of it.
        drop(command);
        let keyboard = child.stdin.take();
        let said = Arc::new(Said::default());
        let ear = Arc::clone(&said);
        let reader = std::thread::spawn(move || listen(from, &ear, shown));
        Ok(Self { child, keyboard, said, reader: Some(reader), heard: 0 })
    }

    /// Waits until `text` is said behind what was waited for last; answers everything in between.
    ///
    /// # Errors
    /// It is not said before the program ends, or within `limit`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let start = Instant::now();
        let mut said = self.said.lock();
        loop {
            let new = &said.bytes[self.heard..];
            if let Some(at) = new.windows(text.len()).position(|part| part == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.heard += at + text.len();
                return Ok(before);
            }
            if said.ended {
                bail!("ended before it said {text:?}");
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else {
                bail!("did not say {text:?} within {} s", limit.as_secs());
            };
            said = self.said.more.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types `text`.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let keyboard = self.keyboard.as_mut().context("there is no keyboard")?;
        keyboard.write_all(text.as_bytes()).and_then(|()| keyboard.flush()).context("typing")
    }

    /// The program's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().bytes).into_owned()
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a machine")? {
                if let Some(reader) = self.reader.take() {
                    // It cannot panic, and there would be nothing more to hear.
                    let _ = reader.join();
                }
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("no end after {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the program by SIGKILL.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing a machine")?;
        self.end(Duration::from_secs(60)).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

fn listen(mut from: PipeReader, said: &Said, shown: bool) {
    let mut buffer = [0; 1 << 12];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if shown {
            let mut out = std::io::stdout().lock();
            // Who does not look at it still has it in the text.
            let _ = out.write_all(&buffer[..count]).and_then(|()| out.flush());
        }
        said.lock().bytes.extend_from_slice(&buffer[..count]);
        said.more.notify_all();
    }
    said.lock().ended = true;
    said.more.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_said_is_waited_for_in_its_order() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one two; read word; echo $word three; exit 3"]);
        let mut running = Running::start(command, false).unwrap();
        assert_eq!(running.wait_for("two", LIMIT).unwrap(), "one ");
        running.type_in("four\n").unwrap();
        assert_eq!(running.wait_for(" three", LIMIT).unwrap(), "\nfour");
        assert!(running.wait_for("one", LIMIT).unwrap_err().to_string().contains("ended before"));
        assert_eq!(running.end(LIMIT).unwrap().code(), Some(3));
        assert_eq!(running.said(), "one two\nfour three\n");
    }

    #[test]
    fn what_is_not_said_is_not_waited_for_for_ever() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut running = Running::start(command, false).unwrap();
        assert!(running.wait_for("word", Duration::from_millis(1)).is_err());
        assert!(running.end(Duration::ZERO).is_err());
        running.kill().unwrap();
    }
}
