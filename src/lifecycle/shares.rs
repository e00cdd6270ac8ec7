//! `--root` and `--share`: the host's folders that the guest sees.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use devices::virtio::fs::Share as Folder;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{getegid, getgroups};

use crate::spec::MachineSpec;
use crate::spec::command::{CommandSpec, RootSpec};
use crate::spec::container::{ContainerSpec, MountSource};
use crate::spec::wire::{self, FILES};

/// The tag of the root folder.
const ROOT: &str = "root";
/// The tag of the kernel's modules.
const MODULES: &str = "modules";

/// The descriptors that the kernel's modules get, which are read one after the other.
const FOR_MODULES: usize = 24;
/// The most files that this process wants to open.
const MOST_DESCRIPTORS: u64 = 1 << 17;

/// The folders, open, and where the guest mounts them.
#[derive(Default)]
pub(super) struct Shares {
    folders: Vec<Folder>,
    paths: Vec<PathBuf>,
    pub mounts: Vec<wire::Share>,
    /// The guest's root folder is the host's.
    root_is_here: bool,
}

impl Shares {
    /// Opens what the command line names.
    ///
    /// # Errors
    /// A folder cannot be opened, or two are to be mounted at one place.
    pub fn open(spec: &MachineSpec, command: &CommandSpec) -> anyhow::Result<Self> {
        more_descriptors();
        let root_is_here = command.root.is_none();
        let mut this = Self { folders: Vec::new(), paths: Vec::new(), mounts: Vec::new(), root_is_here };
        match command.root.clone().unwrap_or(RootSpec::Folder("/".into())) {
            RootSpec::Folder(folder) => {
                this.add(ROOT, &folder, command.container.as_ref().is_some_and(|it| !it.readonly))?;
            }
            RootSpec::Disk | RootSpec::Image(_) => {}
        }
        for (share, number) in spec.shares().zip(1..) {
            let tag = format!("share{number}");
            let at = place(&share.folder, share.at.as_deref())?;
            ensure!(
                this.mounts.iter().all(|mount| mount.at != at.as_os_str()),
                "two shares are to be at {} in the guest",
                at.display()
            );
            this.add(&tag, &share.folder, share.writable)?;
            if let Some(folder) = this.folders.last_mut() {
                // A folder that an option names is small beside the root, and may have lists of who may do what.
                (folder.attributes, folder.suid) = (true, share.suid);
            }
            let nosuid = share.writable && !share.suid;
            this.mounts.push(wire::Share { tag, at: at.into(), writable: share.writable, nosuid });
        }
        if let Some(container) = &command.container {
            this.add_container(container)?;
        }
        Ok(this)
    }

    /// Adds what a container shows, beside its root folder.
    fn add_container(&mut self, container: &ContainerSpec) -> anyhow::Result<()> {
        for (mount, number) in container.mounts.iter().zip(1..) {
            if let MountSource::Folder(folder) = &mount.source {
                self.add(&mount_tag(number), folder, mount.flags & MsFlags::MS_RDONLY.bits() == 0)?;
            }
        }
        if let Some(files) = &container.files {
            for (tag, writable) in FILES {
                self.add(tag, &files.join(tag), writable)?;
            }
        }
        self.folders.iter_mut().for_each(|folder| (folder.attributes, folder.suid) = (true, true));
        Ok(())
    }

    /// A container as its guest is to set it up: folders by their tags.
    pub fn container(&self, container: &ContainerSpec) -> ContainerSpec {
        let mut container = container.clone();
        for (mount, number) in container.mounts.iter_mut().zip(1..) {
            if matches!(mount.source, MountSource::Folder(_)) {
                mount.source = MountSource::Tag(mount_tag(number));
            }
        }
        container.files = None;
        container
    }

