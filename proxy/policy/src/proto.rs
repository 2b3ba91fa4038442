//! Policies from their wire form.
//!
//! Only what makes a resource unusable as a whole is an error here. What decodes but cannot be honoured is carried
//! along by name, so that compilation quarantines the smallest rule that holds it.

use thiserror::Error;
use tollgate_proto::cilium::{
    self, HttpNetworkPolicyRule, PortNetworkPolicy, PortNetworkPolicyRule, port_network_policy_rule,
};
use tollgate_proto::envoy::config::core::v3::socket_address;
use tollgate_proto::envoy::config::route::v3 as route;
use tollgate_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use tollgate_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tollgate_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};

use crate::model::{
    EndpointKey, HeaderMatch, HeaderMatcher, HttpRule, MatchAction, MismatchAction, NetworkPolicy, PortPolicy,
    PortRule, Protocol, RuleVerdict, TextPart, Unsupported, ValueMatch,
};

/// Why a `cilium.NetworkPolicy` is unusable as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// 0 means "no endpoint".
    #[error("endpoint_id: is 0 or missing (endpoint_ips {0:?}); give the endpoint's number")]
    NoEndpointId(Vec<String>),
    /// Nothing could ever find the policy.
    #[error("endpoint_ips: is empty (endpoint_id {0}); list the endpoint's addresses")]
    NoEndpointIps(u64),
    /// An empty key would be found by nothing.
    #[error("endpoint_ips[{index}]: is empty (endpoint_id {endpoint_id}); give an address or a name")]
    EmptyEndpointIp {
        /// Of the policy.
        endpoint_id: u64,
        /// Of the entry.
        index: usize,
    },
}

impl TryFrom<&cilium::NetworkPolicy> for NetworkPolicy {
    type Error = PolicyError;

    fn try_from(policy: &cilium::NetworkPolicy) -> Result<Self, PolicyError> {
        let endpoint_id = policy.endpoint_id;
        if endpoint_id == 0 {
            return Err(PolicyError::NoEndpointId(policy.endpoint_ips.clone()));
        }
        if policy.endpoint_ips.is_empty() {
            return Err(PolicyError::NoEndpointIps(endpoint_id));
        }
        if let Some(index) = policy.endpoint_ips.iter().position(String::is_empty) {
            return Err(PolicyError::EmptyEndpointIp { endpoint_id, index });
        }
        Ok(Self {
            endpoint_id,
            endpoints: policy.endpoint_ips.iter().map(|text| EndpointKey::parse(text)).collect(),
            ingress: policy.ingress_per_port_policies.iter().map(port_policy).collect(),
            egress: policy.egress_per_port_policies.iter().map(port_policy).collect(),
        })
    }
}

impl NetworkPolicy {
    /// What a policy claims that is unusable as a whole, and nothing that it allows; `None` when it claims nothing. Without it, others that
    /// claim the same would decide alone.
    pub fn denying(policy: &cilium::NetworkPolicy) -> Option<Self> {
        let named = policy.endpoint_ips.iter().filter(|text| !text.is_empty());
        let endpoints: Vec<EndpointKey> = named.map(|text| EndpointKey::parse(text)).collect();
        let endpoint_id = policy.endpoint_id;
        (!endpoints.is_empty()).then_some(Self { endpoint_id, endpoints, ingress: Vec::new(), egress: Vec::new() })
    }
}

fn port_policy(policy: &PortNetworkPolicy) -> PortPolicy {
    PortPolicy {
        port: policy.port,
        end_port: policy.end_port,
        protocol: match socket_address::Protocol::try_from(policy.protocol) {
            Ok(socket_address::Protocol::Tcp) => Protocol::Tcp,
            Ok(socket_address::Protocol::Udp) => Protocol::Udp,
            Err(_) => Protocol::Unknown(policy.protocol),
        },
        rules: policy.rules.iter().map(port_rule).collect(),
    }
}

fn port_rule(rule: &PortNetworkPolicyRule) -> PortRule {
    use port_network_policy_rule::{L7, Verdict};
    let mut unsupported = Vec::new();
    let mut refuse = |element: &str, reason: &str| unsupported.push(unsupported_part(element, reason));
    if rule.downstream_tls_context.is_some() {
        refuse("downstream_tls_context", "TLS interception is not supported yet");
    }
    if rule.upstream_tls_context.is_some() {
        refuse("upstream_tls_context", "TLS origination is not supported yet");
    }
    if !rule.l7_proto.is_empty() {
        let reason = format!("{:?}: this proxy has no parser for it", rule.l7_proto);
        refuse("l7_proto", &reason);
    }
    let http = match &rule.l7 {
        Some(L7::HttpRules(http)) => Some(http.http_rules.iter().map(http_rule).collect()),
        Some(L7::KafkaRules(_)) => {
            refuse("kafka_rules", "Kafka rules are not supported");
            None
        }
        Some(L7::L7Rules(_)) => {
            refuse("l7_rules", "generic L7 and metadata rules are not supported");
            None
        }
        None => None,
    };
    PortRule {
        precedence: rule.precedence,
        // A zero or false value of the oneof means allow, as if it was not set.
        verdict: match rule.verdict {
            Some(Verdict::PassPrecedence(below)) if below != 0 => RuleVerdict::Pass(below),
            Some(Verdict::Deny(true)) => RuleVerdict::Deny,
            _ => RuleVerdict::Allow,
        },
        proxy_id: rule.proxy_id,
        name: rule.name.clone(),
        remotes: rule.remote_policies.clone(),
        server_names: rule.server_names.clone(),
        http,
        unsupported,
    }
}

