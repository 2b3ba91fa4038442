//! What a compiled policy is said to take of memory is what it takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;

use tollgate_policy::model::{HeaderMatch, HeaderMatcher, HttpRule, TextPart, ValueMatch};
use tollgate_policy::{Effort, EndpointKey, Limits, NetworkPolicy, PortPolicy, PortRule, Snapshot};

thread_local! {
    /// Bytes handed out and not taken back, and the most that there ever were.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

/// What glibc takes for it.
fn block(layout: Layout) -> isize {
    (layout.size() + 8).next_multiple_of(16).max(32).cast_signed()
}

#[expect(unsafe_code, reason = "a global allocator cannot be written without")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.with(|held| {
            let now = held.get().0 + block(layout);
            held.set((now, held.get().1.max(now)));
        });
        // SAFETY: the caller's promise is the one that is needed here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.with(|held| held.set((held.get().0 - block(layout), held.get().1)));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn path(value: ValueMatch) -> Vec<HeaderMatcher> {
    vec![HeaderMatcher::new(":path", value)]
}

fn regex(text: String) -> ValueMatch {
    ValueMatch::Regex(text.into())
}

fn http(headers: impl Iterator<Item = Vec<HeaderMatcher>>) -> PortRule {
    let rules = headers.map(|headers| HttpRule { headers, ..HttpRule::default() });
    PortRule { http: Some(rules.collect()), ..PortRule::default() }
}

fn port(port: u32, rules: Vec<PortRule>) -> PortPolicy {
    PortPolicy { port, rules, ..PortPolicy::default() }
}

/// Policies of every kind that takes memory, by name.
fn kinds() -> Vec<(&'static str, Vec<PortPolicy>)> {
    let literals = |n: u32| http((0..n).map(|i| path(regex(format!("/api/v1/thing-{i}")))));
    let expressions = |n: u32| http((0..n).map(|i| path(regex(format!("/api/v1/thing-{i}/[a-z]+")))));
    let prefix = |i| ValueMatch::Text { part: TextPart::Prefix, text: format!("/p{i}/").into(), ignore_case: false };
    let rich = |i: u32| {
        let mut headers = path(prefix(i));
        headers.push(HeaderMatcher::new(":method", regex("GET|HEAD".to_owned())));
        headers.push(HeaderMatcher::new(&format!("x-header-{}", i % 50), regex(format!("v{i}.*"))));
        headers
    };
    let peers = |i: u32| PortRule {
        name: format!("rule number {i}"),
        remotes: (i..i + 30).collect(),
        server_names: vec![format!("*.s{i}.example.com")],
        ..PortRule::default()
    };
    let edits = |i: u32| HttpRule {
        header_matches: vec![HeaderMatch::new("x-user", &format!("user-{i}")), HeaderMatch::new("x-team", "")],
        ..HttpRule::default()
    };
    let range = |i: u32| PortPolicy { port: 1000 + i, end_port: 1100 + i, ..port(0, vec![peers(i)]) };
    vec![
        ("no rules", Vec::new()),
        ("five rules", vec![port(80, vec![literals(5)])]),
        ("literals", vec![port(80, vec![literals(5000)])]),
        ("a rule each", vec![port(80, (0..5000).map(|i| http(std::iter::once(path(prefix(i))))).collect())]),
        ("expressions", vec![port(80, vec![expressions(2000)])]),
        ("rich", vec![port(80, vec![http((0..2000).map(rich))])]),
        ("peers", vec![port(443, (0..2000).map(peers).collect())]),
        ("edits", vec![port(80, vec![PortRule { http: Some((0..3000).map(edits).collect()), ..PortRule::default() }])]),
        ("ports", (1..500).map(|i| port(i, vec![expressions(5)])).collect()),
        ("ranges", (0..200).map(range).collect()),
        ("large", vec![port(80, vec![http((0..20).map(|i| path(regex(format!("/{i}.{{300}}x")))))])]),
        ("quarantined", vec![port(80, vec![http((0..2000).map(|i| path(regex(format!("({i}")))))])]),
    ]
}

fn policy(ingress: Vec<PortPolicy>) -> NetworkPolicy {
    NetworkPolicy { endpoint_id: 7, endpoints: vec![EndpointKey::parse("10.0.0.1")], ingress, egress: Vec::new() }
}

/// What the forms of the policy are said to take, each once.
fn taken(snapshot: &Snapshot) -> usize {
    let forms: HashSet<_> = snapshot.endpoints().flat_map(|policy| policy.forms()).collect();
    forms.iter().map(|form| form.bytes).sum()
}

