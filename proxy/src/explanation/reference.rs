//! `--reference`: the same question to the second, literal evaluator.

use tollgate_policy::reference::{ConnectionJudgement, Denial, Judgement, Reference};
use tollgate_policy::{ConnectionVerdict, Explanation, Flow, Request, RuleRef, Secrets, Verdict};

use crate::reason::Reason;

/// How the reference differs from the engine of the data path; `None` when both say the same.
pub(super) fn difference(
    reference: &Reference,
    flow: &Flow<'_>,
    request: Option<&Request<'_>>,
    secrets: &Secrets,
    explanation: &Explanation,
) -> Option<String> {
    let connection = reference.connection(flow);
    if !connection.agrees_with(&explanation.connection) {
        return Some(format!(
            "about the connection the data path's says: {}; the reference: {}",
            compiled_connection(&explanation.connection),
            reference_connection(&connection)
        ));
    }
    let (Some(request), Some(verdict)) = (request, &explanation.request) else { return None };
    let (judgement, effects) = reference.request(flow, request, secrets);
    (!judgement.agrees_with(&effects, request, verdict)).then(|| {
        let (compiled, reference) = (compiled_request(verdict), reference_request(&judgement));
        match compiled == reference {
            // Not what: there could be secrets in it.
            true => format!("about what header matches do to the request, where both say: {reference}"),
            false => format!("about the request the data path's says: {compiled}; the reference: {reference}"),
        }
    })
}

fn compiled_connection(verdict: &ConnectionVerdict) -> String {
    match verdict {
        ConnectionVerdict::AllowTcp { rule, .. } => allowed(rule),
        ConnectionVerdict::InspectHttp => inspected(),
        ConnectionVerdict::Deny { reason, nearest } => {
            denied(Denial { reason: *reason, rule: nearest.as_ref().map(|nearest| nearest.rule) })
        }
    }
}

fn compiled_request(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allow { rule, .. } => allowed(rule),
        Verdict::Deny { reason, nearest, .. } => {
            denied(Denial { reason: *reason, rule: nearest.as_ref().map(|nearest| nearest.rule) })
        }
    }
}

fn reference_connection(judgement: &ConnectionJudgement) -> String {
    match judgement {
        ConnectionJudgement::Tcp(rule) => allowed(rule),
        ConnectionJudgement::Http => inspected(),
        ConnectionJudgement::Deny(denial) => denied(*denial),
    }
}

fn reference_request(judgement: &Judgement) -> String {
    match judgement {
        Judgement::Allow(rule) => allowed(rule),
        Judgement::Deny(denial) => denied(*denial),
    }
}

fn allowed(rule: &RuleRef) -> String {
    format!("allowed by {rule}")
}

fn inspected() -> String {
    "each request is judged".to_owned()
}

fn denied(denial: Denial) -> String {
    let code = Reason::from(denial.reason).code();
    denial.rule.map_or_else(|| format!("denied, {code}"), |rule| format!("denied, {code}, {rule}"))
}

#[cfg(test)]
mod tests {
    use tollgate_policy::model::{PortPolicy, PortRule, RuleVerdict};
    use tollgate_policy::{Direction, EndpointKey, NetworkPolicy, NoHeaders, SecurityId, ServerName, Snapshot};

    use super::*;

    fn policy(verdict: RuleVerdict, http: bool) -> NetworkPolicy {
        let rule = PortRule { verdict, http: http.then(|| vec![Default::default()]), ..PortRule::default() };
        NetworkPolicy {
            endpoint_id: 7,
            endpoints: vec![EndpointKey::parse("10.0.0.1")],
            ingress: vec![PortPolicy { port: 80, rules: vec![rule], ..PortPolicy::default() }],
            egress: Vec::new(),
        }
    }

    /// The two are given different policies, which is the one sure way to make them differ.
    #[test]
    fn says_what_differs() {
        let endpoint = EndpointKey::parse("10.0.0.1");
        let flow = Flow {
            direction: Direction::Ingress,
            endpoint: &endpoint,
            remote: SecurityId(1),
            port: 80,
            proxy_id: 0,
            server_name: ServerName::Absent,
        };
        let request = Request { method: b"GET", scheme: b"http", authority: b"a", path: b"/", headers: &NoHeaders };
        let (tcp, http, deny) =
            (policy(RuleVerdict::Allow, false), policy(RuleVerdict::Allow, true), policy(RuleVerdict::Deny, false));
        let rule = "7 ingress_per_port_policies[0].rules[0]";
        let tcp_by = format!("allowed by {rule}");
        let denied = format!("denied, deny_rule, {rule}");
        let judged = "each request is judged".to_owned();
        let cases = [
            (&tcp, &tcp, None),
            (&http, &http, None),
            (&deny, &deny, None),
            (&tcp, &deny, Some((&tcp_by, &denied))),
            (&deny, &http, Some((&denied, &judged))),
            (&http, &tcp, Some((&judged, &tcp_by))),
        ];
        for (compiled, literal, expected) in cases {
            let mut builder = Snapshot::empty().update();
            builder.replace_all([compiled.clone()]);
            let explanation = builder.build().explain(&flow, Some(&request), &Secrets::default());
            let reference = Reference::of([literal.clone()]);
            let found = difference(&reference, &flow, Some(&request), &Secrets::default(), &explanation);
            let expected = expected.map(|(data, reference)| {
                format!("about the connection the data path's says: {data}; the reference: {reference}")
            });
            assert_eq!(found, expected);
        }
    }
}