fn unsupported_part(element: &str, reason: &str) -> Unsupported {
    Unsupported { element: element.into(), reason: reason.into() }
}

fn http_rule(rule: &HttpNetworkPolicyRule) -> HttpRule {
    HttpRule {
        headers: rule.headers.iter().map(header_matcher).collect(),
        header_matches: rule.header_matches.iter().map(header_match).collect(),
        unsupported: Vec::new(),
    }
}

fn header_match(matched: &cilium::HeaderMatch) -> HeaderMatch {
    use cilium::header_match as wire;
    HeaderMatch {
        secret: (!matched.value_sds_secret.is_empty()).then(|| matched.value_sds_secret.as_str().into()),
        on_match: match wire::MatchAction::try_from(matched.match_action) {
            Ok(wire::MatchAction::ContinueOnMatch) => MatchAction::Continue,
            Ok(wire::MatchAction::FailOnMatch) => MatchAction::Fail,
            Ok(wire::MatchAction::DeleteOnMatch) => MatchAction::Delete,
            Err(_) => MatchAction::Unknown(matched.match_action),
        },
        on_mismatch: match wire::MismatchAction::try_from(matched.mismatch_action) {
            Ok(wire::MismatchAction::FailOnMismatch) => MismatchAction::Fail,
            Ok(wire::MismatchAction::ContinueOnMismatch) => MismatchAction::Continue,
            Ok(wire::MismatchAction::AddOnMismatch) => MismatchAction::Add,
            Ok(wire::MismatchAction::DeleteOnMismatch) => MismatchAction::Delete,
            Ok(wire::MismatchAction::ReplaceOnMismatch) => MismatchAction::Replace,
            Err(_) => MismatchAction::Unknown(matched.mismatch_action),
        },
        ..HeaderMatch::new(&matched.name, &matched.value)
    }
}

#[expect(deprecated, reason = "agents still send the older spellings of the same matchers")]
fn header_matcher(matcher: &route::HeaderMatcher) -> HeaderMatcher {
    let value = match &matcher.header_match_specifier {
        None => ValueMatch::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(wanted)) => ValueMatch::Present(*wanted),
        // Unlike `string_match.exact: ""`, which only the empty value equals.
        Some(HeaderMatchSpecifier::ExactMatch(text)) if text.is_empty() => ValueMatch::Any,
        Some(HeaderMatchSpecifier::ExactMatch(text)) => self::text(TextPart::Whole, text, false),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => self::text(TextPart::Prefix, text, false),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => self::text(TextPart::Suffix, text, false),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => self::text(TextPart::Anywhere, text, false),
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => regex(matcher),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => ValueMatch::Range { start: range.start, end: range.end },
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => string_match(matcher),
    };
    HeaderMatcher {
        invert: matcher.invert_match,
        treat_missing_as_empty: matcher.treat_missing_header_as_empty,
        ..HeaderMatcher::new(&matcher.name, value)
    }
}

fn string_match(matcher: &StringMatcher) -> ValueMatch {
    let ignore_case = matcher.ignore_case;
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => self::text(TextPart::Whole, text, ignore_case),
        Some(MatchPattern::Prefix(text)) => self::text(TextPart::Prefix, text, ignore_case),
        Some(MatchPattern::Suffix(text)) => self::text(TextPart::Suffix, text, ignore_case),
        Some(MatchPattern::Contains(text)) => self::text(TextPart::Anywhere, text, ignore_case),
        // The case of a regex is the regex's own matter.
        Some(MatchPattern::SafeRegex(matcher)) => regex(matcher),
        Some(MatchPattern::Custom(custom)) => {
            ValueMatch::Unsupported(format!("string_match.custom {:?} is not supported", custom.name).into())
        }
        None => ValueMatch::Unsupported("string_match says nothing to match".into()),
    }
}

fn regex(matcher: &RegexMatcher) -> ValueMatch {
    ValueMatch::Regex(matcher.regex.as_str().into())
}

fn text(part: TextPart, text: &str, ignore_case: bool) -> ValueMatch {
    ValueMatch::Text { part, text: text.into(), ignore_case }
}
