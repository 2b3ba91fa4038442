use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::envoy::config::core::v3::Node;
use tollgate_proto::envoy::service::discovery::v3::DiscoveryRequest;
use tollgate_proto::google::rpc::Status as ErrorDetail;
use tollgate_proto::tenant::Tenant;
use tollgate_xds::{Address, Client, ClientConfig, Handler, Rejection, Update};

use super::conversation::Conversation;
use super::event::{Event, ResourceType};
use super::published::{Published, State};
use super::*;
use crate::control::directory::PolicySet;

const KIND: ResourceType = ResourceType::NetworkPolicy;
const NODE: &str = "host~127.0.0.1~no-id~localdomain";

fn set(ids: &[u64]) -> PolicySet {
    let policies =
        ids.iter().map(|&endpoint_id| NetworkPolicy { endpoint_id, ..NetworkPolicy::default() }).map(Arc::new);
    PolicySet { policies: policies.collect(), ..PolicySet::default() }
}

fn state(published: &Published) -> Arc<State> {
    Arc::clone(&published.subscribe(KIND).borrow())
}

fn introduction() -> DiscoveryRequest {
    let node = Node { id: NODE.into(), ..Node::default() };
    DiscoveryRequest { node: Some(node), type_url: KIND.type_url().into(), ..DiscoveryRequest::default() }
}

fn answer(version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest { version_info: version.into(), response_nonce: nonce.into(), ..DiscoveryRequest::default() }
}

