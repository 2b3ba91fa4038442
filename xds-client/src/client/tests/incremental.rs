//! One incremental stream per type.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message as _;
use tokio::time::Instant;

use super::scripted::{Conversation, GREETING, World, increment, start_with};
use crate::{Mode, Rejection, Update, Variant};

fn start() -> World {
    start_with(Mode::Fixed(Variant::DeltaSplit))
}

fn answer(nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: GREETING.type_url.into(),
        response_nonce: nonce.into(),
        ..DeltaDiscoveryRequest::default()
    }
}

async fn push(stream: &Conversation, response: &DeltaDiscoveryResponse) {
    stream.push_bytes(response.encode_to_vec()).await;
}

/// Pushes a response that is accepted, and returns what it changed.
async fn exchange(
    world: &mut World,
    stream: &mut Conversation,
    response: &DeltaDiscoveryResponse,
) -> (Vec<String>, Vec<String>, bool) {
    push(stream, response).await;
    let Update { changed, removed, first_on_stream, .. } = world.updates.accept().await;
    assert_eq!(stream.delta_request().await, answer(&response.nonce));
    (
        changed.into_iter().map(|resource| format!("{}={}", resource.name, resource.message.text)).collect(),
        removed,
        first_on_stream,
    )
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn differences_are_applied_and_a_new_stream_replaces_all() {
    let mut world = start();
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, GREETING.incremental);
    let mut stream = opening.accept();
    let mut first = stream.first_delta();
    assert_eq!(first.node.take().unwrap().id, "host~127.0.0.1~no-id~localdomain");
    assert_eq!(first, answer(""), "everything is wanted and nothing known");

    let all = increment("1", &[("a", "1"), ("b", "1")], &[]);
    assert_eq!(exchange(&mut world, &mut stream, &all).await, (strings(&["a=1", "b=1"]), vec![], true));
    let some = increment("2", &[("b", "2")], &["a", "never known"]);
    assert_eq!(exchange(&mut world, &mut stream, &some).await, (strings(&["b=2"]), strings(&["a"]), false));
    drop(stream);

    let mut stream = world.peer.accept().await;
    assert!(stream.first_delta().node.is_some() && stream.first_delta().initial_resource_versions.is_empty());
    world.updates.assert_none();
    let all = increment("1", &[("c", "1")], &[]);
    assert_eq!(exchange(&mut world, &mut stream, &all).await, (strings(&["c=1"]), strings(&["b"]), true));
    assert_eq!(world.status.mode(), Some(Variant::DeltaSplit));
}

#[tokio::test(start_paused = true)]
async fn one_response_at_a_time_is_applied_and_each_is_answered() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    for version in ["1", "2", "3"] {
        push(&stream, &increment(version, &[(version, "x")], &[])).await;
    }
    for version in ["1", "2", "3"] {
        assert_eq!(world.updates.accept().await.changed[0].name, version);
        assert_eq!(stream.delta_request().await, answer(version));
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_refusal_takes_nothing_away_and_is_followed_by_a_fresh_start() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    exchange(&mut world, &mut stream, &increment("1", &[("a", "1"), ("b", "1")], &[])).await;
    drop(stream);

    let mut stream = world.peer.accept().await;
    push(&stream, &increment("1", &[("a", "2"), ("b", "1")], &[])).await;
    world.updates.next().await.decide(Err(Rejection::new("bad")));
    let nack = stream.delta_request().await;
    assert_eq!((nack.response_nonce.as_str(), nack.error_detail.unwrap().message.as_str()), ("1", "bad"));
    // The peer corrects only what was wrong.
    push(&stream, &increment("2", &[("a", "3")], &[])).await;
    let update = world.updates.accept().await;
    assert_eq!((update.changed[0].message.text.as_str(), update.removed.len(), update.first_on_stream), ("3", 0, true));
    assert_eq!(stream.hear_out().await, [answer("2")], "the peer learns that it was accepted");

    let mut stream = world.peer.accept().await;
    let all = increment("2", &[("a", "3")], &[]);
    assert_eq!(exchange(&mut world, &mut stream, &all).await, (vec![], strings(&["b"]), true));
    exchange(&mut world, &mut stream, &increment("3", &[], &[])).await;
}

/// Sends what is refused and then what is accepted; what follows is a fresh start.
async fn bad_then_good(world: &mut World, stream: &mut Conversation, version: u32) {
    push(stream, &increment(&format!("{version} bad"), &[("b", "bad")], &[])).await;
    world.updates.next().await.decide(Err(Rejection::new("bad")));
    assert!(stream.delta_request().await.error_detail.is_some());
    push(stream, &increment(&format!("{version} good"), &[("a", &version.to_string())], &[])).await;
    world.updates.accept().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_end_the_stream_holds_nothing_up() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    bad_then_good(&mut world, &mut stream, 1).await;
    stream.closed().await;
    let mut stream = world.peer.accept().await;
    exchange(&mut world, &mut stream, &increment("2", &[("a", "1")], &[])).await;
}

#[tokio::test(start_paused = true)]
async fn fresh_starts_that_lead_to_the_same_are_ever_rarer_until_a_stream_has_lasted() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    let began = Instant::now();
    for version in 0..60 {
        bad_then_good(&mut world, &mut stream, version).await;
        stream.hear_out().await;
        stream = world.peer.accept().await;
    }
    let each = began.elapsed() / 60;
    assert!(each > Duration::from_secs(2), "{each:?}");
    exchange(&mut world, &mut stream, &increment("good", &[("a", "60")], &[])).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bad_then_good(&mut world, &mut stream, 61).await;
    let ended = Instant::now();
    stream.hear_out().await;
    world.peer.accept().await;
    assert!(ended.elapsed() < Duration::from_secs(1), "a single mistake is put right at once");
}

#[tokio::test(start_paused = true)]
async fn what_is_in_force_of_a_refused_response_is_remembered() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    exchange(&mut world, &mut stream, &increment("1", &[("b", "1"), ("c", "1")], &[])).await;
    push(&stream, &increment("2", &[("a", "2"), ("b", "2")], &["c"])).await;
    let refused = Rejection::of_resources("no b", ["b".to_owned()]);
    world.updates.next().await.decide(Err(refused));
    assert_eq!(stream.delta_request().await.error_detail.unwrap().message, "no b");
    assert_eq!(world.stream().resources, 2, "a as it is now and b as it was");
    // All of this is what is there already, but for b.
    push(&stream, &increment("3", &[("a", "2"), ("b", "1")], &["c"])).await;
    let update = world.updates.accept().await;
    assert_eq!((update.changed, update.removed), (vec![], vec![]));
}
