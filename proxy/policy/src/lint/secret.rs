//! Header matches that need a secret.

use super::finding::{Element, Finding, Lint};
use crate::model::PortPolicy;

pub(super) fn check(entry_element: &Element, entry: &PortPolicy, secrets: &[String], findings: &mut Vec<Finding>) {
    for (index, rule) in entry.rules.iter().enumerate() {
        for (alternative, http) in rule.http.iter().flatten().enumerate() {
            for (number, matched) in http.header_matches.iter().enumerate() {
                let Some(secret) = matched.secret.as_deref() else {
                    continue;
                };
                if !matched.value.is_empty() || secrets.iter().any(|known| known == secret) {
                    continue;
                }
                let element = entry_element.rule(index).http_rule(alternative);
                findings.push(Finding::new(
                    Lint::MissingSecret,
                    element.field(&format!("header_matches[{number}]")),
                    format!("`{}` is compared with the secret {secret:?}, which nothing delivers as far as is known here", matched.name),
                    "list it under `secrets:` of the proxy's configuration, or give an inline value for the time without it"
                        .to_owned(),
                ));
            }
        }
    }
}
