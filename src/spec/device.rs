//! The devices that a machine may have beside those that each has; shares and ports, as `--share` and `--port` say them.

use std::path::{Path, PathBuf};

use boot::params::FrameBuffer;
use devices::screen::{MOST, Size};
use devices::virtio::console::NAME_LIMIT;
use serde::{Deserialize, Serialize};

use super::disk::DiskSpec;
use super::net::NetSpec;
use super::text;

/// A device. The board has them by kind, in this order, and those of a kind in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DeviceSpec {
    /// A disk.
    Disk(DiskSpec),
    /// A network.
    Net(NetSpec),
    /// A folder of the host's.
    Share(ShareSpec),
    /// A port of the virtio console.
    Port(PortSpec),
    /// What gives memory that the guest has freed back to the host.
    Balloon {},
    /// Entropy.
    Rng {},
    /// A screen, with a keyboard and a pointer.
    Screen(ScreenSpec),
}

impl DeviceSpec {
    /// Whether it can be a device.
    ///
    /// # Errors
    /// Why it cannot, in one line.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Disk(disk) => disk.check().map_err(|why| format!("--disk: {why}")),
            Self::Net(net) => net.check().map_err(|why| format!("--net: {why}")),
            Self::Share(share) => share.check().map_err(|why| format!("--share: {why}")),
            Self::Port(port) => port.check().map_err(|why| format!("--port: {why}")),
            Self::Screen(screen) => screen.check().map_err(|why| format!("--screen: {why}")),
            Self::Balloon {} | Self::Rng {} => Ok(()),
        }
    }

    /// Has relative paths begin at `folder`.
    pub(super) fn rebase(&mut self, folder: &Path) {
        let path = match self {
            Self::Disk(disk) => &mut disk.path,
            Self::Share(share) => &mut share.folder,
            Self::Port(port) => &mut port.path,
            Self::Net(_) | Self::Balloon {} | Self::Rng {} | Self::Screen(_) => return,
        };
        *path = folder.join(&*path);
    }
}

/// The shortest side of a screen in pixels.
const SHORTEST: u32 = 64;

/// A folder of the host's that the guest sees; as `--share` says it, `DIR[:GUESTDIR][:rw[,suid]]`, where GUESTDIR begins
/// with a slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSpec {
    /// The host's folder.
    #[serde(with = "text::os")]
    pub folder: PathBuf,
    /// Where the guest sees it, if not at the same place.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::os_option")]
    pub at: Option<PathBuf>,
    /// Whether the guest may change it.
    #[serde(default)]
    pub writable: bool,
    /// Whether it may leave set-user-ID programs in it.
    #[serde(default)]
    pub suid: bool,
}

impl ShareSpec {
    /// Reads the value of `--share`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ENDS: [(&str, bool, bool); 4] = [
            (":rw,suid", true, true),
            (":rw,nosuid", true, false),
            (":rw", true, false),
            (":ro", false, false),
        ];
        let end = ENDS
            .iter()
            .find_map(|(end, writable, suid)| text.strip_suffix(end).map(|rest| (rest, *writable, *suid)));
        let (rest, writable, suid) = end.unwrap_or((text, false, false));
        let (folder, at) = match rest.rfind(":/") {
            Some(colon) => (&rest[..colon], Some(PathBuf::from(&rest[colon + 1..]))),
            None => (rest, None),
        };
        if let (None, Some((before, word))) = (&at, rest.rsplit_once(':'))
            && !before.is_empty()
            && !Path::new(rest).exists()
        {
            return Err(format!(
                "'{word}' is neither rw nor ro, nor a folder of the guest's, which begins with /"
            ));
        }
        let share = Self { folder: folder.into(), at, writable, suid };
        share.check().map(|()| share)
    }

    fn check(&self) -> Result<(), String> {
        if self.folder.as_os_str().is_empty() {
            return Err("a share is DIR[:GUESTDIR][:rw[,suid]], such as .:rw or out:/mnt:rw".to_owned());
        }
        if let Some(at) = self.at.as_ref().filter(|at| at.is_relative()) {
            return Err(format!("{} is no folder of the guest's, which begins with /", at.display()));
        }
        Ok(())
    }
}

/// A port of the virtio console, with the socket that it is connected to; as `--port` says it, `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// What the guest knows it by.
    pub name: String,
    /// Where kite listens.
    #[serde(with = "text::os")]
    pub path: PathBuf,
}

