//! What policies that are in force together do to each other.

use std::collections::HashMap;

use super::finding::{Element, Finding, Lint};
use crate::model::{EndpointKey, NetworkPolicy};

pub(super) fn check(policies: &[NetworkPolicy], findings: &mut Vec<Finding>) {
    let mut ids: HashMap<u64, usize> = HashMap::new();
    let mut claims: HashMap<&EndpointKey, (usize, usize)> = HashMap::new();
    for (number, policy) in policies.iter().enumerate() {
        let here = Element::policy(number);
        let first = *ids.entry(policy.endpoint_id).or_insert(number);
        if first != number {
            let what = format!("endpoint id {} has another policy already", policy.endpoint_id);
            let instead = "give each endpoint one policy, or another number".to_owned();
            let finding = Finding::new(Lint::DuplicateEndpointId, here.field("endpoint_id"), what, instead);
            findings.push(Finding { because_of: Some(Element::policy(first).field("endpoint_id")), ..finding });
        }
        for (index, key) in policy.endpoints.iter().enumerate() {
            let (first, at) = *claims.entry(key).or_insert((number, index));
            if (first, at) == (number, index) {
                continue;
            }
            let what = match first == number {
                true => format!("{key} is listed twice"),
                false => format!("{key} is claimed by the policy of endpoint {} already", policies[first].endpoint_id),
            };
            let element = here.field(&format!("endpoint_ips[{index}]"));
            let instead = "list each address once, in one policy, which then decides alone".to_owned();
            let finding = Finding::new(Lint::DuplicateEndpoint, element, what, instead);
            let because_of = Some(Element::policy(first).field(&format!("endpoint_ips[{at}]")));
            findings.push(Finding { because_of, ..finding });
        }
    }
}
