//! What is found and, more important, what is not. That a rule said to be without effect really has none is checked by
//! taking it out and asking the engine.

use proptest::prelude::*;

use super::probe::{Probe, Probes};
use super::*;
use crate::model::{HeaderMatcher, TextPart, ValueMatch};
use crate::{ConnectionVerdict, EndpointKey, Flow, NoHeaders, Request, SecurityId, Verdict};

fn regex(pattern: &str) -> ValueMatch {
    ValueMatch::Regex(pattern.into())
}

fn exact(text: &str) -> ValueMatch {
    part(TextPart::Whole, text)
}

fn part(part: TextPart, text: &str) -> ValueMatch {
    ValueMatch::Text { part, text: text.into(), ignore_case: false }
}

fn http(matchers: &[(&str, ValueMatch)]) -> HttpRule {
    let headers = matchers.iter().map(|(name, value)| HeaderMatcher::new(name, value.clone())).collect();
    HttpRule { headers, ..HttpRule::default() }
}

fn policy(ingress: Vec<PortPolicy>) -> NetworkPolicy {
    NetworkPolicy { endpoint_id: 1, endpoints: vec![EndpointKey::parse("10.0.0.1")], ingress, egress: Vec::new() }
}

fn on_port(port: u32, rules: Vec<PortRule>) -> PortPolicy {
    PortPolicy { port, rules, ..PortPolicy::default() }
}

fn found(ingress: Vec<PortPolicy>) -> Vec<(Lint, String)> {
    lint(&[policy(ingress)], &Known::default())
        .into_iter()
        .map(|finding| (finding.lint, finding.element.path))
        .collect()
}

/// Findings of one matcher, in the order of [`Lint`].
fn of_matcher(name: &str, value: ValueMatch) -> Vec<&'static str> {
    let rule = PortRule { http: Some(vec![http(&[(name, value)])]), ..PortRule::default() };
    let mut lints: Vec<Lint> = found(vec![on_port(8080, vec![rule])]).into_iter().map(|(lint, _)| lint).collect();
    lints.sort();
    lints.into_iter().map(Lint::id).collect()
}

#[test]
fn paths() {
    let cases: &[(ValueMatch, &[&str])] = &[
        (regex("/hello"), &["path-without-query", "path-without-slash"]),
        (regex(r"/hello(\?.*)?"), &[]),
        (regex("/hello([/;?].*)?"), &[]),
        (regex("/hello.*"), &[]),
        (regex("/a|/b"), &["path-without-query", "path-without-slash"]),
        (exact("/"), &["path-without-query"]),
        (exact("/index.html"), &["path-without-query"]),
        (exact("/a?x=1"), &[]),
        (part(TextPart::Prefix, "/a"), &[]),
        (regex("/v1/items/[0-9]+"), &["path-without-query"]),
        (regex("^/v1/.*$"), &["superfluous-anchors"]),
        (regex(r"/price\$"), &["path-without-query", "path-without-slash"]),
        (regex("/api/"), &["prefix-meant"]),
        (regex("/api/*"), &["glob-in-regex"]),
        (regex("/api/[a-z]*"), &["path-without-query"]),
        (regex("/api/a{2}"), &["path-without-query", "path-without-slash"]),
        (regex("api/.*"), &["path-never-matches"]),
        (regex("(/a|b)/.*"), &[]),
        (exact("/a//b"), &["path-never-matches"]),
        (exact("/a/../b"), &["path-never-matches"]),
        (exact("/a?next=//b"), &[]),
        (exact("/a#b"), &["path-never-matches"]),
        (exact("*"), &[]),
        (regex("/login|"), &["path-without-query", "path-without-slash"]),
        (regex("/v1.0/users(\\?.*)?"), &["path-unescaped-dot"]),
        (regex("/(public|private)?.*"), &["open-alternative"]),
        (regex("/items/?.*"), &[]),
        (regex(".*"), &["matches-everything"]),
        (regex("/.*"), &["matches-everything"]),
        (regex(".*/public"), &["open-beginning"]),
        (regex("/[^/?]*/public"), &["path-without-query"]),
        (part(TextPart::Suffix, "/public"), &["open-beginning"]),
        (part(TextPart::Anywhere, "public"), &["open-beginning"]),
        (regex("/("), &["invalid-regex"]),
        (regex("(.*)/public"), &["open-beginning"]),
        (regex("/users/.*/profile"), &["open-middle"]),
        (regex("/users/.*/profile.*"), &["open-middle"]),
        (regex("/users/[^/]+/profile"), &["open-middle"]),
        (regex("/users/(.*)[.]json"), &["open-middle"]),
        (regex("/users/([^/]*/x)?"), &["open-middle"]),
        (regex("/users/.{1,8}/profile"), &["open-middle"]),
        (regex("/users/[^/]{36}/profile"), &["path-without-query"]),
        (regex("/users/[^/?]+/profile(\\?.*)?"), &[]),
        (regex("/users/[^/]+(/profile)?"), &[]),
        (regex("/users/[^/]*\\?id=[0-9]+"), &[]),
        (regex("/users\\?.*id=[0-9]+"), &[]),
        (regex("/users/[a-z]+/profile(\\?.*)?"), &[]),
        (regex("/static|.*"), &["open-alternative"]),
        (regex("/static/.*|/.*"), &["open-alternative"]),
        (regex("/(static|.*)"), &["open-alternative"]),
        (regex("/api(/v1|.*)"), &["open-alternative"]),
        (regex("/api(|/.*)"), &["path-without-query"]),
        (regex("/api(/v1|/v2).*"), &[]),
        (regex("/api/v1|v2"), &["path-never-matches", "path-without-query", "path-without-slash"]),
        (regex("/api/v1.*|v2.*"), &["path-never-matches"]),
        (regex("\\Qa$"), &["path-never-matches"]),
    ];
    for (value, expected) in cases {
        assert_eq!(of_matcher(":path", value.clone()), *expected, "{value}");
    }
}

