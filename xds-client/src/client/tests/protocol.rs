use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as Wrapper};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status as ErrorDetail;
use prost::{Message as _, Name as _};
use tokio::sync::watch;
use tokio::time::sleep;

use super::scripted::{GREETING, Greeting, Peer, World, any, config, greetings, handler, start, transport};
use crate::{Client, NETWORK_POLICY, Rejection};

fn ack(version: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: version.into(),
        response_nonce: version.into(),
        type_url: GREETING.type_url.into(),
        ..DiscoveryRequest::default()
    }
}

fn nack(last_accepted: &str, nonce: &str, message: &str) -> DiscoveryRequest {
    let error_detail = ErrorDetail { code: 3, message: message.into(), details: Vec::new() };
    DiscoveryRequest { response_nonce: nonce.into(), error_detail: Some(error_detail), ..ack(last_accepted) }
}

/// Pushes a response that must be refused without reaching the handler, and returns the message of the refusal.
async fn refusal(response: &DiscoveryResponse) -> String {
    let World { mut peer, mut updates, running, .. } = start();
    let mut stream = peer.accept().await;
    stream.push(&greetings("1", &["good"])).await;
    updates.accept().await;
    assert_eq!(stream.request().await, ack("1"));

    stream.push(response).await;
    let answer = stream.request().await;
    updates.assert_none();
    let message = answer.error_detail.clone().unwrap_or_default().message;
    assert_eq!(answer, nack("1", &response.nonce, &message));

    // The subscription goes on: the next good response is taken.
    stream.push(&greetings("3", &["better"])).await;
    assert!(!updates.accept().await.first_on_stream);
    assert_eq!(stream.request().await, ack("3"));
    running.abort();
    message
}

#[tokio::test(start_paused = true)]
async fn the_first_request_introduces_the_node_and_wants_everything() {
    let mut world = start();
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, GREETING.state_of_the_world);
    let mut first = opening.accept().first;
    let node = first.node.take().unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("host~127.0.0.1~no-id~localdomain", "ingress-cluster"));
    assert_eq!(node.user_agent_name, "tollgate");
    assert_eq!(first, ack(""), "no version, no nonce, no names");
}

#[tokio::test(start_paused = true)]
async fn an_applied_response_is_acknowledged_with_its_version_and_nonce() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&DiscoveryResponse { nonce: "n-9".into(), ..greetings("v1", &["hello", "world"]) }).await;
    let applying = world.updates.next().await;
    assert_eq!(applying.texts(), ["hello", "world"]);
    assert_eq!(applying.update.version, "v1");
    assert!(applying.update.first_on_stream);
    applying.decide(Ok(()));
    assert_eq!(stream.request().await, DiscoveryRequest { response_nonce: "n-9".into(), ..ack("v1") });

    let status = world.stream();
    assert!(status.connected);
    assert_eq!((status.responses, status.acks, status.nacks, status.reconnects), (1, 1, 0, 0));
    assert_eq!(status.version.as_deref(), Some("v1"));
    assert!(status.accepted_at.is_some());
    assert_eq!(status.last_error, None);
}

#[tokio::test(start_paused = true)]
async fn the_acknowledgement_waits_for_the_handler() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["slow"])).await;
    stream.push(&greetings("2", &["next"])).await;
    let applying = world.updates.next().await;
    sleep(Duration::from_secs(3600)).await;
    stream.assert_no_request();
    world.updates.assert_none();
    assert_eq!(world.stream().acks, 0);

    applying.decide(Ok(()));
    assert_eq!(stream.request().await, ack("1"));
    assert_eq!(world.updates.accept().await.version, "2");
    assert_eq!(stream.request().await, ack("2"));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_answered_with_the_last_accepted_version() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["bad"])).await;
    world.updates.next().await.decide(Err(Rejection::new("resource \"a\", field text: too rude")));
    assert_eq!(stream.request().await, nack("", "1", "resource \"a\", field text: too rude"));

    stream.push(&greetings("2", &["good"])).await;
    assert!(world.updates.accept().await.first_on_stream, "nothing was accepted on this stream before");
    assert_eq!(stream.request().await, ack("2"));

    stream.push(&greetings("3", &["bad"])).await;
    world.updates.next().await.decide(Err(Rejection::new("worse")));
    assert_eq!(stream.request().await, nack("2", "3", "worse"));

    let status = world.stream();
    assert_eq!((status.responses, status.acks, status.nacks), (3, 1, 2));
    assert_eq!(status.version.as_deref(), Some("2"));
    assert_eq!(status.last_error.as_deref(), Some("worse"));
}

