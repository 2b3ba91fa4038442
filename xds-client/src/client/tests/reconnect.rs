use std::time::Duration;

use tokio::time::Instant;

use super::scripted::{GREETING, config, greetings, no_connection, start, start_with};
use crate::{Backoff, ClientConfig, Mode, TransportError, Variant};

pub(super) fn unimplemented() -> TransportError {
    TransportError::Unimplemented { message: "unknown service test.Greetings".into() }
}

/// Asserts that `waited` lies between half and all of the backoff's ceiling for this attempt.
pub(super) fn assert_paced(waited: Duration, attempt: u32) {
    let backoff = Backoff::default();
    // Paused time advances in whole milliseconds.
    let bounds = backoff.delay(attempt, 0.0)..=backoff.delay(attempt, 1.0) + Duration::from_millis(1);
    assert!(bounds.contains(&waited), "attempt {attempt} waited {waited:?}, not {bounds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_starts_from_nothing_and_its_first_update_says_so() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("41", &["old"])).await;
    world.updates.accept().await;
    stream.request().await;
    stream.end(TransportError::Status { code: "Unavailable".into(), message: "agent restarts".into() }).await;

    let mut stream = world.peer.accept().await;
    assert_eq!(stream.first.version_info, "");
    assert_eq!(stream.first.response_nonce, "");
    assert!(stream.first.node.is_some());
    world.updates.assert_none();
    let status = world.stream();
    assert_eq!(status.version.as_deref(), Some("41"), "what is enforced is still what was accepted");

    stream.push(&greetings("1", &["new"])).await;
    let update = world.updates.accept().await;
    assert!(update.first_on_stream);
    assert_eq!(stream.request().await.version_info, "1");
    assert_eq!(world.stream().reconnects, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_on_a_new_stream_carries_no_version_of_the_old_one() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("41", &["old"])).await;
    world.updates.accept().await;
    stream.request().await;
    drop(stream);

    let mut stream = world.peer.accept().await;
    let mut bad = greetings("1", &["new"]);
    bad.resources[0].value = vec![0xff];
    stream.push(&bad).await;
    let answer = stream.request().await;
    assert!(answer.error_detail.is_some());
    assert_eq!((answer.version_info.as_str(), answer.response_nonce.as_str()), ("", "1"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_nothing_to_say_is_left_in_peace() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    world.peer.assert_quiet(Duration::from_secs(24 * 3600)).await;
    stream.assert_no_request();
    assert!(world.stream().connected);

    stream.push(&greetings("1", &["at last"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await.version_info, "1");
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_bound_but_not_served_is_tried_again_and_again() {
    let mut world = start();
    let mut silent = world.peer.opening().await;
    for _ in 0..20 {
        let next = world.peer.opening().await;
        let waited = next.at - silent.at;
        assert!(waited >= ClientConfig::HANDSHAKE_TIMEOUT, "{waited:?}");
        // The wait itself paced the attempt, so the pause after it does not grow.
        assert_paced(waited - ClientConfig::HANDSHAKE_TIMEOUT, 0);
        let status = world.stream();
        assert!(!status.connected);
        assert!(status.last_error.unwrap().contains("no HTTP/2 frame"));
        silent = next;
    }
    let mut stream = silent.accept();
    stream.push(&greetings("1", &["served"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await.version_info, "1");
    assert_eq!(world.stream().failed_attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_paced_by_a_backoff_that_a_delivery_resets() {
    let mut world = start();
    let mut last = world.peer.refuse().await;
    for attempt in 0..8 {
        let at = world.peer.refuse().await;
        assert_paced(at - last, attempt);
        last = at;
    }
    assert_eq!(world.stream().last_error, Some(no_connection().to_string()));
    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["back"])).await;
    world.updates.accept().await;
    stream.request().await;
    let ended = Instant::now();
    drop(stream);
    assert_paced(world.peer.refuse().await - ended, 0);
}

#[tokio::test(start_paused = true)]
async fn streams_that_end_after_each_response_are_paced() {
    let mut world = start();
    for version in 1..20 {
        let mut stream = world.peer.accept().await;
        stream.push(&greetings(&version.to_string(), &[])).await;
        world.updates.accept().await;
        stream.request().await;
        let ended = Instant::now();
        drop(stream);
        let next = world.peer.opening().await;
        assert_paced(next.at - ended, 0);
        next.refuse(no_connection());
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_open_and_end_empty_are_paced_ever_more_slowly() {
    let mut world = start();
    drop(world.peer.accept().await);
    let mut last = Instant::now();
    for attempt in 0..8 {
        let opening = world.peer.opening().await;
        assert_paced(opening.at - last, attempt);
        last = opening.at;
        drop(opening.accept());
    }
    let closed = world.status.wait_for(GREETING.type_url, |state| !state.connected).await.unwrap();
    assert_eq!(closed.last_error.as_deref(), Some("the control plane closed the stream"));
}

#[tokio::test(start_paused = true)]
async fn a_method_that_is_not_served_is_probed_until_it_is() {
    let mut world = start_with(Mode::Fixed(Variant::Split));
    for _ in 0..10 {
        world.peer.accept().await.end(unimplemented()).await;
    }
    let opening = world.peer.opening().await;
    let status = world.stream();
    assert_eq!(status.failed_attempts, 10);
    assert_eq!(status.last_error, Some(unimplemented().to_string()));

    let mut stream = opening.accept();
    stream.push(&greetings("1", &["upgraded"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await.version_info, "1");
    assert_eq!(world.stream().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_no_response_ends_the_stream_only() {
    let mut world = start();
    let stream = world.peer.accept().await;
    stream.push_bytes(b"\xff\xff\xff garbage".to_vec()).await;
    stream.closed().await;
    let mut stream = world.peer.accept().await;
    world.updates.assert_none();
    let error = world.stream().last_error.unwrap();
    assert!(error.starts_with("response is not a DiscoveryResponse"), "{error}");
    stream.push(&greetings("1", &["sane"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await.version_info, "1");
}

#[tokio::test(start_paused = true)]
async fn a_stream_lost_while_its_update_is_applied_keeps_the_update() {
    let mut world = start();
    let stream = world.peer.accept().await;
    stream.push(&greetings("1", &["late"])).await;
    let applying = world.updates.next().await;
    drop(stream);
    world.peer.assert_quiet(Duration::from_secs(60)).await;
    applying.decide(Ok(()));
    let stream = world.peer.accept().await;
    assert_eq!(stream.first.version_info, "");
    assert_eq!(world.stream().version.as_deref(), Some("1"));
}

#[test]
fn every_bound_has_its_documented_default() {
    let config = config();
    assert_eq!(config.handshake_timeout, Duration::from_secs(15));
    assert_eq!(config.max_message_bytes, 1 << 30);
    assert_eq!(config.backoff, Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(5) });
}