#[test]
fn hosts() {
    let cases: &[(ValueMatch, &[&str])] = &[
        (regex("api.example.com"), &["host-unescaped-dot", "host-without-port"]),
        (regex(r"api\.example\.com"), &["host-without-port"]),
        (regex(r"api\.example\.com(:[0-9]+)?"), &[]),
        (regex("api[.]example[.]com:8080"), &[]),
        (regex(r".*\.example\.com"), &["host-without-port"]),
        (regex(r".*example\.com"), &["open-beginning", "host-without-port"]),
        (part(TextPart::Suffix, ".example.com"), &["host-without-port"]),
        (part(TextPart::Suffix, "example.com"), &["open-beginning", "host-without-port"]),
        (exact("API.example.com"), &["host-upper-case", "host-without-port"]),
        (regex("(?i)API.*"), &["host-suffix"]),
        (regex("^shop[.]example[.]com.*"), &["host-suffix", "superfluous-anchors"]),
        (regex("shop[.]example[.]com.+"), &["host-suffix"]),
        (regex("(a|b)[.]example[.]com.*"), &["host-suffix"]),
        (regex("(.*)example[.]com"), &["open-beginning", "host-without-port"]),
        (regex("(?i).*EXAMPLE[.]com"), &["open-beginning", "host-without-port"]),
        (regex("(www[.])?.+example[.]com(:[0-9]+)?"), &["open-beginning"]),
        (regex("[a-z]+example[.]com(:[0-9]+)?"), &["open-beginning"]),
        (regex("[a-z]+-api[.]example[.]com(:[0-9]+)?"), &[]),
        (regex("[a-z]+[0-9][.]example[.]com(:[0-9]+)?"), &[]),
        (regex("node-[a-z0-9]+[.]example[.]com(:[0-9]+)?"), &[]),
        (regex("(.*[.])?example[.]com(:[0-9]+)?"), &[]),
        (regex("api.*example[.]com(:[0-9]+)?"), &["open-middle"]),
        (regex("a[.]example[.]com|.*b[.]example[.]com(:[0-9]+)?"), &["open-beginning", "host-without-port"]),
        (regex("shop[.]example|.*"), &["open-alternative"]),
        (regex(".*"), &["matches-everything"]),
        (regex("*.example.com"), &["invalid-regex"]),
        (part(TextPart::Prefix, "api"), &["host-suffix"]),
        (part(TextPart::Prefix, "api:"), &[]),
        (part(TextPart::Prefix, "api."), &["host-suffix"]),
        (part(TextPart::Anywhere, "example.com"), &["open-beginning", "host-suffix"]),
        (regex("shop[.]example[.]com.*"), &["host-suffix"]),
        (regex(r"shop\.example\.com(:.*)?"), &[]),
        (regex(r"shop.*\.example\.com(:[0-9]+)?"), &[]),
        (part(TextPart::Suffix, "*.example.com"), &["pattern-in-text"]),
    ];
    for (value, expected) in cases {
        assert_eq!(of_matcher(":authority", value.clone()), *expected, "{value}");
    }
    assert_eq!(of_matcher("host", regex("api.example.com(:[0-9]+)?")), ["host-unescaped-dot"]);
}

