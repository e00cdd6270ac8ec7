//! The balloon between a guest that gives back any memory, its rings among it, and a host that changes its mind.

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, Target};
use devices::virtio::testing::every_queue_serves;

use crate::drive;

pub fn run(data: &[u8]) {
    let target = Arc::new(Target::new().unwrap());
    let wish = |bytes: &[u8]| bytes.iter().take(4).fold(0, |pages, byte| pages << 8 | u32::from(*byte));
    let make = |_: &_| -> Box<dyn VirtioDevice> { Box::new(Balloon::new(target.clone())) };
    drive(
        data,
        make,
        |bytes| target.set(wish(bytes)),
        |driver| {
            every_queue_serves(driver);
            target.set(0x1234_5678);
            driver.serve_source(0);
            assert_eq!(driver.config(0, 4), 0x1234_5678u32.to_le_bytes());
        },
    );
}
