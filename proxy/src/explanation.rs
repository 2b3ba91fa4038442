//! What policy says about one connection or request, and why: the same answer for policy files (`tollgate policy
//! explain`) and for what a running proxy enforces (`/policy/explain`). The engine is the one of the data path, and so is
//! the canonical form of the path.

mod query;
mod reference;
mod report;

use std::net::IpAddr;

use tollgate_policy::reference::Reference;
use tollgate_policy::{
    ConnectionVerdict, Direction, EndpointKey, Explanation, Flow, Request, Secrets, SecurityId, ServerName, Snapshot,
    Verdict,
};

use crate::config::Normalize;
use crate::http::canonical::{CanonicalPath, canonicalise};

/// What is asked, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Local endpoint whose policy is asked.
    pub endpoint: IpAddr,
    /// Which of its two rule lists.
    pub direction: Direction,
    /// Identity of the other side.
    pub remote: SecurityId,
    /// Destination port, before redirection.
    pub port: u16,
    /// `proxy_id` of the listener, when that is not the listener's own matter.
    pub proxy_id: Option<u16>,
    /// Server name of the TLS ClientHello; `None`: not known.
    pub server_name: Option<String>,
    /// Host of the request; `None`: in a `Host` field, else the endpoint's address and port.
    pub host: Option<String>,
    /// Header fields of the request.
    pub headers: Vec<(String, String)>,
    /// Method, and path with its query; `None` asks about the connection alone.
    pub request: Option<(String, String)>,
}

/// What it is asked of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Enforced<'a> {
    pub(crate) policies: &'a Snapshot,
    pub(crate) secrets: &'a Secrets,
    /// How the listener makes paths canonical.
    pub(crate) normalize: &'a Normalize,
    /// `proxy_id` of the listener, where nobody names another.
    pub(crate) proxy_id: u16,
    /// The second evaluator, if it is to be asked too.
    pub(crate) reference: Option<&'a Reference>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the host is given twice; a request has one")]
    TwoHosts,
    #[error("the two evaluators differ, which is a defect of tollgate: {0}; please report it with the policy")]
    Differ(String),
}

/// The answer in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Allowed,
    Denied,
}

impl Answer {
    /// The first word of the text, and `verdict` in JSON.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// An answer with everything that it rests on.
#[derive(Debug)]
pub struct Explained {
    answer: Answer,
    question: Question,
    explanation: Explanation,
    /// Elements of the endpoint's policies that are not enforced as written.
    quarantined: Vec<String>,
    /// The reference was asked, and says the same.
    checked: bool,
}

impl Explained {
    pub(crate) const fn answer(&self) -> Answer {
        self.answer
    }

