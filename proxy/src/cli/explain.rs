//! `tollgate policy explain`: what policy files, or those that a running proxy enforces, say about one connection or
//! request, and why.

use std::collections::HashSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::ArgGroup;
use hyper::StatusCode;
use tollgate_policy::reference::Reference;
use tollgate_policy::{Direction, NetworkPolicy, Secrets, SecurityId, Snapshot};

use super::admin_client::{self, AdminError};
use super::{Exit, Failure, Output, asynchronously, print, print_json};
use crate::config::{HttpSettings, ListenAddress, Normalize, SecretFile};
use crate::control::secrets::read_once;
use crate::explanation::{self, Answer, Asked, Enforced, NoAnswer};
use crate::policy_file::{self, FilePlace, FileResource, PolicyResource};

/// Say whether policy files, or a running proxy, allow a connection or request, and why
///
/// With METHOD and PATH the request is judged, without them the connection alone. The request is read as the proxy reads one
/// that comes as HTTP/1.1, with the default settings of a listener, or with those of the running proxy's first listener for
/// the direction: what it refuses or redirects before policy is answered so here. Limits of tenants are no matter of policy: a
/// running proxy names the tenant and its ceilings beside the answer.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("direction").required(true),
    after_help = "\
Example:
  tollgate policy explain deploy/examples/policies/helloworld.json \\
      --endpoint 10.244.2.232 --ingress --from 32226 --port 5000 GET /hello

Of a running proxy:
  tollgate policy explain --admin unix:run/admin.sock \\
      --endpoint 10.244.2.232 --ingress --from 32226 --port 5000 GET /hello

Exit codes: 0 allowed, also after a redirect; 1 denied; 2 bad input; 3 cannot tell (no proxy answers, or the evaluators differ)."
)]
pub(super) struct Args {
    /// Ask the running proxy with this admin endpoint (unix:PATH or IP:PORT) instead of files
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<ListenAddress>,
    /// Further policy files or directories, judged together with the first
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
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
    /// proxy_id of the listener; 0 for none [default: 0, or that of the running proxy's listener]
    #[arg(long, value_name = "N")]
    proxy_id: Option<u16>,
    /// Server name of the TLS ClientHello: says what the answer would be if it was seen. This version does not look into TLS, so
    /// the answer itself does not rest on it
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Host of the request (:authority) [default: the endpoint's address and port]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Header field of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = explanation::header)]
    headers: Vec<(String, String)>,
    /// SDS name of a secret and the file that holds its value, so that header matches with it can be judged; may be
    /// repeated
    #[arg(long = "secret", value_name = "NAME=FILE", value_parser = secret_file, conflicts_with = "admin")]
    secrets: Vec<SecretFile>,
    /// Ask the second, literal evaluator too, and give no answer unless both say the same
    #[arg(long, conflicts_with = "admin")]
    reference: bool,
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
    /// Policy file, or directory of them (cilium.NetworkPolicy as JSON or YAML; not with --admin), then the method and path with query of a request
    #[arg(value_name = "FILE METHOD PATH", num_args = 0..)]
    words: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let (file, request) = words(args)?;
    let asked = Asked {
        endpoint: args.endpoint,
        direction: if args.ingress { Direction::Ingress } else { Direction::Egress },
        remote: SecurityId(args.from),
        port: args.port,
        proxy_id: args.proxy_id,
        server_name: args.server_name.clone(),
        host: args.host.clone(),
        headers: args.headers.clone(),
        request,
    };
    match (&args.admin, file) {
        (Some(address), _) => ask_proxy(address, &asked, args.output),
        (None, Some(file)) => ask_files(args, &file, &asked),
        (None, None) => Err(Failure::bad_input("name a policy FILE, or a running proxy with --admin; see --help")),
    }
}

type FileAndRequest = (Option<PathBuf>, Option<(String, String)>);

/// What the words without an option mean: with --admin there is no FILE in front.
fn words(args: &Args) -> Result<FileAndRequest, Failure> {
    let mut words = args.words.iter();
    let file = if args.admin.is_some() { None } else { words.next().map(PathBuf::from) };
    let request = match (words.next(), words.next(), words.next()) {
        (None, ..) => None,
        (Some(method), Some(path), None) => {
            Some((explanation::method(method).map_err(Failure::bad_input)?, path.clone()))
        }
        (Some(method), None, _) => {
            return Err(Failure::bad_input(format_args!("{method:?} stands alone; name METHOD and PATH, or neither")));
        }
        (.., Some(_)) if args.admin.is_some() => {
            return Err(Failure::bad_input("with --admin no FILE is named; leave it out, or leave --admin out"));
        }
        (.., Some(word)) => return Err(Failure::bad_input(format_args!("unexpected argument {word:?}; see --help"))),
    };
    Ok((file, request))
}

fn ask_files(args: &Args, file: &Path, asked: &Asked) -> Result<Exit, Failure> {
    let paths: Vec<PathBuf> = std::iter::once(file.to_owned()).chain(args.and.iter().cloned()).collect();
    let (policies, placed) = policies(&paths)?;
    let secrets = secrets(&args.secrets)?;
    let reference = args.reference.then(|| Reference::of(policies.clone()));
    let mut builder = Snapshot::empty().update();
    let names = builder.replace_all(policies);
    let places = names.into_iter().zip(placed).collect();
    let enforced = Enforced {
        policies: &builder.build(),
        secrets: &secrets,
        normalize: &Normalize::default(),
        forwarded_proto: HttpSettings::default().forwarded_proto,
        proxy_id: 0,
        places: &places,
        reference: reference.as_ref(),
        offline: true,
    };
    let explained = explanation::explain(asked, &enforced).map_err(|error| match error {
        NoAnswer::TwoHosts => Failure::bad_input(error),
        NoAnswer::Differ(_) => Failure::cannot_tell(error),
    })?;
    match args.output {
        Output::Text => print(&explained.text())?,
        Output::Json => print_json(&explained.json())?,
    };
    Ok(exit(explained.answer()))
}

const fn exit(answer: Answer) -> Exit {
    match answer.admits() {
        true => Exit::Fine,
        false => Exit::Findings,
    }
}

/// The proxy explains; what it says is printed as it is.
fn ask_proxy(address: &ListenAddress, asked: &Asked, output: Output) -> Result<Exit, Failure> {
    let (format, answer_of): (_, fn(&str) -> Option<Answer>) = match output {
        Output::Text => ("text", |text| Answer::from_words(text.split_once(':')?.0)),
        Output::Json => ("json", |text| {
            let answer: serde_json::Value = serde_json::from_str(text).ok()?;
            // What follows a redirect is what counts.
            let verdict = answer.get("then").or_else(|| answer.get("verdict"))?;
            Answer::from_words(verdict.as_str()?)
        }),
    };
    let path = format!("/policy/explain?format={format}&{}", asked.to_query());
    let answer = asynchronously(admin_client::get(address, &path))?.map_err(|error| match error {
        // Our question is at fault, not the proxy.
        AdminError::Status { status: StatusCode::BAD_REQUEST, ref text, .. } => Failure::bad_input(text),
        other => Failure::cannot_tell(other),
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let Some(verdict) = answer_of(&answer) else {
        let reason = format!("admin {address}: the answer is no verdict; is this the admin endpoint of a Tollgate?");
        return Err(Failure::cannot_tell(reason));
    };
    print(&answer)?;
    Ok(exit(verdict))
}

/// Reads `NAME=FILE`.
fn secret_file(text: &str) -> Result<SecretFile, String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok(SecretFile { name: name.to_owned(), file: file.into() })
        }
        _ => Err("write NAME=FILE: the name by which policies ask for the secret, and the file with its value".into()),
    }
}

