//! The same policies a second time: slow, obvious, and step by step as Cilium's filter is specified.
//!
//! The compiled engine is fast because it does everything at once; this one is right because each step can be read on its
//! own. Tests, the differential fuzz target and `tollgate policy explain --reference` hold the two against each other. It
//! shares nothing with the compiled form but the model, what is judged, and the translation of RE2 expressions, which are
//! matched here one by one by the simplest automaton there is.
//!
//! The steps and where they are: who owns an address (this file), port ranges (`ports`), order, tiers and continuations
//! (`order`), the walk (`walk`), what a rule asks of the connection (`peer`, `server_name`) and of the request (`http`,
//! `regex`), and what it does to the request (`header_match`). "Section" is the section of the specification that a step follows.
//!
//! Deliberately different from that specification:
//! - What cannot be honoured takes its most restrictive reading, instead of refusing the whole update: see [`Truth`] and
//!   `order::Order::of`.
//! - A request is admitted only on a connection that is admitted, and by a rule that also admits the connection: server
//!   names hold for requests, and a port without HTTP rules decides requests as it does connections.
//! - Conditions on header fields see the request as it was received; a delivered secret that no field can hold fails what
//!   names it.
//! - Ranges of nothing but pass rules stay (section 1.3 step 8 removes them): they never admit, and who asks learns that
//!   rules cover the port.
//! - A server name that nobody looked for is not "none": see `peer`.
//! - An address that several resources claim belongs to the latest; to all of them when they claimed it at once, or in the
//!   first state of a stream.
//!
//! It makes no `Permit`: nothing is ever forwarded on its word. Budgets that only the compiled form has (the size of an
//! automaton for many expressions together, the work of one request, what is logged of it) are not known here.

mod header_match;
mod http;
mod order;
mod peer;
mod ports;
mod regex;
mod server_name;
mod walk;

use self::header_match::Copy;
pub use self::header_match::Effects;
use self::order::Order;
use self::ports::{Covered, PortMap};
use self::walk::{Decision, Layer};
use crate::model::PortPolicy;
use crate::{
    ConnectionVerdict, DenyReason, Direction, EndpointKey, Flow, NetworkPolicy, Request, RuleRef, Secrets, Verdict,
};

/// Resources as they were received, response by response.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    responses: u64,
    resources: Vec<Resource>,
    /// Resources that are there and cannot be enforced.
    set_aside: Vec<Resource>,
}

/// One resource of a response that only says what changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// The resource of this name is now this policy.
    Upsert(String, NetworkPolicy),
    /// There is no resource of this name any more.
    Remove(String),
    /// It is there and cannot be enforced; its claims keep their place until it can.
    SetAside(String),
}

#[derive(Clone, Debug)]
struct Resource {
    name: String,
    policy: NetworkPolicy,
    /// For each key the response since which the resource names it without interruption.
    since: Vec<(EndpointKey, u64)>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionJudgement {
    /// Passed as TCP, because of this rule.
    Tcp(RuleRef),
    /// Each of its requests is judged.
    Http,
    /// Refused.
    Deny(Denial),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Admitted by this rule.
    Allow(RuleRef),
    /// Refused.
    Deny(Denial),
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The same closed list as the compiled form's.
    pub reason: DenyReason,
    /// The deny rule that decided; `None` when no rule did.
    pub rule: Option<RuleRef>,
}

/// What a condition comes to. The greater one wins where several must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    Holds,
    /// It cannot be honoured: the most restrictive reading is that it fails in an allow and holds in a deny.
    Unenforceable,
    Fails,
}

impl Truth {
    const fn of(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Fails }
    }

    fn and(self, other: Self) -> Self {
        self.max(other)
    }
}

impl Reference {
    /// Everything that exists after one response.
    pub fn of(policies: impl IntoIterator<Item = NetworkPolicy>) -> Self {
        let mut reference = Self::default();
        reference.replace_all(policies);
        reference
    }

