//! Any accesses to any of the devices of `--test-devices`: they answer within bounds, and never end but by the debug port.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use devices::bus::BusDevice;
use devices::chipset::testdev::{
    ConfigPorts, DebugExit, Doorbell, EndTest, Flush, FlushPage, FwCfg, Latch, Lines, PciTest, Place,
    PmTimer, Scratch, SetLine, Window, Wiring,
};

use crate::each;

/// One access.
#[derive(Arbitrary, Debug)]
struct Access {
    device: u8,
    /// Near the start of the device's range, or anywhere.
    offset: Result<u8, u64>,
    write: bool,
    width: u8,
    value: u64,
}

/// The host's side of all devices: checks what it is told.
#[derive(Clone, Default)]
struct Side {
    connected: Arc<Mutex<bool>>,
    ends: Arc<AtomicU32>,
}

impl EndTest for Side {
    fn end(&self, code: u8) {
        assert!(code % 2 == 1);
        self.ends.fetch_add(1, Ordering::Relaxed);
    }
}

impl SetLine for Side {
    fn set(&self, gsi: u32, _up: bool) {
        assert!(gsi < 24);
    }
}

impl FlushPage for Side {
    fn flush(&self, page: u64) {
        assert!(page.is_multiple_of(4096) && page < 1 << 32);
    }
}

impl Doorbell for Side {
    fn connect(&mut self, place: Place, offset: u32, _data: Option<u8>) -> bool {
        assert!(!std::mem::replace(&mut *self.connected.lock().unwrap(), true), "connected twice");
        assert!(offset < if place == Place::Port { 256 } else { 4096 });
        true
    }

    fn disconnect(&mut self) {
        assert!(std::mem::replace(&mut *self.connected.lock().unwrap(), false), "never connected");
    }

    fn take(&mut self) -> u32 {
        u32::MAX
    }
}

pub fn run(data: &[u8]) {
    let side = Side::default();
    let wiring = Wiring { memory: 0xfe00_0000, port: 0xc000 };
    let function = Arc::new(Mutex::new(PciTest::new(wiring, Box::new(side.clone()))));
    let mut devices: [Box<dyn BusDevice>; 10] = [
        Box::new(ConfigPorts::new(function.clone())),
        Box::new(Window::new(function.clone(), Place::Memory)),
        Box::new(Window::new(function, Place::Port)),
        Box::new(FwCfg::new(u16::MAX, u64::MAX)),
        Box::new(PmTimer::new(Box::new(|| Duration::MAX))),
        Box::new(Latch::new("latch")),
        Box::new(Scratch::new("scratch")),
        Box::new(Lines(Box::new(side.clone()))),
        Box::new(Flush(Box::new(side.clone()))),
        Box::new(DebugExit(Arc::new(side.clone()))),
    ];
    let mut debug_writes = 0;
    for access in each::<Access>(data, 1000) {
        let index = usize::from(access.device) % devices.len();
        let offset = access.offset.map_or_else(|anywhere| anywhere, u64::from);
        let width = usize::from(access.width % 9);
        let mut bytes = access.value.to_le_bytes();
        if access.write {
            devices[index].write(offset, &bytes[..width]);
            debug_writes += u32::from(index == 9);
        } else {
            devices[index].read(offset, &mut bytes[..width]);
            assert_eq!(bytes[width..], access.value.to_le_bytes()[width..], "read past the end");
        }
    }
    assert!(side.ends.load(Ordering::Relaxed) <= debug_writes);
}
