//! The screen, the keyboard and the pointer: what the host has of them, and the devices by which a guest does.

use std::sync::Arc;

use anyhow::Context;
use devices::screen::{InputSink, Screen, Size};
use devices::virtio::gpu::{self, Gpu};
use devices::virtio::input::{self, InputDevice, Inputs};
use devices::virtio::{Kind, VirtioDevice};

use super::{Backend, Modules};
use crate::vm::memory::GuestRam;
use crate::vm::{Vm, frame_buffer};

/// A screen, a keyboard and a pointer, for the machines of a run.
pub struct Display {
    screen: Arc<Screen>,
    inputs: Arc<Inputs>,
    size: Size,
}

impl Display {
    /// A screen that is black.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(size: Size) -> anyhow::Result<Self> {
        let make = || Ok::<_, std::io::Error>((Screen::new(size)?, Inputs::new()?));
        let (screen, inputs) = make().context("cannot make a screen")?;
        Ok(Self { screen: Arc::new(screen), inputs: Arc::new(inputs), size })
    }

    /// What viewers look at.
    pub fn screen(&self) -> &Arc<Screen> {
        &self.screen
    }

    /// Where what they type goes.
    pub fn input(&self) -> Arc<dyn InputSink> {
        self.inputs.clone()
    }

    /// Shows the frame buffer of a machine that begins.
    pub fn begin(&self, vm: &Vm) {
        if let Some(surface) = frame_buffer::surface(vm, self.size) {
            self.screen.begin(surface);
        }
    }

    /// How many devices a screen is.
    pub const DEVICES: usize = 3;

    /// The devices: graphics card, keyboard, pointer.
    pub fn backends(&self) -> [Box<dyn Backend>; Self::DEVICES] {
        let input = |device| Box::new(InputBackend { inputs: self.inputs.clone(), device });
        [Box::new(GpuBackend(self.screen.clone())), input(Inputs::keyboard), input(Inputs::pointer)]
    }
}

struct GpuBackend(Arc<Screen>);

impl Backend for GpuBackend {
    fn device(&self, _ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        Ok(Box::new(Gpu::new(self.0.clone())))
    }

    fn modules(&self) -> Modules {
        optional(gpu::KIND)
    }
}

/// One of the input devices.
struct InputBackend {
    inputs: Arc<Inputs>,
    device: fn(&Inputs) -> InputDevice,
}

impl Backend for InputBackend {
    fn device(&self, _ram: &GuestRam) -> anyhow::Result<Box<dyn VirtioDevice>> {
        Ok(Box::new((self.device)(&self.inputs)))
    }

    fn modules(&self) -> Modules {
        optional(input::KIND)
    }
}

/// A guest without the driver has the frame buffer.
fn optional(kind: Kind) -> Modules {
    Modules { optional: vec![kind.module], ..Modules::default() }
}
