//! What commands ask of a machine that runs: a picture of its screen, a pause. The main thread answers, between what it
//! attends.

use std::io::{BufWriter, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use devices::screen::Screen;

use crate::host::atomic_file;
use crate::sandbox::{Answer, Question, Questions};
use crate::vcpu::PausedVcpus;
use crate::vm::machine::Running;

/// What answers.
pub struct Controls<'a> {
    questions: Option<Questions>,
    screen: Option<&'a Screen>,
}

impl<'a> Controls<'a> {
    /// Of a machine with this screen, if commands may ask.
    pub fn new(questions: Option<Questions>, screen: Option<&'a Screen>) -> Self {
        Self { questions, screen }
    }

    /// Readable when there is a question, if there can be one.
    pub(super) fn readable(&self) -> Option<BorrowedFd<'static>> {
        self.questions.map(|questions| questions.readable())
    }

    /// Answers one question, if there is one. The vCPUs of `machine` are `paused` while that is there.
    pub(super) fn serve<'m>(&self, machine: &'m Running, paused: &mut Option<PausedVcpus<'m>>) {
        let Some(questions) = self.questions else { return };
        let Some(question) = questions.next() else { return };
        let answer = match question {
            Question::Screenshot => self.picture(),
            Question::Pause => pause(machine, paused),
            Question::Resume => {
                if paused.is_some() {
                    machine.note_pause();
                }
                *paused = None;
                Ok(Answer::Done)
            }
        };
        questions.answer(answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))));
    }

    /// What is on the screen now, in memory of its own.
    fn picture(&self) -> anyhow::Result<Answer> {
        let surface = self.screen.context("the machine has no screen")?.surface();
        let size = surface.size();
        let what = "cannot make memory for the picture";
        let mut memory = BufWriter::new(atomic_file::memory().context(what)?);
        let mut row = vec![0; size.width as usize];
        for y in 0..size.height {
            surface.read(0, y, &mut row);
            row.iter().try_for_each(|pixel| memory.write_all(&pixel.to_le_bytes())).context(what)?;
        }
        let content = OwnedFd::from(memory.into_inner().context(what)?);
        Ok(Answer::Picture { size, content })
    }
}

/// Pauses the vCPUs. Devices finish what they have in flight, take what the host sends, and wait for the guest.
fn pause<'a>(machine: &'a Running, paused: &mut Option<PausedVcpus<'a>>) -> anyhow::Result<Answer> {
    if paused.is_none() {
        let vcpus = machine.pause_vcpus();
        if !vcpus.is_complete() {
            bail!("a vCPU waits for the host, and cannot be paused");
        }
        *paused = Some(vcpus);
    }
    Ok(Answer::Done)
}
