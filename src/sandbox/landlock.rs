//! Landlock (landlock(7)): no file can be opened, made, moved or removed but in folders shared with the guest, no TCP
//! port bound or connected to, and nobody outside signalled, whatever the root folder is.

use std::os::fd::BorrowedFd;

use anyhow::{Context, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

/// The latest that this knows of; the kernel's may be older.
const LATEST: ABI = ABI::V6;

/// Restricts this thread, and those that it starts, to `folders`; those that are `writable` may be changed.
///
/// # Errors
/// The kernel has no Landlock, or refuses.
pub(super) fn restrict(folders: &[(BorrowedFd<'_>, bool)]) -> anyhow::Result<()> {
    let all = AccessFs::from_all(LATEST);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|rules| rules.handle_access(AccessNet::from_all(LATEST)))
        .and_then(|rules| rules.scope(Scope::from_all(LATEST)))
        .and_then(Ruleset::create)
        .context("cannot make a set of rules")?;
    for (folder, writable) in folders {
        // Nothing there is ever run, nor are devices opened.
        let access = if *writable { all & !(AccessFs::Execute | AccessFs::IoctlDev) } else { read };
        rules = rules.add_rule(PathBeneath::new(folder, access)).context("cannot add a rule")?;
    }
    let status = rules.restrict_self().context("cannot restrict this process")?;
    match status.ruleset {
        RulesetStatus::NotEnforced => bail!("this kernel has no Landlock, or it is turned off"),
        _ => Ok(()),
    }
}
