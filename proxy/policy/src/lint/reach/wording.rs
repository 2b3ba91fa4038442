//! What is said about a rule that never decides. What is advised never admits more than before, unless it says so.

use super::super::finding::{Element, Finding, Lint};
use super::Pointless;
use super::left::Left;
use super::unit::Unit;
use crate::model::RuleVerdict;

/// Most rules that a finding names.
const NAMED: usize = 4;

const WITHOUT_HTTP: &str = "on a port without HTTP rules any bytes pass, not only requests";

pub(super) fn describe(direction: &Element, pointless: &Pointless<'_>, left: &Left) -> Finding {
    let Pointless { unit, by } = pointless;
    let same_verdict = by.iter().all(|by| by.rule.verdict == unit.rule.verdict);
    let lint = match (same_verdict, unit.rule.http.is_some() && by.iter().all(|by| by.http().is_none())) {
        (true, true) => Lint::HttpRuleWithoutEffect,
        (true, false) => Lint::RedundantRule,
        (false, _) => Lint::ShadowedRule,
    };
    let needed = left.loses_http(unit);
    let mut instead = remedy(lint, needed).to_owned();
    if left.empties_entry(unit) && !needed {
        instead.push_str("; if no rule is left in the entry, the entry too, since one without rules allows everything");
    }
    let because_of = by.first().map(|by| element(direction, by));
    Finding { because_of, needed, ..Finding::new(lint, element(direction, unit), what(direction, by, needed), instead) }
}

const fn remedy(lint: Lint, needed: bool) -> &'static str {
    match (lint, needed) {
        (Lint::HttpRuleWithoutEffect, false) => "leave this one out, or narrow the other rule to other peers or ports",
        (Lint::HttpRuleWithoutEffect, true) => "keep it, and narrow the other rule to other peers or ports",
        (Lint::RedundantRule, false) => "leave this one out, or write what it was meant to say",
        (Lint::RedundantRule, true) => "keep it, or write what it was meant to say",
        (_, false) => "leave this one out; if it was meant to decide, raise its precedence above the other's",
        (_, true) => "keep it; if it was meant to decide, raise its precedence above the other's",
    }
}

fn element(direction: &Element, unit: &Unit<'_>) -> Element {
    let entry = direction.entry(unit.entry);
    match (unit.index, unit.alternative) {
        (Some(rule), Some((alternative, _))) => entry.rule(rule).http_rule(alternative),
        (Some(rule), None) => entry.rule(rule),
        (None, _) => entry,
    }
}

fn what(direction: &Element, by: &[Unit<'_>], needed: bool) -> String {
    let verdict = by.first().map(|by| by.rule.verdict).filter(|first| by.iter().all(|by| by.rule.verdict == *first));
    let does = match (verdict, by) {
        (None, _) => "decide",
        (Some(RuleVerdict::Allow), [_]) => "allows",
        (Some(RuleVerdict::Deny), [_]) => "denies",
        (Some(RuleVerdict::Pass(_)), [_]) => "passes over",
        (Some(RuleVerdict::Allow), _) => "allow",
        (Some(RuleVerdict::Deny), _) => "deny",
        (Some(RuleVerdict::Pass(_)), _) => "pass over",
    };
    let named = |by: &Unit<'_>| {
        let name = if by.rule.name.is_empty() { String::new() } else { format!(" ({:?})", by.rule.name) };
        format!("{}{name}", element(direction, by).path)
    };
    let everything = match needed {
        true => format!("every request that this one matches, which is still needed: {WITHOUT_HTTP}"),
        false => "everything that this one matches".to_owned(),
    };
    match by {
        [by] => format!("{} {does} {everything}", named(by)),
        _ => {
            let names: Vec<String> = by.iter().take(NAMED).map(named).collect();
            let more = by.len().checked_sub(NAMED).filter(|more| *more > 0);
            let more = more.map(|more| format!(" and {more} more")).unwrap_or_default();
            format!("{}{more} together {does} {everything}", names.join(", "))
        }
    }
}