    /// A response with the state of the world. Resources are named by their endpoint id; of several with the same id each
    /// counts.
    pub fn replace_all(&mut self, policies: impl IntoIterator<Item = NetworkPolicy>) {
        self.responses += 1;
        let before: Vec<_> = self.resources.drain(..).chain(self.set_aside.drain(..)).collect();
        for policy in policies {
            let id = policy.endpoint_id;
            let taken = |name: &str| self.resources.iter().any(|resource| resource.name == name);
            let mut name = id.to_string();
            let mut copies = 1;
            while taken(&name) {
                copies += 1;
                name = format!("{id} ({copies})");
            }
            let known = before.iter().find(|resource| resource.name == name);
            self.resources.push(Resource::received(name, policy, known, self.responses));
        }
    }

    /// A response that only says what changed.
    pub fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.responses += 1;
        for change in changes {
            let (Change::Upsert(name, _) | Change::Remove(name) | Change::SetAside(name)) = &change;
            let take = |all: &mut Vec<Resource>| {
                let known = all.iter().position(|resource| resource.name == *name);
                known.map(|at| all.remove(at))
            };
            let known = take(&mut self.resources).or_else(|| take(&mut self.set_aside));
            match change {
                Change::Upsert(name, policy) => {
                    self.resources.push(Resource::received(name, policy, known.as_ref(), self.responses));
                }
                Change::SetAside(_) => self.set_aside.extend(known),
                Change::Remove(_) => {}
            }
        }
    }

    /// From here on the claims that are there count as made at once: a new stream has begun with the state of before.
    pub fn forget_order(&mut self) {
        self.responses += 1;
        self.set_aside.clear();
        for (_, since) in self.resources.iter_mut().flat_map(|resource| &mut resource.since) {
            *since = self.responses;
        }
    }

    /// The policies that must all admit what concerns `key`, by resource name: those that began to claim it last.
    fn owners(&self, key: &EndpointKey) -> Vec<&NetworkPolicy> {
        let mut claims: Vec<(&str, u64, &NetworkPolicy)> = Vec::new();
        for resource in &self.resources {
            if let Some((_, since)) = resource.since.iter().find(|(claimed, _)| claimed == key) {
                claims.push((&resource.name, *since, &resource.policy));
            }
        }
        let latest = claims.iter().map(|(_, since, _)| *since).max();
        claims.retain(|(_, since, _)| Some(*since) == latest);
        claims.sort_by_key(|(name, _, _)| *name);
        claims.into_iter().map(|(_, _, policy)| policy).collect()
    }

    /// Judges a connection: all owners of the endpoint's address must admit it, and if any of them has HTTP rules for the
    /// port its requests are judged.
    pub fn connection(&self, flow: &Flow<'_>) -> ConnectionJudgement {
        let mut judgement = None;
        for policy in self.owners(flow.endpoint) {
            match connection(policy, flow) {
                ConnectionJudgement::Deny(denial) => return ConnectionJudgement::Deny(denial),
                ConnectionJudgement::Http => judgement = Some(ConnectionJudgement::Http),
                ConnectionJudgement::Tcp(rule) => {
                    judgement.get_or_insert(ConnectionJudgement::Tcp(rule));
                }
            }
        }
        judgement.unwrap_or(ConnectionJudgement::Deny(Denial { reason: DenyReason::NoPolicy, rule: None }))
    }

    /// Judges a request, and with it the connection that it came on: all owners must admit it; the first one's rule is
    /// named. What header matches of one owner did the next one sees.
    pub fn request(&self, flow: &Flow<'_>, request: &Request<'_>, secrets: &Secrets) -> (Judgement, Effects) {
        let mut copy = Copy::of(request, secrets);
        let mut judgement = None;
        for policy in self.owners(flow.endpoint) {
            match self::request(policy, flow, &mut copy) {
                Judgement::Deny(denial) => return (Judgement::Deny(denial), copy.effects),
                allowed @ Judgement::Allow(_) => {
                    judgement.get_or_insert(allowed);
                }
            }
        }
        let nobody = Judgement::Deny(Denial { reason: DenyReason::NoPolicy, rule: None });
        (judgement.unwrap_or(nobody), copy.effects)
    }
}

impl Resource {
    fn received(name: String, policy: NetworkPolicy, before: Option<&Self>, response: u64) -> Self {
        let since = policy.endpoints.iter().map(|key| {
            let known = before.and_then(|before| before.since.iter().find(|(claimed, _)| claimed == key));
            (key.clone(), known.map_or(response, |(_, since)| *since))
        });
        Self { since: since.collect(), name, policy }
    }
}

