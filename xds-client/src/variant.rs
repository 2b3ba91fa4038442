//! Which variant of the protocol to speak, and which to try when a control plane does not serve it.

use std::fmt;

/// Variants of the protocol, as a Cilium agent's `--envoy-xds-mode` names them. An agent serves those of one mode only
/// (`spec/cilium-agent.md` section 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// One state-of-the-world stream per type.
    Split,
    /// One aggregated state-of-the-world stream.
    Ads,
    /// One incremental stream per type.
    DeltaSplit,
}

impl Variant {
    /// The name that configuration has for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Ads => "ads",
            Self::DeltaSplit => "delta-split",
        }
    }

    /// In which order the variants are tried when this one is the first.
    const fn candidates(self) -> [Self; 3] {
        match self {
            Self::Split => [Self::Split, Self::Ads, Self::DeltaSplit],
            Self::Ads => [Self::Ads, Self::Split, Self::DeltaSplit],
            Self::DeltaSplit => [Self::DeltaSplit, Self::Split, Self::Ads],
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which variant to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Begins with this one; when the control plane does not serve it for the first type, tries the others, for ever.
    Auto(Variant),
    /// This one only.
    Fixed(Variant),
}

impl Default for Mode {
    fn default() -> Self {
        Self::Auto(Variant::Split)
    }
}

/// The variant in use, and how the search for one that is served goes.
#[derive(Debug)]
pub(crate) struct Choice {
    candidates: [Variant; 3],
    /// How many were not served since one was.
    tried: u32,
    /// A fixed mode stays with its variant.
    fixed: bool,
}

impl Choice {
    pub(crate) const fn new(mode: Mode) -> Self {
        let (variant, fixed) = match mode {
            Mode::Auto(variant) => (variant, false),
            Mode::Fixed(variant) => (variant, true),
        };
        Self { candidates: variant.candidates(), tried: 0, fixed }
    }

    pub(crate) const fn is_fixed(&self) -> bool {
        self.fixed
    }

    pub(crate) const fn current(&self) -> Variant {
        self.candidates[self.tried as usize % self.candidates.len()]
    }

    /// The current variant is served: a later search begins with it.
    pub(crate) const fn served(&mut self) {
        self.candidates = self.current().candidates();
        self.tried = 0;
    }

    /// The current variant is not served. Returns whether this is the first one since one was.
    pub(crate) const fn not_served(&mut self) -> bool {
        if !self.fixed {
            // Stays in step with the candidates when it cannot grow any more.
            self.tried = if self.tried >= u32::MAX - 3 { self.tried - 2 } else { self.tried + 1 };
        }
        self.tried == 1
    }

    /// How many rounds through all variants ended without success, when one has just ended: the next should wait.
    pub(crate) const fn fruitless_rounds(&self) -> Option<u32> {
        let count = self.candidates.len() as u32;
        if self.tried > 0 && self.tried.is_multiple_of(count) { Some(self.tried / count) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_tried_and_the_last_good_one_first() {
        for start in [Variant::Split, Variant::Ads, Variant::DeltaSplit] {
            let mut choice = Choice::new(Mode::Auto(start));
            let mut tried = Vec::new();
            for round in 1..=2 {
                for _ in 0..3 {
                    assert_eq!(choice.fruitless_rounds(), (round > 1 && tried.len() % 3 == 0).then_some(1));
                    tried.push(choice.current());
                    assert_eq!(choice.not_served(), tried.len() == 1);
                }
            }
            assert_eq!(tried[0], start);
            assert_eq!(tried[..3], tried[3..]);
            for variant in [Variant::Split, Variant::Ads, Variant::DeltaSplit] {
                assert!(tried.contains(&variant));
            }
            assert_eq!(choice.fruitless_rounds(), Some(2));
            choice.not_served();
            let served = choice.current();
            choice.served();
            assert_eq!((choice.current(), choice.fruitless_rounds()), (served, None));
            assert!(choice.not_served(), "the next search is news again");
        }
    }

    #[test]
    fn state_of_the_world_is_the_next_choice_after_an_agent_changes_its_mode() {
        for (spoken, next) in
            [(Variant::Split, Variant::Ads), (Variant::Ads, Variant::Split), (Variant::DeltaSplit, Variant::Split)]
        {
            let mut choice = Choice::new(Mode::Auto(spoken));
            choice.not_served();
            assert_eq!(choice.current(), next);
        }
    }

    #[test]
    fn a_fixed_mode_stays() {
        let mut choice = Choice::new(Mode::Fixed(Variant::Ads));
        assert!(!choice.not_served());
        assert_eq!((choice.current(), choice.fruitless_rounds()), (Variant::Ads, None));
    }
}
