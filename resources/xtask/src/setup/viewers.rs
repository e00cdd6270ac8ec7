//! What looks at a screen in tests: viewers of VNC and a browser of the distribution's, and what of PyPI drives them,
//! under `target/viewers`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Setup;
use crate::host;
use crate::step::{output, step};

/// Programs with their packages.
const PROGRAMS: [(&str, &str); 5] = [
    ("chromedriver", "chromium-driver"),
    ("xtightvncviewer", "xtightvncviewer"),
    ("Xvfb", "xvfb"),
    ("Xorg", "xserver-xorg-core"),
    ("xterm", "xterm"),
];
/// Packages without a program, each with a file that it has.
const FILES: [(&str, &str); 4] = [
    ("/usr/share/novnc/core/rfb.js", "novnc"),
    ("/usr/share/consolefonts/Lat15-VGA16.psf.gz", "console-setup-linux"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
    ("/usr/lib/xorg/modules/drivers/fbdev_drv.so", "xserver-xorg-video-fbdev"),
];
/// What comes from PyPI.
const FROM_PYPI: [&str; 3] = ["vncdotool==1.4.2", "asyncvnc==1.3.0", "selenium==4.8.3"];

/// Python's program with all of them.
///
/// # Errors
/// The folder around it cannot be made.
pub fn python() -> Result<PathBuf> {
    Ok(host::target("viewers")?.join("bin/python3"))
}

/// Installs what is missing.
///
/// # Errors
/// A package cannot be had.
pub fn ensure(setup: &mut Setup) -> Result<()> {
    setup.programs(&PROGRAMS)?;
    for (file, package) in FILES {
        if !fs::exists(file).context("looking for a package")? {
            setup.install(package)?;
        }
    }
    let python = python()?;
    let folder = host::target("viewers")?;
    let recipe = folder.join("recipe");
    if python.exists() && fs::read_to_string(&recipe).is_ok_and(|text| text == FROM_PYPI.join(" ")) {
        return Ok(());
    }
    step("fetching viewers", || {
        output(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&folder))?;
        output(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(FROM_PYPI))?;
        fs::write(&recipe, FROM_PYPI.join(" ")).context("writing down the recipe")
    })
}
