//! An explanation as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tollgate_policy::{
    ConnectionVerdict, DenyReason, Explanation, NearestMiss, PolicyExplanation, RuleExplanation, RuleRef, RuleVerdict,
    Verdict,
};

use super::{AskedRequest, Canonical, Explained, Question};
use crate::reason::Reason;

/// What decided, whatever layer it was.
enum Decision<'a> {
    Rule(RuleRef),
    /// The connection is admitted and its requests are judged one by one.
    Inspect,
    Denied(DenyReason, Option<&'a NearestMiss>),
    /// The path has no canonical form.
    Refused(&'a str),
}

fn decision<'a>(question: &'a Question, explanation: &'a Explanation) -> Decision<'a> {
    match (&explanation.connection, &explanation.request) {
        (ConnectionVerdict::Deny { reason, nearest }, _) => Decision::Denied(*reason, nearest.as_deref()),
        (ConnectionVerdict::AllowTcp { rule, .. }, _) => Decision::Rule(*rule),
        (ConnectionVerdict::InspectHttp, Some(Verdict::Allow { rule, .. })) => Decision::Rule(*rule),
        (ConnectionVerdict::InspectHttp, Some(Verdict::Deny { reason, nearest, .. })) => {
            Decision::Denied(*reason, nearest.as_deref())
        }
        (ConnectionVerdict::InspectHttp, None) => question.refused_path().map_or(Decision::Inspect, Decision::Refused),
    }
}

fn verdict(verdict: RuleVerdict) -> String {
    match verdict {
        RuleVerdict::Allow => "allow".to_owned(),
        RuleVerdict::Deny => "deny".to_owned(),
        RuleVerdict::Pass(precedence) => format!("pass below {precedence}"),
    }
}

/// For people: the answer first, then why, then every rule that covers the port.
pub(super) fn text(explained: &Explained) -> String {
    let Explained { answer, question, explanation, quarantined, checked } = explained;
    let mut out = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(out, "{}: {}", answer.word(), subject(question));
    match decision(question, explanation) {
        Decision::Rule(rule) => {
            let _ = writeln!(out, "  by rule: {rule}");
        }
        Decision::Inspect => {
            let _ = writeln!(out, "  each HTTP request on it is judged; name a METHOD and PATH to ask about one");
        }
        Decision::Denied(reason, nearest) => {
            let _ = writeln!(out, "  reason: {}", Reason::from(reason).code());
            if let Some(miss) = nearest {
                let _ = writeln!(out, "  nearest rule: {miss}");
            }
        }
        Decision::Refused(why) => {
            let _ = writeln!(out, "  reason: {}, before any policy: {why}", Reason::AmbiguousPath.code());
        }
    }
    if let Some(line) = note(question, explanation) {
        let _ = writeln!(out, "  note: {line}");
    }
    if *checked {
        out.push_str("  reference: agrees\n");
    }
    for policy in &explanation.policies {
        policy_text(&mut out, policy);
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
        Some(request) => format!("{} {}", request.method, request.path),
        None => "connection".to_owned(),
    };
    format!(
        "{request} {peer} identity {}, port {}, {} policy of {}",
        question.remote, question.port, question.direction, question.endpoint
    )
}

/// What the answer rests on beside policy.
fn note(question: &Question, explanation: &Explanation) -> Option<String> {
    let request = question.request.as_ref()?;
    let note = match (&explanation.connection, &request.canonical) {
        (ConnectionVerdict::Deny { .. }, _) => {
            "the connection itself is denied, so it is reset before any request".to_owned()
        }
        (ConnectionVerdict::AllowTcp { .. }, _) => {
            "the port has no HTTP rules: it is passed as TCP and requests are not looked at".to_owned()
        }
        (ConnectionVerdict::InspectHttp, Canonical::Redirected(path)) => format!(
            "the client is first sent (307) to {}; this is about the request it then makes",
            String::from_utf8_lossy(path)
        ),
        (ConnectionVerdict::InspectHttp, Canonical::Path(path)) if path != request.path.as_bytes() => {
            format!("matched and forwarded as {}", String::from_utf8_lossy(path))
        }
        (ConnectionVerdict::InspectHttp, Canonical::Path(_) | Canonical::Refused(_)) => return None,
    };
    Some(note)
}

fn policy_text(out: &mut String, policy: &PolicyExplanation) {
    let _ = writeln!(out, "policy {}:", policy.resource);
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

/// For programs: one object with the same content as [`text`].
pub(super) fn json(explained: &Explained) -> Value {
    let Explained { answer, question, explanation, quarantined, checked } = explained;
    let mut object = json!({
        "verdict": answer.word(),
        "endpoint": question.endpoint.to_string(),
        "direction": question.direction.as_str(),
        "identity": question.remote.0,
        "port": question.port,
        "layer": match explanation.connection {
            ConnectionVerdict::InspectHttp => "http",
            ConnectionVerdict::AllowTcp { .. } | ConnectionVerdict::Deny { .. } => "connection",
        },
    });
    match decision(question, explanation) {
        Decision::Rule(rule) => object["rule"] = rule.to_string().into(),
        Decision::Inspect => {}
        Decision::Denied(reason, nearest) => {
            object["reason"] = Reason::from(reason).code().into();
            object["nearest_miss"] = nearest.map(miss_json).unwrap_or_default();
        }
        Decision::Refused(why) => {
            object["reason"] = Reason::AmbiguousPath.code().into();
            object["path_error"] = why.into();
        }
    }
    if let Some(request) = &question.request {
        object["request"] = request_json(request);
    }
    object["policies"] = explanation.policies.iter().map(policy_json).collect();
    object["quarantined"] = quarantined.as_slice().into();
    if *checked {
        object["reference"] = "agrees".into();
    }
    object
}

fn request_json(request: &AskedRequest) -> Value {
    let (canonical, redirected) = match &request.canonical {
        Canonical::Path(path) => (Some(path), false),
        Canonical::Redirected(path) => (Some(path), true),
        Canonical::Refused(_) => (None, false),
    };
    json!({
        "method": request.method,
        "authority": request.authority,
        "path": request.path,
        "canonical_path": canonical.map(|path| String::from_utf8_lossy(path)),
        "redirected": redirected,
    })
}

fn miss_json(miss: &NearestMiss) -> Value {
    json!({
        "rule": miss.rule.to_string(),
        "name": miss.name.as_deref(),
        "field": &*miss.field,
        "expected": &*miss.expected,
        "matched": miss.matched.iter().map(|field| &**field).collect::<Vec<_>>(),
    })
}

fn policy_json(policy: &PolicyExplanation) -> Value {
    json!({
        "resource": &*policy.resource,
        "refused": policy.refused.as_ref().map(ToString::to_string),
        "rules": policy.rules.iter().map(rule_json).collect::<Vec<_>>(),
    })
}

fn rule_json(rule: &RuleExplanation) -> Value {
    let predicates = rule.predicates.iter().map(|predicate| {
        json!({
            "field": &*predicate.field,
            "expected": &*predicate.expected,
            "matched": predicate.matched,
            "quarantined": predicate.quarantined,
        })
    });
    json!({
        "rule": rule.rule.to_string(),
        "name": rule.name.as_deref(),
        "precedence": rule.precedence,
        "verdict": verdict(rule.verdict),
        "outcome": rule.outcome.to_string(),
        "predicates": predicates.collect::<Vec<_>>(),
    })
}
