//! What a test sees of functions: the messages that they send, and the pages that the guest reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::LEN;
use super::msix::{Message, Messages};
use super::{Function, Page};

/// Remembers what was routed and counts what was sent.
#[derive(Clone, Default)]
pub struct Sent(Arc<Mutex<Counts>>);

/// What [`Sent`] knows.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// What each vector sends.
    pub routes: Vec<Option<Message>>,
    /// How often that was said.
    pub routed: usize,
    /// How often each vector was sent.
    pub sent: Vec<u64>,
}

impl Sent {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known so far.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// How many messages were sent since the last call.
    pub fn take(&self) -> u64 {
        self.lock().sent.drain(..).sum()
    }
}

impl Messages for Sent {
    fn route(&self, messages: &[Option<Message>]) {
        let mut counts = self.lock();
        counts.routes = messages.to_vec();
        counts.routed += 1;
    }

    fn send(&self, vector: u16) {
        let mut counts = self.lock();
        let vector = usize::from(vector);
        assert!(
            matches!(counts.routes.get(vector), Some(Some(_))),
            "vector {vector} is sent, and has no route"
        );
        if counts.sent.len() <= vector {
            counts.sent.resize(vector + 1, 0);
        }
        counts.sent[vector] += 1;
    }
}

/// A page as the guest reads it.
#[derive(Clone)]
pub struct Shown(Arc<Mutex<[u8; LEN]>>);

impl Default for Shown {
    fn default() -> Self {
        Self(Arc::new(Mutex::new([0; LEN])))
    }
}

impl Shown {
    /// Its bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page for Shown {
    fn show(&self, register: usize, value: u32) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes[4 * register..4 * register + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The function's capabilities: the id of each, and where it is.
pub fn capabilities(function: &dyn Function) -> Vec<(u8, usize)> {
    let config = function.config();
    let [first] = config.array(0x34);
    let next = |(_, at): &(u8, usize)| {
        let [next] = config.array(at + 1);
        (next != 0).then(|| (config.bytes()[usize::from(next)], usize::from(next)))
    };
    let first = (first != 0).then(|| (config.bytes()[usize::from(first)], usize::from(first)));
    std::iter::successors(first, next).take(LEN / 4).collect()
}