    /// Adds the kernel's modules where programs in the guest look for them, unless they are there already.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn add_modules(&mut self, folder: &Path, version: &str) -> anyhow::Result<()> {
        let at = Path::new("/lib/modules").join(version);
        let installed = folder.join("modules.dep").exists();
        let is_there = self.root_is_here && at.canonicalize().ok() == folder.canonicalize().ok();
        // A version comes from the kernel's file, which may say anything.
        let is_name = !version.contains('/') && version != "." && version != "..";
        if installed && !is_there && is_name {
            self.add(MODULES, folder, false)?;
            self.mounts.push(wire::Share {
                tag: MODULES.to_owned(),
                at: at.into(),
                writable: false,
                nosuid: false,
            });
        }
        Ok(())
    }

    fn add(&mut self, tag: &str, path: &Path, writable: bool) -> anyhow::Result<()> {
        let root = folder(path).with_context(|| {
            let option = match tag {
                ROOT => "--root",
                MODULES => "cannot share the modules' folder",
                _ => "--share",
            };
            format!("{option} {}", path.display())
        })?;
        let group = group(&root);
        self.folders.push(Folder { group, ..Folder::new(tag, root, writable) });
        self.paths.push(path.to_owned());
        Ok(())
    }

    /// Where the folders are, in their order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.paths.clone()
    }

    /// The folders, which share the descriptors that this process may have.
    pub fn into_folders(self) -> Vec<Arc<Folder>> {
        let is_small = |folder: &Folder| folder.tag == MODULES;
        let small = self.folders.iter().filter(|folder| is_small(folder)).count();
        let large = (self.folders.len() - small).max(1);
        let divided = self.folders.into_iter().map(|mut folder| {
            let all = folder.limits.descriptors;
            folder.limits.descriptors = match is_small(&folder) {
                true => FOR_MODULES,
                false => all.saturating_sub(small * FOR_MODULES) / large,
            };
            Arc::new(folder)
        });
        divided.collect()
    }

    /// What the guest's root folder is.
    pub fn root(&self, spec: &MachineSpec, command: &CommandSpec) -> wire::Root {
        match (&command.root, spec.disks().next()) {
            (Some(RootSpec::Image(_)), _) => wire::Root::Image,
            (Some(RootSpec::Disk), Some(disk)) => wire::Root::Disk { readonly: disk.readonly },
            _ => wire::Root::Share { tag: ROOT.to_owned() },
        }
    }
}

/// The tag of a container's mount.
fn mount_tag(number: usize) -> String {
    format!("mount{number}")
}

/// Lets this process open as many files as it may: for each that a process of the guest has open, it has one. Where that
/// is not allowed there are fewer.
fn more_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _fewer = setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST_DESCRIPTORS).max(soft), hard);
    }
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The group to be shown of files that are of a supplementary group of this user's, where the host does not tell which: the
/// folder's own if it is one of them, or else the first.
fn group(folder: &OwnedFd) -> Option<u32> {
    let groups = getgroups().ok()?;
    let groups: Vec<u32> = groups.into_iter().filter(|it| *it != getegid()).map(|it| it.as_raw()).collect();
    let own = fstat(folder).ok().map(|it| it.st_gid).filter(|it| groups.contains(it));
    own.or(groups.first().copied())
}

/// Where the guest mounts a share: where it is said, or where it is on the host.
fn place(folder: &Path, at: Option<&Path>) -> anyhow::Result<PathBuf> {
    let at = match at {
        Some(at) => at.to_owned(),
        None => env::current_dir().context("cannot tell the folder that kite was started in")?.join(folder),
    };
    let mut place = PathBuf::from("/");
    for part in at.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::ParentDir => {
                place.pop();
            }
            _ => {}
        }
    }
    ensure!(place != Path::new("/"), "a share cannot be at / in the guest: that is --root");
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_where_it_is_on_the_host_unless_told_otherwise() {
        let here = env::current_dir().unwrap();
        assert_eq!(place(Path::new("."), None).unwrap(), here);
        assert_eq!(place(Path::new("a/../b/."), None).unwrap(), here.join("b"));
        assert_eq!(place(Path::new("."), Some(Path::new("/x/../y"))).unwrap(), Path::new("/y"));
    }

    #[test]
    fn no_share_is_the_root_folder() {
        assert!(place(Path::new("/"), None).is_err());
        assert!(place(Path::new("."), Some(Path::new("/x/.."))).is_err());
    }
}