#[test]
fn a_version_is_given_to_the_first_state_and_to_each_change() {
    let published = Published::new();
    assert_eq!(published.replace(&set(&[])).len(), 2, "empty is a state, too");
    assert!(published.replace(&set(&[])).is_empty());
    let changed = published.replace(&set(&[5, 6]));
    assert_eq!(changed, [Event::State { r#type: KIND, version: 2, resources: 2 }]);
    assert_eq!(state(&published).resources[1].0, "6");
}

#[test]
fn tenants_are_served_once_there_are_any() {
    let published = Published::new();
    let with = |names: &[&str]| {
        let place = crate::policy_file::FilePlace { file: Path::new("tenants.yaml").into(), line: None };
        let tenant = |name: &&str| (Tenant { name: (*name).into(), ..Tenant::default() }, place.clone());
        PolicySet { tenants: names.iter().map(tenant).collect(), ..PolicySet::default() }
    };
    let versions = |set: &PolicySet| {
        let events = published.replace(set).into_iter();
        let of_tenants = events.filter_map(|event| match event {
            Event::State { r#type: ResourceType::Tenant, version, resources } => Some((version, resources)),
            _ => None,
        });
        of_tenants.collect::<Vec<_>>()
    };
    assert_eq!(versions(&with(&[])), []);
    assert_eq!(versions(&with(&["a", "b"])), [(1, 2)]);
    assert_eq!(versions(&with(&["a", "b"])), []);
    assert_eq!(versions(&with(&[])), [(2, 0)], "that they are gone is news");
    assert_eq!(published.subscribe(ResourceType::Tenant).borrow().version, 2);
}

#[test]
fn one_response_is_outstanding_and_a_refused_version_is_not_sent_again() {
    let (published, now) = (Published::new(), Instant::now());
    published.replace(&set(&[1]));
    let mut talk = Conversation::new(KIND);
    assert!(talk.due(&state(&published), now).is_none(), "nobody has asked");
    let opened = talk.hear(introduction(), now).unwrap();
    assert_eq!(opened, Some(Event::StreamOpened { r#type: KIND, node: NODE.into() }));
    let (response, _) = talk.due(&state(&published), now).unwrap();
    assert_eq!((response.version_info.as_str(), response.nonce.as_str()), ("1", "1"));
    assert_eq!(response.resources.len(), 1);

    published.replace(&set(&[1, 2]));
    assert!(talk.due(&state(&published), now).is_none(), "version 1 is not answered yet");
    let later = now + Duration::from_micros(1234);
    let acked = talk.hear(answer("1", "1"), later).unwrap().unwrap();
    let expected =
        Event::Ack { r#type: KIND, version: "1".into(), nonce: "1".into(), node: NODE.into(), latency_us: 1234 };
    assert_eq!(acked, expected);
    assert_eq!(talk.due(&state(&published), now).unwrap().0.version_info, "2");

    let error_detail = Some(ErrorDetail { code: 3, message: "no".into(), details: vec![] });
    let refused = talk.hear(DiscoveryRequest { error_detail, ..answer("1", "2") }, now).unwrap().unwrap();
    assert!(matches!(&refused, Event::Nack { error, version, .. } if error == "no" && version == "1"), "{refused:?}");
    assert!(talk.due(&state(&published), now).is_none());
    published.replace(&set(&[3]));
    assert_eq!(talk.due(&state(&published), now).unwrap().0.version_info, "3");
    let stale = talk.hear(answer("2", "2"), now).unwrap().unwrap();
    assert!(matches!(stale, Event::Stale { .. }), "{stale:?}");
}

#[test]
fn named_resources_are_chosen_and_new_names_are_answered_at_once() {
    let (published, now) = (Published::new(), Instant::now());
    published.replace(&set(&[1, 2, 3]));
    let mut talk = Conversation::new(KIND);
    talk.hear(DiscoveryRequest { resource_names: vec!["2".into(), "9".into()], ..introduction() }, now).unwrap();
    assert_eq!(talk.due(&state(&published), now).unwrap().0.resources.len(), 1);
    talk.hear(DiscoveryRequest { resource_names: vec!["2".into(), "3".into()], ..answer("1", "1") }, now).unwrap();
    assert_eq!(talk.due(&state(&published), now).unwrap().0.resources.len(), 2);
}

#[test]
fn a_request_that_breaks_the_protocol_ends_the_stream() {
    for (request, reason) in [
        (DiscoveryRequest { node: None, ..introduction() }, "node.id"),
        (DiscoveryRequest { type_url: "x".into(), ..introduction() }, "type_url"),
        (DiscoveryRequest { version_info: "v1".into(), ..introduction() }, "version_info"),
        (DiscoveryRequest { response_nonce: "-1".into(), ..introduction() }, "response_nonce"),
    ] {
        let status = Conversation::new(KIND).hear(request, Instant::now()).unwrap_err();
        assert!(status.message().contains(reason), "{status}");
    }
}

/// Refuses policies of endpoint 13.
struct Superstitious;

impl Handler for Superstitious {
    type Resource = NetworkPolicy;

    fn name(policy: &NetworkPolicy) -> String {
        policy.endpoint_id.to_string()
    }

    async fn apply(&mut self, update: Update<NetworkPolicy>) -> Result<(), Rejection> {
        let bad = update.changed.iter().any(|resource| resource.message.endpoint_id == 13);
        if bad { Err(Rejection::new("NetworkPolicy 13: unlucky")) } else { Ok(()) }
    }
}

/// Waits for the next event that `wanted` chooses.
async fn wait_for(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        let event = events.recv().await.unwrap();
        if wanted(&event) {
            return event;
        }
    }
}

fn write(directory: &TempDir, id: u64) {
    let text = format!("{{endpointId: {id}, endpointIps: [10.0.0.{id}]}}");
    fs::write(directory.path().join("policy.yaml"), text).unwrap();
}

#[tokio::test]
async fn the_directory_reaches_a_client_and_its_answers_are_reported() {
    let sockets = tempfile::tempdir().unwrap();
    tell_the_whole_story(ListenAddress::Tcp(([127, 0, 0, 1], 0).into())).await;
    tell_the_whole_story(ListenAddress::Unix(sockets.path().join("made/on/demand/xds.sock"))).await;
}

async fn tell_the_whole_story(address: ListenAddress) {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, 1);
    let listener = Listener::bind(&address).unwrap();
    let address = listener.address().unwrap();
    let (sender, mut events) = mpsc::channel(1000);
    let report: Report = Arc::new(move |event| sender.try_send(event.clone()).unwrap());
    let mut tasks = JoinSet::new();
    let watched = Directory::open(directory.path()).unwrap();
    tasks.spawn(async move { serve(watched, listener, report).await.unwrap() });

    let node = tollgate_xds::Node {
        id: NODE.into(),
        cluster: "ingress-cluster".into(),
        user_agent: "test".into(),
        user_agent_version: "0".into(),
    };
    let reached = match address.strip_prefix("unix:") {
        Some(path) => Address::Unix(path.into()),
        None => Address::Tcp(address.clone()),
    };
    let config = ClientConfig::new(node, reached);
    let client = Client::new(config).subscribe(tollgate_xds::NETWORK_POLICY, Superstitious);
    let client = tasks.spawn(client.run());

    assert_eq!(
        wait_for(&mut events, |event| matches!(event, Event::Listening { .. })).await,
        Event::Listening { address }
    );
    let push = wait_for(&mut events, |event| matches!(event, Event::Push { .. })).await;
    assert!(matches!(push, Event::Push { version: 1, resources: 1, .. }), "{push:?}");
    let ack = wait_for(&mut events, |event| matches!(event, Event::Ack { .. })).await;
    assert!(matches!(&ack, Event::Ack { version, node, .. } if version == "1" && node == NODE), "{ack:?}");

    write(&directory, 13);
    let nack = wait_for(&mut events, |event| matches!(event, Event::Nack { .. })).await;
    assert!(nack.to_string().contains("nack NetworkPolicy version=1 nonce=2"), "{nack}");
    assert!(nack.to_string().contains("error=NetworkPolicy 13: unlucky"), "{nack}");

    fs::write(directory.path().join("policy.yaml"), "endpointId: 13\nwrong: 1\n").unwrap();
    let error = wait_for(&mut events, |event| matches!(event, Event::FileError { .. })).await;
    assert!(error.to_string().contains("policy.yaml:2: wrong: "), "{error}");
    write(&directory, 14);
    let ack = wait_for(&mut events, |event| matches!(event, Event::Ack { .. })).await;
    assert!(matches!(&ack, Event::Ack { nonce, .. } if nonce == "3"), "{ack:?}");

    client.abort();
    let closed = wait_for(&mut events, |event| matches!(event, Event::StreamClosed { .. })).await;
    assert_eq!(closed, Event::StreamClosed { r#type: KIND, node: NODE.into(), reason: String::new() });
}

#[test]
fn an_event_is_one_json_object() {
    let event = Event::Push { r#type: KIND, version: 3, nonce: "3".into(), node: NODE.into(), resources: 2 };
    let json = serde_json::to_value(event).unwrap();
    let expected = serde_json::json!({"event": "push", "type": "NetworkPolicy", "version": 3, "nonce": "3",
        "node": NODE, "resources": 2});
    assert_eq!(json, expected);
}