#[test]
fn a_host_with_an_open_end_is_closed_where_it_ends() {
    let instead = |value: ValueMatch| {
        let rule = PortRule { http: Some(vec![http(&[(":authority", value)])]), ..PortRule::default() };
        let found = lint(&[policy(vec![on_port(80, vec![rule])])], &Known::default());
        found.into_iter().find(|finding| finding.lint == Lint::HostSuffix).map(|finding| finding.instead)
    };
    let expected = Some(r#"the regex "shop\\.example\\.com(:[0-9]+)?""#.to_owned());
    assert_eq!(instead(regex("shop.example.com.*")), expected);
    assert_eq!(instead(part(TextPart::Prefix, "shop.example.com")), expected);
}

#[test]
fn texts_that_were_meant_as_patterns() {
    let meant = |name: &str, value: ValueMatch| {
        let rule = PortRule { http: Some(vec![http(&[(name, value)])]), ..PortRule::default() };
        let found = lint(&[policy(vec![on_port(80, vec![rule])])], &Known::default());
        let [finding] = &found[..] else { return None };
        (finding.lint == Lint::PatternInText).then(|| finding.instead.clone())
    };
    for (value, pattern) in [
        (exact("/api/*"), "/api/.*"),
        (exact("/v1.0/*/x"), "/v1\\\\.0/[^/?]*/x"),
        (exact("/api/.*"), "/api/.*"),
        (part(TextPart::Prefix, "/api/*"), "/api/.*"),
        (part(TextPart::Prefix, "/a*/b"), "/a[^/?]*/b.*"),
        (part(TextPart::Suffix, "/*/b"), ".*/[^/?]*/b"),
    ] {
        let expected = format!("did you mean `safe_regex` with the regex \"{pattern}\"?");
        assert_eq!(meant(":path", value.clone()), Some(expected), "{value}");
    }
    assert!(meant("x-version", exact("v1.*")).is_some());
    assert_eq!(meant("accept", exact("*/*")), None);
    assert_eq!(meant(":path", exact("*")), None);
    for (name, expected) in [("path", true), ("method", true), ("host", false), ("x-path", false), (":path", false)] {
        let found = of_matcher(name, regex("[a-z]+"));
        assert_eq!(found.contains(&"colon-missing"), expected, "{name}: {found:?}");
    }
}

/// Excluding is not allowing: what is left out of the expression is let in.
#[test]
fn exclusions() {
    let found = |name: &str, value: ValueMatch| {
        let headers = vec![HeaderMatcher { invert: true, ..HeaderMatcher::new(name, value) }];
        let rule = PortRule { http: Some(vec![HttpRule { headers, ..HttpRule::default() }]), ..PortRule::default() };
        let found = lint(&[policy(vec![on_port(8080, vec![rule])])], &Known::default());
        found.into_iter().map(|finding| (finding.lint, finding.what, finding.instead)).collect::<Vec<_>>()
    };
    let (lint, what, instead) = found(":authority", exact("admin.example.com")).remove(0);
    assert_eq!(lint, Lint::HostExclusionDodged);
    for way in ["\"ADMIN.EXAMPLE.COM\"", "\"admin.example.com:8080\"", "\"admin.example.com.\""] {
        assert!(what.contains(way), "{what}");
    }
    let wider = r#""(?i)admin\\.example\\.com\\.?(:[0-9]+)?""#;
    assert!(instead.ends_with(wider), "{instead}");
    for dodged in [
        exact("ADMIN.example.com:8080"),
        regex("admin[.]example[.]com"),
        regex("(?i)admin[.]example[.]com"),
        regex("admin[.]example[.]com(:[0-9]+)?"),
        part(TextPart::Prefix, "admin."),
        part(TextPart::Suffix, ".internal"),
    ] {
        let (lint, what, instead) = found(":authority", dodged.clone()).remove(0);
        assert_eq!(lint, Lint::HostExclusionDodged, "{dodged}: {what}");
        let quoted =
            instead.rsplit_once("the regex ").map(|(_, quoted)| serde_json::from_str::<String>(quoted).unwrap());
        let wider = quoted.unwrap_or_else(|| panic!("{dodged}: {instead}"));
        assert_eq!(found(":authority", regex(&wider)), [], "{dodged}");
    }
    // Nothing is advised that lets in what was excluded.
    assert_eq!(found(":path", regex("/admin|.*")), []);
    let (lint, _, instead) = found(":path", regex("/admin/*")).remove(0);
    assert_eq!(lint, Lint::PathExclusionDodged);
    assert!(instead.ends_with(r#""/admin([/;?].*)?""#), "{instead}");
    let plain = |value: ValueMatch| HeaderMatcher::new(":authority", value);
    let both = vec![HeaderMatcher { invert: true, ..plain(exact("a.b")) }, plain(regex("[a-z.]+(:8080)?"))];
    let rule = PortRule { http: Some(vec![HttpRule { headers: both, ..HttpRule::default() }]), ..PortRule::default() };
    let found = lint_of(vec![on_port(8080, vec![rule])]);
    let what = found.iter().find(|finding| finding.lint == Lint::HostExclusionDodged).map(|finding| &*finding.what);
    assert!(what.is_some_and(|what| !what.contains("A.B") && what.contains("\"a.b:8080\"")), "{what:?}");
}

/// What is advised is about all of several alternatives, and about nothing else.
#[test]
fn advice_keeps_alternatives() {
    let advised = |pattern: &str, invert: bool, lint: Lint| {
        let headers = vec![HeaderMatcher { invert, ..HeaderMatcher::new(":path", regex(pattern)) }];
        let rule = PortRule { http: Some(vec![HttpRule { headers, ..HttpRule::default() }]), ..PortRule::default() };
        let found = lint_of(vec![on_port(80, vec![rule])]).into_iter().find(|finding| finding.lint == lint);
        let instead = found.unwrap_or_else(|| panic!("{pattern}")).instead;
        let Some(start) = instead.find('"') else { return instead };
        let mut quoted = serde_json::Deserializer::from_str(&instead[start..]).into_iter::<String>();
        quoted.next().unwrap().unwrap()
    };
    for (pattern, allowed, excluded) in [
        ("/a", "/a([/;?].*)?", "/a([/;?].*)?"),
        ("/(a|b)", "/(a|b)([/;?].*)?", "/(a|b)([/;?].*)?"),
        ("/a|/b", "(/a|/b)([/;?].*)?", "(/a|/b)([/;?].*)?"),
        ("/(a|b[.]html)", "/(a|b[.]html)([/;?].*)?", "/(a|b[.]html)([/;?].*)?"),
        ("/a|/b/", "(/a|/b/)([/;?].*)?", "(/a|/b)([/;?].*)?"),
    ] {
        assert_eq!(advised(pattern, false, Lint::PathWithoutSlash), allowed, "{pattern}");
        assert_eq!(advised(pattern, true, Lint::PathExclusionDodged), excluded, "{pattern}");
    }
    for (pattern, excluded) in [
        ("^/(a|b)$", "/(a|b)([/;?].*)?"),
        ("/v[0-9]/admin", "/v[0-9]/admin([/;?].*)?"),
        ("/a/|/b/", "(/a|/b)([/;?].*)?"),
    ] {
        assert_eq!(advised(pattern, true, Lint::PathExclusionDodged), excluded, "{pattern}");
    }
    // In its own words it would be about every path.
    assert_eq!(advised("/login|", false, Lint::PathWithoutSlash), "/login([/;?].*)?");
    let generic = advised("/v[a-z]+/", true, Lint::PathExclusionDodged);
    assert!(generic.contains("behind each path"), "{generic}");
}

fn lint_of(ingress: Vec<PortPolicy>) -> Vec<Finding> {
    lint(&[policy(ingress)], &Known::default())
}

/// What is advised against a pattern that can be dodged cannot be dodged itself, and admits no more.
#[test]
fn what_is_advised_closes_what_was_open() {
    let narrower =
        [Lint::OpenBeginning, Lint::OpenMiddle, Lint::OpenAlternative, Lint::HostSuffix, Lint::HostUnescapedDot];
    let mut advised = 0;
    for (name, value) in [
        (":authority", regex(".*example.com")),
        (":authority", regex("(.*)example[.]com(:[0-9]+)?")),
        (":authority", regex("(.+)example[.]com(:[0-9]+)?")),
        (":authority", regex("a.*|b.*")),
        (":authority", regex("shop.example.com.+")),
        (":authority", part(TextPart::Suffix, "example.com")),
        (":authority", part(TextPart::Prefix, "shop.example.com")),
        (":authority", part(TextPart::Prefix, "10.0.0.")),
        (":authority", part(TextPart::Anywhere, "example.com")),
        (":path", regex(".*/public")),
        (":path", regex(".*a|/b.*c")),
        (":path", regex("(.+)/public")),
        (":path", part(TextPart::Suffix, "/public")),
        (":path", part(TextPart::Anywhere, "public")),
        (":path", regex("/users/.*/profile")),
        (":path", regex("/users/[^/]+/.+/x.*")),
        (":path", regex("/a/(.*)[.]json")),
    ] {
        let of = |value: &ValueMatch| {
            let rule = PortRule { http: Some(vec![http(&[(name, value.clone())])]), ..PortRule::default() };
            lint_of(vec![on_port(80, vec![rule])])
        };
        let found = of(&value);
        let found: Vec<&Finding> = found.iter().filter(|finding| narrower.contains(&finding.lint)).collect();
        assert!(!found.is_empty(), "{value}");
        for finding in found {
            let Some(start) = finding.instead.find('"') else { continue };
            let mut quoted = serde_json::Deserializer::from_str(&finding.instead[start..]).into_iter::<String>();
            let instead = regex(&quoted.next().unwrap().unwrap());
            let left = of(&instead);
            let left: Vec<_> = left.iter().filter(|finding| finding.lint.severity() > Severity::Note).collect();
            assert!(left.iter().all(|left| left.lint != finding.lint), "{value}: {left:?}");
            for example in probe(&instead).examples() {
                assert!(probe(&value).accepts(example.as_bytes()), "{value}: {instead} allows {example:?} too");
            }
            advised += 1;
        }
    }
    assert!(advised > 10, "{advised}");
}

#[test]
fn what_matches_everything_is_said_as_it_is() {
    let said = |name: &str, pattern: &str, more: bool| {
        let mut matchers = vec![(name, regex(pattern))];
        matchers.extend(more.then(|| ("x-a", exact("b"))));
        let rule = PortRule { http: Some(vec![http(&matchers)]), ..PortRule::default() };
        let found = lint_of(vec![on_port(80, vec![rule])]);
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert_eq!(finding.lint, Lint::MatchesEverything);
        (finding.what.clone(), finding.instead.clone())
    };
    let (what, instead) = said(":path", "/.*", true);
    assert_eq!(what, r#"regex "/.*" matches every path; all that it keeps out is `OPTIONS *`"#);
    assert_eq!(instead, "if that is fine, too, leave it out");
    assert_eq!(
        said(":path", ".*", true),
        (r#"regex ".*" matches every request"#.to_owned(), "leave it out".to_owned())
    );
    assert!(said(":path", ".*", false).1.contains("but not the HTTP rule"));
    let rule = PortRule {
        http: Some(vec![http(&[(":path", regex("/.*")), (":authority", regex(".*"))])]),
        ..PortRule::default()
    };
    assert!(
        lint_of(vec![on_port(80, vec![rule])]).iter().all(|finding| finding.instead.contains("but not the HTTP rule"))
    );
    assert!(said(":authority", ".*", true).0.contains("HTTP/1.0"));
    assert!(said("x-b", ".*", true).1.contains("not UTF-8"));
}

/// Nobody knows the server name of a connection here.
#[test]
fn rules_for_server_names_say_what_they_come_to() {
    let of = |verdict: RuleVerdict| {
        let rule = PortRule { verdict, precedence: 2, server_names: vec!["**".to_owned()], ..PortRule::default() };
        let found = lint_of(vec![on_port(443, vec![rule])]);
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert_eq!((finding.lint, finding.lint.severity()), (Lint::ServerNameUnseen, Severity::Warning));
        assert_eq!(finding.element.path, "ingress_per_port_policies[0].rules[0].server_names");
        finding.what.clone()
    };
    assert!(of(RuleVerdict::Allow).ends_with("the rule admits nothing"));
    assert!(of(RuleVerdict::Deny).contains("denies everything that its other conditions cover"));
    assert!(of(RuleVerdict::Pass(1)).ends_with("is denied, not passed over"));
}

#[test]
fn methods() {
    let cases: &[(ValueMatch, &[&str])] = &[
        (regex("GET"), &["get-without-head"]),
        (regex("GET|HEAD"), &[]),
        (regex("POST|PUT"), &[]),
        (regex("get"), &["method-lower-case"]),
        (regex("(?i)get|head"), &[]),
        (regex("GET, POST"), &["unknown-method"]),
        (exact("GTE"), &["unknown-method"]),
        (regex("G.*"), &["get-without-head"]),
        (regex(".*"), &["matches-everything"]),
    ];
    for (value, expected) in cases {
        assert_eq!(of_matcher(":method", value.clone()), *expected, "{value}");
    }
}

#[test]
fn what_another_alternative_allows_is_not_missed() {
    let alternatives = vec![
        http(&[(":method", exact("GET")), (":path", exact("/a"))]),
        http(&[(":path", regex(r"/a([/;?].*)?"))]),
        http(&[(":method", exact("POST")), (":path", regex(r"/b(\?.*)?"))]),
    ];
    let rule = PortRule { http: Some(alternatives), ..PortRule::default() };
    let path = "ingress_per_port_policies[0].rules[0].http_rules.http_rules";
    assert_eq!(found(vec![on_port(80, vec![rule])]), [(Lint::RedundantRule, format!("{path}[0]"))]);
}

#[test]
fn coverage_is_claimed_only_when_it_holds() {
    let covering = [
        (regex("/a.*"), regex("/ab[0-9]+")),
        (regex("/a.*"), regex("/a.*")),
        (regex("/a.*"), exact("/a/b")),
        (regex("/a|/b"), exact("/b")),
        (part(TextPart::Prefix, "/a"), regex("/a(b|c)*")),
        (part(TextPart::Anywhere, "b"), part(TextPart::Prefix, "abc")),
        (ValueMatch::Present(true), regex("x*")),
        (ValueMatch::Range { start: 0, end: 9 }, ValueMatch::Range { start: 3, end: 4 }),
    ];
    for (a, b) in &covering {
        assert!(probe(a).covers(&probe(b)), "{a} covers {b}");
    }
    let others = [
        (regex("/a.*"), part(TextPart::Prefix, "/a")), // bytes that are not UTF-8
        (regex("/a.*"), regex("(?s)/a.*")),
        (regex("/a.*"), regex(r"/a\C")),
        (regex("/a.*"), regex("/.*")),
        (exact("/a"), regex("/a?")),
        (part(TextPart::Suffix, "b"), part(TextPart::Prefix, "b")),
        (ValueMatch::Present(false), exact("")),
        (ValueMatch::Present(true), ValueMatch::Present(false)),
        (ValueMatch::Range { start: 0, end: 9 }, ValueMatch::Range { start: 3, end: 10 }),
    ];
    for (a, b) in &others {
        assert!(!probe(a).covers(&probe(b)), "{a} does not cover {b}");
    }
}

fn probe(value: &ValueMatch) -> std::rc::Rc<Probe> {
    Probes::default().of(value).unwrap()
}

#[test]
fn a_pass_rule_between_two_rules_keeps_both() {
    let deny = PortRule { precedence: 5, verdict: RuleVerdict::Deny, ..PortRule::default() };
    let allow = PortRule { precedence: 1, ..PortRule::default() };
    let pass = |remotes| PortRule { precedence: 9, verdict: RuleVerdict::Pass(5), remotes, ..PortRule::default() };
    let shadowed = (Lint::ShadowedRule, "ingress_per_port_policies[0].rules[1]".to_owned());
    assert_eq!(found(vec![on_port(80, vec![deny.clone(), allow.clone()])]), [shadowed]);
    assert_eq!(found(vec![on_port(80, vec![deny.clone(), allow.clone(), pass(vec![7])])]), []);
    // Passed over for everybody.
    let skipped = (Lint::ShadowedRule, "ingress_per_port_policies[0].rules[0]".to_owned());
    assert_eq!(found(vec![on_port(80, vec![deny, allow, pass(Vec::new())])]), [skipped]);
}

#[test]
fn of_equal_rules_the_later_one_is_superfluous() {
    let rule = PortRule { http: Some(vec![http(&[(":path", regex("/a.*"))])]), ..PortRule::default() };
    let redundant = |rule| (Lint::RedundantRule, format!("ingress_per_port_policies[{rule}].rules[0]"));
    let entries = vec![on_port(80, vec![rule]); 3];
    assert_eq!(found(entries), [redundant(1), redundant(2)]);
}

#[test]
fn a_rule_is_shadowed_only_where_all_of_its_ports_are() {
    let deny = |port, end_port| PortPolicy {
        end_port,
        ..on_port(port, vec![PortRule { precedence: 1, verdict: RuleVerdict::Deny, ..PortRule::default() }])
    };
    let allow = |port, end_port| PortPolicy { end_port, ..on_port(port, vec![PortRule::default()]) };
    let shadowed = (Lint::ShadowedRule, "ingress_per_port_policies[0].rules[0]".to_owned());
    assert_eq!(found(vec![allow(80, 90), deny(80, 89)]), []);
    assert_eq!(found(vec![allow(80, 90), deny(80, 89), deny(90, 0)]), std::slice::from_ref(&shadowed));
    assert_eq!(found(vec![allow(80, 90), deny(0, 0)]), [shadowed]);
    assert_eq!(found(vec![allow(0, 0), deny(1, 65535)]), []);
}

/// What the second of two lists of rules on a port is said to be because of the first.
fn last_of(rules: Vec<PortRule>) -> Option<(Lint, String)> {
    let last = format!("ingress_per_port_policies[0].rules[{}]", rules.len() - 1);
    let found = lint(&[policy(vec![on_port(80, rules)])], &Known::default());
    let reach = [Lint::RedundantRule, Lint::ShadowedRule, Lint::HttpRuleWithoutEffect];
    found.into_iter().find(|f| f.element.path == last && reach.contains(&f.lint)).map(|f| (f.lint, f.what))
}

#[test]
fn several_rules_together_leave_nothing_to_decide() {
    let of = |precedence, verdict, remotes: &[u32], http: Option<HttpRule>| PortRule {
        precedence,
        verdict,
        remotes: remotes.to_vec(),
        http: http.map(|http| vec![http]),
        ..PortRule::default()
    };
    let (allow, deny) = (RuleVerdict::Allow, RuleVerdict::Deny);
    let method = |pattern| Some(http(&[(":method", regex(pattern))]));
    let at = |indexes: &[usize]| {
        let paths: Vec<String> =
            indexes.iter().map(|index| format!("ingress_per_port_policies[0].rules[{index}]")).collect();
        paths.join(", ")
    };
    // Peers one by one.
    let (one, other, both) = (of(2, deny, &[7], None), of(2, deny, &[8], None), of(1, allow, &[7, 8], None));
    let what = format!("{} together deny everything that this one matches", at(&[0, 1]));
    assert_eq!(last_of(vec![one.clone(), other.clone(), both.clone()]), Some((Lint::ShadowedRule, what)));
    assert_eq!(last_of(vec![one.clone(), both]), None);
    assert_eq!(last_of(vec![one.clone(), other.clone(), of(1, allow, &[], None)]), None, "anybody is more than these");
    // The other way round in part.
    let mixed = vec![one.clone(), of(2, allow, &[8], None), of(1, allow, &[7, 8], None)];
    assert!(matches!(last_of(mixed), Some((Lint::ShadowedRule, what)) if what.contains("together decide")));
    // Values one by one, and both at once.
    let values = |last| vec![of(1, allow, &[7], method("GET")), of(1, allow, &[7], method("PUT")), last];
    assert_eq!(last_of(values(of(0, allow, &[7], method("GET|PUT")))).map(|f| f.0), Some(Lint::RedundantRule));
    assert_eq!(last_of(values(of(0, allow, &[7], method("GET|PUT|POST")))), None);
    assert_eq!(last_of(values(of(0, allow, &[7, 8], method("GET|PUT")))), None);
    let four = [(7, "GET"), (7, "PUT"), (8, "GET"), (8, "PUT")];
    let mut rules: Vec<PortRule> = four.iter().map(|(peer, name)| of(1, allow, &[*peer], method(name))).collect();
    rules.push(of(0, allow, &[7, 8], method("GET|PUT")));
    assert_eq!(last_of(rules.clone()).map(|f| f.0), Some(Lint::RedundantRule));
    rules.remove(2);
    assert_eq!(last_of(rules), None);
    let wider = |name| of(0, allow, &[7, 9], method(name));
    let equal_rank = vec![wider("GET"), wider("PUT"), of(0, allow, &[7], method("GET|PUT"))];
    assert_eq!(last_of(equal_rank).map(|f| f.0), Some(Lint::RedundantRule));
    // Not because of what goes itself: the first two are said by the third.
    let third_says_all = vec![of(0, allow, &[7], None), of(0, allow, &[8], None), of(0, allow, &[7, 8], None)];
    assert_eq!(last_of(third_says_all), None);
    // A pass rule between them keeps it.
    let mut with_pass = vec![one, other, of(1, allow, &[7, 8], None)];
    with_pass.insert(0, of(3, RuleVerdict::Pass(2), &[7], None));
    assert_eq!(last_of(with_pass), None);
}

#[test]
fn a_list_too_long_to_take_apart_is_left_alone() {
    let peers: Vec<u32> = (1..=100).collect();
    let mut rules: Vec<PortRule> =
        peers.iter().map(|peer| PortRule { remotes: vec![*peer], ..PortRule::default() }).collect();
    rules.push(PortRule { remotes: peers, verdict: RuleVerdict::Deny, ..PortRule::default() });
    assert_eq!(last_of(rules), None);
}

/// Left out, it would leave a plain allow.
#[test]
fn what_is_not_enforced_is_not_to_be_left_out() {
    let unsupported = vec![crate::model::Unsupported { element: "l7_proto".into(), reason: "kafka".into() }];
    let rule = PortRule { unsupported, ..PortRule::default() };
    let found = lint_of(vec![on_port(80, vec![rule])]);
    assert!(found.iter().any(|finding| finding.lint == Lint::NotEnforced && !finding.instead.contains("leave it out")));
}

#[test]
fn nothing_is_said_about_order_where_the_order_is_not_known() {
    let deny = PortRule { precedence: 5, verdict: RuleVerdict::Deny, proxy_id: 70_000, ..PortRule::default() };
    let lints = found(vec![on_port(80, vec![deny, PortRule::default()])]);
    assert_eq!(lints, [(Lint::NotEnforced, "ingress_per_port_policies[0].rules[0].proxy_id".to_owned())]);
}

fn values() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        prop::sample::select(vec!["/a", "/b", "/ab"]).prop_map(exact),
        prop::sample::select(vec!["/a.*", "/.*", ".*", "/ab?", "/a|/b", "/[ab]", "("]).prop_map(regex),
        prop::sample::select(vec!["/", "/a"]).prop_map(|text| part(TextPart::Prefix, text)),
        Just(ValueMatch::Present(true)),
    ]
}

fn http_rules() -> impl Strategy<Value = HttpRule> {
    let matcher = (values(), prop::bool::weighted(0.2))
        .prop_map(|(value, invert)| HeaderMatcher { invert, ..HeaderMatcher::new(":path", value) });
    prop::collection::vec(matcher, 0..2).prop_map(|headers| HttpRule { headers, ..HttpRule::default() })
}

fn rules() -> impl Strategy<Value = PortRule> {
    let verdict = prop_oneof![
        4 => Just(RuleVerdict::Allow),
        2 => Just(RuleVerdict::Deny),
        1 => (1..3u32).prop_map(RuleVerdict::Pass),
    ];
    let remotes = prop::sample::subsequence(vec![1, 2, 3], 0..3);
    let names = prop::sample::subsequence(vec!["a.b", "*.b", "**"], 0..2);
    let http = prop::option::of(prop::collection::vec(http_rules(), 1..3));
    (0..4u32, verdict, remotes, names, http, 0..2u32).prop_map(
        |(precedence, verdict, remotes, names, http, proxy_id)| {
            let server_names = names.into_iter().map(str::to_owned).collect();
            PortRule { precedence, verdict, remotes, server_names, http, proxy_id, ..PortRule::default() }
        },
    )
}

fn entries() -> impl Strategy<Value = Vec<PortPolicy>> {
    let span = prop::sample::select(vec![(0, 0), (1, 0), (2, 0), (1, 2), (2, 3)]);
    let entry = (span, prop::collection::vec(rules(), 0..4))
        .prop_map(|((port, end_port), rules)| PortPolicy { end_port, ..on_port(port, rules) });
    prop::collection::vec(entry, 1..3)
}

/// The policy without what the findings are about, as each of them says.
fn without(ingress: &[PortPolicy], findings: &[&Finding]) -> Vec<PortPolicy> {
    let mut ingress = ingress.to_vec();
    // What stands later first, so that the others keep their numbers.
    for finding in findings.iter().rev().filter(|finding| !finding.needed) {
        let numbers = finding.element.path.split(['[', ']']).filter_map(|part| part.parse().ok());
        match numbers.collect::<Vec<usize>>()[..] {
            [entry, rule, alternative] => drop(ingress[entry].rules[rule].http.as_mut().unwrap().remove(alternative)),
            [entry, rule] => {
                ingress[entry].rules.remove(rule);
                if ingress[entry].rules.is_empty() {
                    // It would allow everything.
                    assert!(finding.instead.contains("the entry too"), "{finding:?}");
                    ingress.remove(entry);
                }
            }
            [entry] => drop(ingress.remove(entry)),
            _ => unreachable!(),
        }
    }
    ingress
}

/// For every port, peer, listener, server name and path whether a request is allowed, and whether any bytes are.
fn verdicts(ingress: Vec<PortPolicy>) -> Vec<(bool, bool)> {
    use crate::ServerName::{Absent, Name, Unknown};
    let mut builder = Snapshot::empty().update();
    builder.replace_all([policy(ingress)]);
    let snapshot = builder.build();
    let endpoint = EndpointKey::parse("10.0.0.1");
    let mut verdicts = Vec::new();
    for (port, remote, proxy_id) in (1..5).flat_map(|p| (1..5).flat_map(move |r| (0..3).map(move |i| (p, r, i)))) {
        for server_name in [Unknown, Absent, Name("a.b"), Name("c.b"), Name("x")] {
            let flow = Flow {
                direction: Direction::Ingress,
                endpoint: &endpoint,
                remote: SecurityId(remote),
                port,
                proxy_id,
                server_name,
            };
            for path in ["/", "/a", "/b", "/ab", "/abc", "/\u{e9}"] {
                let path = path.as_bytes();
                let request = Request { method: b"GET", scheme: b"http", authority: b"h", path, headers: &NoHeaders };
                verdicts.push((
                    matches!(
                        snapshot.evaluate_request(&flow, &request, &crate::Secrets::default()),
                        Verdict::Allow { .. }
                    ),
                    matches!(snapshot.evaluate_connection(&flow), ConnectionVerdict::AllowTcp { .. }),
                ));
            }
        }
    }
    verdicts
}

proptest! {
    /// Each alone and all at once.
    #[test]
    fn what_is_said_to_have_no_effect_has_none(ingress in entries()) {
        let lints = [Lint::ShadowedRule, Lint::RedundantRule, Lint::HttpRuleWithoutEffect];
        let findings = lint(&[policy(ingress.clone())], &Known::default());
        let findings: Vec<&Finding> = findings.iter().filter(|finding| lints.contains(&finding.lint)).collect();
        for finding in &findings {
            // What the entry is told holds when all of it goes.
            let rest = without(&ingress, &[finding]);
            prop_assert_eq!(verdicts(ingress.clone()), verdicts(rest), "{:?}", finding);
        }
        prop_assert_eq!(verdicts(ingress.clone()), verdicts(without(&ingress, &findings)), "{:?}", findings);
    }
}

#[test]
fn the_last_http_rule_of_a_port_stays() {
    let everything = PortRule { remotes: vec![7, 8], ..PortRule::default() };
    let public = PortRule {
        remotes: vec![7],
        http: Some(vec![http(&[(":path", part(TextPart::Prefix, "/public/"))])]),
        ..PortRule::default()
    };
    let needed = |ingress: Vec<PortPolicy>| -> Vec<(Lint, bool)> {
        let found = lint(&[policy(ingress)], &Known::default()).into_iter();
        found
            .inspect(|f| assert_eq!(f.needed, f.instead.starts_with("keep it"), "{f:?}"))
            .map(|f| (f.lint, f.needed))
            .collect()
    };
    let without_effect = |needed| (Lint::HttpRuleWithoutEffect, needed);
    assert_eq!(needed(vec![on_port(80, vec![everything.clone(), public.clone()])]), [without_effect(true)]);
    // Two that could each go, but not both.
    let twice = vec![everything.clone(), public.clone(), public.clone()];
    assert_eq!(needed(vec![on_port(80, twice)]), [without_effect(true), without_effect(true)]);
    // Another one stays, on all of the ports.
    let other = PortRule { remotes: vec![9], ..public.clone() };
    assert_eq!(
        needed(vec![on_port(80, vec![everything.clone(), public.clone(), other.clone()])]),
        [without_effect(false)]
    );
    let ranges = |last| {
        let rules = vec![everything.clone(), public.clone()];
        vec![
            PortPolicy { end_port: 90, ..on_port(80, rules) },
            PortPolicy { end_port: last, ..on_port(70, vec![other.clone()]) },
        ]
    };
    assert_eq!(needed(ranges(90)), [without_effect(false)]);
    assert_eq!(needed(ranges(89)), [without_effect(true)]);
    // What a deny has of HTTP rules is to go.
    let deny = PortRule { verdict: RuleVerdict::Deny, remotes: vec![9], ..public.clone() };
    let found = needed(vec![on_port(80, vec![everything, public.clone(), deny])]);
    assert_eq!(found, [without_effect(true), (Lint::DenyIgnoresHttp, false)]);
    // Behind a deny.
    let deny = PortRule { precedence: 1, verdict: RuleVerdict::Deny, ..PortRule::default() };
    assert_eq!(needed(vec![on_port(80, vec![deny, public])]), [(Lint::ShadowedRule, true)]);
}

#[test]
fn a_lookup_leaves_out_only_what_does_not_accept() {
    let values = [
        exact("/a"),
        regex("/a|/b"),
        regex("/a.*"),
        regex("/.*"),
        regex("/[ab]/c"),
        regex(".*"),
        regex("(?i)/A"),
        regex("^/a[0-9]*"),
        part(TextPart::Prefix, "/a"),
        part(TextPart::Prefix, ""),
        part(TextPart::Suffix, "b"),
        part(TextPart::Anywhere, "/"),
        ValueMatch::Present(true),
        ValueMatch::Any,
        regex("\\b/a"),
        ValueMatch::Range { start: 0, end: 9 },
        ValueMatch::Text { part: TextPart::Whole, text: "/A".into(), ignore_case: true },
    ];
    let mut probes = Probes::default();
    let mut lookup = lookup::Lookup::default();
    let matchers: Vec<HeaderMatcher> = values
        .iter()
        .flat_map(|value| {
            let plain = HeaderMatcher::new(":path", value.clone());
            [HeaderMatcher { invert: true, ..plain.clone() }, plain]
        })
        .collect();
    for (number, matcher) in matchers.iter().enumerate() {
        lookup.add(number as u32, Some(matcher), &mut probes);
    }
    for text in ["", "/", "/a", "/b", "/A", "/a1", "/a/b", "/b/c", "5", "x"] {
        let found = lookup.accepting(text.as_bytes());
        for (number, matcher) in matchers.iter().enumerate() {
            let accepts = alternatives::accepts(matcher, text.as_bytes(), &mut probes);
            assert!(!accepts || found.contains(&(number as u32)), "{text:?}: {matcher:?}");
        }
    }
    for (theirs, value) in matchers.iter().zip(&values) {
        let found = lookup.covering(theirs, &mut probes);
        for (number, mine) in matchers.iter().enumerate().filter(|(_, mine)| !mine.invert && *mine != theirs) {
            let covers = cover::covers_matcher(mine, theirs, &mut probes);
            assert!(!covers || found.contains(&(number as u32)), "{value}: {mine:?} covers {theirs:?}");
        }
    }
}

#[test]
fn what_was_not_translated_as_it_is_covers_nothing_and_keeps_no_http() {
    let all = || on_port(80, vec![PortRule::default()]);
    let public = || {
        on_port(80, vec![PortRule { http: Some(vec![http(&[(":path", regex("/public/.*"))])]), ..PortRule::default() }])
    };
    let found = |ingress: Vec<PortPolicy>, partial: &[usize]| -> Vec<(Lint, bool)> {
        let at = |entry: &usize| EntryRef { policy: 0, direction: Direction::Ingress, entry: *entry };
        let partial: Vec<EntryRef> = partial.iter().map(at).collect();
        let known = Known { partial: &partial, ..Known::default() };
        lint(&[policy(ingress)], &known).into_iter().map(|finding| (finding.lint, finding.needed)).collect()
    };
    let without_effect = |needed| vec![(Lint::HttpRuleWithoutEffect, needed)];
    assert_eq!(found(vec![all(), public()], &[]), without_effect(true));
    assert_eq!(found(vec![all(), public()], &[0]), []);
    assert_eq!(found(vec![all(), public()], &[1]), []);
    let mut elsewhere = public();
    elsewhere.rules[0].remotes = vec![7];
    elsewhere.rules[0].http.as_mut().unwrap()[0].header_matches = vec![crate::model::HeaderMatch::new("a", "")];
    let mut one = all();
    one.rules[0].remotes = vec![8];
    let mut of_one = public();
    of_one.rules[0].remotes = vec![8];
    assert_eq!(found(vec![one.clone(), of_one.clone(), elsewhere.clone()], &[]), without_effect(false));
    assert_eq!(found(vec![one, of_one, elsewhere], &[2]), without_effect(true));
}

/// A deny that goes for one that is for TCP alone would let other protocols in.
#[test]
fn what_is_for_all_protocols_goes_only_for_such() {
    let deny = |remotes: &[u32]| {
        let rule = PortRule { verdict: RuleVerdict::Deny, remotes: remotes.to_vec(), ..PortRule::default() };
        on_port(53, vec![rule])
    };
    let found = |ingress: Vec<PortPolicy>, entries: &[usize]| -> Vec<String> {
        let at = |entry: &usize| EntryRef { policy: 0, direction: Direction::Ingress, entry: *entry };
        let all_protocols: Vec<EntryRef> = entries.iter().map(at).collect();
        let known = Known { all_protocols: &all_protocols, ..Known::default() };
        lint(&[policy(ingress)], &known).into_iter().map(|finding| finding.element.path).collect()
    };
    let (first, second) = ("ingress_per_port_policies[0].rules[0]", "ingress_per_port_policies[1].rules[0]");
    for wide in [deny(&[7]), deny(&[7, 8])] {
        let both = vec![wide, deny(&[7])];
        assert_eq!(found(both.clone(), &[]), [second]);
        assert_eq!(found(both.clone(), &[0]), [second]);
        assert_eq!(found(both.clone(), &[0, 1]), [second]);
        let other_way: &[&str] = if both[0] == both[1] { &[first] } else { &[] };
        assert_eq!(found(both, &[1]), other_way);
    }
}

#[test]
fn a_rule_whose_alternatives_all_go_goes_as_a_whole() {
    let wide = PortRule { remotes: vec![7], ..PortRule::default() };
    let paths = ["/a/b", "/a/.*"].map(|path| http(&[(":path", regex(path))])).to_vec();
    let rules = vec![PortRule { http: Some(paths), ..wide.clone() }, wide];
    let path = "ingress_per_port_policies[0].rules[0]".to_owned();
    assert_eq!(
        found(vec![on_port(80, rules)])
            .into_iter()
            .filter(|(lint, _)| *lint == Lint::HttpRuleWithoutEffect || *lint == Lint::RedundantRule)
            .collect::<Vec<_>>(),
        [(Lint::HttpRuleWithoutEffect, path)]
    );
}
