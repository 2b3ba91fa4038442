//! What one policy may be, and what compiling it may take: beyond, it denies, and nobody else's does.

use tollgate_policy::model::{HttpRule, PortPolicy, PortRule, ValueMatch};
use tollgate_policy::{DenyReason, Effort, Limits, Snapshot};

use crate::support::{ENDPOINT, World, exact, flow, from, header, policy, port, range};

/// Allows paths that one of the patterns matches.
fn patterns(patterns: impl Iterator<Item = String>) -> PortRule {
    let http_rule = |pattern: String| HttpRule {
        headers: vec![header(":path", ValueMatch::Regex(pattern.into()))],
        ..HttpRule::default()
    };
    PortRule { http: Some(patterns.map(http_rule).collect()), ..PortRule::default() }
}

fn numbered(count: usize) -> Vec<PortPolicy> {
    vec![port(80, vec![patterns((0..count).map(|i| format!("/a{i}/[0-9]+")))])]
}

/// Endpoint 7 with `ingress`, and endpoint 8 with a rule of its own.
fn world(ingress: &[PortPolicy], limits: &Limits, effort: &mut Effort) -> World {
    let mut builder = Snapshot::empty().update();
    builder.upsert_within("7", policy(7, &[ENDPOINT], ingress.to_vec()), limits, effort);
    builder.upsert_within("8", policy(8, &["10.0.0.2"], numbered(1)), limits, &mut Effort::new(1 << 20));
    World(builder.build())
}

fn unbounded(ingress: &[PortPolicy], limits: &Limits) -> World {
    world(ingress, limits, &mut { Effort::UNBOUNDED })
}

fn quarantined(world: &World) -> Vec<String> {
    world.0.quarantined().map(|entry| entry.to_string()).collect()
}

#[test]
fn a_long_expression_is_not_read_and_its_siblings_stand() {
    let long = format!("/a{}", "(a|b)*c".repeat(1000));
    let ingress = [port(80, vec![patterns([long, "/b[0-9]".to_owned()].into_iter())])];
    let of = |expression_bytes| unbounded(&ingress, &Limits { expression_bytes, ..Limits::default() });
    let world = of(4096);
    let found = quarantined(&world);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("http_rules[0].headers[0]: regex of 7002 bytes, and 4096 are the most"), "{found:?}");
    let path = format!("/a{}", "c".repeat(1000));
    assert!(world.request(&flow(1, 80), "/b1").is_ok() && world.request(&flow(1, 80), &path).is_err());
    assert_eq!(quarantined(&of(7001)).len(), 1);
    let world = of(7002);
    assert_eq!((quarantined(&world), world.request(&flow(1, 80), &path).is_ok()), (vec![], true));
    // Reading 120 KB takes no effort.
    let bomb = [port(80, vec![patterns(std::iter::once(r"\pL".repeat(40_000)))])];
    let mut effort = Effort::new(1_000_000);
    let found = quarantined(&self::world(&bomb, &Limits::default(), &mut effort));
    assert!(found[0].contains("regex of 120000 bytes") && effort.left() > 990_000, "{found:?} {effort:?}");
}

#[test]
fn an_expression_has_the_automaton_of_its_tenant() {
    let ingress = [port(80, vec![patterns(["/x.{100}".to_owned(), "/y[a-z]".to_owned()].into_iter())])];
    let of = |program_bytes| quarantined(&unbounded(&ingress, &Limits { program_bytes, ..Limits::default() }));
    let small = of(10_000);
    assert!(small.len() == 1 && small[0].ends_with("needs an automaton of more than 10000 bytes"), "{small:?}");
    assert_eq!(of(1_000_000), Vec::<String>::new());
}

#[test]
fn too_many_rules_deny_their_direction() {
    let limits = Limits { rules: 11, ..Limits::default() };
    let world = unbounded(&numbered(10), &limits);
    assert_eq!((quarantined(&world).len(), world.request(&flow(1, 80), "/a9/1").is_ok()), (0, true));
    let world = unbounded(&numbered(11), &limits);
    let found = quarantined(&world);
    assert!(found.len() == 1 && found[0].contains("12 rules, and 11 are the most"), "{found:?}");
    assert_eq!(world.connection(&flow(1, 80)), format!("{:?}", DenyReason::Quarantined));
    let ports: Vec<_> = (1..=12).map(|number| port(number, vec![from(&[1], PortRule::default())])).collect();
    assert_eq!(quarantined(&unbounded(&ports, &limits)).len(), 1, "rules of ports count, too");
    assert_eq!(quarantined(&unbounded(&ports, &Limits::default())).len(), 0);
}

/// What effort there has to be.
fn needed(ingress: &[PortPolicy]) -> u64 {
    let mut effort = Effort::new(1 << 40);
    world(ingress, &Limits::default(), &mut effort);
    (1 << 40) - effort.left()
}

