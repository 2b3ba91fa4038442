//! CiliumNetworkPolicies as policies that know which file they were made of.

use serde_json::Value;
use tollgate_policy::lint::Lint;

use super::Reported;
use super::input::{Input, Origin, Place, Source};
use super::rules::FileRule;
use crate::cilium_policy::{self, KnownIdentities, ProblemKind};

/// What the resources come to, with what cannot be translated as findings.
pub(super) fn translate(resources: Vec<(Place, Value)>, known: Option<&KnownIdentities>) -> Input {
    let (places, values): (Vec<Place>, Vec<Value>) = resources.into_iter().unzip();
    let translation = cilium_policy::translate(&values.iter().collect::<Vec<_>>(), known);
    let mut made = Input::default();
    for (resource, problem) in translation.problems {
        let rule = match problem.kind {
            ProblemKind::UnknownField => FileRule::UnknownField,
            ProblemKind::InvalidValue => FileRule::InvalidValue,
            ProblemKind::NotTranslated => FileRule::NotTranslated,
            ProblemKind::SelectsNobody => FileRule::SelectsNobody,
        };
        made.unusable |= matches!(rule, FileRule::UnknownField | FileRule::InvalidValue);
        made.findings.push(places[resource].report(rule, &problem.path, problem.what, &problem.instead));
    }
    for translated in translation.policies {
        let parts = translated.parts.into_iter();
        let parts = parts.map(|part| (part.element, places[part.resource].clone(), part.path)).collect();
        made.sources.push(Source { policy: translated.policy, origin: Origin::Parts(parts), mistakes: Vec::new() });
    }
    made
}

/// Puts a finding about a policy that was made into the words of the resource that it was made of.
pub(super) fn reword(lint: Lint, finding: &mut Reported, origin: &Origin) {
    finding.what = with_paths(&finding.what, origin).replace("end_port", "endPort");
    let instead = match lint {
        Lint::InvalidPort => "a port from 1 to 65535, and an endPort that is not below it; no `ports` for every port",
        Lint::ShadowedRule => "narrow the other rule, or leave this one out",
        Lint::PatternInText => "the value as it is sent: `headers` and `headerMatches` have no patterns",
        Lint::ColonMissing => "`path`, `method` or `host` of the HTTP rule itself",
        Lint::MatchesEverything if finding.instead.contains("present_match") => "the name without a value",
        Lint::MatchesEverything => "leave it out",
        Lint::MissingSecret => "say `--secret NAME` if it will be there, or give a `value` for the time without it",
        _ => return,
    };
    instead.clone_into(&mut finding.instead);
}

/// The text, with paths of the policy in it as paths of the resource.
fn with_paths(text: &str, origin: &Origin) -> String {
    let mut words = Vec::new();
    for word in text.split(' ') {
        let path = word.trim_end_matches([',', '.', ';', ':']);
        let of_policy = ["ingress_per_port_policies[", "egress_per_port_policies["].iter().any(|l| path.starts_with(l));
        words.push(match of_policy {
            true => format!("{}{}", origin.locate(path).element, &word[path.len()..]),
            false => word.to_owned(),
        });
    }
    words.join(" ")
}
