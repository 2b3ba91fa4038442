//! A finding, and the closed list of what can be found.

use std::fmt;

use crate::Direction;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Right as it is for some, a surprise for others.
    Note,
    /// Most likely not what its author meant.
    Warning,
    /// Not enforced as written.
    Error,
}

impl Severity {
    /// The lower-case word in output and options.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where something stands: a policy and the path of a field in it, in the spelling of the `.proto` files:
/// `ingress_per_port_policies[0].rules[1].http_rules.http_rules[0].headers[2]`. An empty path is the whole policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// Index of the policy in the list that was looked at.
    pub policy: usize,
    /// For order: the numbers in `path`.
    numbers: Vec<usize>,
    /// Path of the field.
    pub path: String,
}

impl Element {
    pub(super) const fn policy(policy: usize) -> Self {
        Self { policy, numbers: Vec::new(), path: String::new() }
    }

    pub(super) fn direction(policy: usize, direction: Direction) -> Self {
        let numbers = vec![usize::from(direction == Direction::Egress)];
        Self { policy, numbers, path: format!("{direction}_per_port_policies") }
    }

    pub(super) fn entry(&self, index: usize) -> Self {
        self.indexed("", index)
    }

    pub(super) fn rule(&self, index: usize) -> Self {
        self.indexed(".rules", index)
    }

    pub(super) fn http_rule(&self, index: usize) -> Self {
        self.indexed(".http_rules.http_rules", index)
    }

    pub(super) fn header(&self, index: usize) -> Self {
        self.indexed(".headers", index)
    }

    /// Any field below, also with an index of its own: `endpoint_ips[0]`.
    pub(super) fn field(&self, field: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { path: format!("{}{dot}{field}", self.path), ..self.clone() }
    }

    fn indexed(&self, list: &str, index: usize) -> Self {
        let mut numbers = self.numbers.clone();
        numbers.push(index);
        Self { policy: self.policy, numbers, path: format!("{}{list}[{index}]", self.path) }
    }
}

/// One thing that is wrong, or probably is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What kind it is.
    pub lint: Lint,
    /// Where.
    pub element: Element,
    /// What was seen, with the values that show it.
    pub what: String,
    /// What to write instead.
    pub instead: String,
    /// The other element that it takes, such as the rule that decides first.
    pub because_of: Option<Element>,
    /// Although the element never decides, more would be allowed without it: the port would not be read as HTTP.
    pub needed: bool,
}

impl Finding {
    pub(super) const fn new(lint: Lint, element: Element, what: String, instead: String) -> Self {
        Self { lint, element, what, instead, because_of: None, needed: false }
    }
}

macro_rules! lints {
    ($($(#[$doc:meta])* $name:ident $id:literal $severity:ident $why:literal;)*) => {
        /// Everything that [`lint`](super::lint) can find.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Lint {
            $($(#[$doc])* $name,)*
        }

        impl Lint {
            /// All of them, the gravest first.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in output; never changes.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// How much it matters.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)*
                }
            }

            /// Why it matters, in one sentence.
            pub const fn why(self) -> &'static str {
                match self {
                    $(Self::$name => $why,)*
                }
            }
        }
    };
}

