//! Guest memory that is replaced by a copy while a disk is read.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestMemory;
use crate::virtio::Copies;
use crate::virtio::block::engine::{Engine, Job};

/// An engine whose first read goes to the memory of before: it is done, then memory is copied, and what was read is lost.
struct Late {
    engine: Box<dyn Engine>,
    memory: GuestMemory,
    copies: Arc<Copies>,
}

impl Engine for Late {
    fn push(&mut self, job: Job) {
        self.engine.push(job);
    }

    fn submit(&mut self) {
        self.engine.submit();
    }

    fn completed(&mut self) -> Option<(Job, io::Result<usize>)> {
        let done = self.engine.completed()?;
        if self.copies.count() == 0 {
            self.copies.copy(|| self.memory.write_slice(&[0; 4096], GuestAddress(BUFFERS)).unwrap());
        }
        Some(done)
    }

    fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    fn wait(&mut self) {
        self.engine.wait();
    }

    fn source(&self) -> BorrowedFd<'_> {
        self.engine.source()
    }
}

#[test]
fn what_was_read_into_memory_that_was_replaced_meanwhile_is_read_again() {
    with_engines("copied", |kind| {
        let file = image(&pattern(SECTORS));
        let disk = Arc::new(Disk::new(file.try_clone().unwrap(), SECTORS * SECTOR));
        let mut driver = Driver::new(|memory| {
            let (engine, copies) = (kind.engine(&disk, memory).unwrap(), Arc::<Copies>::default());
            let engine = Box::new(Late { engine, memory: memory.clone(), copies: copies.clone() });
            Box::new(Block::new("disk0", disk.clone(), engine, copies, 1))
        });
        let features = driver.offered() & FEATURES;
        driver.start(features);
        let mut rig = Rig { driver, file };
        rig.header(0, 0);
        rig.driver.add(0, &[(HEADER, 16, false), (BUFFERS, 4096, true), (STATUS, 1, true)]);
        rig.driver.kick(0);
        assert_eq!(rig.ended(), Some(4097));
        assert_eq!(rig.driver.read(STATUS, 1), [0]);
        assert!(rig.driver.read(BUFFERS, 4096) == pattern(SECTORS)[..4096]);
    });
}
