//! One rule of the policy as predicates, with everything that cannot be honoured taken in its most restrictive reading.

use std::sync::Arc;

use super::column::Lowerings;
use super::index::Predicate;
use super::server_name;
use crate::limits::{Effort, Limits};
use crate::model::{
    HeaderMatch, HeaderMatcher, HttpRule, MatchAction, MismatchAction, PortRule, RuleVerdict, Unsupported,
};
use crate::secrets::value_problem;
use crate::weight::weight;

/// Where a rule stands in its direction's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) port_entry: u32,
    pub(crate) rule: Option<u32>,
}

/// An element that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) origin: Origin,
    pub(crate) http_rule: Option<u32>,
    pub(crate) element: Arc<str>,
    pub(crate) reason: Arc<str>,
}

/// A rule, shared by all port ranges that it covers.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) origin: Origin,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) precedence: u32,
    pub(crate) verdict: RuleVerdict,
    /// What the connection must be.
    pub(crate) peer: Vec<Predicate>,
    /// What the request must be: one of these, each a conjunction. `None`: any. Empty only where `peer` never holds or the
    /// verdict is no allow.
    pub(crate) http: Option<Vec<Alternative>>,
    /// Set when skipping by this pass rule cannot be trusted: the port ranges that hold it deny.
    pub(crate) unusable: Option<Finding>,
}

/// One of the HTTP rules of a rule.
#[derive(Debug)]
pub(crate) struct Alternative {
    /// What the request must be.
    pub(crate) conditions: Vec<Predicate>,
    /// What is run then.
    pub(crate) matches: Box<[HeaderMatch]>,
}

impl CompiledRule {
    /// The explicit form of "no rules: everything is allowed"; nothing, when there is a problem with the entry.
    pub(crate) fn default_allow(port_entry: u32, entry_problem: Option<&Unsupported>, findings: &mut Findings) -> Self {
        let origin = Origin { port_entry, rule: None };
        let never = entry_problem.map(|problem| {
            findings.add(origin, None, &problem.element, &problem.reason);
            never(&problem.element, &problem.reason)
        });
        Self {
            origin,
            name: Some("default allow rule".into()),
            precedence: 0,
            verdict: RuleVerdict::Allow,
            peer: never.into_iter().collect(),
            http: None,
            unusable: None,
        }
    }
}

impl CompiledRule {
    /// The header matches of an HTTP rule.
    pub(crate) fn matches(&self, http_rule: Option<u32>) -> &[HeaderMatch] {
        match (&self.http, http_rule) {
            (Some(http), Some(number)) => &http[number as usize].matches,
            _ => &[],
        }
    }

    /// What a further port range that holds it costs: one for itself, and for each condition as many as it takes tables. An
    /// identity takes little.
    pub(super) fn weight(&self) -> usize {
        /// Identities that cost what a condition on a header does.
        const IDENTITIES: usize = 16;
        let peer = self.peer.iter().map(|predicate| match predicate {
            Predicate::Remotes(remotes) => remotes.len() / IDENTITIES,
            Predicate::ServerNames { patterns, .. } => patterns.len(),
            Predicate::ProxyId(_) | Predicate::Header(_) | Predicate::Never { .. } => 1,
        });
        let peer: usize = peer.sum();
        let alternatives = self.http.iter().flatten();
        // Each alternative is found by the conditions on the peer, too.
        let http = alternatives.map(|http| 1 + self.peer.len() + http.conditions.len() + http.matches.len());
        1 + peer + http.sum::<usize>()
    }

    /// Whether one of its conditions is on the server name.
    pub(crate) fn asks_server_name(&self) -> bool {
        self.peer.iter().any(|predicate| matches!(predicate, Predicate::ServerNames { .. }))
    }
}

/// State of one compilation: what was found, and which values were read already.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) list: Vec<Finding>,
    pub(super) lowerings: Lowerings,
}

impl Findings {
    pub(crate) fn within(limits: Limits, effort: Effort) -> Self {
        Self { list: Vec::new(), lowerings: Lowerings::within(limits, effort) }
    }