lints! {
    /// A regular expression that is invalid or too large.
    InvalidRegex "invalid-regex" Error
        "the rule that holds it allows nothing";
    /// A field name that no request can have.
    InvalidHeaderName "invalid-header-name" Error
        "the rule that holds it allows nothing";
    /// A server name pattern outside its grammar.
    InvalidServerName "invalid-server-name" Error
        "in an allow it matches no connection, in a deny every one";
    /// A port or range that makes no sense.
    InvalidPort "invalid-port" Error
        "the entry allows nothing, and one with a deny closes the whole direction";
    /// An empty list of HTTP rules.
    EmptyHttpRules "empty-http-rules" Error
        "an empty list does not say which requests to allow, so the rule allows nothing";
    /// Pass rules that disagree, or pass to what is not below them.
    ContradictoryTiers "contradictory-tiers" Error
        "which rules a pass skips cannot be told, so the ports concerned are closed";
    /// Anything else that decodes and is not enforced as written.
    NotEnforced "not-enforced" Error
        "it takes its most restrictive reading: an allow that holds it allows nothing";
    /// An address in more than one policy.
    DuplicateEndpoint "duplicate-endpoint" Error
        "every policy that claims the address must allow, and which of them wins later depends on the order of updates";
    /// An endpoint id in more than one policy.
    DuplicateEndpointId "duplicate-endpoint-id" Error
        "a control plane names policies by this number, so one would replace the other";
    /// A name among the addresses of an endpoint that is an address but for a mistake.
    NotAnAddress "not-an-address" Warning
        "it is taken for a name, and no connection of the endpoint finds the policy by it";
    /// A rule that another one always decides before, the other way.
    ShadowedRule "shadowed-rule" Warning
        "the rule looks as if it did something and never does";
    /// HTTP rules whose peers are allowed everything anyway.
    HttpRuleWithoutEffect "http-rule-without-effect" Warning
        "the HTTP rules keep no request out, because a rule without any allows the same peers every one";
    /// HTTP rules in a deny or pass rule.
    DenyIgnoresHttp "deny-ignores-http" Warning
        "it refuses more than its HTTP rules say";
    /// A rule for TLS server names.
    ServerNameUnseen "server-names-unseen" Warning
        "which name a connection asks for is not known to this version, and what is not known never admits";
    /// Conditions that exclude each other.
    UnmatchableRule "unmatchable-rule" Warning
        "no request can meet all of its conditions, so it allows nothing";
    /// An inverted path matcher with a way round it.
    PathExclusionDodged "path-exclusion-dodged" Warning
        "many servers answer these paths with the same resource, so the exclusion can be dodged";
    /// An inverted host matcher with a way round it.
    HostExclusionDodged "host-exclusion-dodged" Warning
        "servers take these for the same host, and a client chooses which it sends, so the exclusion can be dodged";
    /// A path pattern that no request can have.
    PathNeverMatches "path-never-matches" Warning
        "the path of a request begins with a slash and is made canonical before it is matched";
    /// A literal regex that ends in a slash.
    PrefixMeant "prefix-meant" Warning
        "a regular expression has to match the whole path, so nothing below it is allowed";
    /// `*` as in a shell.
    GlobInRegex "glob-in-regex" Warning
        "`*` repeats what stands before it; it does not stand for any text";
    /// `*` in a text that is no pattern.
    PatternInText "pattern-in-text" Warning
        "only a regular expression is a pattern; here `*` is a character like any other";
    /// The name of a pseudo-header without its colon.
    ColonMissing "colon-missing" Warning
        "it is a field in which clients send what they like, or nothing";
    /// A pattern whose beginning is open.
    OpenBeginning "open-beginning" Warning
        "whatever stands before matches too, which a client chooses";
    /// A pattern that is open where something else has to follow.
    OpenMiddle "open-middle" Warning
        "what stands there a client chooses: in a path also a query, with whatever has to follow in it, in a host another domain";
    /// An alternative that matches everything.
    OpenAlternative "open-alternative" Warning
        "the other alternatives restrict nobody";
    /// A host pattern whose end is open.
    HostSuffix "host-suffix" Warning
        "whatever stands after it matches too, so hosts of others match";
    /// `.` where a dot was meant, in a host.
    HostUnescapedDot "host-unescaped-dot" Warning
        "`.` matches any character, so hosts of others match";
    /// Upper-case letters in a host.
    HostUpperCase "host-upper-case" Warning
        "hosts are compared with their case, and clients send lower case";
    /// Lower-case letters in a method.
    MethodLowerCase "method-lower-case" Warning
        "methods are compared with their case, and clients send upper case";
    /// A method that no client sends.
    UnknownMethod "unknown-method" Warning
        "a method that nobody sends allows nothing";
    /// A secret that is named and not there.
    MissingSecret "missing-secret" Warning
        "until the secret is delivered and while there is no inline value, the rule allows nothing";
    /// A rule that another one says already.
    RedundantRule "redundant-rule" Note
        "it says nothing that others do not say, or one of them was meant to say something else";
    /// GET without HEAD.
    GetWithoutHead "get-without-head" Note
        "health checks and caches ask with HEAD, and are refused";
    /// A path pattern that leaves no room for a query.
    PathWithoutQuery "path-without-query" Note
        "the query is part of the path that is matched";
    /// `.` where a dot was meant, in a path.
    PathUnescapedDot "path-unescaped-dot" Note
        "`.` matches any character, also `?`, behind which is the query, and `/`";
    /// A literal path that leaves other spellings of the same resource out.
    PathWithoutSlash "path-without-slash" Note
        "clients that write the path in these other ways are refused";
    /// A host pattern that leaves no room for a port.
    HostWithoutPort "host-without-port" Note
        "clients send the port along with the host unless it is the default one of the scheme";
    /// `^` and `$` around a pattern.
    SuperfluousAnchors "superfluous-anchors" Note
        "a pattern has to match the whole value anyway";
    /// A pattern that matches every value.
    MatchesEverything "matches-everything" Note
        "it reads like a condition and is none";
    /// An entry for UDP.
    OtherProtocol "other-protocol" Note
        "the entry has no effect here";
    /// More rules than are compared.
    NotCompared "not-compared" Note
        "rules that never decide may be among them";
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}
