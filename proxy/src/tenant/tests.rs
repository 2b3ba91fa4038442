//! Tables, places and accounts, without a proxy around them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_policy::{EndpointKey, NetworkPolicy, SecurityId, Snapshot};
use tollgate_proto::tenant::{self as proto, Ceilings, Members, Rate, Tenant};

use super::books::{Books, Kind};
use super::id::Placed as _;
use super::*;
use crate::flow::{FlowConsumer, FlowRecord, FlowSender, Outcome, Protocol, channel};
use crate::metrics::Metrics;
use crate::worker::PanicCount;

fn snapshot(before: &Snapshot, endpoints: impl IntoIterator<Item = (u64, &'static str)>) -> Snapshot {
    let policy = |(endpoint_id, address)| NetworkPolicy {
        endpoint_id,
        endpoints: vec![EndpointKey::parse(address)],
        ingress: Vec::new(),
        egress: Vec::new(),
    };
    let mut builder = before.update();
    builder.replace_all(endpoints.into_iter().map(policy));
    builder.build()
}

fn resource(name: &str, ids: &[u64], addresses: &[&str], identities: &[u32]) -> Tenant {
    Tenant {
        name: name.into(),
        members: Some(Members {
            endpoint_ids: ids.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            identities: identities.into(),
        }),
        ..Tenant::default()
    }
}

fn delivered(tenants: &[Tenant]) -> Vec<Delivered> {
    tenants
        .iter()
        .map(|tenant| {
            let (group, left_out) = match Group::of_resource(tenant) {
                Ok((group, mistakes)) => (Ok(group), mistakes.iter().map(ToString::to_string).collect()),
                Err(error) => (Err(error.to_string()), Vec::new()),
            };
            Delivered { origin: tenant.name.clone(), group, left_out }
        })
        .collect()
}

fn registry() -> (Arc<Books>, Registry) {
    let books = Arc::new(Books::new(vec![Arc::default(), Arc::default()], Arc::default()));
    (Arc::clone(&books), Registry::new(books, TenantConfig::default()))
}

/// What the tenant of this endpoint and address is called; addresses that end in `.9` carry identity 9.
fn name_of(books: &Books, registry: &Registry, endpoint: Option<u64>, address: &str) -> String {
    let end = LocalEnd { endpoint, address: address.parse().ok() };
    let identity = |address: std::net::IpAddr| address.to_string().ends_with(".9").then_some(SecurityId(9));
    let id = registry.table().tenant(end, identity);
    books.names().load().of(id).unwrap_or("?").to_owned()
}

#[test]
fn every_endpoint_is_a_tenant_of_its_own_unless_a_group_has_it() {
    let (books, mut registry) = registry();
    let policy = snapshot(
        &Snapshot::empty(),
        [(1, "10.0.0.1"), (2, "10.0.0.2"), (3, "10.0.1.9"), (4, "fd00::4"), (5, "10.0.2.9")],
    );
    registry.follow(&Snapshot::empty(), &policy);
    let is = |registry: &Registry, endpoint, address, expected: &str| {
        assert_eq!(name_of(&books, registry, endpoint, address), expected, "{endpoint:?} {address}");
    };
    is(&registry, Some(1), "10.0.0.1", "endpoint-1");
    is(&registry, Some(4), "fd00::4", "endpoint-4");
    is(&registry, None, "10.0.0.1", "_unknown");
    is(&registry, Some(77), "10.0.0.77", "_unknown");
    // The most specific way counts, in whichever group it is.
    let groups = [
        resource("wide", &[], &["10.0.0.0/8", "fd00::/64"], &[]),
        resource("narrow", &[], &["10.0.1.0/24"], &[]),
        resource("one", &[1], &["10.0.2.7"], &[]),
        resource("nine", &[], &[], &[9]),
    ];
    registry.deliver(delivered(&groups), &policy);
    is(&registry, Some(1), "10.0.0.1", "one");
    is(&registry, Some(2), "10.0.0.2", "wide");
    is(&registry, Some(3), "10.0.1.9", "narrow");
    is(&registry, Some(4), "fd00::4", "wide");
    is(&registry, None, "10.0.2.7", "one");
    is(&registry, None, "192.0.2.9", "nine");
    is(&registry, None, "192.0.2.8", "_unknown");
    assert_eq!(registry.table().endpoints(), 0, "nobody is left for a tenant of its own");
    registry.deliver(delivered(&groups[3..]), &policy);
    is(&registry, Some(5), "10.0.2.9", "nine");
    is(&registry, Some(2), "10.0.0.2", "endpoint-2");
}

#[test]
fn what_contradicts_itself_is_set_aside_alone() {
    let (books, mut registry) = registry();
    let cases = [
        (resource("a", &[1], &["10.0.0.0/24"], &[]), ""),
        (resource("b", &[1], &[], &[]), "members: endpoint 1 belongs to tenant \"a\" already; name it in one of them"),
        (
            resource("c", &[], &["10.0.0.0/24"], &[]),
            "members: prefix 10.0.0.0/24 belongs to tenant \"a\" already; name it in one of them",
        ),
        (resource("a", &[3], &[], &[]), "name: another tenant is called \"a\" already; choose another name"),
        (resource("d", &[], &[], &[]), "members: there are none; name endpoint_ids, addresses or identities"),
        (resource("e", &[0], &[], &[]), "members.endpoint_ids[0]: 0 is no endpoint"),
        (
            resource("f", &[], &["10.0.0.1/24"], &[]),
            "members.addresses[0]: \"10.0.0.1/24\" has bits set after its prefix; write 10.0.0.0/24",
        ),
        (
            resource("g", &[], &["::ffff:1.2.3.4"], &[]),
            "members.addresses[0]: \"::ffff:1.2.3.4\" is an IPv4 address in IPv6 form; write it as IPv4",
        ),
        (resource("h", &[], &[], &[0]), "members.identities[0]: 0 is no identity"),
        (
            resource("_x", &[9], &[], &[]),
            "name: \"_x\"; write 1 to 63 letters, digits, \".\", \"_\", \"/\" and \"-\", the first a letter or digit",
        ),
        (resource("endpoint-1", &[9], &[], &[]), "name: \"endpoint-1\" has a meaning of its own; choose another name"),
        (resource("z", &[2], &[], &[]), ""),
    ];
    let tenants: Vec<Tenant> = cases.iter().map(|(tenant, _)| tenant.clone()).collect();
    registry.deliver(delivered(&tenants), &Snapshot::empty());
    let expected: Vec<_> = cases.iter().filter(|(_, reason)| !reason.is_empty()).map(|(_, reason)| *reason).collect();
    assert_eq!(registry.refused().iter().map(|refused| &*refused.reason).collect::<Vec<_>>(), expected);
    assert_eq!(name_of(&books, &registry, Some(2), "192.0.2.1"), "z", "what a refused group wanted is free");
    assert_eq!(registry.groups().count(), 2);
}

#[test]
fn what_makes_no_sense_takes_no_other_limit_away() {
    let (books, mut registry) = registry();
    let mut tenant = resource("a", &[1, 0], &["10.0.0.1/24"], &[]);
    (tenant.weight, tenant.isolation) = (1001, 7);
    let (none, five) = (Some(Rate { per_second: 0, burst: 5 }), Some(Rate { per_second: 5, burst: 0 }));
    tenant.ceilings = Some(Ceilings { requests: five, new_connections: none, connections: 3, ..Ceilings::default() });
    registry.deliver(delivered(&[tenant]), &Snapshot::empty());
    assert_eq!(name_of(&books, &registry, Some(1), "192.0.2.1"), "a");
    let (_, group) = registry.groups().next().unwrap();
    let Settings { weight, isolation, ceilings, .. } = &group.settings;
    assert_eq!((*weight, *isolation), (1, Isolation::Auto));
    assert_eq!((ceilings.requests.unwrap().burst.get(), ceilings.connections.unwrap().get()), (5, 3));
    assert_eq!(ceilings.new_connections, None);
    let refused: Vec<(&str, bool)> =
        registry.refused().iter().map(|refused| (&*refused.reason, refused.whole)).collect();
    assert_eq!(
        refused,
        [
            ("members.endpoint_ids[1]: 0 is no endpoint", false),
            ("members.addresses[0]: \"10.0.0.1/24\" has bits set after its prefix; write 10.0.0.0/24", false),
            ("weight: 1001 is not from 1 to 1000", false),
            ("isolation: this version does not know the value 7", false),
            ("ceilings.new_connections.per_second: is 0; leave new_connections out for no ceiling", false),
        ]
    );
}

#[test]
fn who_has_a_member_keeps_it() {
    let (books, mut registry) = registry();
    let refused = |registry: &Registry| -> Vec<(String, String, bool)> {
        let refused = registry.refused().iter();
        refused.map(|refused| (refused.origin.clone(), refused.reason.clone(), refused.whole)).collect()
    };
    let owner = |registry: &Registry, endpoint| name_of(&books, registry, Some(endpoint), "192.0.2.1");
    let team = resource("team", &[1, 2], &[], &[]);
    registry.deliver(delivered(std::slice::from_ref(&team)), &Snapshot::empty());
    // A name that sorts before takes nothing; what nobody else has is its.
    let other = resource("aaa", &[1, 3], &[], &[]);
    registry.deliver(delivered(&[other.clone(), team.clone()]), &Snapshot::empty());
    assert_eq!([owner(&registry, 1), owner(&registry, 2), owner(&registry, 3)], ["team", "team", "aaa"]);
    let taken = "members: endpoint 1 belongs to tenant \"team\" already; name it in one of them";
    assert_eq!(refused(&registry), [("aaa".to_owned(), taken.to_owned(), false)]);
    // Who claims it no longer has lost it, also when it claims it again.
    registry.deliver(delivered(&[other.clone(), resource("team", &[2], &[], &[])]), &Snapshot::empty());
    assert_eq!(owner(&registry, 1), "aaa");
    registry.deliver(delivered(&[other, team.clone()]), &Snapshot::empty());
    assert_eq!((owner(&registry, 1), owner(&registry, 2)), ("aaa".to_owned(), "team".to_owned()));
    // And so has who is gone.
    registry.deliver(delivered(std::slice::from_ref(&team)), &Snapshot::empty());
    assert_eq!((owner(&registry, 1), refused(&registry)), ("team".to_owned(), Vec::new()));
}

#[test]
fn of_claims_of_one_moment_the_stricter_counts() {
    let (books, mut registry) = registry();
    let limited = |name: &str, per_second, shadow| {
        let requests = (per_second > 0).then_some(Rate { per_second, burst: 0 });
        let ceilings = Some(Ceilings { requests, ..Ceilings::default() });
        Tenant { ceilings, shadow, ..resource(name, &[1], &[], &[]) }
    };
    let owner = |registry: &Registry| name_of(&books, registry, Some(1), "192.0.2.1");
    for (tenants, expected) in [
        ([limited("a", 0, false), limited("b", 10, false), limited("c", 100, false)], "b"),
        ([limited("a", 1, true), limited("b", 100, false), limited("c", 0, false)], "b"),
        ([limited("a", 5, false), limited("b", 5, false), limited("c", 6, false)], "a"),
    ] {
        registry.deliver(Vec::new(), &Snapshot::empty());
        registry.deliver(delivered(&tenants), &Snapshot::empty());
        assert_eq!(owner(&registry), expected, "{tenants:?}");
    }
    // The first state of a stream knows no order.
    registry.deliver(delivered(&[limited("b", 5, false)]), &Snapshot::empty());
    let both = delivered(&[limited("a", 1, false), limited("b", 5, false)]);
    registry.deliver(both.clone(), &Snapshot::empty());
    assert_eq!(owner(&registry), "b");
    registry.forget_order();
    registry.deliver(both, &Snapshot::empty());
    assert_eq!(owner(&registry), "a");
}

#[test]
fn whoever_wins_a_tie_has_the_lower_of_each_ceiling() {
    let (books, mut registry) = registry();
    let (absurd, rate) = (u64::from(u32::MAX), |per_second, burst| Some(Rate { per_second, burst }));
    // More of them are "lower" than none at all.
    let loose = Tenant {
        ceilings: Some(Ceilings {
            requests: rate(absurd, 5),
            in_flight: u32::MAX,
            connections: 7,
            ..Ceilings::default()
        }),
        ..resource("loose", &[1, 2], &[], &[])
    };
    let strict = Tenant {
        ceilings: Some(Ceilings { requests: rate(10, 20), ..Ceilings::default() }),
        ..resource("strict", &[1, 3], &[], &[])
    };
    let shadow = Tenant {
        ceilings: Some(Ceilings { connections: 1, ..Ceilings::default() }),
        shadow: true,
        ..resource("shadow", &[1], &[], &[])
    };
    registry.deliver(delivered(&[strict.clone(), loose.clone(), shadow]), &Snapshot::empty());
    assert_eq!(name_of(&books, &registry, Some(1), "192.0.2.1"), "loose");
    let ceilings = |registry: &Registry, name: &str| {
        let group = registry.groups().find(|(_, group)| &*group.name == name).map(|(_, group)| Arc::clone(group));
        serde_json::to_value(&group.unwrap().settings.ceilings).unwrap()
    };
    let lower =
        serde_json::json!({"requests": {"per_second": 10, "burst": 5}, "in_flight": u32::MAX, "connections": 7});
    assert_eq!(ceilings(&registry, "loose"), lower);
    assert_eq!(ceilings(&registry, "strict"), serde_json::json!({"requests": {"per_second": 10, "burst": 20}}));
    let said: Vec<(&str, &str)> = registry
        .refused()
        .iter()
        .map(|refused| (&*refused.origin, refused.reason.split_once(';').unwrap().0))
        .collect();
    let taken = "members: endpoint 1 belongs to tenant \"loose\" already";
    let lowered = "members: tenant \"strict\" names endpoint 1, too, so each ceiling is the lower one of both";
    assert_eq!(said, [("strict", taken), ("loose", lowered), ("shadow", taken)]);
    // Who comes later has no say.
    let late = Tenant {
        ceilings: Some(Ceilings { connections: 1, ..Ceilings::default() }),
        ..resource("late", &[1, 9], &[], &[])
    };
    registry.deliver(delivered(&[strict, loose, late]), &Snapshot::empty());
    assert_eq!(ceilings(&registry, "loose"), lower);
}

#[test]
fn who_is_called_otherwise_keeps_what_it_had() {
    let (books, mut registry) = registry();
    let owner = |registry: &Registry| name_of(&books, registry, Some(1), "192.0.2.1");
    let at = |origin: &str, tenant: &Tenant| Delivered {
        origin: origin.into(),
        ..delivered(std::slice::from_ref(tenant)).remove(0)
    };
    let limited = |name: &str, connections| Tenant {
        ceilings: Some(Ceilings { connections, ..Ceilings::default() }),
        ..resource(name, &[1, 2], &[], &[])
    };
    // It would win if all were new.
    let other = limited("other", 1);
    registry.deliver(vec![at("file:1", &limited("team", 9))], &Snapshot::empty());
    registry.deliver(vec![at("file:1", &limited("team", 9)), at("x", &other)], &Snapshot::empty());
    // In the same place, with other settings; elsewhere, as it was.
    registry.deliver(vec![at("file:1", &limited("crew", 8)), at("x", &other)], &Snapshot::empty());
    assert_eq!(owner(&registry), "crew");
    registry.deliver(vec![at("y", &limited("band", 8)), at("x", &other)], &Snapshot::empty());
    assert_eq!(owner(&registry), "band");
    // Neither: it is somebody else.
    registry.deliver(vec![at("z", &limited("gang", 7)), at("x", &other)], &Snapshot::empty());
    assert_eq!(owner(&registry), "other");
    // Who only looks like one that is still there has claimed nothing before.
    let twin = limited("another", 1);
    registry.deliver(vec![at("x", &other), at("w", &twin)], &Snapshot::empty());
    assert_eq!(owner(&registry), "other");
}

/// Not one by one: the control side does nothing else meanwhile. If each were compared with each, this would take minutes.
#[test]
fn thousands_may_be_called_otherwise_at_once() {
    const TENANTS: u64 = 30_000;
    let (_, mut registry) = registry();
    let all = |prefix: &str| -> Vec<_> {
        (1..=TENANTS).map(|number| resource(&format!("{prefix}-{number}"), &[number], &[], &[])).collect()
    };
    registry.deliver(delivered(&all("team")), &Snapshot::empty());
    registry.deliver(delivered(&all("crew")), &Snapshot::empty());
    let left_out: Vec<&str> = registry.refused().iter().map(|refused| &*refused.origin).collect();
    assert_eq!((left_out.len(), left_out[0]), (TENANTS as usize - MAX_GROUPS, "crew-257"));
}

/// Those who are gone keep their places while something of them is open.
#[test]
fn as_many_groups_as_there_may_be_find_places_under_other_names() {
    let ledger = Arc::new(Ledger::default());
    let books = Arc::new(Books::new(vec![Arc::clone(&ledger)], Arc::default()));
    let mut registry = Registry::new(Arc::clone(&books), TenantConfig::default());
    let numbers = || 1..=MAX_GROUPS as u64;
    let own = |registry: &Registry, prefix: &str| {
        let name = |number: &u64| name_of(&books, registry, Some(*number), "192.0.2.1") == format!("{prefix}-{number}");
        numbers().filter(name).count()
    };
    let mut deliver = |prefix: &str| {
        let all: Vec<_> =
            numbers().map(|number| resource(&format!("{prefix}-{number}"), &[number], &[], &[])).collect();
        registry.deliver(delivered(&all), &Snapshot::empty());
        books.settle(Instant::now());
        own(&registry, prefix)
    };
    assert_eq!(deliver("team"), MAX_GROUPS);
    let open: Vec<TenantId> = books.tallies().into_iter().filter(|t| t.kind == Kind::Group).map(|t| t.id).collect();
    open.iter().for_each(|id| ledger.account(*id).unwrap().begin());
    // Whoever comes after them takes places of those who are gone and have nothing open.
    for prefix in ["crew", "band", "gang"] {
        assert_eq!(deliver(prefix), MAX_GROUPS, "{prefix}");
    }
}

#[test]
fn of_one_name_that_is_served_which_can_be() {
    let (books, mut registry) = registry();
    let with_origin = |origins: &[&str], tenants: &[Tenant]| {
        let mut delivered = delivered(tenants);
        delivered.iter_mut().zip(origins).for_each(|(delivered, origin)| delivered.origin = (*origin).to_owned());
        delivered
    };
    let b = |endpoint| resource("b", &[endpoint], &[], &[]);
    let owner = |registry: &Registry, endpoint| name_of(&books, registry, Some(endpoint), "192.0.2.1");
    let all = with_origin(&["x", "b", "b (2)"], &[resource("a", &[1], &[], &[]), b(1), b(2)]);
    registry.deliver(all, &Snapshot::empty());
    assert_eq!((owner(&registry, 1), owner(&registry, 2)), ("a".to_owned(), "b".to_owned()));
    // Who has a name keeps it.
    registry.deliver(with_origin(&["b", "b (2)"], &[b(1), b(2)]), &Snapshot::empty());
    assert_eq!(owner(&registry, 2), "b");
    let name = "name: another tenant is called \"b\" already; choose another name";
    assert_eq!(registry.refused()[0].reason, name);
    registry.deliver(with_origin(&["b"], &[b(1)]), &Snapshot::empty());
    assert_eq!(owner(&registry, 1), "b");
}

#[test]
fn everything_that_can_be_set_has_effect() {
    let mut tenant = resource("a", &[1], &[], &[]);
    let rate = Some(Rate { per_second: 5, burst: 0 });
    // A setting to come has to be said here, too.
    tenant.ceilings = Some(Ceilings {
        connections: 1,
        new_connections: rate,
        requests: rate,
        in_flight: 1,
        long_streams: 1,
        bytes: rate,
        header_bytes: 1,
        memory_bytes: 1,
        cpu_millis: 1,
        queue_delay_millis: 1,
        upstream_connections: 1,
        log_bytes: rate,
    });
    let (group, _) = Group::of_resource(&tenant).unwrap();
    assert_eq!(group.settings.ceilings.requests.unwrap().burst.get(), 5, "the burst is a second's worth");
    assert_eq!(group.settings.without_effect(Pools::default()), Vec::<String>::new());
}

#[test]
fn two_thousand_endpoints_share_what_places_there_are() {
    let (books, mut registry) = registry();
    let many = |ids: std::ops::RangeInclusive<u64>| ids.map(|id| (id, "10.0.0.1"));
    let policy = snapshot(&Snapshot::empty(), many(1..=2000));
    registry.follow(&Snapshot::empty(), &policy);
    assert_eq!(registry.table().endpoints(), 2000);
    assert_eq!(registry.crowded(), 2000 - MAX_ENDPOINTS);
    let own: Vec<u64> =
        (1..=2000).filter(|id| name_of(&books, &registry, Some(*id), "x") == format!("endpoint-{id}")).collect();
    assert_eq!(own.len(), MAX_ENDPOINTS);
    let shared = (1..=2000).filter(|id| name_of(&books, &registry, Some(*id), "x").starts_with("_shared-")).count();
    assert_eq!(shared, 2000 - MAX_ENDPOINTS);
    // A group always finds a place.
    registry.deliver(delivered(&[resource("team", &[2000], &[], &[])]), &policy);
    assert_eq!(name_of(&books, &registry, Some(2000), "x"), "team");
    // Places of those who go are there for those who come.
    let next = snapshot(&policy, many(1001..=1999));
    registry.follow(&policy, &next);
    let after = snapshot(&next, many(1001..=2100));
    registry.follow(&next, &after);
    let newcomers = (2001..=2100).filter(|id| name_of(&books, &registry, Some(*id), "x") == format!("endpoint-{id}"));
    assert_eq!(newcomers.count(), 100);
    assert!(books.tallies().iter().filter(|tally| tally.has_series).count() <= MAX_SERIES);
}

#[test]
fn a_place_is_given_back_when_nothing_is_open_and_starts_from_nothing() {
    let ledger = Arc::new(Ledger::default());
    let books = Books::new(vec![Arc::clone(&ledger)], Arc::default());
    let now = Instant::now();
    let first = books.admit("endpoint-1", Kind::Endpoint, now);
    let account = ledger.account(first).unwrap();
    account.accepted.increment();
    account.enter(ledger.moment(now));
    account.bytes_up.add(100);
    account.refusals[Reason::DenyRule as usize].increment();
    books.dismiss(first, now);
    let late = now + Duration::from_secs(3600);
    books.settle(late);
    assert_eq!(books.admit("endpoint-1", Kind::Endpoint, late), first, "a connection keeps the place");
    let tally = |name: &str| books.tallies().into_iter().find(|tally| &*tally.name == name);
    let totals = tally("endpoint-1").unwrap().totals;
    assert_eq!((totals.connections, totals.open, totals.bytes_up), (1, 1, 100));
    assert_eq!(totals.refusals().collect::<Vec<_>>(), [(Reason::DenyRule, 1)]);
    account.leave(ledger.moment(now + Duration::from_secs(5)));
    assert_eq!(tally("endpoint-1").unwrap().totals.connection_us, 5_000_000);
    books.dismiss(first, late);
    books.settle(late + Duration::from_secs(1));
    assert!(tally("endpoint-1").is_some_and(|tally| tally.gone), "shown for a while");
    let later = late + Duration::from_secs(3600);
    books.settle(later);
    assert!(tally("endpoint-1").is_none());
    let second = books.admit("endpoint-2", Kind::Endpoint, later);
    assert_eq!((second.place(), second == first), (first.place(), false), "the place, for somebody else");
    assert_eq!(tally("endpoint-2").unwrap().totals.bytes_up, 0);
    ledger.account(second).unwrap().bytes_up.add(7);
    assert_eq!(tally("endpoint-2").unwrap().totals.bytes_up, 7);
    books.settle(later);
    assert_eq!(books.names().load().of(first), None, "old records are nobody's, rather than somebody else's");
}

fn worker() -> (Metrics, Rc<FlowSender>, FlowConsumer) {
    let (metrics, workers) = Metrics::new(1);
    let (mut senders, consumer) = channel(workers, 8);
    (metrics, Rc::new(senders.remove(0)), consumer)
}

fn totals(metrics: &Metrics, id: TenantId) -> Totals {
    metrics.tenants().tallies().into_iter().find(|tally| tally.id == id).unwrap().totals
}

#[test]
fn a_panic_is_counted_for_whoever_it_happened_to() {
    let (metrics, flows, _consumer) = worker();
    let payer = Payer::accept(&flows, &Rc::default(), TenantId::UNKNOWN, &Settings::default());
    let panics = PanicCount::new(flows.metrics(), &payer);
    let quiet = PanicCount::new(flows.metrics(), &payer);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _panics = panics;
        std::panic::resume_unwind(Box::new("as a defect would"));
    }));
    assert!(panicked.is_err());
    drop(quiet);
    let unknown = totals(&metrics, TenantId::UNKNOWN);
    assert_eq!((unknown.panics, unknown.open), (1, 1));
    drop(payer);
    assert_eq!(totals(&metrics, TenantId::UNKNOWN).open, 0);
    assert_eq!(totals(&metrics, TenantId::SYSTEM).panics, 0);
}

