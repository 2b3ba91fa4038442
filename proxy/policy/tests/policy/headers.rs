//! Header matchers, every kind.

use tollgate_policy::model::{HeaderMatcher, HttpRule, PortRule, TextPart, ValueMatch};
use tollgate_policy::{NoHeaders, Request, Secrets, Verdict};

use crate::support::{World, allow, exact, flow, get, header, port};

fn text(part: TextPart, text: &str, ignore_case: bool) -> ValueMatch {
    ValueMatch::Text { part, text: text.into(), ignore_case }
}

fn regex(pattern: &str) -> ValueMatch {
    ValueMatch::Regex(pattern.into())
}

fn world(matchers: Vec<HeaderMatcher>) -> World {
    let rule = HttpRule { headers: matchers, ..HttpRule::default() };
    World::ingress(vec![port(80, vec![PortRule { http: Some(vec![rule]), ..allow() }])])
}

/// Each kind with values of header `x` that it matches and that it does not. From these follows what its inversion
/// matches, and what both do when the header is absent.
#[test]
fn value_matchers() {
    use TextPart::{Anywhere, Prefix, Suffix, Whole};
    let cases: Vec<(ValueMatch, &[&str], &[&str])> = vec![
        (exact("v"), &["v"], &["V", "vv", "", "v,v"]),
        (exact(""), &[""], &["v"]),
        (ValueMatch::Any, &["", "v"], &[]),
        (text(Whole, "Va", true), &["va", "VA"], &["v", "vaa"]),
        (text(Prefix, "/a", false), &["/a", "/ab"], &["/", "/A", "x/a"]),
        (text(Prefix, "/a", true), &["/A", "/aB", "/a\u{e9}"], &["/", "x/a"]),
        (text(Suffix, ".com", false), &[".com", "a.com"], &["a.COM", "com", "a.comx"]),
        (text(Suffix, ".com", true), &["a.COM"], &["com"]),
        (text(Anywhere, "ab", false), &["ab", "xaby"], &["aB", "a", ""]),
        (text(Anywhere, "ab", true), &["xAbY"], &["a b"]),
        (regex("GET|HEAD"), &["GET", "HEAD"], &["GETS", "get", "GET|HEAD"]),
        (regex("/a.*"), &["/a", "/abc"], &["/", "x/a", "/a\nb"]),
        (regex(".*public$"), &["/maybe/public"], &["/publicz"]),
        (
            ValueMatch::Range { start: -5, end: 10 },
            &["-5", "0", "9", "+9", " 9 "],
            &["10", "-6", "", "x", "1.5", "9,9"],
        ),
        (ValueMatch::Range { start: 10, end: 10 }, &[], &["10"]),
    ];
    for (value, matching, others) in cases {
        for invert in [false, true] {
            for treat_missing_as_empty in [false, true] {
                let world = world(vec![HeaderMatcher { invert, treat_missing_as_empty, ..header("x", value.clone()) }]);
                let label = format!("{value} invert {invert} empty {treat_missing_as_empty}");
                for v in matching {
                    assert_eq!(world.with_header("x", v.as_bytes()), !invert, "{label} on {v:?}");
                }
                for v in others {
                    assert_eq!(world.with_header("X", v.as_bytes()), invert, "{label} on {v:?}");
                }
                // An absent header matches nothing, not even inverted, unless it counts as an empty one.
                let as_empty = world.with_header("x", b"");
                assert_eq!(world.with_headers(&[]), treat_missing_as_empty && as_empty, "{label} absent");
            }
        }
    }
}

#[test]
fn presence() {
    // (present_match, invert, treat_missing_as_empty, matches a present one, matches an absent one)
    let cases = [
        (true, false, false, true, false),
        (true, true, false, false, true),
        (false, false, false, false, true),
        (false, true, false, true, false),
        (true, false, true, true, true),
        (false, false, true, false, false),
    ];
    for (wanted, invert, treat_missing_as_empty, present, absent) in cases {
        let matcher = header("x", ValueMatch::Present(wanted));
        let world = world(vec![HeaderMatcher { invert, treat_missing_as_empty, ..matcher }]);
        assert_eq!(world.with_header("x", b""), present, "{wanted} {invert} {treat_missing_as_empty}");
        assert_eq!(world.with_headers(&[]), absent, "{wanted} {invert} {treat_missing_as_empty}");
    }
}

#[test]
fn repeated_headers_join_with_a_bare_comma() {
    let repeated: &[(&str, &[u8])] = &[("x", b"a"), ("y", b"-"), ("X", b"b"), ("x", b"")];
    assert!(world(vec![header("x", exact("a,b,"))]).with_headers(repeated));
    assert!(!world(vec![header("x", exact("a"))]).with_headers(repeated));
    assert!(world(vec![header("x", regex("a,.*"))]).with_headers(repeated));
}

#[test]
fn all_matchers_must_hold_also_on_one_header() {
    let both = world(vec![
        header("x", text(TextPart::Prefix, "a", false)),
        header("x", text(TextPart::Suffix, "z", false)),
        header("y", ValueMatch::Present(false)),
    ]);
    assert!(both.with_header("x", b"a-z"));
    assert!(!both.with_header("x", b"a-"));
    assert!(!both.with_header("x", b"-z"));
    assert!(!both.with_headers(&[("x", b"a-z"), ("y", b"")]));
    assert!(world(vec![]).with_headers(&[]));
}

#[test]
fn pseudo_headers() {
    let asks = |name: &str, value: &str| {
        let world = world(vec![header(name, exact(value))]);
        let request =
            Request { method: b"PUT", scheme: b"https", authority: b"h.example:81", ..get("/p?q=1", &NoHeaders) };
        matches!(world.0.evaluate_request(&flow(1, 80), &request, &Secrets::default()), Verdict::Allow { .. })
    };
    for (name, value) in [
        (":method", "PUT"),
        (":METHOD", "PUT"),
        (":scheme", "https"),
        (":authority", "h.example:81"),
        ("Host", "h.example:81"),
        (":path", "/p?q=1"),
    ] {
        assert!(asks(name, value), "{name}");
        assert!(!asks(name, "x"), "{name}");
    }
    assert!(!asks(":path", "/p"));
    assert!(!asks(":authority", "h.example"));
}
