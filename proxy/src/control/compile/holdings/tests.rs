use std::collections::HashSet;

use tollgate_policy::{Draft, Effort, EndpointKey, Limits, NetworkPolicy, PortPolicy, PortRule, Snapshot};

use super::*;

const MIB: usize = 1 << 20;

fn owner(endpoint: u64) -> Owner {
    Owner::Endpoint(endpoint)
}

fn rules(count: u32) -> Vec<PortPolicy> {
    let rule = |i| PortRule { remotes: vec![i], ..PortRule::default() };
    vec![PortPolicy { port: 80, rules: (1..=count).map(rule).collect(), ..PortPolicy::default() }]
}

fn policy(endpoint: u64, ingress: Vec<PortPolicy>, egress: Vec<PortPolicy>) -> NetworkPolicy {
    let endpoints = vec![EndpointKey::parse(&format!("10.0.0.{endpoint}"))];
    NetworkPolicy { endpoint_id: endpoint, endpoints, ingress, egress }
}

/// Policies of endpoints, each with as many rules as its second number says.
fn snapshot(policies: &[(u64, u32)]) -> Snapshot {
    let mut builder = Snapshot::empty().update();
    for (endpoint, count) in policies {
        builder.upsert(&endpoint.to_string(), policy(*endpoint, rules(*count), Vec::new()));
    }
    builder.build()
}

fn follow(holdings: &mut Holdings, before: &Snapshot, after: &Snapshot) -> Vec<PoliciesChange> {
    follow_as(holdings, before, after, owner)
}

fn follow_as(
    holdings: &mut Holdings,
    before: &Snapshot,
    after: &Snapshot,
    owner: impl Fn(u64) -> Owner,
) -> Vec<PoliciesChange> {
    let (gone, come) = after.changes_since(before);
    holdings.follow(gone, come.into_iter().map(|p| (p, owner(p.endpoint_id()), TenantId::UNKNOWN)))
}

fn room(holdings: &Holdings, resource: &str, owner: Owner, most: usize) -> usize {
    holdings.room(resource, owner, most, [None, None])
}

fn form(id: u64, bytes: usize) -> Form {
    Form { id, bytes }
}

#[test]
fn what_is_shared_is_there_once_and_on_the_account_of_each() {
    let mut holdings = Holdings::default();
    let (one, both) = (snapshot(&[(1, 500)]), snapshot(&[(1, 500), (2, 500), (3, 10)]));
    let none = Snapshot::empty();
    let changes = follow(&mut holdings, &none, &one);
    let alone = holdings.bytes();
    assert_eq!(changes, [PoliciesChange { tenant: TenantId::UNKNOWN, bytes: signed(alone), rules: 500 }]);
    holdings = Holdings::default();
    follow(&mut holdings, &none, &both);
    let held = |endpoint| holdings.owners[&owner(endpoint)].in_force.bytes;
    assert_eq!((held(1), held(2)), (alone, alone));
    assert!(holdings.bytes() < alone + held(3), "the direction without rules is shared, too");
    let changes = follow(&mut holdings, &both, &none);
    assert_eq!(changes.iter().map(|change| change.rules).sum::<i64>(), -1010);
    assert!(holdings.bytes() == 0 && holdings.owners.is_empty() && holdings.policies.is_empty());
}

#[test]
fn alone_half_and_there_is_room_for_who_comes() {
    let mut holdings = Holdings::default();
    assert_eq!(room(&holdings, "1", owner(1), 64 * MIB), 64 * MIB);
    holdings.share_of(Some(256 * MIB as u64));
    assert_eq!(room(&holdings, "1", owner(1), 64 * MIB), 32 * MIB);
    assert_eq!(room(&holdings, "1", owner(1), 5 * MIB), 5 * MIB);
    let first = form(1001, 32 * MIB);
    assert_eq!(holdings.admit("1", owner(1), 64 * MIB, [Some(first), None]).forms, [first]);
    assert_eq!(room(&holdings, "1b", owner(1), 64 * MIB), 0);
    assert_eq!(room(&holdings, "2", owner(2), 64 * MIB), 16 * MIB);
    let second = form(1002, 16 * MIB);
    assert!(holdings.admit("2", owner(2), 64 * MIB, [Some(second), Some(second)]).refused.is_empty(), "counts once");
    assert_eq!(room(&holdings, "3", owner(3), 64 * MIB), 8 * MIB);
    let refused = holdings.admit("3", owner(3), 64 * MIB, [Some(form(1003, 8 * MIB + 1)), Some(form(1004, MIB))]);
    assert_eq!((refused.refused, refused.forms), (vec![(Direction::Ingress, 8 * MIB)], vec![form(1004, MIB)]));
    // What others have takes no more of the process, but counts for whoever has it.
    let shared = holdings.admit("4", owner(4), 40 * MIB, [Some(first), Some(second)]);
    assert_eq!((shared.forms, shared.refused), (vec![first], vec![(Direction::Egress, 7 * MIB + MIB / 2)]));
    holdings.give_back(owner(1), &[first]);
    holdings.give_back(owner(4), &[first]);
    holdings.give_back(owner(3), &[form(1004, MIB)]);
    assert_eq!(room(&holdings, "3", owner(3), 64 * MIB), 24 * MIB);
    holdings.give_back(owner(2), &[second]);
    assert!(holdings.owners.is_empty() && holdings.all.taken.bytes == 0);
}