#[test]
fn who_panics_again_and_again_is_let_in_slowly_and_nobody_else() {
    let (metrics, flows, _consumer) = worker();
    let now = Instant::now();
    let books = metrics.tenants();
    let [first, second] = ["endpoint-1", "endpoint-2"].map(|name| books.admit(name, Kind::Endpoint, now));
    let panic = || {
        let payer = Payer::accept(&flows, &Rc::default(), first, &Settings::default());
        let panics = PanicCount::new(flows.metrics(), &payer);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _panics = panics;
            std::panic::resume_unwind(Box::new("as a defect would"));
        }));
        assert!(panicked.is_err());
    };
    let table = Table::default();
    let admitted = |tenant, settings: &Settings| {
        let payers: Vec<_> = (0..100).map(|_| Payer::accept(&flows, &Rc::default(), tenant, settings)).collect();
        let admitted: Vec<_> = payers.iter().map(|payer| payer.admit(&table, || None)).collect();
        let reasons = admitted.iter().filter_map(|admitted| Some(admitted.err()?.reason));
        assert!(reasons.into_iter().all(|reason| reason == Reason::TenantIsolated));
        admitted.iter().filter(|admitted| admitted.is_ok()).count()
    };
    (0..2).for_each(|_| panic());
    assert_eq!(admitted(first, &Settings::default()), 100);
    panic();
    let slowly = admitted(first, &Settings::default());
    assert!((10..100).contains(&slowly), "{slowly}");
    assert_eq!(admitted(second, &Settings::default()), 100);
    let ledger = flows.metrics().ledger();
    assert_eq!(ledger.kept_apart().collect::<Vec<_>>(), [first], "for the lanes");
    assert!(totals(&metrics, first).apart > Duration::from_secs(30) && totals(&metrics, second).apart.is_zero());
    let scrape = metrics.encode(crate::metrics::Format::Prometheus).unwrap();
    assert!(scrape.contains("tollgate_tenant_isolated{tenant=\"endpoint-1\"} 1\n"), "{scrape}");
    // Whoever gets the place next begins anew.
    books.dismiss(first, now);
    books.settle(now + Duration::from_secs(3600));
    let next = books.admit("endpoint-3", Kind::Endpoint, now);
    assert_eq!((next.place(), admitted(next, &Settings::default())), (first.place(), 100));
}

