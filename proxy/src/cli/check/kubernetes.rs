//! CiliumNetworkPolicies as policies that know which file they were made of.

use serde_json::Value;

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
        made.sources.push(Source { policy: translated.policy, origin: Origin::Parts(parts) });
    }
    made
}
