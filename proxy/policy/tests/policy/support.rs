//! Short ways to write policies and to ask about them.

use std::net::{IpAddr, Ipv4Addr};

use tollgate_policy::model::{HeaderMatcher, HttpRule, PortPolicy, PortRule, RuleVerdict, TextPart, ValueMatch};
use tollgate_policy::{
    ConnectionVerdict, DenyReason, Direction, EndpointKey, Flow, Headers, NetworkPolicy, NoHeaders, Request, Secrets,
    SecurityId, ServerName, Snapshot, Verdict,
};

pub(crate) const ENDPOINT: &str = "10.0.0.1";
static ENDPOINT_KEY: EndpointKey = EndpointKey::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));

pub(crate) fn port(port: u32, rules: Vec<PortRule>) -> PortPolicy {
    range(port, 0, rules)
}

pub(crate) fn range(port: u32, end_port: u32, rules: Vec<PortRule>) -> PortPolicy {
    PortPolicy { port, end_port, rules, ..PortPolicy::default() }
}

pub(crate) fn allow() -> PortRule {
    PortRule::default()
}

pub(crate) fn deny() -> PortRule {
    PortRule { verdict: RuleVerdict::Deny, ..PortRule::default() }
}

pub(crate) fn pass(precedence: u32, below: u32) -> PortRule {
    PortRule { verdict: RuleVerdict::Pass(below), precedence, ..PortRule::default() }
}

pub(crate) fn at(precedence: u32, rule: PortRule) -> PortRule {
    PortRule { precedence, ..rule }
}

pub(crate) fn from(remotes: &[u32], rule: PortRule) -> PortRule {
    PortRule { remotes: remotes.to_vec(), ..rule }
}

pub(crate) fn header(name: &str, value: ValueMatch) -> HeaderMatcher {
    HeaderMatcher::new(name, value)
}

pub(crate) fn exact(text: &str) -> ValueMatch {
    ValueMatch::Text { part: TextPart::Whole, text: text.into(), ignore_case: false }
}

/// Allows requests whose path is one of these.
pub(crate) fn paths(paths: &[&str]) -> PortRule {
    let rule = |path: &&str| HttpRule { headers: vec![header(":path", exact(path))], ..HttpRule::default() };
    PortRule { http: Some(paths.iter().map(rule).collect()), ..PortRule::default() }
}

pub(crate) fn policy(endpoint_id: u64, endpoints: &[&str], ingress: Vec<PortPolicy>) -> NetworkPolicy {
    NetworkPolicy {
        endpoint_id,
        endpoints: endpoints.iter().map(|text| EndpointKey::parse(text)).collect(),
        ingress,
        egress: Vec::new(),
    }
}

pub(crate) fn flow(remote: u32, port: u16) -> Flow<'static> {
    Flow {
        direction: Direction::Ingress,
        endpoint: &ENDPOINT_KEY,
        remote: SecurityId(remote),
        port,
        proxy_id: 0,
        server_name: ServerName::Absent,
    }
}

pub(crate) fn get<'a>(path: &'a str, headers: &'a dyn Headers) -> Request<'a> {
    Request { method: b"GET", scheme: b"http", authority: b"a.example", path: path.as_bytes(), headers }
}

/// A snapshot with one endpoint.
pub(crate) struct World(pub(crate) Snapshot);

impl World {
    pub(crate) fn ingress(ingress: Vec<PortPolicy>) -> Self {
        let mut builder = Snapshot::empty().update();
        builder.replace_all([policy(7, &[ENDPOINT], ingress)]);
        Self(builder.build())
    }

    /// `tcp`, `http` or the reason of the denial.
    pub(crate) fn connection(&self, flow: &Flow<'_>) -> String {
        match self.0.evaluate_connection(flow) {
            ConnectionVerdict::AllowTcp { .. } => "tcp".to_owned(),
            ConnectionVerdict::InspectHttp => "http".to_owned(),
            ConnectionVerdict::Deny { reason, .. } => format!("{reason:?}"),
        }
    }

    pub(crate) fn request(&self, flow: &Flow<'_>, path: &str) -> Result<String, DenyReason> {
        match self.0.evaluate_request(flow, &get(path, &NoHeaders), &Secrets::default()) {
            Verdict::Allow { rule, .. } => Ok(rule.to_string()),
            Verdict::Deny { reason, .. } => Err(reason),
        }
    }

    /// Both layers at once: `tcp`, the reason of the connection's denial, `http` for an allowed request, or `http` and
    /// the reason of the request's denial.
    pub(crate) fn both(&self, flow: &Flow<'_>, path: &str) -> String {
        let connection = self.connection(flow);
        let request = self.request(flow, path);
        match (connection.as_str(), request) {
            ("tcp" | "http", Ok(_)) => connection,
            ("http", Err(reason)) => format!("http {reason:?}"),
            (denied, Err(reason)) => {
                assert_eq!(denied, format!("{reason:?}"), "the layers disagree");
                connection
            }
            (denied, Ok(rule)) => panic!("{denied}, but the request is allowed by {rule}"),
        }
    }

    pub(crate) fn allows(&self, remote: u32, port: u16, path: &str) -> bool {
        matches!(self.both(&flow(remote, port), path).as_str(), "tcp" | "http")
    }

    /// Whether a request to port 80 with this field is allowed.
    pub(crate) fn with_header(&self, name: &str, value: &[u8]) -> bool {
        self.with_headers(&[(name, value)])
    }

    pub(crate) fn with_headers(&self, headers: &[(&str, &[u8])]) -> bool {
        let headers = Fields(headers);
        let verdict = self.0.evaluate_request(&flow(1, 80), &get("/", &headers), &Secrets::default());
        matches!(verdict, Verdict::Allow { .. })
    }

    pub(crate) fn quarantined(&self) -> Vec<String> {
        self.0.quarantined().map(|q| q.to_string()).collect()
    }
}

pub(crate) struct Fields<'a>(pub(crate) &'a [(&'a str, &'a [u8])]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0.each(name, visit);
    }
}