#[test]
fn an_exchange_under_way_goes_where_its_connection_goes() {
    let (metrics, flows, _consumer) = worker();
    let now = Instant::now();
    let (first, second) =
        (metrics.tenants().admit("endpoint-1", Kind::Endpoint, now), metrics.tenants().admit("team", Kind::Group, now));
    let payer = Payer::accept(&flows, &Rc::default(), first, &Settings::default());
    let mut charge = payer.charge(Protocol::Http11);
    charge.add_up(3);
    payer.follow(second, &Settings::default());
    let of = |id| {
        let totals = totals(&metrics, id);
        (totals.open, totals.in_flight, totals.bytes_up, totals.connections)
    };
    assert_eq!((of(first), of(second)), ((0, 1, 3, 1), (1, 0, 0, 0)), "the connection goes at once");
    charge.add_up(5);
    assert_eq!((of(first), of(second)), ((0, 0, 3, 1), (1, 1, 5, 0)), "the exchange with its next byte");
    let mut record = FlowRecord::for_test(Outcome::Denied);
    record.reason = Some(Reason::DenyRule);
    charge.end(&mut record);
    assert_eq!(record.tenant, second);
    assert_eq!(of(second), (1, 0, 5, 0));
    assert_eq!(totals(&metrics, second).refusals().collect::<Vec<_>>(), [(Reason::DenyRule, 1)]);
}

