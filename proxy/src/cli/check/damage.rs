//! Resources that cannot be used because of a mistake: the rest of them is looked at all the same, so that a misspelt
//! field does not hide what else is wrong.

use std::sync::Arc;

use serde_json::Value;
use tollgate_policy::lint::{Finding, Lint};
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::{JsonError, JsonErrors};

use crate::policy_file::place::folded;
use crate::policy_file::{self, PolicyResource};

/// A mistake that is taken out may uncover further ones.
const MAX_ROUNDS: usize = 3;

/// What is left without the fields that have mistakes, and their paths; `None` when nothing is.
pub(super) fn rest(mut value: Value, errors: &JsonErrors) -> Option<(Arc<NetworkPolicy>, Vec<String>)> {
    let paths = |errors: &JsonErrors| -> Vec<String> {
        errors.iter().map(policy_file::path_of).filter(|path| !path.is_empty()).map(str::to_owned).collect()
    };
    let mut mistakes = Vec::new();
    let mut found = paths(errors);
    // Some are not listed, or not where a field could be taken out.
    let cannot = |errors: &JsonErrors| {
        errors.iter().any(|error| policy_file::path_of(error).is_empty() && !matches!(error, JsonError::More))
    };
    if cannot(errors) {
        return None;
    }
    for _ in 0..MAX_ROUNDS {
        for path in &found {
            take_out(&mut value, path);
        }
        mistakes.append(&mut found);
        match policy_file::resource(value.clone()) {
            Ok(PolicyResource::Policy(policy)) => return Some((policy, mistakes)),
            Ok(PolicyResource::Hosts(_) | PolicyResource::Tenant(_)) => return None,
            Err(errors) if cannot(&errors) => return None,
            Err(errors) => found = paths(&errors),
        }
    }
    None
}

/// Removes the field that `path` names. Of a list the whole field goes: the others in it keep their numbers.
fn take_out(value: &mut Value, path: &str) {
    let mut steps: Vec<&str> = path.split(['.', '[']).filter(|step| !step.is_empty()).collect();
    while steps.last().is_some_and(|step| step.ends_with(']')) {
        steps.pop();
    }
    let Some(last) = steps.pop() else {
        return;
    };
    let mut at = value;
    for step in steps {
        let next = match step.strip_suffix(']') {
            Some(index) => index.parse::<usize>().ok().and_then(|index| at.get_mut(index)),
            None => key_of(at, step).and_then(|key| at.get_mut(key)),
        };
        let Some(next) = next else {
            return;
        };
        at = next;
    }
    if let Some(key) = key_of(at, last)
        && let Some(map) = at.as_object_mut()
    {
        map.remove(&key);
    }
}

/// The key as it is written.
fn key_of(value: &Value, name: &str) -> Option<String> {
    let map = value.as_object()?;
    let exact = map.contains_key(name).then(|| name.to_owned());
    exact.or_else(|| map.keys().find(|key| folded(key) == folded(name)).cloned())
}

/// Whether a finding is about what is written, not about what the mistakes left. What rules do to each other is not told,
/// and neither is anything about an element that a mistake is in.
pub(super) fn still_holds(finding: &Finding, mistakes: &[String]) -> bool {
    if mistakes.is_empty() {
        return true;
    }
    let relation = matches!(
        finding.lint,
        Lint::UnmatchableRule
            | Lint::NotCompared
            | Lint::ContradictoryTiers
            | Lint::EmptyHttpRules
            | Lint::ShadowedRule
    );
    let element = folded(&finding.element.path);
    let holds_mistake = |path: &String| folded(path).starts_with(&element);
    finding.because_of.is_none() && !relation && !mistakes.iter().any(holds_mistake)
}
