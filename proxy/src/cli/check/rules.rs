//! Everything that the check can report: what the policy crate finds, and what is wrong with the files themselves.

use tollgate_policy::lint::{Lint, Severity};

/// A rule of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rule {
    /// About a policy.
    Policy(Lint),
    /// About a file.
    File(FileRule),
}

/// What is wrong with a file, or with a resource before it is a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FileRule {
    UnreadableFile,
    InvalidSyntax,
    UnknownField,
    InvalidValue,
    UnusablePolicy,
    NotAPolicy,
    NotTranslated,
    SelectsNobody,
    CoveredAsGiven,
    RefusedByProxy,
    HostsWithoutEffect,
    ContestedTenant,
    UnusableTenant,
    TenantInPart,
}

impl FileRule {
    #[cfg(test)]
    pub(super) const ALL: &[Self] = &[
        Self::UnreadableFile,
        Self::InvalidSyntax,
        Self::UnknownField,
        Self::InvalidValue,
        Self::UnusablePolicy,
        Self::NotAPolicy,
        Self::NotTranslated,
        Self::SelectsNobody,
        Self::CoveredAsGiven,
        Self::RefusedByProxy,
        Self::HostsWithoutEffect,
        Self::ContestedTenant,
        Self::UnusableTenant,
        Self::TenantInPart,
    ];

    const fn facts(self) -> (&'static str, Severity, &'static str) {
        match self {
            Self::UnreadableFile => ("unreadable-file", Severity::Error, "nothing of the file is enforced"),
            Self::InvalidSyntax => ("invalid-syntax", Severity::Error, "nothing of the file is enforced"),
            Self::UnknownField => {
                ("unknown-field", Severity::Error, "a misspelt condition would be no condition, so the file is refused")
            }
            Self::InvalidValue => ("invalid-value", Severity::Error, "nothing of the file is enforced"),
            Self::UnusablePolicy => {
                ("unusable-policy", Severity::Error, "nothing of it is enforced; the addresses that it names deny")
            }
            Self::NotTranslated => ("not-translated", Severity::Note, "nothing can be said about it"),
            Self::SelectsNobody => ("selects-nobody", Severity::Warning, "an agent leaves out what selects nobody"),
            Self::CoveredAsGiven => (
                "covered-as-given",
                Severity::Note,
                "whether it stays so depends on labels: other pods, or other endpoints, may make a difference",
            ),
            Self::RefusedByProxy => {
                ("refused-by-proxy", Severity::Error, "the proxy refuses the file, so nothing of it is enforced")
            }
            Self::HostsWithoutEffect => (
                "hosts-without-effect",
                Severity::Note,
                "a proxy takes no identities from its policy directory, only from a control plane",
            ),
            Self::ContestedTenant => (
                "contested-tenant",
                Severity::Error,
                "only one tenant has it: which had it first, or else the stricter; the limits of the other are not its",
            ),
            Self::UnusableTenant => (
                "unusable-tenant",
                Severity::Error,
                "the tenant is set aside as a whole, so none of its limits counts for its endpoints",
            ),
            Self::TenantInPart => {
                ("tenant-in-part", Severity::Error, "this has no effect; all else of the tenant is in force")
            }
            Self::NotAPolicy => ("not-a-policy", Severity::Note, "nothing in it was looked at"),
        }
    }
}

impl Rule {
    /// Its name in output; never changes.
    pub(super) const fn id(self) -> &'static str {
        match self {
            Self::Policy(lint) => lint.id(),
            Self::File(rule) => rule.facts().0,
        }
    }

    pub(super) const fn severity(self) -> Severity {
        match self {
            Self::Policy(lint) => lint.severity(),
            Self::File(rule) => rule.facts().1,
        }
    }

    /// Why it matters, in one sentence.
    pub(super) const fn why(self) -> &'static str {
        match self {
            Self::Policy(lint) => lint.why(),
            Self::File(rule) => rule.facts().2,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{FileRule, Lint, Rule};

    #[test]
    fn every_rule_has_a_name_of_its_own_and_is_documented() {
        let page = include_str!("../../../../docs/policy-check.md");
        let files = FileRule::ALL.iter().map(|rule| Rule::File(*rule));
        let rules: Vec<Rule> = Lint::ALL.iter().map(|lint| Rule::Policy(*lint)).chain(files).collect();
        let ids: BTreeSet<&str> = rules.iter().map(|rule| rule.id()).collect();
        assert_eq!(ids.len(), rules.len());
        for id in ids {
            assert!(id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{id}");
            let there = page.contains(&format!("\n### {id}\n")) || page.contains(&format!("`{id}`"));
            assert!(there, "docs/policy-check.md has no {id}");
        }
    }
}