#[test]
fn what_is_replaced_by_no_more_fits() {
    let mut holdings = Holdings::default();
    let (none, one) = (Snapshot::empty(), snapshot(&[(1, 5000)]));
    follow(&mut holdings, &none, &one);
    let bytes = holdings.bytes();
    holdings.share_of(Some(4));
    assert!(bytes > LITTLE / 4, "{bytes}");
    assert!(room(&holdings, "1", owner(1), 0) >= bytes - 1000, "{bytes}");
    assert_eq!(room(&holdings, "1b", owner(1), 0), 0);
    // What stays is no room.
    let forms = one.policy("1").unwrap().forms();
    assert!(holdings.room("1", owner(1), 0, [Some(forms[0]), None]) < 1000);
}

/// Everything that happens to policies, in any order, and what must hold whatever it is.
struct Model {
    holdings: Holdings,
    snapshot: Snapshot,
    /// By owner.
    most: [usize; 3],
    /// Compiled in the background, by endpoint, and not in force yet.
    ready: Vec<(u64, Draft, Vec<Form>)>,
    random: u64,
}

/// Each owner has four of them.
const ENDPOINTS: u64 = 12;

fn of(endpoint: u64) -> Owner {
    Owner::Endpoint(endpoint % 3)
}

impl Model {
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }

    /// Some of them are equal, in other endpoints, too.
    fn direction(&mut self) -> Vec<PortPolicy> {
        let (size, which) = (self.below(6) * 12_000, self.below(3));
        let rule = |i| PortRule { name: format!("{which}-{i}-{}", "x".repeat(size as usize)), ..PortRule::default() };
        vec![PortPolicy { port: 80, rules: (0..8).map(rule).collect(), ..PortPolicy::default() }]
    }

    fn changed(&mut self, endpoint: u64) -> NetworkPolicy {
        let before = self.snapshot.policy(&endpoint.to_string()).map(|policy| policy.source());
        let (mut ingress, mut egress) = (self.direction(), self.direction());
        match (before, self.below(4)) {
            (Some(before), 0) => ingress = before.ingress,
            (Some(before), 1) => egress = before.egress,
            (_, 2) => egress.clone_from(&ingress),
            _ => {}
        }
        policy(endpoint, ingress, egress)
    }

    fn compile(&mut self, endpoint: u64, draft: &mut Draft) -> Vec<Form> {
        let (name, owner) = (endpoint.to_string(), of(endpoint));
        let most = self.most[(endpoint % 3) as usize];
        let room = self.holdings.room(&name, owner, most, draft.forms());
        draft.compile(&mut Effort::UNBOUNDED.within(room));
        let admission = self.holdings.admit(&name, owner, most, draft.forms());
        admission.refused.iter().for_each(|(direction, room)| draft.refuse(*direction, *room));
        admission.forms
    }

    fn publish(&mut self, next: Snapshot) {
        follow_as(&mut self.holdings, &self.snapshot, &next, of);
        self.snapshot = next;
    }

    /// An update, which a panic may end before it is in force.
    fn update(&mut self) {
        let mut builder = self.snapshot.update();
        let mut reserved = Vec::new();
        for _ in 0..=self.below(3) {
            let endpoint = self.below(ENDPOINTS);
            let (name, policy) = (endpoint.to_string(), self.changed(endpoint));
            let mut draft = builder.draft(&name, policy, &Limits::default());
            reserved.push((of(endpoint), self.compile(endpoint, &mut draft)));
            builder.insert(&name, draft);
        }
        if self.below(8) > 0 {
            self.publish(builder.build());
        }
        reserved.iter().for_each(|(owner, forms)| self.holdings.give_back(*owner, forms));
    }

    fn remove(&mut self) {
        let mut builder = self.snapshot.update();
        builder.remove(&self.below(ENDPOINTS).to_string());
        self.publish(builder.build());
    }

    fn fitting(&self) -> Vec<u64> {
        let most = |name: &str| Some(self.most[(name.parse::<u64>().unwrap() % 3) as usize]);
        self.holdings.fitting(most).iter().map(|name| name.parse().unwrap()).collect()
    }

    fn prepare(&mut self) {
        let Some(endpoint) = self.fitting().into_iter().next() else { return };
        let policy = self.snapshot.policy(&endpoint.to_string()).unwrap();
        let mut draft = self.snapshot.draft(policy.source(), &policy.limits());
        let forms = self.compile(endpoint, &mut draft);
        self.ready.push((endpoint, draft, forms));
    }

    /// Whatever has become of the policy meanwhile; a panic may end it.
    fn put(&mut self) {
        let panics = self.below(8) == 0;
        for (endpoint, draft, forms) in std::mem::take(&mut self.ready) {
            let name = endpoint.to_string();
            let waits = self.snapshot.policy(&name).filter(|policy| policy.without_room().is_some());
            if !panics && waits.is_some_and(|policy| draft.is(policy)) {
                let mut builder = self.snapshot.update();
                builder.insert(&name, draft);
                self.publish(builder.build());
            }
            self.holdings.give_back(of(endpoint), &forms);
        }
    }

    fn taken(&self) -> [usize; 4] {
        let of = |owner| self.holdings.owners.get(&Owner::Endpoint(owner)).map_or(0, |held| held.taken.bytes);
        [of(0), of(1), of(2), self.holdings.all.taken.bytes]
    }

    fn check(&self, before: [usize; 4], step: u32) {
        let most = self.holdings.most.unwrap() + 3 * LITTLE;
        for (i, (taken, before)) in self.taken().into_iter().zip(before).enumerate() {
            let most = *self.most.get(i).unwrap_or(&most);
            assert!(
                taken <= most.max(before),
                "step {step}: account {i} has {taken} of {most} bytes, and had {before}"
            );
        }
        let bytes = |endpoints: &dyn Fn(u64) -> bool| -> usize {
            let all = self.snapshot.endpoints().filter(|policy| endpoints(policy.endpoint_id()));
            all.flat_map(|policy| policy.forms()).collect::<HashSet<_>>().iter().map(|form| form.bytes).sum()
        };
        assert_eq!(self.holdings.bytes(), bytes(&|_| true), "step {step}");
        for i in 0..3 {
            let held = self.holdings.owners.get(&Owner::Endpoint(i)).map_or(0, |held| held.in_force.bytes);
            assert_eq!(held, bytes(&|endpoint| endpoint % 3 == i), "step {step}, owner {i}");
        }
        if self.ready.is_empty() {
            let reserved = |held: &Held| held.taken.bytes - held.in_force.bytes;
            assert_eq!(reserved(&self.holdings.all), 0, "step {step}");
            assert!(self.holdings.owners.values().all(|held| reserved(held) == 0), "step {step}");
        }
    }

    /// Once nothing more can be done, everything is in force that there is room for.
    fn settle(&mut self, step: u32) {
        for round in 0.. {
            assert!(round < 1000, "step {step}: the same is tried again and again");
            self.put();
            if self.fitting().is_empty() {
                break;
            }
            self.prepare();
        }
        for waiting in self.snapshot.endpoints().filter(|policy| policy.without_room().is_some()) {
            let (endpoint, name) = (waiting.endpoint_id(), waiting.resource());
            for (lacking, source) in waiting.lacking().iter().zip([waiting.source().ingress, waiting.source().egress]) {
                if lacking.is_none() {
                    continue;
                }
                let mut alone = Snapshot::empty().draft(policy(1, source, Vec::new()), &Limits::default());
                alone.compile(&mut { Effort::UNBOUNDED });
                let needed = alone.forms()[0].unwrap().bytes;
                let known = waiting.forms().map(|form| Some(form).filter(|form| form.bytes > 0));
                let room = self.holdings.room(name, of(endpoint), self.most[(endpoint % 3) as usize], known);
                assert!(needed + needed / 4 > room, "step {step}: {name} needs {needed} bytes, and {room} are left");
            }
        }
    }
}

#[test]
fn nobody_has_more_than_there_is_and_whoever_fits_is_in_force() {
    for seed in 0..5 {
        let mut model = Model {
            holdings: Holdings::default(),
            snapshot: Snapshot::empty(),
            most: [MIB, 2 * MIB, 8 * MIB],
            ready: Vec::new(),
            random: seed,
        };
        model.holdings.share_of(Some(PART * (3 << 20)));
        let mut denied = 0;
        for step in 0..300 {
            let before = model.taken();
            match model.below(8) {
                0..4 => model.update(),
                4 => model.remove(),
                5 => model.prepare(),
                6 => model.put(),
                _ => model.settle(step),
            }
            model.check(before, step);
            denied += model.snapshot.without_room_count();
        }
        assert!(denied > 100, "only {denied} were ever denied");
    }
}