#[test]
fn without_the_effort_a_policy_denies_until_it_is_prepared() {
    let ingress = numbered(500);
    let needed = needed(&ingress);
    let limits = Limits::default();
    // While an automaton is built, it may be larger than in the end.
    let enough = world(&ingress, &limits, &mut Effort::new(2 * needed));
    assert_eq!((quarantined(&enough).len(), enough.request(&flow(1, 80), "/a9/1").is_ok()), (0, true));
    for lacking in [1, needed / 3, needed - 1000, needed] {
        let mut effort = Effort::new(needed - lacking);
        let provisional = world(&ingress, &limits, &mut effort);
        // What cannot suffice is not begun, and leaves the rest to others.
        let (used, begun) = (needed - lacking - effort.left(), effort.is_exhausted());
        assert!(if begun { effort.left() == 0 } else { used == 0 }, "{used} of {needed}, {lacking} are lacking");
        assert!(begun || lacking > 1000, "{lacking} of {needed}");
        let World(snapshot) = &provisional;
        let unfinished: Vec<_> = snapshot.endpoints().filter(|policy| policy.is_unfinished()).collect();
        assert_eq!(unfinished.len(), 1, "only its own endpoint");
        assert_eq!((unfinished[0].resource(), unfinished[0].source().ingress), ("7", ingress.clone()));
        let found = quarantined(&provisional);
        assert!(found.len() == 1 && found[0].contains("is compiled in the background"), "{found:?}");
        assert_eq!(provisional.request(&flow(1, 80), "/a9/1"), Err(DenyReason::Quarantined));

        // The same again makes no difference; what was prepared does, and takes nothing.
        let mut builder = snapshot.update();
        builder.upsert_within("7", policy(7, &[ENDPOINT], ingress.clone()), &limits, &mut Effort::new(0));
        assert_eq!(quarantined(&World(builder.build())), found);
        let mut draft = snapshot.draft(policy(7, &[ENDPOINT], ingress.clone()), &limits);
        draft.compile(&mut { Effort::UNBOUNDED });
        assert!(draft.is(unfinished[0]) && !draft.is_unfinished());
        let mut builder = snapshot.update();
        builder.insert("7", draft);
        let whole = World(builder.build());
        assert_eq!((quarantined(&whole).len(), whole.request(&flow(1, 80), "/a9/1").is_ok()), (0, true));
        assert!(whole.0.endpoints().all(|policy| !policy.is_unfinished()));
        // Whoever has equal rules needs no effort either.
        let mut builder = whole.0.update();
        builder.upsert_within("9", policy(9, &["10.0.0.9"], ingress.clone()), &limits, &mut Effort::new(0));
        assert!(builder.build().policy("9").is_some_and(|policy| !policy.is_unfinished()));
    }
}

#[test]
fn other_limits_are_another_form() {
    let ingress = numbered(3);
    let limits = Limits { rules: 4, ..Limits::default() };
    let first = unbounded(&ingress, &limits);
    let fewer = Limits { rules: 3, ..limits };
    let mut builder = first.0.update();
    builder.upsert_within("7", policy(7, &[ENDPOINT], ingress), &fewer, &mut { Effort::UNBOUNDED });
    let second = World(builder.build());
    assert_eq!((quarantined(&first).len(), quarantined(&second).len()), (0, 1));
    assert_eq!(second.0.policy("7").unwrap().limits(), fewer);
}

/// What makes a policy large is reckoned, wherever it is.
#[test]
fn effort_grows_with_what_there_is_to_do() {
    let base = needed(&numbered(100));
    assert!(needed(&numbered(1000)) > 8 * base);
    let exact_paths = |count: usize| {
        let rule = |i| HttpRule { headers: vec![header(":path", exact(&format!("/{i}")))], ..HttpRule::default() };
        vec![port(80, vec![PortRule { http: Some((0..count).map(rule).collect()), ..PortRule::default() }])]
    };
    assert!(needed(&exact_paths(1000)) > 5 * needed(&exact_paths(100)));
    let identities = |count: u32| vec![port(80, vec![from(&(0..count).collect::<Vec<_>>(), PortRule::default())])];
    assert!(needed(&identities(100_000)) > 50 * needed(&identities(100)));
    let overlapping =
        |count| (1..=count).map(|end| range(1, end, vec![patterns(std::iter::once("/a.*".into()))])).collect();
    let (some, many): (Vec<_>, Vec<_>) = (overlapping(30), overlapping(300));
    assert!(needed(&many) > 50 * needed(&some), "splitting ranges copies rules");
    let wide = [port(80, vec![patterns((0..100).map(|i| format!("/{i}.*x.{{50}}")))])];
    assert!(needed(&wide) > 5 * base, "automata count by their size");
}
