//! RE2's meaning, one construct per row. The expected column is what RE2 itself (`google-re2` 1.1) answers.

use tollgate_policy::model::{HttpRule, PortRule, ValueMatch};

use crate::support::{World, allow, header, port};

/// Tried against every expression.
const INPUTS: &[&[u8]] = &[
    b"",
    b"a",
    b"b",
    b"ab",
    b"aa",
    b"aaa",
    b"A",
    b"K",
    b"k",
    b"\xe2\x84\xaa",
    b"\xc3\xa9",
    b"\xff",
    b"\xe0\x80\x80",
    b"\xed\xa0\x80",
    b"\n",
    b"a\n",
    b"a\nb",
    b"\x0b",
    b"\x09",
    b"9",
    b"\xd9\xa3",
    b"_",
    b"a]",
    b"b]",
    b"a&",
    b"{,2}",
    b"a{,2}",
    b".*",
    b"ab*",
    b"l",
    b"-",
    b"b{start}",
    b"n",
    b"/hello",
    b"/hello3",
    b"/hello?x=1",
];

/// Expression, and the inputs that it matches in full.
const MATCHES: &[(&str, &[&[u8]])] = &[
    ("/hello", &[b"/hello"]),
    ("/hello.*", &[b"/hello", b"/hello3", b"/hello?x=1"]),
    ("a|b", &[b"a", b"b"]),
    ("a||b", &[b"", b"a", b"b"]),
    ("()", &[b""]),
    (
        ".",
        &[
            b"a",
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\x0b",
            b"\x09",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    ("..", &[b"ab", b"aa", b"a]", b"b]", b"a&", b".*"]),
    (r"\C", &[b"a", b"b", b"A", b"K", b"k", b"\xff", b"\n", b"\x0b", b"\x09", b"9", b"_", b"l", b"-", b"n"]),
    (r"\C\C", &[b"ab", b"aa", b"\xc3\xa9", b"a\n", b"\xd9\xa3", b"a]", b"b]", b"a&", b".*"]),
    (
        "(?s).",
        &[
            b"a",
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\n",
            b"\x0b",
            b"\x09",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    (
        "[^a]",
        &[
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\n",
            b"\x0b",
            b"\x09",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    (
        "[^/]",
        &[
            b"a",
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\n",
            b"\x0b",
            b"\x09",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    (r"\d", &[b"9"]),
    (
        r"\D",
        &[
            b"a",
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\n",
            b"\x0b",
            b"\x09",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    (r"\s", &[b"\n", b"\x09"]),
    (
        r"\S",
        &[
            b"a",
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\x0b",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    (r"\w", &[b"a", b"b", b"A", b"K", b"k", b"9", b"_", b"l", b"n"]),
    (
        r"\W",
        &[b"\xe2\x84\xaa", b"\xc3\xa9", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\n", b"\x0b", b"\x09", b"\xd9\xa3", b"-"],
    ),
    ("(?i)k", &[b"K", b"k", b"\xe2\x84\xaa"]),
    ("(?i)a", &[b"a", b"A"]),
    ("(?-i)a", &[b"a"]),
    ("(?i:a)|b", &[b"a", b"b", b"A"]),
    (r"(?i)\w", &[b"a", b"b", b"A", b"K", b"k", b"\xe2\x84\xaa", b"9", b"_", b"l", b"n"]),
    ("(?U)a+", &[b"a", b"aa", b"aaa"]),
    (r"\Qa\E", &[b"a"]),
    (r"\Q.*\E", &[b".*"]),
    (r"\Qab\E*", &[b"a", b"ab"]),
    (r"\Qab*", &[b"ab*"]),
    (r"\n", &[b"\n"]),
    (r"\x6e", &[b"n"]),
    (r"\x{e9}", &[b"\xc3\xa9"]),
    (r"\x0b", &[b"\x0b"]),
    (r"\141", &[b"a"]),
    (r"\_", &[b"_"]),
    (r"\-", &[b"-"]),
    ("^a$", &[b"a"]),
    ("a$b", &[]),
    ("(?m)a$\nb", &[b"a\nb"]),
    ("(?m)^a\n^b", &[b"a\nb"]),
    (r"\Aa\z", &[b"a"]),
    (r"\ba\b", &[b"a"]),
    (r"a\B", &[]),
    (r"\b{start}", &[]),
    ("a{2}", &[b"aa"]),
    ("a{2,}", &[b"aa", b"aaa"]),
    ("a{,2}", &[b"a{,2}"]),
    ("{,2}", &[b"{,2}"]),
    ("a{1,2}?", &[b"a", b"aa"]),
    ("[a[b]]", &[b"a]", b"b]"]),
    ("[]a]", &[b"a"]),
    ("[a-c-e]", &[b"a", b"b", b"-"]),
    (r"[\d-z]", &[b"9", b"-"]),
    ("[[:alpha:]]", &[b"a", b"b", b"A", b"K", b"k", b"l", b"n"]),
    (
        "[[:^alpha:]]",
        &[
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\n",
            b"\x0b",
            b"\x09",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"-",
        ],
    ),
    ("[[:space:]]", &[b"\n", b"\x0b", b"\x09"]),
    (
        "[^[:space:]]",
        &[
            b"a",
            b"b",
            b"A",
            b"K",
            b"k",
            b"\xe2\x84\xaa",
            b"\xc3\xa9",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"9",
            b"\xd9\xa3",
            b"_",
            b"l",
            b"-",
            b"n",
        ],
    ),
    ("[:alpha:]", &[b"a", b"l"]),
    ("[a&&b]&", &[b"a&"]),
    (r"[\x{800}-\x{ffff}]", &[b"\xe2\x84\xaa", b"\xed\xa0\x80"]),
    ("(?P<n>a)", &[b"a"]),
    ("(?<n>a)", &[b"a"]),
    ("(a*)*", &[b"", b"a", b"aa", b"aaa"]),
    ("(|a)*", &[b"", b"a", b"aa", b"aaa"]),
    ("a{0}", &[b""]),
    ("(?:a{30}){30}", &[]),
];

/// What RE2 refuses, and what is refused here by name although RE2 accepts it (the last four).
const REFUSED: &[&str] = &[
    "(",
    ")",
    "a)|(?:b",
    "[a",
    "[z-a]",
    "*a",
    "a**",
    "a{2}{3}",
    "a|*",
    "a{1001}",
    "((a{10}){10}){11}",
    r"\",
    r"\1",
    r"\8",
    r"\Z",
    r"\G",
    r"\h",
    r"\u0041",
    r"\x4",
    r"\x{110000}",
    r"[\b]",
    r"[a-\d]",
    "[[:foo:]]",
    "(?x)a",
    "(?u)a",
    "(?=a)",
    "(?!a)",
    "(?<=a)",
    "(?P<n>a)(?P<n>b)",
    "(?P=n)",
    "(?-)a",
    r"\cA",
    r"\pN",
    r"[\p{Greek}]",
    "(?i)\u{e9}",
    "a(?s)*",
];

fn world(pattern: &str) -> World {
    let rule = HttpRule { headers: vec![header("x", ValueMatch::Regex(pattern.into()))], ..HttpRule::default() };
    World::ingress(vec![port(80, vec![PortRule { http: Some(vec![rule]), ..allow() }])])
}

#[test]
fn means_what_re2_means() {
    for (pattern, expected) in MATCHES {
        let world = world(pattern);
        assert_eq!(world.quarantined(), Vec::<String>::new(), "{pattern:?}");
        for input in INPUTS {
            let matched = world.with_header("x", input);
            assert_eq!(matched, expected.contains(input), "{pattern:?} on {input:?}");
        }
    }
}

#[test]
fn refuses_by_name() {
    for pattern in REFUSED {
        let world = world(pattern);
        let quarantined = world.quarantined();
        assert_eq!(quarantined.len(), 1, "{pattern:?}");
        assert!(quarantined[0].contains(&format!("headers[0]: regex {pattern:?}: ")), "{quarantined:?}");
        for input in INPUTS {
            assert!(!world.with_header("x", input), "{pattern:?} on {input:?}");
        }
    }
}

#[test]
fn limits_hold() {
    let nested = format!("{}a{}", "(".repeat(300), ")".repeat(300));
    assert_eq!(world(&nested).quarantined().len(), 1);
    let deep_enough = format!("{}a.{}", "(".repeat(200), ")".repeat(200));
    assert_eq!(world(&deep_enough).quarantined(), Vec::<String>::new());
    let large = world("(?:[^a][^b][^c]){1000}").quarantined();
    assert!(large[0].contains("needs an automaton of more than"), "{large:?}");
}
