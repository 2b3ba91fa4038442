//! Nothing is allocated to allow a request, however many rules there are, and little to hold an endpoint whose rules others
//! have too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tollgate_policy::model::{HeaderMatcher, HttpRule, TextPart, ValueMatch};
use tollgate_policy::{
    Direction, EndpointKey, Flow, NetworkPolicy, PortPolicy, PortRule, Request, Secrets, SecurityId, ServerName,
    Snapshot, Verdict,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes allocated, freed or not.
    static BYTES: Cell<usize> = const { Cell::new(0) };
    /// Bytes allocated and not freed.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "a global allocator cannot be written without")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size()));
        HELD.with(|held| held.set(held.get() + layout.size().cast_signed()));
        // SAFETY: the caller's promise is the one that is needed here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.with(|held| held.set(held.get() - layout.size().cast_signed()));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn snapshot(rules: u32) -> Snapshot {
    let rule = |i| {
        let value = match i % 5 {
            0 => ValueMatch::Regex(format!("/r{i}/[0-9]+.*").into()),
            1 => text(TextPart::Prefix, &format!("/p{i}/")),
            2 => text(TextPart::Suffix, &format!("/s{i}")),
            _ => ValueMatch::Regex(format!("/l{i}").into()),
        };
        let headers = vec![
            HeaderMatcher::new(":method", ValueMatch::Regex("GET|HEAD".into())),
            HeaderMatcher::new(":path", value),
            HeaderMatcher::new("x-tier", text(TextPart::Whole, "gold")),
        ];
        PortRule {
            remotes: vec![i % 7, 100],
            server_names: vec!["*.example".to_owned()],
            http: Some(vec![HttpRule { headers, ..HttpRule::default() }]),
            ..PortRule::default()
        }
    };
    let mut builder = Snapshot::empty().update();
    builder.replace_all([NetworkPolicy {
        endpoint_id: 1,
        endpoints: vec![EndpointKey::parse("10.0.0.1")],
        ingress: vec![PortPolicy { port: 80, rules: (0..rules).map(rule).collect(), ..PortPolicy::default() }],
        egress: Vec::new(),
    }]);
    builder.build()
}

fn text(part: TextPart, text: &str) -> ValueMatch {
    ValueMatch::Text { part, text: text.into(), ignore_case: false }
}

#[test]
fn allowing_allocates_nothing() {
    let endpoint = EndpointKey::parse("10.0.0.1");
    let secrets = Secrets::default();
    for rules in [5, 100, 1000, 10_000] {
        let snapshot = snapshot(rules);
        let headers: &[(&str, &str)] = &[("accept", "*/*"), ("X-Tier", "gold")];
        let flow = Flow {
            direction: Direction::Ingress,
            endpoint: &endpoint,
            remote: SecurityId(100),
            port: 80,
            proxy_id: 0,
            server_name: ServerName::Name("a.Example"),
        };
        let last = rules - 5;
        for path in [
            format!("/r{last}/42?q"),
            format!("/p{}/x", last + 1),
            format!("/s{}", last + 2),
            format!("/l{}", last + 3),
        ] {
            let request = Request {
                method: b"HEAD",
                scheme: b"http",
                authority: b"a",
                path: path.as_bytes(),
                headers: &Fields(headers),
            };
            let allow = || {
                assert!(
                    matches!(snapshot.evaluate_request(&flow, &request, &secrets), Verdict::Allow { .. }),
                    "{path}"
                );
                let connection = snapshot.evaluate_connection(&flow);
                assert_eq!(connection, tollgate_policy::ConnectionVerdict::InspectHttp);
            };
            // The automata build the states that a value needs when they first see one like it.
            allow();
            let before = ALLOCATIONS.with(Cell::get);
            allow();
            assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{rules} rules, {path}");
        }
    }
}

/// Bytes that a snapshot of `endpoints` dual-stack endpoints holds, all with the same ten rules.
fn held_by(endpoints: u64) -> isize {
    let rule = |i| PortRule {
        http: Some(vec![HttpRule {
            headers: vec![HeaderMatcher::new(":path", ValueMatch::Regex(format!("/api/{i}/[0-9]+").into()))],
            ..HttpRule::default()
        }]),
        ..PortRule::default()
    };
    let before = HELD.with(Cell::get);
    let mut builder = Snapshot::empty().update();
    builder.replace_all((1..=endpoints).map(|endpoint_id| NetworkPolicy {
        endpoint_id,
        endpoints: vec![
            EndpointKey::parse(&std::net::Ipv4Addr::from_bits(0x0A00_0000 | endpoint_id as u32).to_string()),
            EndpointKey::parse(&format!("fd00::{endpoint_id:x}")),
        ],
        ingress: vec![PortPolicy { port: 80, rules: (0..10).map(rule).collect(), ..PortPolicy::default() }],
        egress: Vec::new(),
    }));
    let snapshot = builder.build();
    let held = HELD.with(Cell::get) - before;
    assert_eq!(snapshot.endpoint_count() as u64, endpoints);
    held
}