    pub(crate) fn add(&mut self, origin: Origin, http_rule: Option<u32>, element: &str, reason: &str) -> Finding {
        let finding = Finding { origin, http_rule, element: element.into(), reason: reason.into() };
        self.list.push(finding.clone());
        finding
    }

    /// For what is seen again in each port range that holds the rule.
    pub(crate) fn add_once(&mut self, origin: Origin, element: &str, reason: &str) -> Finding {
        let same = |known: &&Finding| known.origin == origin && *known.element == *element && *known.reason == *reason;
        match self.list.iter().find(same) {
            Some(known) => known.clone(),
            None => self.add(origin, None, element, reason),
        }
    }
}

/// Compiles `rule`. `entry_problem` is what is wrong with the port entry that holds it.
pub(crate) fn compile(
    origin: Origin,
    rule: &PortRule,
    entry_problem: Option<&Unsupported>,
    findings: &mut Findings,
) -> CompiledRule {
    let mut compiled = CompiledRule {
        origin,
        name: (!rule.name.is_empty()).then(|| rule.name.as_str().into()),
        precedence: rule.precedence,
        verdict: rule.verdict,
        peer: Vec::new(),
        http: None,
        unusable: None,
    };
    proxy_id(rule, &mut compiled, findings);
    if !rule.remotes.is_empty() {
        let mut remotes = rule.remotes.clone();
        remotes.sort_unstable();
        remotes.dedup();
        compiled.peer.push(Predicate::Remotes(remotes.into()));
    }
    server_names(rule, &mut compiled, findings);
    for part in rule.unsupported.iter().chain(entry_problem) {
        let bad = findings.add(origin, None, &part.element, &part.reason);
        match rule.verdict {
            RuleVerdict::Allow => compiled.peer.push(never(&bad.element, &bad.reason)),
            // Holds whatever the part would have asked for.
            RuleVerdict::Deny => {}
            // The part could be a condition: to pass without it would skip denies that its author left in force.
            RuleVerdict::Pass(_) => compiled.unusable = Some(bad),
        }
    }
    match (&rule.http, rule.verdict) {
        (Some(http), RuleVerdict::Allow) if http.is_empty() => {
            let reason = "is empty, so nothing says which requests to allow; list a rule";
            findings.add(origin, None, "http_rules", reason);
            compiled.peer.push(never("http_rules", reason));
            compiled.http = Some(Vec::new());
        }
        (Some(http), _) => {
            let alternatives = http.iter().zip(0..);
            compiled.http = Some(alternatives.map(|(rule, i)| http_rule(origin, i, rule, findings)).collect());
        }
        (None, _) => {}
    }
    compiled
}

fn never(field: &str, reason: &str) -> Predicate {
    Predicate::Never { field: field.into(), reason: reason.into() }
}

fn proxy_id(rule: &PortRule, compiled: &mut CompiledRule, findings: &mut Findings) {
    match u16::try_from(rule.proxy_id) {
        Ok(0) => {}
        Ok(id) => compiled.peer.push(Predicate::ProxyId(id)),
        Err(_) => {
            let reason = format!("{} is not a proxy id (0 to 65535)", rule.proxy_id);
            let bad = findings.add(compiled.origin, None, "proxy_id", &reason);
            match rule.verdict {
                RuleVerdict::Allow => compiled.peer.push(never(&bad.element, &bad.reason)),
                // Denies at every listener.
                RuleVerdict::Deny => {}
                RuleVerdict::Pass(_) => compiled.unusable = Some(bad),
            }
        }
    }
}

