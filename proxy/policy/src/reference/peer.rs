//! Section 1.4, what a rule asks of the connection: proxy id, identity, server name.

use super::Truth;
use super::ports::Placed;
use super::server_name;
use crate::model::{PortRule, RuleVerdict};
use crate::{Flow, ServerName};

/// Whether the rule concerns the connection.
pub(super) fn concerns(placed: &Placed<'_>, flow: &Flow<'_>) -> Truth {
    let enforceable = match placed.verdict() {
        RuleVerdict::Allow if placed.is_unsupported() || lists_no_request(placed) => Truth::Unenforceable,
        // A deny with a part that cannot be honoured refuses as if it was not there.
        _ => Truth::Holds,
    };
    match placed.rule() {
        None => enforceable,
        Some(rule) => enforceable.and(proxy_id(rule, flow)).and(remote(rule, flow)).and(requested_server(rule, flow)),
    }
}

/// Whether a pass rests on a server name that nobody looked for. What it would skip may be an allow as well as a deny, so
/// where it concerns the connection it refuses.
pub(super) fn passes_blindly(placed: &Placed<'_>, flow: &Flow<'_>) -> bool {
    flow.server_name == ServerName::Unknown && asks_server_name(placed)
}

pub(super) fn asks_server_name(placed: &Placed<'_>) -> bool {
    placed.rule().is_some_and(|rule| !rule.server_names.is_empty())
}

/// A pass rule of which nobody can say whether it applies.
pub(super) fn is_unusable_pass(placed: &Placed<'_>) -> bool {
    let Some(rule) = placed.rule() else { return false };
    matches!(rule.verdict, RuleVerdict::Pass(_))
        && (placed.is_unsupported()
            || u16::try_from(rule.proxy_id).is_err()
            || rule.server_names.iter().any(|pattern| server_name::Pattern::read(pattern).is_none()))
}

/// An HTTP part without a single rule says nothing about which requests to allow.
fn lists_no_request(placed: &Placed<'_>) -> bool {
    placed.rule().and_then(|rule| rule.http.as_ref()).is_some_and(Vec::is_empty)
}

/// 0: any listener.
fn proxy_id(rule: &PortRule, flow: &Flow<'_>) -> Truth {
    match u16::try_from(rule.proxy_id) {
        Ok(id) => Truth::of(id == 0 || id == flow.proxy_id),
        Err(_) => Truth::Unenforceable,
    }
}

/// Empty: anybody.
fn remote(rule: &PortRule, flow: &Flow<'_>) -> Truth {
    Truth::of(rule.remotes.is_empty() || rule.remotes.contains(&flow.remote.0))
}

/// Empty: any server name, also none. A pattern that cannot be read accepts nothing in an allow that has others, and
/// everything in a deny. A name that nobody looked for is accepted by no allow, and dodges no deny and no pass.
fn requested_server(rule: &PortRule, flow: &Flow<'_>) -> Truth {
    if rule.server_names.is_empty() {
        return Truth::Holds;
    }
    let patterns: Vec<_> = rule.server_names.iter().map(|pattern| server_name::Pattern::read(pattern)).collect();
    let unreadable = match rule.verdict {
        RuleVerdict::Allow => patterns.iter().all(Option::is_none),
        RuleVerdict::Deny | RuleVerdict::Pass(_) => patterns.iter().any(Option::is_none),
    };
    let accepted = match flow.server_name {
        ServerName::Name(name) => patterns.iter().flatten().any(|pattern| pattern.accepts(name)),
        ServerName::Absent => false,
        ServerName::Unknown => rule.verdict != RuleVerdict::Allow,
    };
    match (accepted, unreadable) {
        (true, _) => Truth::Holds,
        (false, true) => Truth::Unenforceable,
        (false, false) => Truth::Fails,
    }
}
