//! What policy says about one connection or request, and why: the same answer for policy files (`tollgate policy
//! explain`) and for what a running proxy enforces (`/policy/explain`). The engine is the one of the data path, and so is
//! whatever a request meets before it.

mod decision;
mod head;
mod json;
mod paid;
mod query;
mod reference;
mod text;

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use tollgate_policy::reference::Reference;
use tollgate_policy::{
    ConnectionVerdict, Direction, EndpointKey, Explanation, Flow, PolicyExplanation, Secrets, SecurityId, ServerName,
    Snapshot, Verdict,
};

pub(crate) use self::paid::PaidBy;
pub(crate) use self::query::percent_decode;
use crate::config::{ForwardedProto, Normalize};
use crate::http::canonical::CanonicalPath;
use crate::http::h1::{self, FieldStorage, MAX_FIELDS, Refusal, RequestHead};
use crate::http::respond::LocalReply;
use crate::policy_file::FilePlace;
use crate::reason::Reason;

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
    /// Server name of the TLS ClientHello. The data path does not look into TLS, so the answer does not rest on it.
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
    /// Whose word `x-forwarded-proto` is on the listener.
    pub(crate) forwarded_proto: ForwardedProto,
    /// `proxy_id` of the listener, where nobody names another.
    pub(crate) proxy_id: u16,
    /// Where policies stand that come out of files, by resource name.
    pub(crate) places: &'a HashMap<String, FilePlace>,
    /// The second evaluator, if it is to be asked too.
    pub(crate) reference: Option<&'a Reference>,
    /// Whether a command asks that was given everything by its arguments, not a running proxy.
    pub(crate) offline: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the host is given twice; a request has one")]
    TwoHosts,
    #[error("the two evaluators differ, which is a defect of tollgate: {0}; please report it with the policy")]
    Differ(String),
}

/// The answer in a word or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Allowed,
    Denied,
    /// The client is sent to the canonical path, and the request for that is allowed or not.
    Redirected {
        then_allowed: bool,
    },
}

impl Answer {
    /// How the text begins.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Redirected { then_allowed: true } => "redirected, then allowed",
            Self::Redirected { then_allowed: false } => "redirected, then denied",
        }
    }

    /// `verdict` in JSON.
    pub(crate) const fn verdict(self) -> &'static str {
        match self {
            Self::Redirected { .. } => "redirected",
            Self::Allowed | Self::Denied => self.words(),
        }
    }

    /// Reads what [`words`](Self::words) wrote.
    pub(crate) fn from_words(words: &str) -> Option<Self> {
        const ALL: [Answer; 4] = [
            Answer::Allowed,
            Answer::Denied,
            Answer::Redirected { then_allowed: true },
            Answer::Redirected { then_allowed: false },
        ];
        ALL.into_iter().find(|answer| answer.words() == words)
    }

    /// Whether a client that does as it is told gets through.
    pub(crate) const fn admits(self) -> bool {
        matches!(self, Self::Allowed | Self::Redirected { then_allowed: true })
    }
}

/// An answer with everything that it rests on.
#[derive(Debug)]
pub struct Explained {
    answer: Answer,
    question: Question,
    /// What the proxy itself answers, when it does.
    reply: Option<LocalReply>,
    explanation: Explanation,
    if_seen: Option<IfSeen>,
    /// Where each policy of the explanation stands.
    places: Vec<Option<String>>,
    /// Elements of the endpoint's policies that are not enforced as written.
    quarantined: Vec<String>,
    /// The reference was asked, and says the same.
    checked: bool,
    /// Secrets are given to a command.
    offline: bool,
    /// Whose limits count, where a running proxy is asked.
    paid_by: Option<PaidBy>,
}

impl Explained {
    /// The same, with whose limits count.
    pub(crate) fn paid_by(self, paid_by: PaidBy) -> Self {
        Self { paid_by: Some(paid_by), ..self }
    }

    pub(crate) const fn answer(&self) -> Answer {
        self.answer
    }

    /// For people.
    pub fn text(&self) -> String {
        text::write(self)
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        json::write(self)
    }

