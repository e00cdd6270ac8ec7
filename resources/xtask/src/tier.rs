//! When a test runs: each is in exactly one tier, and a run takes all tiers up to one.

use std::fmt;

use crate::user;

/// How long a run may take, and so what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Every push: twenty minutes on two processors.
    Quick,
    /// Every night, and before something is called done.
    Nightly,
    /// Every combination of what the others take a part of.
    All,
}

impl fmt::Display for Tier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Quick => "quick",
            Self::Nightly => "nightly",
            Self::All => "all",
        })
    }
}

/// The tiers of a test that root can run, and an ordinary user, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// Of root's run.
    pub root: Tier,
    /// Of the user's, if what they may do suffices.
    pub user: Option<Tier>,
}

impl Tiers {
    /// Run by an ordinary user in the quick tier, and by root every night.
    pub const USER: Self = Self { root: Tier::Nightly, user: Some(Tier::Quick) };
    /// Run by root in the quick tier.
    pub const ROOT: Self = Self { root: Tier::Quick, user: Some(Tier::All) };
    /// Run by both in the quick tier, as what is proved differs.
    pub const BOTH: Self = Self { root: Tier::Quick, user: Some(Tier::Quick) };
    /// Run by root in the quick tier, who alone can.
    pub const ROOT_ALONE: Self = Self { root: Tier::Quick, user: None };
    /// Run by root every night.
    pub const NIGHTLY: Self = Self { root: Tier::Nightly, user: Some(Tier::All) };
    /// Run by root every night, who alone can.
    pub const NIGHTLY_ALONE: Self = Self { root: Tier::Nightly, user: None };
    /// Run by an ordinary user every night.
    pub const NIGHTLY_BY_USER: Self = Self { root: Tier::All, user: Some(Tier::Nightly) };
    /// Run by both every night.
    pub const NIGHTLY_BY_BOTH: Self = Self { root: Tier::Nightly, user: Some(Tier::Nightly) };
    /// Run where everything is.
    pub const ALL: Self = Self { root: Tier::All, user: Some(Tier::All) };
    /// Run by root where everything is, who alone can.
    pub const ALL_ALONE: Self = Self { root: Tier::All, user: None };

    /// Who runs the test, by the marks of names, and in which tier. Where there is but one who could, they run it as early
    /// as anybody would.
    pub fn runs(self, both: bool) -> Vec<(bool, Tier)> {
        match self.user {
            Some(user) if both => vec![(false, self.root), (true, user)],
            Some(user) => vec![(false, self.root.min(user))],
            None => vec![(false, self.root)],
        }
    }
}

/// What is run: the tests of some tiers, or those that were named.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The last tier of them.
    pub tier: Tier,
    /// What names begin with, without the user's mark or with it; all, if there are none.
    pub names: Vec<String>,
}

impl Choice {
    /// Whether a test of this name and tier is run.
    pub fn takes(&self, name: &str, tier: Tier) -> bool {
        match self.names.as_slice() {
            [] => tier <= self.tier,
            names => {
                let bare = name.strip_prefix(user::MARK).unwrap_or(name);
                names.iter().any(|wanted| name.starts_with(wanted) || bare.starts_with(wanted))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_its_tier_and_those_before_or_what_is_named_of_any() {
        let nightly = Choice { tier: Tier::Nightly, names: Vec::new() };
        assert!(nightly.takes("a", Tier::Quick) && nightly.takes("a", Tier::Nightly));
        assert!(!nightly.takes("a", Tier::All));
        let named = Choice { tier: Tier::Quick, names: vec!["net/".to_owned()] };
        assert!(named.takes("net/tap", Tier::All) && named.takes("user/net/tap", Tier::All));
        assert!(!named.takes("command/net/", Tier::Quick));
    }

    #[test]
    fn where_one_alone_can_run_a_test_it_is_in_the_earliest_of_its_tiers() {
        assert_eq!(Tiers::USER.runs(false), [(false, Tier::Quick)]);
        assert_eq!(Tiers::USER.runs(true), [(false, Tier::Nightly), (true, Tier::Quick)]);
        assert_eq!(Tiers::ROOT_ALONE.runs(true), [(false, Tier::Quick)]);
    }
}
