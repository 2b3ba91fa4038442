//! CiliumNetworkPolicies as policies that know which file they were made of.

use std::collections::HashMap;

use serde_json::Value;
use tollgate_policy::NetworkPolicy;
use tollgate_policy::lint::{Finding, Lint};

use super::Reported;
use super::input::{Input, Located, Origin, Place, Source};
use super::rules::{FileRule, Rule};
use crate::cilium_policy::{self, KnownIdentities, ProblemKind, Translated};

/// What the resources come to, with what cannot be translated as findings; and the same with the identities that are known.
pub(super) fn translate(resources: Vec<(Place, Value)>, known: Option<&KnownIdentities>) -> (Input, Vec<Source>) {
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
    let source = |Translated { policy, parts, partial, all_protocols }| {
        let parts = parts.into_iter().map(|part| (part.element, (places[part.resource].clone(), part.path)));
        Source { policy, origin: Origin::Parts(parts.collect()), mistakes: Vec::new(), partial, all_protocols }
    };
    made.sources = translation.policies.into_iter().map(source).collect();
    (made, translation.given.into_iter().map(source).collect())
}

/// Whether the finding says that a rule, or an HTTP rule of it, never decides.
pub(super) const fn is_pointless(lint: Lint) -> bool {
    matches!(lint, Lint::ShadowedRule | Lint::RedundantRule | Lint::HttpRuleWithoutEffect)
}

/// Takes out what is said of a part of a resource that stands for several elements (ports, endpoints) and not of all of them.
pub(super) fn keep_what_holds_everywhere(found: &mut Vec<Finding>, policies: &[NetworkPolicy], origins: &[Origin]) {
    if !found.iter().any(|finding| is_pointless(finding.lint)) {
        return;
    }
    let mut elements: HashMap<Located, usize> = HashMap::new();
    for (policy, origin) in policies.iter().zip(origins) {
        let lists = [("ingress_per_port_policies", &policy.ingress), ("egress_per_port_policies", &policy.egress)];
        let entries =
            lists.into_iter().flat_map(|(list, entries)| entries.iter().enumerate().map(move |at| (list, at)));
        for (list, (entry, rules)) in entries {
            for (rule, written) in rules.rules.iter().enumerate() {
                let path = format!("{list}[{entry}].rules[{rule}]");
                *elements.entry(origin.locate(&path)).or_default() += 1;
                for alternative in 0..written.http.as_ref().map_or(0, Vec::len) {
                    let path = format!("{path}.http_rules.http_rules[{alternative}]");
                    *elements.entry(origin.locate(&path)).or_default() += 1;
                }
            }
        }
    }
    let place = |finding: &Finding| origins[finding.element.policy].locate(&finding.element.path);
    let mut pointless: HashMap<Located, usize> = HashMap::new();
    for finding in found.iter().filter(|finding| is_pointless(finding.lint)) {
        *pointless.entry(place(finding)).or_default() += 1;
    }
    found.retain(|finding| {
        let place = place(finding);
        !is_pointless(finding.lint) || pointless.get(&place) == elements.get(&place)
    });
}

/// Puts a finding about a policy that was made into the words of the resource that it was made of.
pub(super) fn reword(found: &Finding, finding: &mut Reported, origin: &Origin) {
    finding.what = with_paths(&finding.what, origin).replace("end_port", "endPort");
    finding.instead = finding.instead.replace("server_names", "serverNames");
    let instead = match found.lint {
        lint if is_pointless(lint) => pointless_remedy(found, &finding.at.element),
        Lint::InvalidPort => "a port from 1 to 65535, and an endPort that is not below it; no `ports` for every port",
        Lint::PatternInText => "the value as it is sent: `headers` and `headerMatches` have no patterns",
        Lint::ColonMissing => "`path`, `method` or `host` of the HTTP rule itself",
        Lint::MissingSecret => "say `--secret NAME` if it will be there, or give a `value` for the time without it",
        _ => return,
    };
    instead.clone_into(&mut finding.instead);
}

fn pointless_remedy(found: &Finding, element: &str) -> &'static str {
    let of_ports = element.ends_with(']') && element.rfind("toPorts[").is_some_and(|at| !element[at..].contains('.'));
    match (found.lint, found.needed) {
        (Lint::ShadowedRule, true) => "keep it; if it was meant to decide, narrow the other rule",
        (_, true) => "keep it, and narrow the other rule if this one was meant to restrict",
        (_, false) if of_ports => {
            "leave this item of `toPorts` out, with its rule if it is the only one: a rule without `toPorts` is for every port"
        }
        (_, false) => "leave this one out, or narrow the other rule if this one was meant to restrict",
    }
}

/// What is so with the identities and endpoints that are known, and may be otherwise with others.
pub(super) fn as_given(finding: Reported) -> Reported {
    Reported {
        rule: Rule::File(FileRule::CoveredAsGiven),
        what: format!("with the identities and endpoints given, {}", finding.what),
        instead: "nothing, if that is meant; left out, it may be missed when labels change".to_owned(),
        ..finding
    }
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