impl PortSpec {
    /// Reads the value of `--port`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, path) =
            text.split_once('=').ok_or("a port is NAME=PATH, such as agent=/run/agent.sock")?;
        let port = Self { name: name.to_owned(), path: path.into() };
        port.check().map(|()| port)
    }

    fn check(&self) -> Result<(), String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let length = 1..=NAME_LIMIT;
        if !length.contains(&self.name.len()) || self.name.starts_with('.') || !self.name.bytes().all(fits) {
            return Err(format!(
                "a port's name is 1 to {NAME_LIMIT} letters, digits, dots, dashes and underscores"
            ));
        }
        if self.path.as_os_str().is_empty() {
            return Err("a port needs the path of a socket".to_owned());
        }
        Ok(())
    }
}

/// A screen; as `--screen` says it, `WIDTHxHEIGHT`, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScreenSpec {
    /// Pixels of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl ScreenSpec {
    /// Reads the value of `--screen`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let sides = text.split_once('x').and_then(|(width, height)| Some([side(width)?, side(height)?]));
        let [width, height] = sides.ok_or("a screen is WIDTHxHEIGHT in pixels, such as 1024x768")?;
        let screen = Self { width, height };
        screen.check().map(|()| screen)
    }

    fn check(&self) -> Result<(), String> {
        let sides = SHORTEST..=MOST;
        if sides.contains(&self.width) && sides.contains(&self.height) {
            Ok(())
        } else {
            Err(format!("each side of a screen has {SHORTEST} to {MOST} pixels"))
        }
    }

    /// The size.
    pub fn size(self) -> Size {
        Size::new(self.width, self.height).expect("a spec is checked before it is used")
    }

    /// The frame buffer as the guest finds it.
    pub fn frame_buffer(self) -> FrameBuffer {
        // Neither is cut off: a side is at most `MOST`.
        FrameBuffer { width: self.width as u16, height: self.height as u16 }
    }
}

/// A side in decimal digits and nothing else.
fn side(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(folder: &str, at: Option<&str>, writable: bool) -> Result<ShareSpec, String> {
        Ok(ShareSpec { folder: folder.into(), at: at.map(Into::into), writable, suid: false })
    }

    #[test]
    fn a_share_may_say_where_and_whether_it_is_written() {
        assert_eq!(ShareSpec::parse("/a"), share("/a", None, false));
        assert_eq!(ShareSpec::parse(".:rw"), share(".", None, true));
        assert_eq!(ShareSpec::parse("a:/b"), share("a", Some("/b"), false));
        assert_eq!(ShareSpec::parse("a:x:/b/c:rw"), share("a:x", Some("/b/c"), true));
        assert_eq!(ShareSpec::parse("a:/b:ro"), share("a", Some("/b"), false));
        for text in [".:rx", ".:rW", ".:mnt", ".:mnt:rw", ".:r", ".:"] {
            assert!(ShareSpec::parse(text).unwrap_err().contains("neither rw nor ro"), "{text}");
        }
        assert_eq!(ShareSpec::parse("a:/b:rw,nosuid"), share("a", Some("/b"), true));
        let suid = share("a", Some("/b"), true).map(|share| ShareSpec { suid: true, ..share });
        assert_eq!(ShareSpec::parse("a:/b:rw,suid"), suid);
        assert!(ShareSpec::parse("").is_err() && ShareSpec::parse(":rw").is_err());
    }

    #[test]
    fn a_screen_has_two_sides_that_a_monitor_can_have() {
        assert_eq!(ScreenSpec::parse("1366x768"), Ok(ScreenSpec { width: 1366, height: 768 }));
        assert_eq!(ScreenSpec::parse("64x4095"), Ok(ScreenSpec { width: 64, height: 4095 }));
        for wrong in [
            "",
            "x",
            "1024",
            "1024x",
            "x768",
            "1024x768x",
            "1024X768",
            "+64x64",
            "-1x64",
            "63x64",
            "64x4096",
            "64x99999999999",
        ] {
            assert!(ScreenSpec::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_is_a_name_and_a_path() {
        let spec = |name: &str, path: &str| Ok(PortSpec { name: name.to_owned(), path: path.into() });
        assert_eq!(
            PortSpec::parse("org.qemu.guest_agent.0=/run/a=b"),
            spec("org.qemu.guest_agent.0", "/run/a=b")
        );
        for wrong in
            ["", "a", "=x", "a=", "a/b=x", ".=x", "..=x", "a b=x", "ä=x", &format!("{}=x", "n".repeat(65))]
        {
            assert!(PortSpec::parse(wrong).is_err(), "{wrong}");
        }
    }
}
