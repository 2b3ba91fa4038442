//! An explanation for people.

use std::fmt::Write as _;

use tollgate_policy::{ConnectionVerdict, Explanation, HeaderEdits, HeaderLog, PolicyExplanation, Verdict};

use super::decision::{Decision, decision, verdict};
use super::{AskedRequest, Explained, IfSeen, Question, Taken};
use crate::http::respond::LocalReply;
use crate::reason::Reason;

/// The answer first, then why, then every rule that covers the port.
pub(super) fn write(explained: &Explained) -> String {
    let Explained { answer, question, explanation, places, quarantined, checked, .. } = explained;
    let mut out = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(out, "{}: {}", answer.words(), subject(question));
    let decision = decision(explained);
    match &decision {
        Decision::Rule(rule) => {
            let _ = writeln!(out, "  by rule: {rule}");
        }
        Decision::Inspect => {
            let _ = writeln!(out, "  each HTTP request on it is judged; name a METHOD and PATH to ask about one");
        }
        Decision::Denied(reason, nearest) => {
            let _ = writeln!(out, "  reason: {}", Reason::from(*reason).code());
            if let Some(miss) = nearest {
                let _ = writeln!(out, "  nearest rule: {miss}");
            }
        }
        Decision::Refused(refusal) => {
            let _ = writeln!(out, "  reason: {}, before any policy: {}", refusal.reason.code(), refusal.detail);
        }
    }
    if let Some(gets) = client_gets(explained) {
        let _ = writeln!(out, "  the client gets: {gets}");
    }
    if let Some(line) = note(question, explanation) {
        let _ = writeln!(out, "  note: {line}");
    }
    if let Some(IfSeen { name, answer }) = &explained.if_seen {
        let _ = writeln!(
            out,
            "  note: this version does not look into TLS, so the server name {name:?} counts for nothing; if it was seen: {}",
            answer.words()
        );
    }
    if let (ConnectionVerdict::InspectHttp, Some(verdict)) = (&explanation.connection, &explanation.request) {
        header_matches(&mut out, verdict);
    }
    if *checked {
        out.push_str("  reference: agrees\n");
    }
    if let Some(paid_by) = &explained.paid_by {
        let _ = writeln!(out, "  tenant: {}", paid_by.text());
    }
    if matches!(decision, Decision::Refused(_)) {
        return out; // no rule was asked
    }
    if explanation.policies.len() > 1 {
        let (count, endpoint) = (explanation.policies.len(), question.endpoint);
        let _ = writeln!(out, "  note: {count} policies claim {endpoint}, and each of them has to allow");
    }
    for policy in &explanation.policies {
        missing_secrets(&mut out, policy, explained.offline);
    }
    for (policy, place) in explanation.policies.iter().zip(places) {
        policy_text(&mut out, policy, place.as_deref());
    }
    if !quarantined.is_empty() {
        out.push_str("not enforced as written (quarantined):\n");
        for line in quarantined {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

fn subject(question: &Question) -> String {
    let peer = match question.direction {
        tollgate_policy::Direction::Ingress => "from",
        tollgate_policy::Direction::Egress => "to",
    };
    let request = match &question.request {
        Some(request) => format!("{} {}", request.method, request.path.escape_debug()),
        None => "connection".to_owned(),
    };
    format!(
        "{request} {peer} identity {}, port {}, {} policy of {}",
        question.remote, question.port, question.direction, question.endpoint
    )
}

/// What the client sees of a refusal or a redirect; `None` when it is let through.
fn client_gets(explained: &Explained) -> Option<String> {
    if let ConnectionVerdict::Deny { reason, .. } = &explained.explanation.connection {
        return Some(match reason {
            tollgate_policy::DenyReason::NoPolicy => {
                "a TCP reset, after the listener's policy_wait, in which a policy may still come".to_owned()
            }
            _ => "a TCP reset".to_owned(),
        });
    }
    let LocalReply { status, grpc, location, close, .. } = explained.reply.as_ref()?;
    if let Some(location) = location {
        let location = String::from_utf8_lossy(location);
        let code = Reason::PathRedirect.code();
        return Some(format!(
            "{status} with location {location} ({code}), before any policy, since the path has an escaped slash; what is \
             said here is about the request that follows"
        ));
    }
    let grpc = grpc.map(|(status, _)| format!(" with grpc-status {status}")).unwrap_or_default();
    let connection = if *close { ", and the connection is closed" } else { "" };
    Some(format!("{status}{grpc}{connection}"))
}

/// What the answer rests on beside policy.
fn note(question: &Question, explanation: &Explanation) -> Option<String> {
    let AskedRequest { path, taken, .. } = question.request.as_ref()?;
    match (&explanation.connection, taken) {
        (ConnectionVerdict::Deny { .. }, _) => {
            Some("the connection itself is denied, so it is reset before any request".to_owned())
        }
        (ConnectionVerdict::AllowTcp { .. }, _) => {
            Some("the port has no HTTP rules: it is passed as TCP and requests are not looked at".to_owned())
        }
        (ConnectionVerdict::InspectHttp, Taken::Judged(judged)) if *judged != path.as_bytes() => {
            Some(format!("matched and forwarded as {}", String::from_utf8_lossy(judged)))
        }
        (ConnectionVerdict::InspectHttp, _) => None,
    }
}

/// What header matches change in an admitted request, and what they would put into its flow record. Secrets are redacted.
fn header_matches(out: &mut String, verdict: &Verdict) {
    let log = match verdict {
        Verdict::Allow { edits, log, .. } => {
            edited(out, edits);
            log
        }
        Verdict::Deny { log, .. } => log,
    };
    let Some(log) = log else { return };
    let HeaderLog { missing, rejected } = &**log;
    for (what, fields) in [("missing", missing), ("rejected", rejected)] {
        for field in fields {
            let _ = writeln!(out, "  logged as {what}: {}: {}", field.name, field.value.escape_ascii());
        }
    }
}

fn edited(out: &mut String, edits: &HeaderEdits) {
    for edit in edits.iter() {
        let values: Vec<String> =
            edit.append.iter().map(|value| format!("\"{}\"", value.shown().escape_ascii())).collect();
        let values = values.join(", ");
        let _ = match (edit.keep, edit.append.is_empty()) {
            (true, _) => writeln!(out, "  forwarded with {}: {values} added", edit.name),
            (false, true) => writeln!(out, "  forwarded without {}", edit.name),
            (false, false) => writeln!(out, "  forwarded with {}: {values} in the place of what came", edit.name),
        };
    }
}

fn missing_secrets(out: &mut String, policy: &PolicyExplanation, offline: bool) {
    for rule in &policy.rules {
        for (name, why) in &rule.unusable_secrets {
            let how = if offline { format!(" (to this command: --secret {name}=FILE)") } else { String::new() };
            let _ = writeln!(out, "  secret {name:?} {why}, so {} admits nothing; deliver it{how}", rule.rule);
        }
    }
}

fn policy_text(out: &mut String, policy: &PolicyExplanation, place: Option<&str>) {
    let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
    let _ = writeln!(out, "policy {}{place}:", policy.resource);
    if let Some(refused) = &policy.refused {
        let _ = writeln!(out, "  denies everything on this port: {refused}");
    }
    if policy.rules.is_empty() {
        out.push_str("  no rule covers the port\n");
    }
    for rule in &policy.rules {
        let name = rule.name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
        let _ = writeln!(out, "  {}{name}: {}, {}", rule.rule, verdict(rule.verdict), rule.outcome);
        for predicate in &rule.predicates {
            let (field, expected) = (&predicate.field, &predicate.expected);
            let _ = match (predicate.quarantined, predicate.matched) {
                (true, _) => writeln!(out, "    {field} is quarantined and never matches: {expected}"),
                (false, true) => writeln!(out, "    {field} {expected}: matched"),
                (false, false) => writeln!(out, "    {field} {expected}: did not match"),
            };
        }
    }
}