#[test]
fn what_is_counted_is_what_is_held() {
    let empty = {
        let mut builder = Snapshot::empty().update();
        builder.upsert("7", policy(Vec::new()));
        builder.build()
    };
    for (name, ingress) in kinds() {
        let before = HELD.with(Cell::get).0;
        let ingress = ingress.clone();
        let source = HELD.with(Cell::get).0 - before;
        HELD.with(|held| held.set((held.get().0, held.get().0)));
        let mut builder = empty.update();
        builder.upsert("7", policy(ingress));
        let snapshot = builder.build();
        let (held, peak) = HELD.with(Cell::get);
        let (held, peak) = (held - before, peak - before);
        let counted =
            snapshot.endpoints().flat_map(|policy| policy.forms()).map(|form| form.bytes.cast_signed()).sum::<isize>();
        println!("{name}: {counted} counted of {held} held, at most {peak}, {source} of them as it came");
        // Tables of the snapshot itself are nobody's.
        let beside = 16 << 10;
        assert!(counted <= held * 115 / 100 + beside && held <= counted * 115 / 100 + beside, "{name}");
    }
}

/// Whatever room there is: it denies, or fits, and takes no more than a few times of it on the way.
#[test]
fn what_there_is_no_room_for_is_not_begun() {
    let limits = Limits::default();
    for (name, ingress) in kinds() {
        let empty = Snapshot::empty();
        let mut whole = empty.update();
        let mut effort = Effort::UNBOUNDED.within(1 << 40);
        whole.upsert_within("7", policy(ingress.clone()), &limits, &mut effort);
        let whole = whole.build();
        let bytes = taken(&whole);
        assert_eq!(effort.room(), (1 << 40) - bytes, "{name}");
        let fits = |room: usize| {
            let ingress = ingress.clone();
            let before = HELD.with(Cell::get).0;
            HELD.with(|held| held.set((before, before)));
            let mut builder = empty.update();
            let mut effort = Effort::UNBOUNDED.within(room);
            builder.upsert_within("7", policy(ingress), &limits, &mut effort);
            let snapshot = builder.build();
            let peak = HELD.with(Cell::get).1 - before;
            let policy = snapshot.policy("7").unwrap();
            assert!(peak <= (4 * room + (64 << 10)).cast_signed(), "{name}: {peak} bytes on the way, room for {room}");
            assert_eq!(
                policy.without_room().is_some(),
                policy.quarantined().any(|q| q.to_string().contains("policy.memory"))
            );
            assert!(policy.without_room().is_none_or(|needed| needed > room), "{name}");
            policy.without_room().is_none()
        };
        let rooms: Vec<usize> = (10..30).map(|shift| 1 << shift).collect();
        let first = rooms.iter().position(|room| fits(*room)).unwrap();
        println!("{name}: {bytes} bytes, and room for {} is needed", rooms[first]);
        assert!(rooms[first..].iter().all(|room| fits(*room)), "{name}");
        assert!((bytes..8 * bytes.max(4096)).contains(&rooms[first]), "{name}");
    }
}

/// What is refused before it is compiled would hardly have fitted, and what is said to be needed is enough.
#[test]
fn what_is_reckoned_is_what_it_takes_and_a_little_more() {
    let ordinary = ["five rules", "literals", "a rule each", "expressions", "rich", "peers", "edits", "ports"];
    for (name, ingress) in kinds().into_iter().filter(|(name, _)| ordinary.contains(name)) {
        let within = |room: usize| {
            let mut builder = Snapshot::empty().update();
            builder.upsert_within(
                "7",
                policy(ingress.clone()),
                &Limits::default(),
                &mut Effort::UNBOUNDED.within(room),
            );
            builder.build()
        };
        let bytes = within(1 << 40).policy("7").unwrap().forms()[0].bytes;
        let needed = within(0).policy("7").unwrap().without_room().unwrap();
        println!("{name}: {bytes} bytes, reckoned as {needed}");
        assert!((bytes..=bytes * 5 / 4 + 4096).contains(&needed), "{name}: {bytes} bytes, reckoned as {needed}");
        assert!(within(needed).policy("7").unwrap().without_room().is_none(), "{name}");
    }
}

/// A policy that is swapped again and again, for others that nobody has had before.
#[test]
fn what_is_replaced_is_given_back() {
    let swap = |snapshot: &Snapshot, round: u32| {
        let rules = http((0..60).map(|i| path(regex(format!("/round-{round}/thing-{i}/[a-z]+")))));
        let mut builder = snapshot.update();
        builder.upsert("7", policy(vec![port(80, vec![rules])]));
        builder.build()
    };
    let rounds = |snapshot: Snapshot, rounds: std::ops::Range<u32>| {
        let last = rounds.fold(snapshot, |snapshot, round| swap(&snapshot, round));
        (last, HELD.with(Cell::get).0)
    };
    let (first, before) = rounds(Snapshot::empty(), 1000..1600);
    let (last, after) = rounds(first, 1600..2200);
    let one = taken(&last).cast_signed();
    println!("{before} bytes held after 600 swaps, {after} after 600 more; one takes {one}");
    assert!(after - before < one, "{before} bytes, then {after}; one policy takes {one}");
}
