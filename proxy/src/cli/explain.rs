//! `tollgate policy explain`: what policy files say about one connection or request, and why. The engine is the one of
//! the data path, and so is the canonical form of the path.

mod reference;
mod report;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::ArgGroup;
use tollgate_policy::reference::Reference;
use tollgate_policy::{
    ConnectionVerdict, Direction, EndpointKey, Explanation, Flow, NetworkPolicy, Request, Secrets, SecurityId,
    ServerName, Snapshot, Verdict,
};

use super::{Exit, Failure, Output, print, print_json};
use crate::config::Normalize;
use crate::http::canonical::{CanonicalPath, canonicalise};
use crate::policy_file::{self, PolicyResource};

/// Say whether policy files allow a connection or request, and why
///
/// With METHOD and PATH the request is judged, without them the connection alone. The path is brought into the same
/// canonical form that the proxy matches and forwards, with the default settings of a listener.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("direction").required(true),
    after_help = "\
Example:
  tollgate policy explain deploy/examples/policies/helloworld.json \\
      --endpoint 10.244.2.232 --ingress --from 32226 --port 5000 GET /hello

Exit codes: 0 allowed, 1 denied, 2 bad input, 3 cannot tell (the evaluators differ)."
)]
pub(super) struct Args {
    /// Policy file: a cilium.NetworkPolicy as JSON, or one or more as YAML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Further policy files, judged together with the first
    #[arg(long, value_name = "FILE")]
    and: Vec<PathBuf>,
    /// Local endpoint whose policy is asked
    #[arg(long, value_name = "IP")]
    endpoint: IpAddr,
    /// The endpoint is the destination
    #[arg(long, group = "direction")]
    ingress: bool,
    /// The endpoint is the source
    #[arg(long, group = "direction")]
    egress: bool,
    /// Security identity of the other side: of the source for ingress, of the destination for egress
    #[arg(long, visible_alias = "to", value_name = "ID")]
    from: u32,
    /// Destination port, before redirection
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// proxy_id of the listener; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    proxy_id: u16,
    /// Server name of the TLS ClientHello [default: not known, since the proxy does not inspect TLS]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Host of the request (:authority) [default: the endpoint's address and port]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Header field of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Ask the second, literal evaluator too, and give no answer unless both say the same
    #[arg(long)]
    reference: bool,
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
    /// Method of the request, such as GET
    #[arg(value_name = "METHOD", requires = "path", value_parser = method)]
    method: Option<String>,
    /// Path of the request, with its query
    #[arg(value_name = "PATH")]
    path: Option<String>,
}

/// What was asked, in the form that is judged.
struct Question {
    endpoint: IpAddr,
    direction: Direction,
    remote: SecurityId,
    port: u16,
    request: Option<AskedRequest>,
}

struct AskedRequest {
    method: String,
    authority: String,
    /// As given.
    path: String,
    /// As matched.
    canonical: Canonical,
}

/// What becomes of a path before policy sees it.
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

/// The answer in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allowed,
    Denied,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let policies = policies(args)?;
    let mut builder = Snapshot::empty().update();
    builder.replace_all(policies.clone());
    let snapshot = builder.build();
    let headers = other_headers(&args.headers);
    let question = question(args)?;
    let endpoint = EndpointKey::from(question.endpoint);
    let flow = Flow {
        direction: question.direction,
        endpoint: &endpoint,
        remote: question.remote,
        port: question.port,
        proxy_id: args.proxy_id,
        server_name: args.server_name.as_deref().map_or(ServerName::Unknown, ServerName::Name),
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
    let secrets = Secrets::default();
    let explanation = snapshot.explain(&flow, request.as_ref(), &secrets);
    if args.reference
        && let Some(how) =
            reference::difference(&Reference::of(policies), &flow, request.as_ref(), &secrets, &explanation)
    {
        return Err(Failure::cannot_tell(format_args!(
            "the two evaluators differ, which is a defect of tollgate: {how}; please report it with the policy"
        )));
    }
    let answer = answer(&question, &explanation);
    let quarantined = snapshot
        .endpoint(&endpoint)
        .flat_map(|policy| policy.quarantined())
        .map(|quarantine| quarantine.to_string())
        .collect::<Vec<_>>();
    let findings = report::Findings { explanation: &explanation, quarantined: &quarantined, checked: args.reference };
    match args.output {
        Output::Text => print(&report::text(answer, &question, &findings))?,
        Output::Json => print_json(&report::json(answer, &question, &findings))?,
    };
    Ok(match answer {
        Answer::Allowed => Exit::Fine,
        Answer::Denied => Exit::Findings,
    })
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

fn policies(args: &Args) -> Result<Vec<NetworkPolicy>, Failure> {
    let mut policies = Vec::new();
    for file in std::iter::once(&args.file).chain(&args.and) {
        let resources = policy_file::read(file).map_err(Failure::bad_input)?;
        for resource in resources {
            if let PolicyResource::Policy(policy) = resource {
                let policy = NetworkPolicy::try_from(&*policy)
                    .map_err(|error| Failure::bad_input(format_args!("{}: {error}", file.display())))?;
                policies.push(policy);
            }
        }
    }
    Ok(policies)
}

fn question(args: &Args) -> Result<Question, Failure> {
    let request = match (&args.method, &args.path) {
        (Some(method), Some(path)) => Some(asked_request(args, method, path)?),
        _ => None,
    };
    Ok(Question {
        endpoint: args.endpoint,
        direction: if args.ingress { Direction::Ingress } else { Direction::Egress },
        remote: SecurityId(args.from),
        port: args.port,
        request,
    })
}

fn asked_request(args: &Args, method: &str, path: &str) -> Result<AskedRequest, Failure> {
    let hosts = args.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut hosts = hosts.map(|(_, value)| value).chain(&args.host);
    let authority = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Failure::bad_input("the host is given twice; a request has one"));
    }
    let authority = authority.unwrap_or_else(|| std::net::SocketAddr::new(args.endpoint, args.port).to_string());
    let canonical = match canonicalise(path.as_bytes(), &Normalize::default()) {
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

/// `Name: value`, the white space around the value dropped (RFC 9110 section 5.5).
fn header(text: &str) -> Result<(String, String), String> {
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

fn method(text: &str) -> Result<String, String> {
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("\"{text}\" is no method; write one such as GET")),
    }
}
