//! What a machine is sure to need, asked while the command line is read: a second processor has nothing else to do until then.

use std::env;
use std::thread::{Builder, JoinHandle};

use kvm_bindings::CpuId;
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::host::rss;
use crate::sandbox::InheritedFds;
use crate::vm;

/// The stack of the thread, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// What is under way; nothing, by default.
#[derive(Default)]
pub struct Ahead {
    /// What was open before.
    inherited: Option<InheritedFds>,
    asking: Option<JoinHandle<Option<CpuId>>>,
}

impl Ahead {
    /// Begins, if this is a `kite run`, on a thread that takes no signals; to be called before anything is opened.
    pub fn begin() -> Self {
        if env::args_os().nth(1).is_none_or(|command| command != "run") {
            return Self::default();
        }
        let inherited = Some(InheritedFds::now());
        rss::keep_one_heap();
        let Ok(mask) = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK) else {
            return Self { inherited, asking: None };
        };
        let ask = || vm::open_kvm().and_then(|kvm| vm::supported_cpuid(&kvm)).ok();
        // Where there is no room for a thread there will be none for the machine's either.
        let asking = Builder::new().name("cpuid".to_owned()).stack_size(STACK).spawn(ask).ok();
        let _ = mask.thread_set_mask();
        Self { inherited, asking }
    }

    /// The descriptors that kite was started with.
    pub(super) fn inherited(&mut self) -> InheritedFds {
        self.inherited.take().unwrap_or_else(InheritedFds::now)
    }

    /// Waits for what KVM can show a guest of this processor, until the thread has ended. Without an answer the machine asks
    /// again, and reports why there is none.
    pub(super) fn cpuid(self) -> Option<CpuId> {
        self.asking.and_then(|asking| asking.join().expect("a panic ends the process"))
    }
}
