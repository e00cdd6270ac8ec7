//! The supervisor's side of the control socket: a bounded number of clients, none of which it waits for.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::ControlSocket;
use super::message::{Description, Reply, Request, cut, decode, encode};
use crate::sandbox::channel::{Answer, Packet, Question, Socket};

/// The most clients at a time; others wait until one has gone.
const MOST: usize = 8;
/// The number of no client.
const NONE: u64 = u64::MAX;
/// How long a client may take to ask.
const TO_ASK: Duration = Duration::from_secs(2);
/// How long the VM process may take to answer: longer than it may take to pause.
pub(super) const TO_ANSWER: Duration = Duration::from_secs(10);
/// How long no client is taken when the host refuses one.
const REST: Duration = Duration::from_secs(1);

/// The control socket and its clients.
pub struct Server {
    socket: ControlSocket,
    clients: Vec<Client>,
    /// What the VM process was asked, in the order of its answers.
    asked: VecDeque<Asked>,
    /// Whether the VM process has paused the machine.
    is_paused: bool,
    /// How many clients there were.
    count: u64,
    /// When the next one is taken.
    rests_until: Option<Instant>,
}

/// A connection.
struct Client {
    number: u64,
    socket: Socket,
    waits: Waits,
    /// When that is over; nothing if never.
    until: Option<Instant>,
}

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// To ask.
    ToAsk,
    /// For what the VM process answers.
    ForAnswer,
    /// For the machine's end.
    ForEnd,
}

/// A question on its way, and which client's it is, who may have gone.
struct Asked {
    client: u64,
    question: Question,
}

/// What the supervisor is to do for a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// Ask the VM process.
    Ask(Question),
    /// End the machine, and kill it after this time.
    Stop(Duration),
}

/// The VM process has answered what it was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unasked;

/// What becomes of a client.
enum Next {
    /// It waits on.
    Stays,
    /// It gets this answer, and goes.
    Gets(Reply),
    /// It goes.
    Goes,
}

impl Server {
    /// That of a socket.
    pub fn new(socket: ControlSocket) -> Self {
        let (clients, asked) = (Vec::new(), VecDeque::new());
        Self { socket, clients, asked, is_paused: false, count: 0, rests_until: None }
    }

    /// Adds the descriptors that are waited for.
    pub fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let has_room = self.clients.len() < MOST && self.rests_until.is_none();
        fds.extend(has_room.then(|| PollFd::new(self.socket.listener.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.clients.iter().map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLIN)));
    }

    /// When something is due though no descriptor is ready.
    pub fn until(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|client| client.until).chain(self.rests_until).min()
    }

    /// Does what there is to do now, without waiting; answers what clients wish of the supervisor.
    pub fn serve(&mut self, now: Instant) -> Vec<Wish> {
        self.rests_until.take_if(|until| *until <= now);
        self.accept(now);
        let mut wishes = Vec::new();
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| match self.attend(client, now, &mut wishes) {
            Next::Stays => true,
            Next::Goes => false,
            Next::Gets(reply) => {
                client.send(&reply, None);
                false
            }
        });
        self.clients = clients;
        wishes
    }

    fn accept(&mut self, now: Instant) {
        while self.clients.len() < MOST && self.rests_until.is_none() {
            match self.socket.listener.accept() {
                Ok((stream, _)) => {
                    let (socket, waits) = (Socket::from(OwnedFd::from(stream)), Waits::ToAsk);
                    let until = Some(now + TO_ASK);
                    self.clients.push(Client { number: self.count, socket, waits, until });
                    self.count += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                // Asking again at once would not help.
                Err(_) => self.rests_until = Some(now + REST),
            }
        }
    }

    fn attend(&mut self, client: &mut Client, now: Instant, wishes: &mut Vec<Wish>) -> Next {
        match client.socket.receive(false) {
            Ok(Packet::Of(bytes, None)) if client.waits == Waits::ToAsk => {
                self.answer_request(client, decode(&bytes), now, wishes)
            }
            Ok(Packet::Nothing) if client.until.is_none_or(|until| now < until) => Next::Stays,
            Ok(Packet::Nothing) if client.waits == Waits::ForAnswer => {
                Next::Gets(Reply::Failed(format!("machine {} does not answer", self.socket.facts.id)))
            }
            // It has gone, says nothing, or says what there is not to say.
            _ => Next::Goes,
        }
    }

    fn answer_request(
        &mut self,
        client: &mut Client,
        request: Option<Request>,
        now: Instant,
        wishes: &mut Vec<Wish>,
    ) -> Next {
        let facts = &self.socket.facts;
        let question = match request {
            None => return Next::Gets(Reply::Failed("this kite knows no such request".to_owned())),
            Some(Request::Describe) => {
                return Next::Gets(Reply::Description(Description {
                    facts: facts.clone(),
                    paused: self.is_paused,
                }));
            }
            Some(Request::Screenshot) if !facts.screen => {
                let why = format!("machine {} has no screen: it was started without --screen", facts.id);
                return Next::Gets(Reply::Failed(why));
            }
            Some(Request::Screenshot) => Question::Screenshot,
            Some(Request::Pause) => Question::Pause,
            Some(Request::Resume) => Question::Resume,
            Some(Request::Stop(milliseconds)) => {
                // What runs in it may have to end by itself.
                if self.is_paused && self.asked.len() < MOST {
                    self.asked.push_back(Asked { client: NONE, question: Question::Resume });
                    wishes.push(Wish::Ask(Question::Resume));
                }
                wishes.push(Wish::Stop(Duration::from_millis(milliseconds.into())));
                (client.waits, client.until) = (Waits::ForEnd, None);
                return Next::Stays;
            }
        };
        // The VM process may answer none, and what it is asked waits in the channel.
        if self.asked.len() >= MOST {
            return Next::Gets(Reply::Failed(format!("machine {} does not answer", facts.id)));
        }
        self.asked.push_back(Asked { client: client.number, question });
        wishes.push(Wish::Ask(question));
        (client.waits, client.until) = (Waits::ForAnswer, Some(now + TO_ANSWER));
        Next::Stays
    }

    /// Passes an answer of the VM process on to the client that waits for it.
    ///
    /// # Errors
    /// That process was not asked, or not this.
    pub fn pass_on(&mut self, answer: Answer) -> Result<(), Unasked> {
        let asked = self.asked.pop_front().ok_or(Unasked)?;
        let (reply, content) = match (asked.question, answer) {
            (_, Answer::Failed(why)) => (Reply::Failed(cut(&why)), None),
            (Question::Screenshot, Answer::Picture { size, content }) => {
                (Reply::Picture(size), Some(content))
            }
            (question @ (Question::Pause | Question::Resume), Answer::Done) => {
                self.is_paused = question == Question::Pause;
                (Reply::Done, None)
            }
            _ => return Err(Unasked),
        };
        if let Some(at) = self.clients.iter().position(|client| client.number == asked.client) {
            let client = self.clients.swap_remove(at);
            client.send(&reply, content.as_ref().map(AsFd::as_fd));
        }
        Ok(())
    }
}

impl Client {
    /// Sends an answer. One that has gone needs none, and there is room for one.
    fn send(&self, reply: &Reply, content: Option<BorrowedFd<'_>>) {
        let _ = self.socket.send_now(&encode(reply), content);
    }
}
