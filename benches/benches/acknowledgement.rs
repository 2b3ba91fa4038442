//! How long a control plane waits for the acknowledgement of one changed endpoint among 10,000, in each variant of xDS:
//! from handing over the encoded response to reading the acknowledgement, which is sent when every worker decides by the
//! new policy. Both sides are in this process, with a Unix socket and a thread of its own for each, as on a node.
//!
//! `cargo bench -p tollgate-benches --bench acknowledgement` (add `-- 100000` for so many endpoints)

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::future::{Ready, ready};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::UnixListener;
use tollgate::config::{Identities, ListenAddress, Node, XdsMode};
use tollgate::control::{Control, WorldStore};
use tollgate::identity::{IdentityTable, Sources};
use tollgate::metrics::Metrics;
use tollgate::readiness::Readiness;
use tollgate_proto::cilium::{HttpNetworkPolicyRule, HttpNetworkPolicyRules, NetworkPolicy, PortNetworkPolicy};
use tollgate_proto::cilium::{PortNetworkPolicyRule, port_network_policy_rule};
use tollgate_proto::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use tollgate_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use tollgate_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use tollgate_proto::google::protobuf::Any;
use tollgate_xds::NETWORK_POLICY;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

const ENDPOINTS: u64 = 10_000;
const ROUNDS: u64 = 500;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only wants to know that it starts
    }
    let endpoints = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ENDPOINTS);
    println!("one changed endpoint among {endpoints}, {ROUNDS} times; times in milliseconds");
    println!("| mode | bytes of all policies | first ACK | p50 | p99 | max |\n|---|---|---|---|---|---|");
    for mode in [XdsMode::Split, XdsMode::Ads, XdsMode::DeltaSplit] {
        measure(mode, endpoints);
    }
}

fn measure(mode: XdsMode, endpoints: u64) {
    let directory = std::env::temp_dir().join(format!("tollgate-acknowledgement-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let socket = directory.join(format!("{mode:?}.sock"));
    let peer = Peer::start(&socket);
    start_client(mode, socket);
    let mut policies: BTreeMap<u64, Bytes> = (1..=endpoints).map(|id| (id, policy(id, 0))).collect();
    let bytes: usize = policies.values().map(Bytes::len).sum();

    peer.next(); // the subscription
    let first = peer.exchange(mode, encode(mode, 1, policies.iter()));
    let mut times: Vec<Duration> = Vec::new();
    for round in 1..=ROUNDS {
        let id = round * 7919 % endpoints + 1;
        policies.insert(id, policy(id, round));
        let changed = policies.range(id..=id);
        let response = match mode {
            XdsMode::DeltaSplit => encode(mode, round + 1, changed),
            _ => encode(mode, round + 1, policies.iter()),
        };
        times.push(peer.exchange(mode, response));
    }
    times.sort();
    let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile) as usize].as_secs_f64() * 1e3;
    println!(
        "| {mode:?} | {bytes} | {:.1} | {:.2} | {:.2} | {:.2} |",
        first.as_secs_f64() * 1e3,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    let _ = std::fs::remove_dir_all(directory);
}

/// The proxy's control side, on a thread of its own that ends with the process.
fn start_client(mode: XdsMode, socket: PathBuf) {
    thread::spawn(move || {
        let store = Arc::new(WorldStore::new(Sources::of_table(IdentityTable::default())));
        let metrics = Metrics::new(1).0;
        let control = Arc::new(Control::new(store, metrics.control(), Readiness::default().pending("first policy")));
        let node = Node { id: "host~127.0.0.1~no-id~localdomain".into(), cluster: "ingress-cluster".into() };
        let address = ListenAddress::Unix(socket);
        let identities = Identities::Static(Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = tollgate::control::xds::client(&node, &address, mode, None, &identities, &control);
        runtime.block_on(client.run());
    });
}

/// A policy with a few rules of its own, as an agent writes it.
fn policy(id: u64, version: u64) -> Bytes {
    let regex = |name: &str, regex: String| HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::SafeRegex(RegexMatcher {
                regex,
                ..RegexMatcher::default()
            })),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    };
    let rule = |number: u64| HttpNetworkPolicyRule {
        headers: vec![
            regex(":method", "GET".into()),
            regex(":path", format!("/service{id}/version{version}/{number}/.*")),
        ],
        ..HttpNetworkPolicyRule::default()
    };
    let rules = HttpNetworkPolicyRules { http_rules: (0..4).map(rule).collect() };
    let rule = PortNetworkPolicyRule {
        remote_policies: (0..8).map(|n| 256 + (id as u32 * 31 + n) % 5000).collect(),
        l7: Some(port_network_policy_rule::L7::HttpRules(rules)),
        ..PortNetworkPolicyRule::default()
    };
    let entry = PortNetworkPolicy { port: 8080, rules: vec![rule], ..PortNetworkPolicy::default() };
    let address = std::net::Ipv4Addr::from(0x0a00_0000 + id as u32);
    let policy = NetworkPolicy {
        endpoint_ips: vec![address.to_string()],
        endpoint_id: id,
        ingress_per_port_policies: vec![entry],
        ..NetworkPolicy::default()
    };
    policy.encode_to_vec().into()
}

