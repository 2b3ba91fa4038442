//! Policy as plain values: what a `cilium.NetworkPolicy` says, independent of protobuf and of how it is compiled.
//!
//! Values that make no sense (a port of 70000, an empty prefix) are representable on purpose: judging them is the work
//! of compilation, which quarantines the smallest element that holds them and enforces the rest.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::weight::{Scale, Weight, weight};

/// Policy of one local endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Never 0.
    pub endpoint_id: u64,
    /// Keys under which the policy is looked up. Never empty.
    pub endpoints: Vec<EndpointKey>,
    /// Empty: every flow towards the endpoint is denied.
    pub ingress: Vec<PortPolicy>,
    /// Empty: every flow from the endpoint is denied.
    pub egress: Vec<PortPolicy>,
}

/// One entry of `endpoint_ips`: an address, or a free-form name (an Ingress policy).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointKey {
    /// Canonical: an IPv4-mapped IPv6 address is its IPv4 address.
    Address(IpAddr),
    /// Anything that does not parse as an address.
    Name(Arc<str>),
}

impl EndpointKey {
    /// Reads one entry of `endpoint_ips`. Any spelling of an address gives the same key.
    pub fn parse(text: &str) -> Self {
        text.parse::<IpAddr>().map_or_else(|_| Self::Name(text.into()), Self::from)
    }
}

impl From<IpAddr> for EndpointKey {
    fn from(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// `PortNetworkPolicy`: the rules of one port or range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortPolicy {
    /// 0 is the wildcard: every port.
    pub port: u32,
    /// Last port of the range; 0 when it is a single port.
    pub end_port: u32,
    /// Only TCP is judged here.
    pub protocol: Protocol,
    /// Empty: everything on the port is allowed.
    pub rules: Vec<PortRule>,
}

/// Transport protocol of a [`PortPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The default when a policy does not say.
    #[default]
    Tcp,
    /// A known protocol that this proxy never carries; its entries do not apply.
    Udp,
    /// An enum value that this version does not know.
    Unknown(i32),
}

/// `PortNetworkPolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortRule {
    /// Higher wins.
    pub precedence: u32,
    /// What happens to what the rule matches.
    pub verdict: RuleVerdict,
    /// Non-zero: the rule exists for the listener with this proxy id only.
    pub proxy_id: u32,
    /// For people.
    pub name: String,
    /// Identities of the other side; empty means any.
    pub remotes: Vec<u32>,
    /// Patterns for the TLS server name; empty means any, also none.
    pub server_names: Vec<String>,
    /// HTTP part; `None` allows everything above TCP.
    pub http: Option<Vec<HttpRule>>,
    /// Parts that decode but cannot be honoured.
    pub unsupported: Vec<Unsupported>,
}

/// Verdict of a [`PortRule`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RuleVerdict {
    /// Admit.
    #[default]
    Allow,
    /// Refuse.
    Deny,
    /// Skip to the rules whose precedence is below this one (never 0).
    Pass(u32),
}

/// `HttpNetworkPolicyRule`: matches when all of its header matchers do, and none of its header matches fails it then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpRule {
    /// Conditions on the request as it was received. Empty: every request.
    pub headers: Vec<HeaderMatcher>,
    /// Compared in this order once all of `headers` hold; each may edit the request.
    pub header_matches: Vec<HeaderMatch>,
    /// Parts that decode but cannot be honoured.
    pub unsupported: Vec<Unsupported>,
}

/// Envoy's `HeaderMatcher`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatcher {
    /// Field name; lower-cased by [`HeaderMatcher::new`].
    pub name: Box<str>,
    /// What the value must be.
    pub value: ValueMatch,
    /// Reverses the outcome, except that an absent field still does not match (unless only presence is tested).
    pub invert: bool,
    /// An absent field counts as an empty one.
    pub treat_missing_as_empty: bool,
}

impl HeaderMatcher {
    /// A plain matcher; field names compare without regard to case.
    pub fn new(name: &str, value: ValueMatch) -> Self {
        Self { name: name.to_ascii_lowercase().into(), value, invert: false, treat_missing_as_empty: false }
    }
}

