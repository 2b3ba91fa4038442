//! `header_matches`: what each action does to the verdict, the forwarded fields and the log.

use tollgate_policy::model::{HeaderMatch, HttpRule, MatchAction, MismatchAction, PortRule};
use tollgate_policy::reference::{Denial, Judgement, Reference};
use tollgate_policy::{DenyReason, HeaderEdits, HeaderLog, NoHeaders, Request, RuleOutcome, Secrets, Verdict};

use crate::support::{
    ENDPOINT, Fields, World, allow, at, deny, exact, flow, from, get, header, pass, paths, policy, port,
};

/// Short for a match with these actions.
fn on(name: &str, value: &str, on_match: MatchAction, on_mismatch: MismatchAction) -> HeaderMatch {
    HeaderMatch { on_match, on_mismatch, ..HeaderMatch::new(name, value) }
}

fn secret(name: &str, header_match: HeaderMatch) -> HeaderMatch {
    HeaderMatch { secret: Some(name.into()), ..header_match }
}

/// Requests for `path` that pass `matches`.
fn http(path: &str, matches: Vec<HeaderMatch>) -> HttpRule {
    HttpRule { headers: vec![header(":path", exact(path))], header_matches: matches, ..HttpRule::default() }
}

fn rule(http: Vec<HttpRule>) -> PortRule {
    PortRule { http: Some(http), ..PortRule::default() }
}

fn secrets(pairs: &[(&str, &[u8])]) -> Secrets {
    let mut secrets = Secrets::default();
    pairs.iter().for_each(|(name, value)| secrets.insert(name, value));
    secrets
}

/// What came of a request, as text: the verdict, the edits and the two lists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) allowed: bool,
    pub(crate) edits: String,
    pub(crate) missing: String,
    pub(crate) rejected: String,
}

pub(crate) fn seen(verdict: Verdict) -> Seen {
    let (allowed, edits, log) = match verdict {
        Verdict::Allow { edits, log, .. } => (true, edits, log),
        Verdict::Deny { log, .. } => (false, HeaderEdits::default(), log),
    };
    let edits: Vec<String> = edits
        .iter()
        .map(|edit| {
            let values: Vec<_> = edit.append.iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
            format!("{}{}={}", if edit.keep { "+" } else { "!" }, edit.name, values.join(","))
        })
        .collect();
    let HeaderLog { missing, rejected } = log.map(|log| *log).unwrap_or_default();
    let list = |list: Vec<tollgate_policy::LoggedHeader>| {
        list.iter().map(|entry| format!("{entry:?}")).collect::<Vec<_>>().join(" ")
    };
    Seen { allowed, edits: edits.join(" "), missing: list(missing), rejected: list(rejected) }
}

fn judge(world: &World, path: &str, headers: &[(&str, &[u8])], secrets: &Secrets) -> Seen {
    seen(world.0.evaluate_request(&flow(1, 80), &get(path, &Fields(headers)), secrets))
}

