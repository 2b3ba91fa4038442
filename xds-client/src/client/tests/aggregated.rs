//! One stream for all types.

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::scripted::{Conversation, Greeting, Peer, Updates, config, handler, transport};
use crate::{
    CLUSTER, Client, ClientConfig, LISTENER, Mode, NETWORK_POLICY, Rejection, SECRET, Service, Status, TransportError,
    Variant,
};

/// A client of policies, listeners, clusters and named secrets, in this order.
struct World {
    peer: Peer,
    policies: Updates,
    listeners: Updates,
    clusters: Updates,
    secrets: Updates,
    names: watch::Sender<BTreeSet<String>>,
    status: Status,
    _running: JoinHandle<()>,
}

fn start() -> World {
    let (transport, peer) = transport();
    let [(a, policies), (b, listeners), (c, clusters), (d, secrets)] = [handler(), handler(), handler(), handler()];
    let (names, watched) = watch::channel(BTreeSet::new());
    let config = ClientConfig { mode: Mode::Fixed(Variant::Ads), ..config() };
    let client = Client::with_transport(config, transport)
        .subscribe(NETWORK_POLICY, a)
        .subscribe(LISTENER, b)
        .subscribe(CLUSTER, c)
        .subscribe_named(SECRET, d, watched);
    let status = client.status();
    let running = tokio::spawn(client.run());
    World { peer, policies, listeners, clusters, secrets, names, status, _running: running }
}

/// The greetings as resources of any type, which the handlers of these tests read as greetings.
fn response(service: Service, version: &str, texts: &[&str]) -> DiscoveryResponse {
    use prost::Message as _;
    let value = |text: &&str| Greeting { text: (*text).to_owned() }.encode_to_vec();
    let any = |value| envoy_types::pb::google::protobuf::Any { type_url: service.type_url.into(), value };
    DiscoveryResponse {
        version_info: version.into(),
        nonce: format!("{}/{version}", service.name()),
        type_url: service.type_url.into(),
        resources: texts.iter().map(value).map(any).collect(),
        ..DiscoveryResponse::default()
    }
}

fn ack(service: Service, version: &str) -> DiscoveryRequest {
    let response = response(service, version, &[]);
    DiscoveryRequest {
        version_info: version.into(),
        response_nonce: if version.is_empty() { String::new() } else { response.nonce },
        type_url: response.type_url,
        ..DiscoveryRequest::default()
    }
}

/// Accepts the stream and takes its first requests.
async fn opened(peer: &mut Peer) -> Conversation {
    let mut stream = peer.accept().await;
    assert!(stream.first.node.take().is_some());
    assert_eq!(stream.first, ack(CLUSTER, ""));
    assert_eq!(stream.request().await, ack(NETWORK_POLICY, ""), "no node again");
    assert_eq!(stream.request().await, ack(LISTENER, ""));
    stream
}

#[tokio::test(start_paused = true)]
async fn types_are_asked_for_in_order_on_one_stream_and_answered_each_by_itself() {
    let mut world = start();
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources");
    let mut stream = opening.accept();
    for expected in [NETWORK_POLICY, LISTENER] {
        assert_eq!(stream.request().await.type_url, expected.type_url);
    }
    stream.push(&response(LISTENER, "e1:g7", &["l"])).await;
    assert_eq!(world.listeners.accept().await.changed.len(), 1);
    assert_eq!(stream.request().await, ack(LISTENER, "e1:g7"));
    stream.push(&response(NETWORK_POLICY, "e1:g8", &["p"])).await;
    world.policies.next().await.decide(Err(Rejection::new("no")));
    let nack = stream.request().await;
    assert_eq!((nack.version_info.as_str(), nack.type_url.as_str()), ("", NETWORK_POLICY.type_url));
    assert_eq!(
        (nack.error_detail.unwrap().message, nack.response_nonce),
        ("no".into(), "cilium.NetworkPolicy/e1:g8".into())
    );
    world.peer.assert_quiet(Duration::from_secs(3600)).await;
    let connected = world.status.streams().into_iter().map(|stream| stream.connected).collect::<Vec<_>>();
    assert_eq!(connected, [true, true, true, false], "nothing is wanted of the last type");
    assert_eq!(world.status.mode(), Some(Variant::Ads));
}

#[tokio::test(start_paused = true)]
async fn a_slow_type_holds_up_no_other_and_its_newest_response_overtakes_those_that_wait() {
    let mut world = start();
    let mut stream = opened(&mut world.peer).await;
    stream.push(&response(NETWORK_POLICY, "1", &["slow"])).await;
    let slow = world.policies.next().await;
    for version in ["2", "3", "4"] {
        stream.push(&response(NETWORK_POLICY, version, &[version])).await;
    }
    stream.push(&response(LISTENER, "1", &["l"])).await;
    world.listeners.accept().await;
    assert_eq!(stream.request().await, ack(LISTENER, "1"));
    sleep(Duration::from_secs(3600)).await;
    stream.assert_no_request();
    slow.decide(Ok(()));
    assert_eq!(stream.request().await, ack(NETWORK_POLICY, "1"));
    assert_eq!(world.policies.accept().await.version, "4");
    assert_eq!(stream.request().await, ack(NETWORK_POLICY, "4"));
    stream.assert_no_request();
}