    /// Why the request was refused before policy, when the connection's requests are looked at and it was.
    fn refused(&self) -> Option<&Refusal> {
        match (&self.explanation.connection, &self.question.request.as_ref()?.taken) {
            (ConnectionVerdict::InspectHttp, Taken::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }
}

/// What a server name would change that the data path does not look for.
#[derive(Debug)]
struct IfSeen {
    name: String,
    answer: Answer,
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
    taken: Taken,
}

/// What becomes of a request before policy sees it.
#[derive(Debug)]
enum Taken {
    /// It is matched and forwarded with this path.
    Judged(Vec<u8>),
    /// The client is sent there; what follows is about the request that it then makes.
    Redirected(Vec<u8>),
    /// It is no request that could be judged.
    Refused(Refusal),
}

/// Answers a question. The request is written as HTTP/1.1 and read by the code that reads it from a connection.
///
/// # Errors
/// The host is given twice, or the reference was asked and says something else.
pub(crate) fn explain(asked: &Asked, enforced: &Enforced<'_>) -> Result<Explained, NoAnswer> {
    let endpoint = EndpointKey::from(asked.endpoint);
    let flow = Flow {
        direction: asked.direction,
        endpoint: &endpoint,
        remote: asked.remote,
        port: asked.port,
        proxy_id: asked.proxy_id.unwrap_or(enforced.proxy_id),
        server_name: ServerName::Unknown, // as on the data path
    };
    let written = head::write(asked)?;
    let mut storage: FieldStorage<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let read = written.as_ref().map(|written| match &written.bytes {
        Ok(bytes) => {
            let mut head = h1::read(bytes, &mut storage, enforced.normalize)?;
            head.settle_forwarded_proto(enforced.forwarded_proto);
            Ok(head)
        }
        Err(refusal) => Err(refusal.clone()),
    });
    let judged = read.as_ref().and_then(|read| read.as_ref().ok());
    let request = judged.map(h1::policy_view);
    let explanation = enforced.policies.explain(&flow, request.as_ref(), enforced.secrets);
    if let Some(reference) = enforced.reference
        && let Some(how) = reference::difference(reference, &flow, request.as_ref(), enforced.secrets, &explanation)
    {
        return Err(NoAnswer::Differ(how));
    }
    let grpc = judged.is_some_and(RequestHead::is_grpc);
    let request = written.as_ref().zip(read.as_ref()).map(|(written, read)| AskedRequest {
        method: written.method.clone(),
        authority: written.authority.clone(),
        path: written.path.clone(),
        taken: match read {
            Ok(head) => match &head.path {
                CanonicalPath::Redirect(path) => Taken::Redirected(path.clone()),
                CanonicalPath::Unchanged | CanonicalPath::Rewritten(_) => Taken::Judged(head.canonical_path().to_vec()),
            },
            Err(refusal) => Taken::Refused(refusal.clone()),
        },
    });
    let question = Question {
        endpoint: asked.endpoint,
        direction: asked.direction,
        remote: asked.remote,
        port: asked.port,
        request,
    };
    let if_seen = asked.server_name.as_ref().map(|name| {
        let flow = Flow { server_name: ServerName::Name(name), ..flow };
        let explanation = enforced.policies.explain(&flow, judged.map(h1::policy_view).as_ref(), enforced.secrets);
        IfSeen { name: name.clone(), answer: answer(&question, &explanation, grpc).0 }
    });
    let policies = enforced.policies.endpoint(&endpoint);
    let quarantined = policies.flat_map(|policy| policy.quarantined()).map(|q| q.to_string()).collect();
    let place = |policy: &PolicyExplanation| enforced.places.get(&*policy.resource).map(ToString::to_string);
    let places = explanation.policies.iter().map(place).collect();
    let (answer, reply) = answer(&question, &explanation, grpc);
    let (checked, offline) = (enforced.reference.is_some(), enforced.offline);
    let paid_by = None;
    Ok(Explained { answer, question, reply, explanation, if_seen, places, quarantined, checked, offline, paid_by })
}

/// The answer, and the reply of the proxy's own that the client gets, if it gets one.
fn answer(question: &Question, explanation: &Explanation, grpc: bool) -> (Answer, Option<LocalReply>) {
    let refusal = |reason, grpc| Some(LocalReply::refusal(reason, grpc, "", false));
    let taken = question.request.as_ref().map(|request| &request.taken);
    match (&explanation.connection, taken) {
        (ConnectionVerdict::Deny { .. }, _) => (Answer::Denied, None),
        // Passed as TCP: no request is looked at. Or nobody asked about one: which pass depends on them.
        (ConnectionVerdict::AllowTcp { .. }, _) | (ConnectionVerdict::InspectHttp, None) => (Answer::Allowed, None),
        (ConnectionVerdict::InspectHttp, Some(Taken::Refused(refused))) => {
            (Answer::Denied, refusal(refused.reason, false))
        }
        (ConnectionVerdict::InspectHttp, Some(Taken::Redirected(path))) => {
            let then_allowed = matches!(explanation.request, Some(Verdict::Allow { .. }));
            (Answer::Redirected { then_allowed }, Some(LocalReply::redirect(path.clone(), false)))
        }
        (ConnectionVerdict::InspectHttp, Some(Taken::Judged(_))) => match &explanation.request {
            Some(Verdict::Allow { .. }) => (Answer::Allowed, None),
            Some(Verdict::Deny { reason, .. }) => (Answer::Denied, refusal(Reason::from(*reason), grpc)),
            // Not reached, since what is judged has a verdict.
            None => (Answer::Denied, None),
        },
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