#[test]
fn the_overflow_never_goes_back() {
    let (metrics, flows, _consumer) = worker();
    let now = Instant::now();
    let books = metrics.tenants();
    let ids: Vec<TenantId> =
        (0..MAX_ENDPOINTS).map(|id| books.admit(&format!("endpoint-{id}"), Kind::Endpoint, now)).collect();
    let overflow = || {
        let scrape = metrics.encode(crate::metrics::Format::Prometheus).unwrap();
        let line =
            scrape.lines().find(|line| line.starts_with(r#"tollgate_tenant_bytes_total{tenant="overflow",flow="up"}"#));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    for id in &ids {
        flows.metrics().ledger().account(*id).unwrap().bytes_up.add(1);
    }
    let expected = (MAX_ENDPOINTS + 4 - MAX_SERIES) as u64;
    assert_eq!(overflow(), Some(expected));
    ids.iter().for_each(|id| books.dismiss(*id, now));
    books.settle(now + Duration::from_secs(3600));
    assert_eq!(overflow(), Some(expected), "those who are gone for good count on");
    let next = books.admit("endpoint-x", Kind::Endpoint, now);
    flows.metrics().ledger().account(next).unwrap().bytes_up.add(1);
    assert_eq!(overflow(), Some(expected), "there is room for a series again");
}

#[test]
fn guarantees_that_exceed_what_there_is_are_set_aside() {
    let books = Arc::new(Books::default());
    books.limit(Pools { connections: 100, in_flight: 50, workers: 2, memory: Some(100 << 20), ..Pools::default() });
    let mut registry = Registry::new(Arc::clone(&books), TenantConfig::default());
    let guaranteed = |name: &str, endpoint, guarantee| Tenant {
        guarantee: Some(guarantee),
        ..resource(name, &[endpoint], &[], &[])
    };
    let places = |connections, in_flight| proto::Guarantee { connections, in_flight, ..proto::Guarantee::default() };
    let cpu = |cpu_millis| proto::Guarantee { cpu_millis, ..proto::Guarantee::default() };
    let memory = |memory_bytes| proto::Guarantee { memory_bytes, ..proto::Guarantee::default() };
    let groups = [
        guaranteed("a", 1, places(60, 0)),
        guaranteed("b", 2, places(41, 0)),
        guaranteed("c", 3, places(40, 50)),
        guaranteed("d", 4, places(0, 1)),
        guaranteed("e", 5, cpu(1000)),
        guaranteed("f", 6, cpu(801)),
        guaranteed("g", 7, cpu(800)),
        guaranteed("h", 8, memory(u64::MAX)),
        guaranteed("i", 9, memory(35 << 20)),
        // Only what does not fit is left out of it, and each is named.
        guaranteed("j", 10, proto::Guarantee { connections: 1, in_flight: 0, memory_bytes: 1, cpu_millis: 1 }),
    ];
    registry.deliver(delivered(&groups), &Snapshot::empty());
    assert!(registry.refused().iter().all(|refused| !refused.whole), "their ceilings count: {:?}", registry.refused());
    let refused: Vec<&str> = registry.refused().iter().map(|refused| &*refused.reason).collect();
    assert_eq!(
        refused,
        [
            "guarantee.connections: 101 with what other tenants are guaranteed, and max_connections is 100; lower one of them",
            "guarantee.in_flight: 51 with what other tenants are guaranteed, and limits.in_flight is 50; lower one of them",
            "guarantee.cpu: 1801m with what other tenants are guaranteed, and workers: 2 can guarantee 1800m, nine tenths of their time; lower one of them",
            "guarantee.memory: 18446744073709551615 bytes with what other tenants are guaranteed, and of the 104857600 bytes that the process may have (limits.memory) 36700160 can be guaranteed, half of what tenants get of them; lower one of them",
            "guarantee.connections: 101 with what other tenants are guaranteed, and max_connections is 100; lower one of them",
            "guarantee.memory: 36700161 bytes with what other tenants are guaranteed, and of the 104857600 bytes that the process may have (limits.memory) 36700160 can be guaranteed, half of what tenants get of them; lower one of them",
            "guarantee.cpu: 1801m with what other tenants are guaranteed, and workers: 2 can guarantee 1800m, nine tenths of their time; lower one of them",
        ]
    );
}
