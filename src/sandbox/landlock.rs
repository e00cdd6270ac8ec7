//! Landlock (landlock(7)): no file can be opened, made, moved or removed but in folders that are named, in the VM process
//! those shared with the guest, no TCP port bound or connected to, and no process outside of the machine signalled,
//! whatever the root folder is.

use std::os::fd::BorrowedFd;

use anyhow::{Context, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

/// The latest that this knows of; the kernel's may be older.
pub(super) const LATEST: ABI = ABI::V6;

/// What may be done in a folder shared with the guest. Nothing there is ever run, nor are devices opened.
pub(super) fn share(writable: bool) -> BitFlags<AccessFs> {
    if writable {
        AccessFs::from_all(LATEST) & !(AccessFs::Execute | AccessFs::IoctlDev)
    } else {
        AccessFs::ReadFile | AccessFs::ReadDir
    }
}

/// What is done in a folder that files are written to.
pub(super) fn writes() -> BitFlags<AccessFs> {
    AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile
}

/// What is done in a folder that a name is removed from.
pub(super) fn removes() -> BitFlags<AccessFs> {
    AccessFs::RemoveFile.into()
}

/// What is done in the folder of a group of processes, to end and remove it.
pub(super) fn ends_groups() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::RemoveDir
}

/// Restricts this thread, and those that it starts, to these folders and what may be done in them, and from reaching
/// others outside in the ways of `scopes`.
///
/// # Errors
/// The kernel has no Landlock, or refuses.
pub(super) fn restrict(
    folders: &[(BorrowedFd<'_>, BitFlags<AccessFs>)],
    scopes: BitFlags<Scope>,
) -> anyhow::Result<()> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LATEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(LATEST)))
        .and_then(|rules| rules.scope(scopes))
        .and_then(Ruleset::create)
        .context("cannot make a set of rules")?;
    for (folder, access) in folders {
        rules = rules.add_rule(PathBeneath::new(folder, *access)).context("cannot add a rule")?;
    }
    let status = rules.restrict_self().context("cannot restrict this process")?;
    match status.ruleset {
        RulesetStatus::NotEnforced => bail!("this kernel has no Landlock, or it is turned off"),
        _ => Ok(()),
    }
}