#[tokio::test(start_paused = true)]
async fn an_empty_response_is_a_state_like_any_other() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("7", &[])).await;
    assert_eq!(world.updates.accept().await.changed, []);
    assert_eq!(stream.request().await, ack("7"));
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_does_not_decode_is_refused_by_its_place() {
    let mut response = greetings("2", &["good", "good"]);
    response.resources.push(any(&[0x0a, 0x05, b'x'])); // field 1 promises five bytes, one follows
    let message = refusal(&response).await;
    assert!(message.starts_with("resource 2 of 3 (type.googleapis.com/test.Greeting): "), "{message}");

    let mut response = greetings("2", &[]);
    response.resources.push(any(&[0x0a, 0x01, 0xff])); // not UTF-8
    let message = refusal(&response).await;
    assert!(message.contains("resource 0 of 1") && message.contains("Greeting.text"), "{message}");
}

/// What can be read is in force, though the protocol can only refuse the whole; nothing that is missing is taken for gone, since the
/// one that cannot be read may be it.
#[tokio::test(start_paused = true)]
async fn a_resource_that_does_not_decode_holds_up_no_other() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["a", "b"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await, ack("1"));

    let mut response = greetings("2", &["a", "c"]);
    response.resources.push(any(&[0x0a, 0x01, 0xff]));
    response.resources.push(any(&[0x0a, 0x05, b'x']));
    stream.push(&response).await;
    let update = world.updates.accept().await;
    let changed: Vec<_> = update.changed.iter().map(|resource| resource.message.text.as_str()).collect();
    assert_eq!((changed, update.removed.is_empty()), (vec!["c"], true));
    let answer = stream.request().await;
    let message = answer.error_detail.clone().unwrap().message;
    assert!(message.starts_with("resource 2 of 4 ") && message.ends_with("(and 1 more)"), "{message}");
    assert_eq!(answer, nack("1", "2", &message));
    let status = world.stream();
    assert_eq!(status.resources, 3, "what is in force");
    assert_eq!((status.version.as_deref(), status.refused_version.as_deref()), (Some("1"), Some("2")));

    // The same again brings nothing; what is good again takes away what is missing.
    stream.push(&response).await;
    stream.request().await;
    world.updates.assert_none();
    stream.push(&greetings("3", &["a", "c"])).await;
    assert_eq!(world.updates.accept().await.removed.len(), 1);
    assert_eq!(stream.request().await, ack("3"));
    assert_eq!(world.stream().refused_version, None);
}

#[tokio::test(start_paused = true)]
async fn a_resource_of_another_type_is_refused() {
    let mut response = greetings("2", &["good"]);
    response.resources.push(Any { type_url: "type.googleapis.com/test.Farewell".into(), value: Vec::new() });
    assert_eq!(
        refusal(&response).await,
        "resource 1 of 2 (type.googleapis.com/test.Farewell): wrong type, wanted type.googleapis.com/test.Greeting"
    );
}