/// What a header value must be. Values compare as bytes, in full and with their case, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// The field is there (`true`) or is not (`false`).
    Present(bool),
    /// Any value of a field that is there: what the deprecated `exact_match: ""` means.
    Any,
    /// Comparison with a literal.
    Text {
        /// Which part of the value is compared.
        part: TextPart,
        /// The literal.
        text: Box<str>,
        /// ASCII letters compare without their case.
        ignore_case: bool,
    },
    /// RE2 expression that must match the whole value.
    Regex(Box<str>),
    /// Base-10 integer in the half-open range.
    Range {
        /// First value inside.
        start: i64,
        /// First value outside.
        end: i64,
    },
    /// Something that decodes but cannot be honoured; the text says what.
    Unsupported(Box<str>),
}

/// Cilium's `HeaderMatch`: what a field should be, and what becomes of the request when it is and when it is not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Field name; lower-cased by [`HeaderMatch::new`].
    pub name: Box<str>,
    /// Expected value, compared in full and with its case. Empty: the field only has to be there.
    pub value: Box<str>,
    /// SDS name of the secret that is the expected value instead of `value`, from when it is delivered.
    pub secret: Option<Box<str>>,
    /// What happens when the field is as expected.
    pub on_match: MatchAction,
    /// What happens when it is not.
    pub on_mismatch: MismatchAction,
}

impl HeaderMatch {
    /// Demands that the field is there with this value (empty: with any), and changes nothing.
    pub fn new(name: &str, value: &str) -> Self {
        Self {
            name: name.to_ascii_lowercase().into(),
            value: value.into(),
            secret: None,
            on_match: MatchAction::default(),
            on_mismatch: MismatchAction::default(),
        }
    }

    /// Whether it may change the request.
    pub(crate) const fn edits(&self) -> bool {
        matches!(self.on_match, MatchAction::Delete) || self.on_mismatch.edits()
    }
}

/// What happens when a field is as a [`HeaderMatch`] expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MatchAction {
    /// Go on.
    #[default]
    Continue,
    /// The rule does not admit the request.
    Fail,
    /// Take every instance of the field out and go on.
    Delete,
    /// An enum value that this version does not know.
    Unknown(i32),
}

/// What happens when a field is not as a [`HeaderMatch`] expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MismatchAction {
    /// The rule does not admit the request.
    #[default]
    Fail,
    /// Go on.
    Continue,
    /// Add an instance with the expected value and go on.
    Add,
    /// Take every instance out, if a value was expected, and go on.
    Delete,
    /// Put the expected value in the place of all instances and go on.
    Replace,
    /// An enum value that this version does not know.
    Unknown(i32),
}

impl MismatchAction {
    /// Whether it changes the request.
    pub(crate) const fn edits(self) -> bool {
        matches!(self, Self::Add | Self::Delete | Self::Replace)
    }
}

/// Which part of a header value a [`ValueMatch::Text`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextPart {
    /// All of it.
    Whole,
    /// Its beginning.
    Prefix,
    /// Its end.
    Suffix,
    /// Some part of it.
    Anywhere,
}

/// Part of a rule that decodes but cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unsupported {
    /// Path of the field, relative to the rule: `l7_proto`, `headers[2].string_match.custom`.
    pub element: Box<str>,
    /// Why it cannot be honoured.
    pub reason: Box<str>,
}

impl fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(true) | Self::Any => f.write_str("present"),
            Self::Present(false) => f.write_str("absent"),
            Self::Text { part, text, ignore_case } => {
                f.write_str(match part {
                    TextPart::Whole => "exact",
                    TextPart::Prefix => "prefix",
                    TextPart::Suffix => "suffix",
                    TextPart::Anywhere => "contains",
                })?;
                write!(f, " {text:?}")?;
                f.write_str(if *ignore_case { " (any case)" } else { "" })
            }
            Self::Regex(pattern) => write!(f, "regex {pattern:?}"),
            Self::Range { start, end } => write!(f, "in range [{start}, {end})"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

weight!(PortPolicy: rules);
weight!(PortRule: name, remotes, server_names, http, unsupported);
weight!(HttpRule: headers, header_matches, unsupported);
weight!(HeaderMatcher: name, value);
weight!(HeaderMatch: name, value, secret);
weight!(Unsupported: element, reason);

impl Weight for ValueMatch {
    fn weigh(&self, scale: &mut Scale) {
        match self {
            Self::Text { text, .. } => text.weigh(scale),
            Self::Regex(text) | Self::Unsupported(text) => text.weigh(scale),
            Self::Present(_) | Self::Any | Self::Range { .. } => {}
        }
    }
}