    /// For people.
    pub fn text(&self) -> String {
        report::text(self)
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        report::json(self)
    }
}

/// What was asked, in the form that is judged.
#[derive(Debug)]
struct Question {
    endpoint: IpAddr,
    direction: Direction,
    remote: SecurityId,
    port: u16,
    request: Option<AskedRequest>,
}

#[derive(Debug)]
struct AskedRequest {
    method: String,
    authority: String,
    /// As given.
    path: String,
    /// As matched.
    canonical: Canonical,
}

/// What becomes of a path before policy sees it.
#[derive(Debug)]
enum Canonical {
    Path(Vec<u8>),
    /// The client is sent there; what follows is about the request that it then makes.
    Redirected(Vec<u8>),
    /// 400, before policy.
    Refused(String),
}

impl Question {
    /// Why the path has no canonical form, when it has none.
    fn refused_path(&self) -> Option<&str> {
        match &self.request.as_ref()?.canonical {
            Canonical::Refused(why) => Some(why),
            Canonical::Path(_) | Canonical::Redirected(_) => None,
        }
    }
}

/// Answers a question.
///
/// # Errors
/// The host is given twice, or the reference was asked and says something else.
pub(crate) fn explain(asked: &Asked, enforced: &Enforced<'_>) -> Result<Explained, NoAnswer> {
    let headers = other_headers(&asked.headers);
    let question = question(asked, enforced.normalize)?;
    let endpoint = EndpointKey::from(question.endpoint);
    let flow = Flow {
        direction: question.direction,
        endpoint: &endpoint,
        remote: question.remote,
        port: question.port,
        proxy_id: asked.proxy_id.unwrap_or(enforced.proxy_id),
        server_name: asked.server_name.as_deref().map_or(ServerName::Unknown, ServerName::Name),
    };
    let path = question.request.as_ref().and_then(|request| match &request.canonical {
        Canonical::Path(path) | Canonical::Redirected(path) => Some((request, path)),
        Canonical::Refused(_) => None,
    });
    let request = path.map(|(request, path)| Request {
        method: request.method.as_bytes(),
        scheme: b"http",
        authority: request.authority.as_bytes(),
        path,
        headers: &headers,
    });
    let explanation = enforced.policies.explain(&flow, request.as_ref(), enforced.secrets);
    if let Some(reference) = enforced.reference
        && let Some(how) = reference::difference(reference, &flow, request.as_ref(), enforced.secrets, &explanation)
    {
        return Err(NoAnswer::Differ(how));
    }
    let policies = enforced.policies.endpoint(&endpoint);
    let quarantined = policies.flat_map(|policy| policy.quarantined()).map(|q| q.to_string()).collect();
    let answer = answer(&question, &explanation);
    Ok(Explained { answer, question, explanation, quarantined, checked: enforced.reference.is_some() })
}

fn answer(question: &Question, explanation: &Explanation) -> Answer {
    let refused = question.refused_path().is_some();
    let allowed = match (&explanation.connection, &explanation.request) {
        (ConnectionVerdict::Deny { .. }, _) => false,
        // Passed as TCP: no request is looked at.
        (ConnectionVerdict::AllowTcp { .. }, _) => true,
        (ConnectionVerdict::InspectHttp, _) if refused => false,
        (ConnectionVerdict::InspectHttp, Some(verdict)) => matches!(verdict, Verdict::Allow { .. }),
        // Which requests pass depends on them; the connection itself does.
        (ConnectionVerdict::InspectHttp, None) => true,
    };
    match allowed {
        true => Answer::Allowed,
        false => Answer::Denied,
    }
}

fn question(asked: &Asked, normalize: &Normalize) -> Result<Question, NoAnswer> {
    let request = asked.request.as_ref().map(|(method, path)| asked_request(asked, method, path, normalize));
    Ok(Question {
        endpoint: asked.endpoint,
        direction: asked.direction,
        remote: asked.remote,
        port: asked.port,
        request: request.transpose()?,
    })
}

fn asked_request(asked: &Asked, method: &str, path: &str, normalize: &Normalize) -> Result<AskedRequest, NoAnswer> {
    let hosts = asked.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut hosts = hosts.map(|(_, value)| value).chain(&asked.host);
    let authority = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(NoAnswer::TwoHosts);
    }
    let authority = authority.unwrap_or_else(|| std::net::SocketAddr::new(asked.endpoint, asked.port).to_string());
    let canonical = match canonicalise(path.as_bytes(), normalize) {
        Ok(CanonicalPath::Unchanged) => Canonical::Path(path.as_bytes().to_vec()),
        Ok(CanonicalPath::Rewritten(path)) => Canonical::Path(path),
        Ok(CanonicalPath::Redirect(path)) => Canonical::Redirected(path),
        Err(error) => Canonical::Refused(error.to_string()),
    };
    Ok(AskedRequest { method: method.to_owned(), authority, path: path.to_owned(), canonical })
}

/// `host` is `:authority` to policy, not a header.
fn other_headers(headers: &[(String, String)]) -> Fields {
    let others = headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host"));
    Fields(others.cloned().collect())
}

struct Fields(Vec<(String, String)>);

impl tollgate_policy::Headers for Fields {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0.as_slice().each(name, visit);
    }
}

/// Reads `Name: value`, the white space around the value dropped (RFC 9110 section 5.5).
///
/// # Errors
/// It is no header field; what to write.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("\"{text}\" is no header field; write NAME: VALUE");
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(wrong());
    }
    let value = value.trim_matches([' ', '\t']);
    match http::HeaderValue::from_str(value) {
        Ok(_) => Ok((name.to_owned(), value.to_owned())),
        Err(_) => Err(format!("\"{text}\" has a control character in its value; remove it")),
    }
}

/// Checks a method.
///
/// # Errors
/// It is none; what to write.
pub(crate) fn method(text: &str) -> Result<String, String> {
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("\"{text}\" is no method; write one such as GET")),
    }
}