#[tokio::test(start_paused = true)]
async fn a_response_of_another_type_is_refused() {
    let response = DiscoveryResponse { type_url: "type.googleapis.com/test.Farewell".into(), ..greetings("2", &["x"]) };
    assert_eq!(
        refusal(&response).await,
        "response of type type.googleapis.com/test.Farewell on a stream of type type.googleapis.com/test.Greeting"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrapped_resource_brings_its_name() {
    let mut world = start();
    let stream = world.peer.accept().await;
    let wrap = |resource| Any {
        type_url: Wrapper::type_url(),
        value: Wrapper { name: "42".into(), resource, ..Wrapper::default() }.encode_to_vec(),
    };
    let inner = any(&Greeting { text: "wrapped".into() }.encode_to_vec());
    stream.push(&DiscoveryResponse { resources: vec![wrap(Some(inner))], ..greetings("1", &[]) }).await;
    let update = world.updates.accept().await;
    assert_eq!(update.changed[0].name, "42");
    assert_eq!(update.changed[0].message.text, "wrapped");

    let message = refusal(&DiscoveryResponse { resources: vec![wrap(None)], ..greetings("2", &[]) }).await;
    assert!(message.contains("\"42\" holds no resource"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_refuses_the_update_and_stays_subscribed() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["boom"])).await;
    drop(world.updates.next().await);
    let answer = stream.request().await;
    let message = answer.error_detail.as_ref().unwrap().message.clone();
    assert!(message.starts_with("internal error while applying the update: "), "{message}");
    assert_eq!(answer, nack("", "1", &message));

    stream.push(&greetings("2", &["fine"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await, ack("2"));
}

#[tokio::test(start_paused = true)]
async fn a_long_error_is_cut_between_characters() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["bad"])).await;
    world.updates.next().await.decide(Err(Rejection::new("é".repeat(5000).replacen('é', "e", 1))));
    let message = stream.request().await.error_detail.unwrap().message;
    assert_eq!(message.len(), 4095, "4096 would split a character");
}

#[tokio::test(start_paused = true)]
async fn subscriptions_do_not_wait_for_each_other() {
    let (transport, mut peer) = transport();
    let (first, mut first_updates) = handler();
    let (second, mut second_updates) = handler();
    let client = Client::with_transport(config(), transport);
    let client = client.subscribe(GREETING, first).subscribe(NETWORK_POLICY, second);
    let status = client.status();
    let _running = tokio::spawn(client.run());
    let (a, b) = (peer.accept().await, peer.accept().await);
    let (greeting, mut policy) = if a.first.type_url == GREETING.type_url { (a, b) } else { (b, a) };

    greeting.push(&greetings("1", &["stuck"])).await;
    let _stuck = first_updates.next().await;
    let response = DiscoveryResponse { type_url: NETWORK_POLICY.type_url.into(), ..greetings("5", &[]) };
    policy.push(&response).await;
    second_updates.accept().await;
    assert_eq!(policy.request().await.version_info, "5");

    let streams = status.streams();
    assert_eq!(streams.iter().map(|stream| stream.acks).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(streams[1].type_url, NETWORK_POLICY.type_url);
}

#[tokio::test(start_paused = true)]
async fn names_may_change_while_the_stream_lives_and_none_is_no_stream() {
    let (transport, mut peer) = transport();
    let (handler, mut updates) = handler();
    let (names, watched) = watch::channel(BTreeSet::new());
    let named = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let client = Client::with_transport(config(), transport).subscribe_named(GREETING, handler, watched);
    let status = client.status();
    let _running = tokio::spawn(client.run());
    peer.assert_quiet(Duration::from_secs(3600)).await;

    names.send(named(&["a", "b"])).unwrap();
    let mut stream = peer.accept().await;
    assert_eq!(stream.first.resource_names, ["a", "b"]);
    stream.push(&greetings("1", &["a", "b", "never asked for"])).await;
    assert_eq!(updates.accept().await.changed.len(), 2);
    let both = stream.request().await;
    assert_eq!(both, DiscoveryRequest { resource_names: vec!["a".into(), "b".into()], ..ack("1") });

    // What is not wanted any more goes at once: a peer need not answer when nothing else changes.
    names.send(named(&["b"])).unwrap();
    let update = updates.accept().await;
    assert_eq!((update.changed.len(), update.removed, update.first_on_stream), (0, vec!["a".to_owned()], false));
    assert_eq!(stream.request().await, DiscoveryRequest { resource_names: vec!["b".into()], ..ack("1") });

    // Wanting more, on the contrary, takes a new stream.
    names.send(named(&["b", "c"])).unwrap();
    stream.closed().await;
    let mut stream = peer.accept().await;
    let first = &stream.first;
    assert_eq!((first.version_info.as_str(), first.response_nonce.as_str()), ("", ""));
    assert_eq!(first.resource_names, ["b", "c"]);
    stream.push(&greetings("1", &["b", "c"])).await;
    let update = updates.accept().await;
    assert_eq!(update.changed.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["c"]);
    assert!(update.removed.is_empty());
    assert_eq!(stream.request().await, DiscoveryRequest { resource_names: vec!["b".into(), "c".into()], ..ack("1") });
    let state = status.stream(GREETING.type_url).unwrap();
    assert_eq!((state.connected, state.failed_attempts, state.last_error), (true, 0, None));

    names.send(named(&[])).unwrap();
    assert_eq!(updates.accept().await.removed, ["b", "c"]);
    stream.closed().await;
    peer.assert_quiet(Duration::from_secs(3600)).await;
    let state = status.stream(GREETING.type_url).unwrap();
    assert_eq!((state.connected, state.resources, state.last_error), (false, 0, None));

    names.send(named(&["d"])).unwrap();
    let stream = peer.accept().await;
    assert_eq!((stream.first.resource_names, stream.first.version_info.as_str()), (vec!["d".to_owned()], ""));
}

/// An agent that holds greetings `a` and `b` at version 1 and answers nothing to a request which says that it has that.
async fn answer_as_an_old_agent(mut peer: Peer) {
    loop {
        let mut stream = peer.accept().await;
        let mut request = stream.first.clone();
        loop {
            if request.version_info != "1" {
                let names: Vec<_> = request.resource_names.iter().map(String::as_str).collect();
                stream.push(&greetings("1", &names)).await;
            }
            match stream.next_request().await {
                Some(next) => request = next,
                None => break,
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_name_reaches_an_agent_that_has_nothing_newer() {
    let (transport, peer) = transport();
    let (handler, mut updates) = handler();
    let (names, watched) = watch::channel(["a".to_owned()].into());
    let client = Client::with_transport(config(), transport).subscribe_named(GREETING, handler, watched);
    let _running = tokio::spawn(client.run());
    let _agent = tokio::spawn(answer_as_an_old_agent(peer));
    assert_eq!(updates.accept().await.changed[0].name, "a");

    names.send(["a".to_owned(), "b".to_owned()].into()).unwrap();
    let hang = Duration::from_secs(60);
    let update = tokio::time::timeout(hang, updates.accept()).await.expect("b never came");
    assert_eq!((update.changed.len(), update.changed[0].name.as_str(), update.removed), (1, "b", vec![]));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_client_ends_its_streams() {
    let mut world = start();
    let stream = world.peer.accept().await;
    world.running.abort();
    stream.closed().await;
    assert!(world.running.await.unwrap_err().is_cancelled());
}