#[tokio::test(start_paused = true)]
async fn listeners_wait_for_the_clusters_that_came_before_them() {
    let mut world = start();
    let mut stream = opened(&mut world.peer).await;
    stream.push(&response(CLUSTER, "1", &["c"])).await;
    stream.push(&response(LISTENER, "1", &["l"])).await;
    let clusters = world.clusters.next().await;
    sleep(Duration::from_secs(60)).await;
    world.listeners.assert_none();
    // Clusters that come after the listeners hold them up no more.
    stream.push(&response(CLUSTER, "2", &["d"])).await;
    sleep(Duration::from_secs(60)).await;
    clusters.decide(Ok(()));
    world.listeners.accept().await;
    let _held = world.clusters.next().await;
    let mut answers = [stream.request().await, stream.request().await];
    answers.sort_by_key(|answer| answer.type_url.clone());
    assert_eq!(answers, [ack(CLUSTER, "1"), ack(LISTENER, "1")]);
}

#[tokio::test(start_paused = true)]
async fn a_type_that_was_not_asked_for_is_not_answered() {
    let mut world = start();
    let mut stream = opened(&mut world.peer).await;
    let unknown =
        DiscoveryResponse { type_url: "type.googleapis.com/test.Unknown".into(), ..response(LISTENER, "1", &[]) };
    stream.push(&unknown).await;
    stream.push(&DiscoveryResponse { type_url: String::new(), ..unknown }).await;
    stream.push(&response(SECRET, "1", &["s"])).await; // no name is wanted, so nothing was asked
    stream.push(&response(CLUSTER, "1", &[])).await;
    world.clusters.accept().await;
    assert_eq!(stream.request().await, ack(CLUSTER, "1"));
    stream.assert_no_request();
    world.secrets.assert_none();
}

#[tokio::test(start_paused = true)]
async fn names_come_and_go_on_the_stream() {
    let mut world = start();
    let mut stream = opened(&mut world.peer).await;
    world.names.send(["a".to_owned()].into()).unwrap();
    let wanted = DiscoveryRequest { resource_names: vec!["a".into()], ..ack(SECRET, "") };
    assert_eq!(stream.request().await, wanted);
    stream.push(&response(SECRET, "1", &["a", "b"])).await;
    assert_eq!(world.secrets.accept().await.changed.len(), 1);
    let wanted = DiscoveryRequest { resource_names: vec!["a".into()], ..ack(SECRET, "1") };
    assert_eq!(stream.request().await, wanted);
    world.names.send(BTreeSet::new()).unwrap();
    assert_eq!(world.secrets.accept().await.removed, ["a"]);
    assert_eq!(stream.request().await, ack(SECRET, "1"), "named nothing any more");
    // Should the peer take that for everything, nothing of it counts.
    stream.push(&response(SECRET, "2", &["a", "b"])).await;
    assert_eq!(world.secrets.accept().await.changed, []);
    assert_eq!(stream.request().await, ack(SECRET, "2"));
    assert!(!world.status.stream(SECRET.type_url).unwrap().connected);
    world.names.send(["b".to_owned()].into()).unwrap();
    let wanted = DiscoveryRequest { resource_names: vec!["b".into()], ..ack(SECRET, "2") };
    assert_eq!(stream.request().await, wanted);
    assert!(world.status.stream(SECRET.type_url).unwrap().connected);
    world.peer.assert_quiet(Duration::from_secs(60)).await;
}

/// A server that is shared by all must be able to withdraw one of the secrets that are asked for.
#[tokio::test(start_paused = true)]
async fn what_a_state_leaves_out_is_taken_back_until_it_comes_again() {
    let mut world = start();
    let mut stream = opened(&mut world.peer).await;
    world.names.send(["a".to_owned(), "b".to_owned()].into()).unwrap();
    stream.request().await;
    let states: [(&str, &[&str], usize, &[&str]); 4] =
        [("1", &["a", "b"], 2, &[]), ("2", &["b"], 0, &["a"]), ("3", &["a", "b"], 1, &[]), ("4", &[], 0, &["a", "b"])];
    for (version, texts, changed, removed) in states {
        stream.push(&response(SECRET, version, texts)).await;
        let update = world.secrets.accept().await;
        assert_eq!(update.changed.len(), changed, "{version}");
        assert_eq!(update.removed, removed, "{version}");
        // What is missing is still asked for.
        let names = vec!["a".into(), "b".into()];
        assert_eq!(stream.request().await, DiscoveryRequest { resource_names: names, ..ack(SECRET, version) });
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_does_not_wait_for_an_update_of_the_old_one() {
    let mut world = start();
    let stream = opened(&mut world.peer).await;
    stream.push(&response(NETWORK_POLICY, "1", &["slow"])).await;
    let slow = world.policies.next().await;
    stream.end(TransportError::Status { code: "Unavailable".into(), message: "restart".into() }).await;
    let mut stream = opened(&mut world.peer).await;
    stream.push(&response(NETWORK_POLICY, "x", &["slow"])).await;
    stream.push(&response(CLUSTER, "x", &[])).await;
    world.clusters.accept().await;
    assert_eq!(stream.request().await, ack(CLUSTER, "x"));
    slow.decide(Ok(()));
    let update = world.policies.accept().await;
    assert_eq!((update.version.as_str(), update.changed.len(), update.first_on_stream), ("x", 0, true));
    assert_eq!(stream.request().await, ack(NETWORK_POLICY, "x"));
}