/// Sections 1.3 and 1.4 for one policy: the L4 entry point.
fn connection(policy: &NetworkPolicy, flow: &Flow<'_>) -> ConnectionJudgement {
    let order = match resolve(policy, flow) {
        Ok(order) => order,
        Err(reason) => return ConnectionJudgement::Deny(Denial { reason, rule: None }),
    };
    match walk::walk(&order, flow, &mut Layer::Connection) {
        Decision::Allow(place) if !order.has_http_rules() => ConnectionJudgement::Tcp(place.in_policy(policy, flow)),
        Decision::Allow(_) => ConnectionJudgement::Http,
        refused => ConnectionJudgement::Deny(refused.denial(policy, flow, DenyReason::NoPeerRule)),
    }
}

/// Sections 1.3 and 1.4 for one policy: the HTTP entry point, on a connection that is admitted.
fn request(policy: &NetworkPolicy, flow: &Flow<'_>, copy: &mut Copy<'_>) -> Judgement {
    match connection(policy, flow) {
        ConnectionJudgement::Deny(denial) => return Judgement::Deny(denial),
        ConnectionJudgement::Tcp(rule) => return Judgement::Allow(rule),
        ConnectionJudgement::Http => {}
    }
    let order = match resolve(policy, flow) {
        Ok(order) => order,
        Err(reason) => return Judgement::Deny(Denial { reason, rule: None }),
    };
    match walk::walk(&order, flow, &mut Layer::Request(copy)) {
        _ if copy.too_many_changes => Judgement::Deny(Denial { reason: DenyReason::MatchBudget, rule: None }),
        Decision::Allow(place) => Judgement::Allow(place.in_policy(policy, flow)),
        refused => Judgement::Deny(refused.denial(policy, flow, DenyReason::NoHttpRule)),
    }
}

/// From the entries of the flow's direction to the ordered rules of its port, or why there are none.
fn resolve<'p>(policy: &'p NetworkPolicy, flow: &Flow<'_>) -> Result<Order<'p>, DenyReason> {
    let entries: &[PortPolicy] = match flow.direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let rules = match PortMap::of(entries).lookup(flow.port) {
        Covered::Refused => return Err(DenyReason::Quarantined),
        Covered::Not => return Err(DenyReason::NoPortRule),
        Covered::By(rules) => rules,
    };
    Order::of(rules).ok_or(DenyReason::Quarantined)
}

impl ConnectionJudgement {
    /// Whether the compiled form says the same: the outcome, the admitting or refusing rule, and the reason.
    pub fn agrees_with(&self, verdict: &ConnectionVerdict) -> bool {
        match (self, verdict) {
            (Self::Tcp(expected), ConnectionVerdict::AllowTcp { rule, .. }) => expected == rule,
            (Self::Http, ConnectionVerdict::InspectHttp) => true,
            (Self::Deny(denial), ConnectionVerdict::Deny { reason, nearest }) => {
                denial.agrees_with(*reason, nearest.as_deref().map(|nearest| nearest.rule))
            }
            _ => false,
        }
    }
}

impl Judgement {
    /// Whether the compiled form says the same: the outcome, the admitting or refusing rule, the reason, and what header
    /// matches did to the request and wrote down.
    pub fn agrees_with(&self, effects: &Effects, request: &Request<'_>, verdict: &Verdict) -> bool {
        match (self, verdict) {
            (Self::Allow(expected), Verdict::Allow { rule, edits, log, .. }) => {
                expected == rule && effects.agree_with(request, Some(edits), log.as_deref())
            }
            (Self::Deny(denial), Verdict::Deny { reason, nearest, log }) => {
                denial.agrees_with(*reason, nearest.as_deref().map(|nearest| nearest.rule))
                    && effects.agree_with(request, None, log.as_deref())
            }
            _ => false,
        }
    }
}

impl Denial {
    fn agrees_with(&self, reason: DenyReason, nearest: Option<RuleRef>) -> bool {
        self.reason == reason && (self.rule.is_none() || self.rule == nearest)
    }
}