fn server_names(rule: &PortRule, compiled: &mut CompiledRule, findings: &mut Findings) {
    if rule.server_names.is_empty() {
        return;
    }
    let mut good: Vec<Box<str>> = Vec::new();
    let mut bad = None;
    for (i, pattern) in rule.server_names.iter().enumerate() {
        let read = server_name::value(pattern).map_err(Arc::from);
        match read.and_then(|value| findings.lowerings.lower(&value)) {
            Ok(_) => good.push(pattern.as_str().into()),
            Err(reason) => {
                let reason = format!("{:?}: {reason}", beginning(pattern));
                bad = Some(findings.add(compiled.origin, None, &format!("server_names[{i}]"), &reason));
            }
        }
    }
    // A pattern that makes no sense matches nothing in an allow and everything in a deny.
    match (bad, rule.verdict) {
        (Some(bad), RuleVerdict::Allow) if good.is_empty() => compiled.peer.push(never(&bad.element, &bad.reason)),
        (Some(_), RuleVerdict::Deny) => {}
        (Some(bad), RuleVerdict::Pass(_)) => compiled.unusable = Some(bad),
        _ => {
            // What cannot be seen refuses: an allow needs the name, a deny or a pass must not be dodged for want of it.
            let unless_known = rule.verdict != RuleVerdict::Allow;
            compiled.peer.push(Predicate::ServerNames { patterns: good.into(), unless_known });
        }
    }
}

/// Enough of a pattern to find it by.
fn beginning(pattern: &str) -> String {
    /// More characters than a DNS name has.
    const SHOWN: usize = 255;
    match pattern.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &pattern[..end]),
        None => pattern.to_owned(),
    }
}

fn http_rule(origin: Origin, number: u32, rule: &HttpRule, findings: &mut Findings) -> Alternative {
    let mut conditions = Vec::with_capacity(rule.headers.len());
    for (i, matcher) in rule.headers.iter().enumerate() {
        match header(matcher, findings) {
            Ok(()) => conditions.push(Predicate::Header(Arc::new(matcher.clone()))),
            Err(reason) => {
                findings.add(origin, Some(number), &format!("headers[{i}]"), &reason);
                conditions.push(never(&matcher.name, &reason));
            }
        }
    }
    for (i, header_match) in rule.header_matches.iter().enumerate() {
        if let Err((field, reason)) = check_match(header_match) {
            findings.add(origin, Some(number), &format!("header_matches[{i}].{field}"), &reason);
            conditions.push(never(&header_match.name, &reason));
        }
    }
    for part in &rule.unsupported {
        findings.add(origin, Some(number), &part.element, &part.reason);
        conditions.push(never(&part.element, &part.reason));
    }
    Alternative { conditions, matches: rule.header_matches.as_slice().into() }
}

fn header(matcher: &HeaderMatcher, findings: &mut Findings) -> Result<(), Arc<str>> {
    check_name(&matcher.name)?;
    findings.lowerings.lower(&matcher.value).map(drop)
}

/// Whether fields of this name can be matched.
pub(super) fn is_name(name: &str) -> bool {
    check_name(name).is_ok()
}

fn check_name(name: &str) -> Result<(), String> {
    if name.starts_with(':') && ![":method", ":path", ":authority", ":scheme"].contains(&name) {
        return Err(format!("name {name:?}: only :method, :path, :authority and :scheme can be matched"));
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.starts_with(':') && (name.is_empty() || !name.bytes().all(token)) {
        return Err(format!("name {name:?} is not a header name"));
    }
    Ok(())
}

/// Fields that frame the message, route it or belong to one hop. With an edit of one of them two readers could see two
/// different requests.
const FIXED: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
];

/// The part of the match that cannot be honoured, and why.
fn check_match(header_match: &HeaderMatch) -> Result<(), (&'static str, String)> {
    let name = &*header_match.name;
    check_name(name).map_err(|reason| ("name", reason))?;
    let unknown = |action: i32| format!("{action} is not an action that this version knows");
    if let MatchAction::Unknown(action) = header_match.on_match {
        return Err(("match_action", unknown(action)));
    }
    if let MismatchAction::Unknown(action) = header_match.on_mismatch {
        return Err(("mismatch_action", unknown(action)));
    }
    if header_match.edits() && (name.starts_with(':') || FIXED.contains(&name)) {
        return Err(("name", format!("{name} frames or routes the message, so no rule may change it")));
    }
    match value_problem(header_match.value.as_bytes()) {
        Some(problem) => Err(("value", format!("{:?} {problem}, so no header has it", header_match.value))),
        None => Ok(()),
    }
}

weight!(CompiledRule: name, peer, http, unusable);
weight!(Alternative: conditions, matches);
weight!(Finding: element, reason);