fn secrets(files: &[SecretFile]) -> Result<Secrets, Failure> {
    let mut names = HashSet::new();
    if let Some(twice) = files.iter().find(|secret| !names.insert(&secret.name)) {
        return Err(Failure::bad_input(format_args!("--secret: \"{}\" is given twice; give it once", twice.name)));
    }
    read_once(files).map_err(|error| Failure::bad_input(format_args!("--secret: {error}")))
}

/// The policies of the files, and where each stands. All mistakes in all files are reported together. A mistake in a file
/// that only its directory was named of is a warning: the proxy goes on without the file, and so does the answer.
fn policies(paths: &[PathBuf]) -> Result<(Vec<NetworkPolicy>, Vec<FilePlace>), Failure> {
    let (mut policies, mut places, mut mistakes) = (Vec::new(), Vec::new(), Vec::new());
    let named = policy_file::expand(paths);
    mistakes.extend(named.errors.iter().map(ToString::to_string));
    let mut left_out = Vec::new();
    for (file, listed) in named.files {
        let mistakes = if listed { &mut left_out } else { &mut mistakes };
        let resources = match policy_file::read(&file) {
            Ok(resources) => resources,
            Err(errors) => {
                mistakes.extend(errors.iter().map(ToString::to_string));
                continue;
            }
        };
        for FileResource { place, resource } in resources {
            let PolicyResource::Policy(policy) = resource else { continue };
            match NetworkPolicy::try_from(&*policy) {
                Ok(policy) => {
                    policies.push(policy);
                    places.push(place);
                }
                Err(error) => {
                    mistakes.push(format!("{place}: {error}"));
                    let denying = NetworkPolicy::denying(&policy).filter(|_| listed);
                    places.extend(denying.is_some().then_some(place));
                    policies.extend(denying);
                }
            }
        }
    }
    if policies.is_empty() {
        mistakes.append(&mut left_out); // there is nothing else to judge by
    }
    for line in left_out {
        // A standard error that is closed keeps nobody from the answer.
        let _ =
            writeln!(std::io::stderr(), "tollgate: warning: {line} (judged without what it allows, as the proxy does)");
    }
    match mistakes.is_empty() {
        true => Ok((policies, places)),
        false => Err(Failure::bad_input(mistakes.join("\n"))),
    }
}