fn encode<'p>(mode: XdsMode, version: u64, policies: impl Iterator<Item = (&'p u64, &'p Bytes)>) -> Bytes {
    let any = |value: &Bytes| Any { type_url: NETWORK_POLICY.type_url.into(), value: value.to_vec() };
    let (version, type_url) = (version.to_string(), NETWORK_POLICY.type_url.to_owned());
    if mode == XdsMode::DeltaSplit {
        let resource = |(id, value): (&u64, &Bytes)| Resource {
            name: id.to_string(),
            version: version.clone(),
            resource: Some(any(value)),
            ..Resource::default()
        };
        let resources = policies.map(resource).collect();
        let response = DeltaDiscoveryResponse {
            system_version_info: version.clone(),
            nonce: version.clone(),
            type_url,
            resources,
            ..DeltaDiscoveryResponse::default()
        };
        return response.encode_to_vec().into();
    }
    let resources = policies.map(|(_, value)| any(value)).collect();
    let (version_info, nonce) = (version.clone(), version);
    let response = DiscoveryResponse { version_info, nonce, type_url, resources, ..DiscoveryResponse::default() };
    response.encode_to_vec().into()
}

/// The control plane's side of the stream of policies.
struct Peer {
    responses: tokio::sync::mpsc::Sender<Bytes>,
    requests: Receiver<Bytes>,
}

impl Peer {
    fn start(socket: &Path) -> Self {
        let (responses, outgoing) = tokio::sync::mpsc::channel(1);
        let (incoming, requests) = channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        thread::spawn(move || runtime.block_on(serve(listener, Talk::new(outgoing, incoming))));
        Self { responses, requests }
    }

    fn next(&self) -> Bytes {
        self.requests.recv_timeout(Duration::from_secs(60)).expect("the client says something")
    }

    /// Time from handing over `response` to its acknowledgement.
    fn exchange(&self, mode: XdsMode, response: Bytes) -> Duration {
        let begun = Instant::now();
        self.responses.blocking_send(response).expect("the stream is open");
        let answer = self.next();
        let taken = begun.elapsed();
        let refused = match mode {
            XdsMode::DeltaSplit => DeltaDiscoveryRequest::decode(answer).unwrap().error_detail,
            _ => DiscoveryRequest::decode(answer).unwrap().error_detail,
        };
        assert_eq!(refused, None);
        taken
    }
}

async fn serve(listener: UnixListener, talk: Talk) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let talk = talk.clone();
        let service = hyper::service::service_fn(move |request| {
            let talk = talk.clone();
            async move { Ok::<_, std::convert::Infallible>(Grpc::new(AsIs).streaming(talk, request).await) }
        });
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
    }
}

/// Passes messages between the stream and the measuring thread.
#[derive(Clone)]
struct Talk {
    outgoing: Arc<Mutex<Option<tokio::sync::mpsc::Receiver<Bytes>>>>,
    incoming: Sender<Bytes>,
}

impl Talk {
    fn new(outgoing: tokio::sync::mpsc::Receiver<Bytes>, incoming: Sender<Bytes>) -> Self {
        Self { outgoing: Arc::new(Mutex::new(Some(outgoing))), incoming }
    }
}

impl StreamingService<Bytes> for Talk {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Some(outgoing) = self.outgoing.lock().unwrap().take() else {
            return ready(Err(Status::unavailable("there is a stream already")));
        };
        let incoming = self.incoming.clone();
        let heard = request.into_inner().filter_map(move |message| {
            let _ = message.map(|message| incoming.send(message));
            ready(None)
        });
        let said = stream::unfold(outgoing, async |mut outgoing| Some((Ok(outgoing.recv().await?), outgoing)));
        ready(Ok(Response::new(stream::select(heard, said).boxed())))
    }
}

/// Messages that are encoded already.
#[derive(Clone, Copy)]
struct AsIs;

impl Codec for AsIs {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
