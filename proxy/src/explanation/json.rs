//! An explanation for programs: one object with the same content as the text.

use serde_json::{Value, json};
use tollgate_policy::{
    ConnectionVerdict, HeaderEdits, LoggedHeader, NearestMiss, PolicyExplanation, RuleExplanation, Verdict,
};

use super::decision::{Decision, decision, verdict};
use super::{Answer, AskedRequest, Explained, IfSeen, Taken};
use crate::reason::Reason;

pub(super) fn write(explained: &Explained) -> Value {
    let Explained { answer, question, explanation, places, quarantined, checked, .. } = explained;
    let mut object = json!({
        "verdict": answer.verdict(),
        "endpoint": question.endpoint.to_string(),
        "direction": question.direction.as_str(),
        "identity": question.remote.0,
        "port": question.port,
        "layer": match explanation.connection {
            ConnectionVerdict::InspectHttp => "http",
            ConnectionVerdict::AllowTcp { .. } | ConnectionVerdict::Deny { .. } => "connection",
        },
    });
    if let Answer::Redirected { then_allowed } = answer {
        object["then"] = if *then_allowed { "allowed" } else { "denied" }.into();
    }
    match decision(explained) {
        Decision::Rule(rule) => object["rule"] = rule.to_string().into(),
        Decision::Inspect => {}
        Decision::Denied(reason, nearest) => {
            object["reason"] = Reason::from(reason).code().into();
            object["nearest_miss"] = nearest.map(miss_json).unwrap_or_default();
        }
        Decision::Refused(refusal) => {
            object["reason"] = refusal.reason.code().into();
            object["detail"] = refusal.detail.as_str().into();
        }
    }
    object["client_gets"] = client_gets(explained);
    if let Some(request) = &question.request {
        object["request"] = request_json(request);
    }
    if let (ConnectionVerdict::InspectHttp, Some(verdict)) = (&explanation.connection, &explanation.request) {
        header_matches(&mut object, verdict);
    }
    // No rule was asked about what is refused before.
    let asked = explained.refused().is_none();
    let policies = || explanation.policies.iter().filter(|_| asked);
    object["policies"] = policies().zip(places).map(|(policy, place)| policy_json(policy, place.as_deref())).collect();
    let rules = policies().flat_map(|policy| &policy.rules);
    let secrets = rules.flat_map(|rule| rule.unusable_secrets.iter().map(move |(name, why)| (name, why, rule.rule)));
    object["unusable_secrets"] =
        secrets.map(|(name, why, rule)| json!({ "name": name, "reason": why, "rule": rule.to_string() })).collect();
    object["quarantined"] = quarantined.as_slice().into();
    if let Some(IfSeen { name, answer }) = &explained.if_seen {
        object["if_server_name_was_seen"] = json!({ "server_name": name, "verdict": answer.words() });
    }
    if *checked {
        object["reference"] = "agrees".into();
    }
    if let Some(paid_by) = &explained.paid_by {
        object["tenant"] = paid_by.json();
    }
    object
}

/// Null when the client is let through.
fn client_gets(explained: &Explained) -> Value {
    if matches!(explained.explanation.connection, ConnectionVerdict::Deny { .. }) {
        return json!({ "reset": true });
    }
    explained.reply.as_ref().map_or(Value::Null, |reply| {
        json!({
            "status": reply.status,
            "grpc_status": reply.grpc.map(|(status, _)| status),
            "location": reply.location.as_deref().map(String::from_utf8_lossy),
            "close": reply.close,
        })
    })
}

/// `edits` of an admitted request, and the lists that its flow record has. Secrets are redacted.
fn header_matches(object: &mut Value, verdict: &Verdict) {
    let log = match verdict {
        Verdict::Allow { edits, log, .. } => {
            object["edits"] = edits_json(edits);
            log
        }
        Verdict::Deny { log, .. } => log,
    };
    let fields = |fields: &[LoggedHeader]| -> Value {
        let field = |f: &LoggedHeader| json!({ "name": f.name, "value": String::from_utf8_lossy(&f.value) });
        fields.iter().map(field).collect()
    };
    object["missing_headers"] = log.as_ref().map_or_else(|| json!([]), |log| fields(&log.missing));
    object["rejected_headers"] = log.as_ref().map_or_else(|| json!([]), |log| fields(&log.rejected));
}

fn edits_json(edits: &HeaderEdits) -> Value {
    let edit = |edit: &tollgate_policy::FieldEdit| {
        let action = match (edit.keep, edit.append.is_empty()) {
            (true, _) => "add",
            (false, true) => "remove",
            (false, false) => "replace",
        };
        let values = edit.append.iter().map(|value| String::from_utf8_lossy(value.shown()));
        json!({ "name": edit.name, "action": action, "values": values.collect::<Vec<_>>() })
    };
    edits.iter().map(edit).collect()
}

fn request_json(request: &AskedRequest) -> Value {
    let (canonical, redirected) = match &request.taken {
        Taken::Judged(path) => (Some(path), false),
        Taken::Redirected(path) => (Some(path), true),
        Taken::Refused(_) => (None, false),
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

fn policy_json(policy: &PolicyExplanation, place: Option<&str>) -> Value {
    json!({
        "resource": &*policy.resource,
        "file": place,
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