#[test]
fn a_further_endpoint_costs_less_than_200_bytes() {
    let each = (held_by(20_000) - held_by(10_000)) / 10_000;
    assert!(each < 200, "{each} bytes");
    println!("{each} bytes for a further endpoint");
}

/// Bytes that building a snapshot of these policies allocates.
fn allocated_by(policies: impl IntoIterator<Item = NetworkPolicy>) -> usize {
    let policies: Vec<_> = policies.into_iter().collect();
    let mut builder = Snapshot::empty().update();
    let before = BYTES.with(Cell::get);
    builder.replace_all(policies);
    let _snapshot = builder.build();
    BYTES.with(Cell::get) - before
}

fn no_rules(endpoint_id: u64, key: &str) -> NetworkPolicy {
    let endpoints = vec![EndpointKey::parse(key)];
    NetworkPolicy { endpoint_id, endpoints, ingress: Vec::new(), egress: Vec::new() }
}

/// Four times as much may take five times the work, not sixteen times.
fn is_linear(work: impl Fn(u32) -> usize, size: u32) {
    let (one, four) = (work(size), work(4 * size));
    assert!(four < 5 * one, "{size}: {one} bytes, {}: {four} bytes", 4 * size);
}

#[test]
fn a_long_class_costs_what_its_length_does() {
    // In descending order, none beside another.
    let class = |length: u32| (0..length).rev().map(|i| char::from_u32(0x4000 + 2 * i).unwrap()).collect::<String>();
    let policy = |length| {
        let regex = HeaderMatcher::new(":path", ValueMatch::Regex(format!("[{}]+", class(length)).into()));
        let http = Some(vec![HttpRule { headers: vec![regex], ..HttpRule::default() }]);
        let rules = vec![PortRule { http, ..PortRule::default() }];
        let ingress = vec![PortPolicy { port: 80, rules, ..PortPolicy::default() }];
        NetworkPolicy { ingress, ..no_rules(1, "10.0.0.1") }
    };
    is_linear(|length| allocated_by([policy(length)]), 1500);
}

#[test]
fn many_policies_of_one_endpoint_id_cost_what_others_do() {
    let policies = |count| (0..count).map(|i| no_rules(7, &format!("name {i}")));
    is_linear(|count| allocated_by(policies(count)), 500);
}

#[test]
fn ports_share_the_automata_of_the_wildcard() {
    let regex = |i| HeaderMatcher::new(":path", ValueMatch::Regex(format!("/api/v1/service{i}/[a-z]+/.*").into()));
    let http = || (0..100).map(|i| HttpRule { headers: vec![regex(i)], ..HttpRule::default() }).collect();
    let wildcard =
        || PortPolicy { rules: vec![PortRule { http: Some(http()), ..PortRule::default() }], ..PortPolicy::default() };
    let port = |port| PortPolicy {
        port,
        rules: vec![PortRule { remotes: vec![port], ..PortRule::default() }],
        ..PortPolicy::default()
    };
    let with = |ports: u32| {
        let ingress = (1..=ports).map(port).chain([wildcard()]).collect();
        allocated_by([NetworkPolicy { ingress, ..no_rules(1, "10.0.0.1") }])
    };
    let (one, ten) = (with(1), with(10));
    println!("{one} bytes for one port, {ten} for ten");
    assert!(ten < 2 * one, "{one} bytes for one port, {ten} for ten");
}

/// Also where no two of them have a rule in common.
#[test]
fn ports_with_equal_expressions_share_the_automata() {
    let regex = |i| HeaderMatcher::new(":path", ValueMatch::Regex(format!("/api/v1/.{{300}}/service{i}").into()));
    let http = || (0..50).map(|i| HttpRule { headers: vec![regex(i)], ..HttpRule::default() }).collect();
    let port = |port| PortPolicy {
        port: 2 * port,
        rules: vec![PortRule { http: Some(http()), ..PortRule::default() }],
        ..PortPolicy::default()
    };
    let with = |ports: u32| {
        let ingress = (1..=ports).map(port).collect();
        allocated_by([NetworkPolicy { ingress, ..no_rules(1, "10.0.0.1") }])
    };
    let (one, ten) = (with(1), with(10));
    println!("{one} bytes for one port, {ten} for ten");
    assert!(ten < 2 * one, "{one} bytes for one port, {ten} for ten");
}

struct Fields<'a>(&'a [(&'a str, &'a str)]);

impl tollgate_policy::Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0.each(name, visit);
    }
}
