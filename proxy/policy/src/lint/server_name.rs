//! Rules that ask for a TLS server name, which this version never knows ([`ServerName::Unknown`](crate::ServerName)).

use super::finding::{Element, Finding, Lint};
use crate::model::{PortRule, RuleVerdict};

pub(super) fn check(element: &Element, rule: &PortRule, findings: &mut Vec<Finding>) {
    if rule.server_names.is_empty() {
        return;
    }
    let (comes_to, instead) = match rule.verdict {
        RuleVerdict::Allow => {
            ("so the rule admits nothing", "leave the rule out; or its `server_names`, if every name is fine, and none")
        }
        RuleVerdict::Deny => (
            "so the rule denies everything that its other conditions cover, whatever its name",
            "leave its `server_names` out, which changes nothing; or the rule, if that is too much",
        ),
        RuleVerdict::Pass(_) => (
            "so everything that its other conditions cover is denied, not passed over",
            "a deny without `server_names`, which is what it comes to",
        ),
    };
    let what = format!("TLS is not looked into, {comes_to}");
    let element = element.field("server_names");
    findings.push(Finding::new(Lint::ServerNameUnseen, element, what, instead.to_owned()));
}