/// The table of the specification, section 1.6: one match on `x` in a rule of its own.
#[test]
fn actions() {
    use MatchAction as M;
    use MismatchAction as Mm;
    type Case = (&'static str, M, Mm, &'static [&'static str], bool, &'static str, &'static str, &'static str);
    // (value, match action, mismatch action, received, allowed, edits, missing, rejected)
    let cases: &[Case] = &[
        ("v", M::Continue, Mm::Fail, &["v"], true, "", "", ""),
        ("v", M::Fail, Mm::Continue, &["v"], false, "", "", "x: v"),
        ("v", M::Delete, Mm::Fail, &["v"], true, "!x=", "", "x: v"),
        ("v", M::Continue, Mm::Fail, &["w"], false, "", "x: v", ""),
        ("v", M::Continue, Mm::Fail, &[], false, "", "x: v", ""),
        ("v", M::Continue, Mm::Continue, &["w"], true, "", "x: v", ""),
        ("v", M::Continue, Mm::Add, &["w"], true, "+x=v", "x: v", ""),
        ("v", M::Continue, Mm::Add, &[], true, "+x=v", "x: v", ""),
        ("v", M::Continue, Mm::Delete, &["w"], true, "!x=", "", "x: w"),
        ("v", M::Continue, Mm::Delete, &[], true, "", "", ""),
        ("v", M::Continue, Mm::Replace, &["w"], true, "!x=v", "x: v", "x: w"),
        ("v", M::Continue, Mm::Replace, &[], true, "!x=v", "x: v", ""),
        // All instances are one value, compared with its case and in full.
        ("v,w", M::Continue, Mm::Fail, &["v", "w"], true, "", "", ""),
        ("v", M::Continue, Mm::Fail, &["v", "w"], false, "", "x: v", ""),
        ("v", M::Continue, Mm::Replace, &["v", "w"], true, "!x=v", "x: v", "x: v,w"),
        ("v", M::Continue, Mm::Fail, &["V"], false, "", "x: v", ""),
        ("v", M::Continue, Mm::Fail, &["v "], false, "", "x: v", ""),
        // Without a value only presence counts.
        ("", M::Continue, Mm::Fail, &["w"], true, "", "", ""),
        ("", M::Continue, Mm::Fail, &[""], true, "", "", ""),
        ("", M::Continue, Mm::Fail, &[], false, "", "x: ", ""),
        ("", M::Fail, Mm::Continue, &["w"], false, "", "", "x: "),
        ("", M::Fail, Mm::Continue, &[], true, "", "x: ", ""),
        ("", M::Delete, Mm::Continue, &["w", "v"], true, "!x=", "", "x: "),
        ("", M::Continue, Mm::Delete, &[], true, "", "", ""),
        ("", M::Continue, Mm::Add, &[], true, "+x=", "x: ", ""),
        // Both fail: nothing passes.
        ("v", M::Fail, Mm::Fail, &["v"], false, "", "", "x: v"),
        ("v", M::Fail, Mm::Fail, &["w"], false, "", "x: v", ""),
    ];
    for case @ (value, on_match, on_mismatch, received, allowed, edits, missing, rejected) in cases {
        let world =
            World::ingress(vec![port(80, vec![rule(vec![http("/", vec![on("X", value, *on_match, *on_mismatch)])])])]);
        let headers: Vec<(&str, &[u8])> = received.iter().map(|value| ("X", value.as_bytes())).collect();
        let expected = Seen {
            allowed: *allowed,
            edits: (*edits).to_owned(),
            missing: (*missing).to_owned(),
            rejected: (*rejected).to_owned(),
        };
        assert_eq!(judge(&world, "/", &headers, &Secrets::default()), expected, "{case:?}");
        assert_eq!(world.quarantined(), Vec::<String>::new());
    }
}

/// The same with the expected value in a secret.
#[test]
fn secrets_are_compared_and_redacted() {
    let token = |on_match, on_mismatch, inline: &str| {
        let matched = secret("token", on("x", inline, on_match, on_mismatch));
        World::ingress(vec![port(80, vec![rule(vec![http("/", vec![matched])])])])
    };
    let seen = |world: &World, value: &[u8], secrets: &Secrets| {
        let Seen { allowed, edits, missing, rejected } = judge(world, "/", &[("x", value)], secrets);
        format!("{allowed} [{edits}] [{missing}] [{rejected}]")
    };
    let (good, empty, none) = (secrets(&[("token", b"t0k")]), secrets(&[("token", b"")]), Secrets::default());
    let broken = secrets(&[("token", b"t0k\r\nx-admin: 1")]);

    let world = token(MatchAction::Continue, MismatchAction::Fail, "");
    assert_eq!(seen(&world, b"t0k", &good), "true [] [] []");
    assert_eq!(seen(&world, b"t0j", &good), "false [] [x: [redacted]] []");
    let world = token(MatchAction::Continue, MismatchAction::Replace, "");
    assert_eq!(seen(&world, b"t0j", &good), "true [!x=t0k] [x: [redacted]] [x: [redacted]]");
    let world = token(MatchAction::Delete, MismatchAction::Delete, "");
    assert_eq!(seen(&world, b"t0k", &good), "true [!x=] [] [x: [redacted]]");
    assert_eq!(seen(&world, b"t0j", &good), "true [!x=] [] [x: [redacted]]");

    // A secret that is not there fails whatever the actions are, and logs nothing; one that rotates counts at once.
    for action in [MismatchAction::Continue, MismatchAction::Add, MismatchAction::Delete, MismatchAction::Replace] {
        let world = token(MatchAction::Continue, action, "");
        for secrets in [&none, &empty, &broken] {
            assert_eq!(seen(&world, b"t0k", secrets), "false [] [] []", "{action:?} {secrets:?}");
        }
        assert!(seen(&world, b"other", &secrets(&[("token", b"other")])).starts_with("true [] [] []"), "{action:?}");
        assert!(seen(&world, b"t0k", &good).starts_with("true [] [] []"), "{action:?}");
    }
    // Instead of a secret that never came the inline value counts, redacted; instead of a broken one nothing does.
    let world = token(MatchAction::Continue, MismatchAction::Fail, "inline");
    assert_eq!(seen(&world, b"inline", &none), "true [] [] []");
    assert_eq!(seen(&world, b"x", &none), "false [] [x: [redacted]] []");
    assert_eq!(seen(&world, b"inline", &good), "false [] [x: [redacted]] []");
    for unusable in [&empty, &broken] {
        assert_eq!(seen(&world, b"inline", unusable), "false [] [] []");
        assert_eq!(seen(&world, b"", unusable), "false [] [] []");
    }
}

/// Every match of a rule that applies runs, also after one has failed, and so do those of all rules of the precedence.
#[test]
fn no_short_circuit_within_a_precedence() {
    let put = |name: &str| on(name, "v", MatchAction::Continue, MismatchAction::Replace);
    let never = || on("absent", "", MatchAction::Continue, MismatchAction::Fail);
    let judge = |rules: Vec<PortRule>| {
        let seen = judge(&World::ingress(vec![port(80, rules)]), "/", &[], &Secrets::default());
        (seen.allowed, seen.edits)
    };
    let outcome = |allowed, edits: &str| (allowed, edits.to_owned());
    // Within one HTTP rule, across those of one rule, and across rules (a single port's stand in reverse).
    assert!(!judge(vec![rule(vec![http("/", vec![put("a"), never(), put("b")])])]).0);
    let two = vec![http("/", vec![put("a"), never(), put("b")]), http("/", vec![put("c")]), http("/x", vec![put("d")])];
    assert_eq!(judge(vec![rule(two)]), outcome(true, "!a=v !b=v !c=v"));
    assert_eq!(
        judge(vec![rule(vec![http("/", vec![put("a")])]), rule(vec![http("/", vec![put("b")])])]),
        outcome(true, "!b=v !a=v")
    );
    // A plain rule admits; the others still edit.
    assert_eq!(judge(vec![paths(&["/"]), rule(vec![http("/", vec![put("a"), never()])])]), outcome(true, "!a=v"));
    assert_eq!(judge(vec![allow(), rule(vec![http("/", vec![put("a")])])]), outcome(true, "!a=v"));
    // Below the precedence that admitted nothing runs; below one that did not, everything does.
    let low = || rule(vec![http("/", vec![put("low")])]);
    assert_eq!(judge(vec![at(2, rule(vec![http("/", vec![put("a")])])), at(1, low())]), outcome(true, "!a=v"));
    assert_eq!(
        judge(vec![at(2, rule(vec![http("/", vec![put("a"), never()])])), at(1, low())]),
        outcome(true, "!a=v !low=v")
    );
    // A deny ends it, whatever has run; its own precedence does not even begin.
    assert!(!judge(vec![at(2, rule(vec![http("/", vec![put("a"), never()])])), at(1, deny()), low()]).0);
    assert!(!judge(vec![low(), deny()]).0);
    // A pass skips, unless its own precedence has admitted.
    assert_eq!(
        judge(vec![pass(3, 2), at(2, low()), at(1, rule(vec![http("/", vec![put("a")])]))]),
        outcome(true, "!a=v")
    );
    assert_eq!(judge(vec![pass(2, 1), at(2, low()), at(1, deny())]), outcome(true, "!low=v"));
    // Rules for another peer run nothing.
    assert_eq!(judge(vec![from(&[2], low()), rule(vec![http("/", vec![put("a")])])]), outcome(true, "!a=v"));
}

/// Matches see what those before them did; conditions see what was received.
#[test]
fn edits_are_seen_by_later_matches_and_by_no_condition() {
    use MatchAction as M;
    use MismatchAction as Mm;
    let judge = |matches: Vec<HeaderMatch>, headers: &[(&str, &[u8])]| {
        let world = World::ingress(vec![port(80, vec![rule(vec![http("/", matches)])])]);
        let seen = judge(&world, "/", headers, &Secrets::default());
        (seen.allowed, seen.edits)
    };
    let demand = || on("x", "v", M::Continue, Mm::Fail);
    let add = || on("x", "v", M::Continue, Mm::Add);
    let yes = |edits: &str| (true, edits.to_owned());
    assert_eq!(judge(vec![add(), demand()], &[]), yes("+x=v"));
    // Added once, not twice.
    assert_eq!(judge(vec![add(), add()], &[]), yes("+x=v"));
    assert_eq!(judge(vec![add(), on("x", "o,v", M::Continue, Mm::Fail)], &[("x", b"o")]), yes("+x=v"));
    let out = || on("x", "", M::Delete, Mm::Continue);
    assert_eq!(judge(vec![out(), on("x", "", M::Fail, Mm::Continue)], &[("x", b"o")]), yes("!x="));
    assert_eq!(judge(vec![out(), add(), demand()], &[("x", b"o")]), yes("!x=v"));
    assert_eq!(judge(vec![add(), out()], &[]), yes("!x="));

    let gold = HttpRule { headers: vec![header("x", exact("v"))], ..HttpRule::default() };
    let failing = http("/", vec![add(), on("absent", "", M::Continue, Mm::Fail)]);
    let world = World::ingress(vec![port(80, vec![rule(vec![failing, gold])])]);
    assert!(!self::judge(&world, "/", &[], &Secrets::default()).allowed, "a rule admits what the proxy itself put in");
    assert!(self::judge(&world, "/", &[("x", b"v")], &Secrets::default()).allowed);
}

/// The pseudo-headers and the host can be tested, never changed; nor can fields that frame the message.
#[test]
fn what_frames_or_routes_is_never_edited() {
    use MatchAction as M;
    use MismatchAction as Mm;
    let edits = [(M::Delete, Mm::Fail), (M::Continue, Mm::Add), (M::Continue, Mm::Delete), (M::Continue, Mm::Replace)];
    let names = [
        ":path",
        ":method",
        ":authority",
        ":scheme",
        "host",
        "Content-Length",
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
    let world = |matched: HeaderMatch| World::ingress(vec![port(80, vec![rule(vec![http("/", vec![matched])])])]);
    for name in names {
        for (on_match, on_mismatch) in edits {
            let world = world(on(name, "1", on_match, on_mismatch));
            let lower = name.to_ascii_lowercase();
            let reason = format!("{lower} frames or routes the message, so no rule may change it");
            let place = "7 ingress_per_port_policies[0].rules[0].http_rules[0].header_matches[0].name";
            assert_eq!(world.quarantined(), [format!("{place}: {reason}")]);
            assert!(!judge(&world, "/", &[(name, b"1")], &Secrets::default()).allowed, "{name}");
        }
        assert_eq!(world(on(name, "1", M::Fail, Mm::Continue)).quarantined(), Vec::<String>::new(), "{name}");
    }
    let request = |matched| {
        let world = world(matched);
        let request = Request { method: b"GET", scheme: b"http", authority: b"a:1", path: b"/", headers: &NoHeaders };
        seen(world.0.evaluate_request(&flow(1, 80), &request, &Secrets::default())).allowed
    };
    for (name, value) in
        [(":path", "/"), (":method", "GET"), (":authority", "a:1"), ("host", "a:1"), (":scheme", "http")]
    {
        assert!(request(HeaderMatch::new(name, value)) && request(HeaderMatch::new(name, "")), "{name}");
        assert!(!request(HeaderMatch::new(name, "x")), "{name}");
    }
}

#[test]
fn what_cannot_be_honoured_is_quarantined_by_name() {
    use MatchAction as M;
    use MismatchAction as Mm;
    let cases = [
        (on("x", "v", M::Unknown(7), Mm::Continue), "match_action: 7 is not an action that this version knows"),
        (on("x", "v", M::Continue, Mm::Unknown(-1)), "mismatch_action: -1 is not an action that this version knows"),
        (on("", "v", M::Continue, Mm::Continue), "name: name \"\" is not a header name"),
        (on("x\r\ny", "v", M::Continue, Mm::Add), "name: name \"x\\r\\ny\" is not a header name"),
        (
            on(":uri", "v", M::Continue, Mm::Continue),
            "name: name \":uri\": only :method, :path, :authority and :scheme can be matched",
        ),
        (
            on("x", "a\r\nb: c", M::Continue, Mm::Add),
            "value: \"a\\r\\nb: c\" holds a line end or another control character, so no header has it",
        ),
        (
            on("x", "a\0", M::Fail, Mm::Continue),
            "value: \"a\\0\" holds a line end or another control character, so no header has it",
        ),
        (on("x", "a ", M::Fail, Mm::Continue), "value: \"a \" begins or ends with a blank, so no header has it"),
    ];
    for (matched, reason) in cases {
        let world = World::ingress(vec![port(80, vec![rule(vec![http("/", vec![matched]), http("/good", vec![])])])]);
        let place = "7 ingress_per_port_policies[0].rules[0].http_rules[0].header_matches[0].";
        assert_eq!(world.quarantined(), [format!("{place}{reason}")]);
        for headers in [&[][..], &[("x", &b"v"[..])]] {
            assert!(!judge(&world, "/", headers, &Secrets::default()).allowed, "{reason}");
            assert!(judge(&world, "/good", headers, &Secrets::default()).allowed, "{reason}");
        }
    }
}

#[test]
fn denials_name_the_match_that_failed() {
    use MatchAction as M;
    use MismatchAction as Mm;
    let miss = |matched: HeaderMatch, headers: &[(&str, &[u8])]| {
        let world = World::ingress(vec![port(80, vec![rule(vec![http("/x", vec![]), http("/", vec![matched])])])]);
        match world.0.evaluate_request(&flow(1, 80), &get("/", &Fields(headers)), &secrets(&[("empty", b"")])) {
            Verdict::Deny { reason, nearest: Some(nearest), .. } => {
                assert_eq!(nearest.rule.http_rule, Some(1));
                format!("{reason:?} {} is not {}", nearest.field, nearest.expected)
            }
            other => panic!("{other:?}"),
        }
    };
    let demand = |name: &str, value: &str| on(name, value, M::Continue, Mm::Fail);
    assert_eq!(miss(demand("x", "v"), &[]), "NoHttpRule x is not exact \"v\"");
    assert_eq!(miss(demand("x", ""), &[]), "NoHttpRule x is not present");
    assert_eq!(
        miss(on("x", "v", M::Fail, Mm::Continue), &[("x", b"v")]),
        "NoHttpRule x is not anything but exact \"v\""
    );
    assert_eq!(
        miss(secret("s", demand("x", "")), &[("x", b"v")]),
        "NoHttpRule x is not comparable: secret \"s\" is not delivered"
    );
    assert_eq!(
        miss(secret("empty", demand("x", "")), &[("x", b"v")]),
        "NoHttpRule x is not comparable: secret \"empty\" is empty"
    );
    // Never what a secret stands for, not even inline.
    assert_eq!(miss(secret("s", demand("x", "t0k")), &[]), "NoHttpRule x is not the value of secret \"s\"");
}

#[test]
fn explanations_account_for_matches() {
    use MatchAction as M;
    use MismatchAction as Mm;
    let put = on("a", "v", M::Continue, Mm::Replace);
    let demand = HeaderMatch::new("x", "v");
    let rules =
        vec![rule(vec![http("/", vec![put.clone(), demand]), http("/", vec![put.clone()]), http("/", vec![put])])];
    let world = World::ingress(vec![port(80, rules)]);
    let explained = world.0.explain(&flow(1, 80), Some(&get("/", &NoHeaders)), &Secrets::default());
    let rules: Vec<_> = explained.policies[0]
        .rules
        .iter()
        .map(|rule| {
            let matches: Vec<String> =
                rule.predicates[1..].iter().map(|p| format!("{} {} {}", p.field, p.expected, p.matched)).collect();
            (rule.outcome, matches.join("; "))
        })
        .collect();
    let put = "a exact \"v\", or put in place true";
    assert_eq!(
        rules,
        [
            (RuleOutcome::NotApplicable, format!("{put}; x exact \"v\" false")),
            (RuleOutcome::Decided, put.to_owned()),
            (RuleOutcome::AlsoAdmitted, put.to_owned()),
        ]
    );
}

/// Where resources share an address, what one edited the next one sees, and all must admit.
#[test]
fn policies_that_share_an_address_edit_in_turn() {
    use MatchAction as M;
    use MismatchAction as Mm;
    let adding = |id, matched| policy(id, &[ENDPOINT], vec![port(80, vec![rule(vec![http("/", vec![matched])])])]);
    let judge = |second| {
        let mut builder = tollgate_policy::Snapshot::empty().update();
        builder.replace_all([adding(1, on("x", "v", M::Continue, Mm::Add)), adding(2, second)]);
        let seen = judge(&World(builder.build()), "/", &[], &Secrets::default());
        (seen.allowed, seen.edits)
    };
    assert_eq!(judge(on("y", "w", M::Continue, Mm::Add)), (true, "+x=v +y=w".to_owned()));
    assert_eq!(judge(on("x", "v", M::Delete, Mm::Fail)), (true, "!x=".to_owned()));
    assert_eq!(judge(on("x", "v", M::Fail, Mm::Continue)), (false, String::new()));

    // What failed in the first one, which admits, is no reason of the second one's.
    let demand = |name: &str| HeaderMatch::new(name, "");
    let first = http("/", vec![on("y", "", M::Continue, Mm::Continue), demand("first")]);
    let rules = |http| vec![port(80, vec![rule(http)])];
    let mut builder = tollgate_policy::Snapshot::empty().update();
    builder.replace_all([
        policy(1, &[ENDPOINT], rules(vec![first, http("/", vec![])])),
        policy(2, &[ENDPOINT], rules(vec![http("/", vec![demand("second")])])),
    ]);
    let verdict = builder.build().evaluate_request(&flow(1, 80), &get("/", &NoHeaders), &Secrets::default());
    let Verdict::Deny { nearest: Some(nearest), .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!((nearest.rule.endpoint_id, &*nearest.field), (2, "second"));
}

/// Names that rules look at or edit, so that a trailer cannot stand in for them.
#[test]
fn fields_that_rules_read() {
    let conditions = HttpRule { headers: vec![header("X-Tier", exact("gold"))], ..HttpRule::default() };
    let matches = http("/", vec![on("X-User", "", MatchAction::Continue, MismatchAction::Continue)]);
    let rules = vec![from(&[5], rule(vec![conditions, matches])), deny()];
    let world = World::ingress(vec![port(80, rules), port(81, vec![])]);
    let reads = |port, name| world.0.reads_field(&flow(1, port), name);
    assert!(reads(80, "x-tier") && reads(80, "x-user"));
    assert!(!reads(80, "x-sum") && !reads(81, "x-tier") && !reads(82, "x-tier"));
}

/// Each change and each entry costs the matches after it time.
#[test]
fn changes_and_entries_of_one_request_are_bounded() {
    let add = |n: usize| on("x", &n.to_string(), MatchAction::Continue, MismatchAction::Add);
    let log = |n: usize| on("y", &n.to_string(), MatchAction::Continue, MismatchAction::Continue);
    let judge = |rules: Vec<HttpRule>| {
        let world = World::ingress(vec![port(80, vec![rule(rules)])]);
        world.0.evaluate_request(&flow(1, 80), &get("/", &NoHeaders), &Secrets::default())
    };
    let most = HeaderEdits::MAX - 1;
    let Verdict::Allow { edits, .. } = judge((0..most).map(|n| http("/", vec![add(n)])).collect()) else {
        panic!("denied");
    };
    assert_eq!(edits.of("X").unwrap().append.len(), most);
    let one_more = judge(vec![http("/", (0..=most).map(add).collect())]);
    let Verdict::Deny { nearest: Some(nearest), .. } = one_more else { panic!("{one_more:?}") };
    assert_eq!(&*nearest.expected, "editable: at most 100 changes are made to a request");
    let Verdict::Allow { log: Some(logged), .. } = judge(vec![http("/", (0..1000).map(log).collect())]) else {
        panic!("denied");
    };
    assert_eq!(logged.missing.len(), HeaderLog::MAX);
}

/// A change that is not made is not left out either: another rule that admits does not make up for it.
#[test]
fn no_rule_admits_without_a_change_that_is_not_made() {
    let add = |n: usize| on(&format!("x-add-{n}"), "v", MatchAction::Continue, MismatchAction::Add);
    let strip = || on("x-admin", "never", MatchAction::Continue, MismatchAction::Delete);
    let strips = |adds: usize| http("/x", (0..adds).map(add).chain([strip()]).collect());
    let headers: &[(&str, &[u8])] = &[("x-admin", b"root")];
    let headers = Fields(headers);
    let request = get("/x", &headers);
    // Within one rule, between rules, and on either side of what admits.
    let orders = |adds| {
        let (strips, plain) = (|| strips(adds), || http("/x", vec![]));
        [
            vec![rule(vec![strips()]), rule(vec![plain()])],
            vec![rule(vec![plain()]), rule(vec![strips()])],
            vec![rule(vec![strips(), plain()])],
            vec![at(2, rule(vec![strips()])), at(1, rule(vec![plain()]))],
        ]
    };
    for (adds, admitted) in [(HeaderEdits::MAX / 2 - 1, true), (HeaderEdits::MAX / 2, false)] {
        for (rules, i) in orders(adds).into_iter().zip(0..) {
            let world = World::ingress(vec![port(80, rules.clone())]);
            let verdict = world.0.evaluate_request(&flow(1, 80), &request, &Secrets::default());
            let reference = Reference::of([policy(7, &[ENDPOINT], vec![port(80, rules)])]);
            let (judgement, effects) = reference.request(&flow(1, 80), &request, &Secrets::default());
            match (&verdict, admitted) {
                (Verdict::Allow { edits, .. }, true) => {
                    assert!(!edits.of("x-admin").unwrap().keep, "{i}");
                    assert!(effects.agree_on_fields(&request, edits), "{i}: {effects:?}");
                }
                (Verdict::Deny { reason: DenyReason::MatchBudget, nearest: Some(nearest), .. }, false) => {
                    assert_eq!(&*nearest.field, "x-admin", "{i}");
                    let expected = Denial { reason: DenyReason::MatchBudget, rule: None };
                    assert_eq!(judgement, Judgement::Deny(expected), "{i}");
                }
                _ => panic!("{i}, {adds} changes: {verdict:?}"),
            }
        }
    }
}

/// What would have admitted did not decide.
#[test]
fn an_explanation_names_one_rule_that_decides_where_too_much_is_changed() {
    let add = |n: usize| on(&format!("x-add-{n}"), "v", MatchAction::Continue, MismatchAction::Add);
    let rules = vec![
        rule(vec![http("/", vec![])]),
        rule(vec![http("/", (0..=HeaderEdits::MAX).map(add).collect())]),
        rule(vec![http("/", vec![])]),
    ];
    let world = World::ingress(vec![port(80, rules)]);
    let explained = world.0.explain(&flow(1, 80), Some(&get("/", &NoHeaders)), &Secrets::default());
    assert!(matches!(explained.request, Some(Verdict::Deny { reason: DenyReason::MatchBudget, .. })));
    let outcomes: Vec<_> = explained.policies[0].rules.iter().map(|rule| rule.outcome).collect();
    assert_eq!(outcomes, [RuleOutcome::AlsoAdmitted, RuleOutcome::Undecided, RuleOutcome::NotReached]);
}

/// Whose values are not to be shown, for the port of the flow alone.
#[test]
fn fields_that_meet_a_secret_are_known() {
    let injected = secret("token", on("Authorization", "", MatchAction::Continue, MismatchAction::Replace));
    let compared = secret("key", HeaderMatch::new("X-Key", ""));
    let plain = HeaderMatch::new("x-plain", "1");
    let world = World::ingress(vec![
        port(
            80,
            vec![rule(vec![http("/a", vec![compared.clone(), injected]), http("/b", vec![compared, plain.clone()])])],
        ),
        port(81, vec![rule(vec![http("/", vec![plain])])]),
    ]);
    let names = |port| world.0.secret_fields(&flow(1, port)).concat();
    assert_eq!(names(80), ["authorization".into(), "x-key".into()]);
    assert!(names(81).is_empty() && names(82).is_empty());
}
