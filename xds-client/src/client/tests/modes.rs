//! Which variant is spoken.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::Message as _;

use super::reconnect::{assert_paced, unimplemented};
use super::scripted::{GREETING, Opening, config, greetings, handler, increment, start, start_with, transport};
use crate::{Client, LISTENER, Mode, NETWORK_POLICY, TransportError, Variant};

const AGGREGATED: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

async fn not_served(opening: Opening) {
    opening.accept().end(unimplemented()).await;
}

#[tokio::test(start_paused = true)]
async fn variants_that_are_not_served_are_tried_in_turn_at_once_and_then_ever_more_slowly() {
    let mut world = start();
    let mut last = tokio::time::Instant::now();
    for round in 0..5 {
        for (number, path) in [GREETING.state_of_the_world, AGGREGATED, GREETING.incremental].into_iter().enumerate() {
            let opening = world.peer.opening().await;
            assert_eq!(opening.path, path);
            match (round, number) {
                (_, 1 | 2) | (0, _) => assert!(opening.at - last < Duration::from_millis(2)),
                (round, _) => assert_paced(opening.at - last, round - 1),
            }
            last = opening.at;
            not_served(opening).await;
        }
    }
    assert_eq!(world.status.mode(), None);

    let mut stream = world.peer.accept().await;
    stream.push(&greetings("1", &["a"])).await;
    world.updates.accept().await;
    assert_eq!(stream.request().await.version_info, "1");
    assert_eq!(world.status.mode(), Some(Variant::Split));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_in_another_mode_is_followed_and_nothing_is_forgotten() {
    let mut world = start_with(Mode::Auto(Variant::Ads));
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, AGGREGATED);
    let mut stream = opening.accept();
    stream.push(&greetings("1", &["a", "b"])).await;
    assert_eq!(world.updates.accept().await.changed.len(), 2);
    stream.request().await;
    assert_eq!(world.status.mode(), Some(Variant::Ads));
    drop(stream);

    not_served(world.peer.opening().await).await;
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, GREETING.state_of_the_world);
    let mut stream = opening.accept();
    world.updates.assert_none();
    assert_eq!((world.stream().version.as_deref(), world.status.mode()), (Some("1"), Some(Variant::Ads)));
    stream.push(&greetings("1", &["b", "a"])).await;
    let update = world.updates.accept().await;
    assert_eq!((update.changed.len(), update.removed.len(), update.first_on_stream), (0, 0, true));
    stream.request().await;
    assert_eq!((world.status.mode(), world.stream().mode), (Some(Variant::Split), Some(Variant::Split)));
    drop(stream);

    // The last one that was served is tried first, and state of the world before increments.
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, GREETING.state_of_the_world);
    not_served(opening).await;
    not_served(world.peer.opening().await).await;
    let opening = world.peer.opening().await;
    assert_eq!(opening.path, GREETING.incremental);
    let mut stream = opening.accept();
    stream.push_bytes(increment("1", &[("a", "a"), ("c", "c")], &[]).encode_to_vec()).await;
    let update = world.updates.accept().await;
    assert_eq!((update.changed[0].name.as_str(), update.removed), ("c", vec!["b".to_owned()]));
    stream.delta_request().await;
    assert_eq!(world.status.mode(), Some(Variant::DeltaSplit));
}

#[tokio::test(start_paused = true)]
async fn a_variant_that_is_served_for_one_type_is_kept_and_the_others_are_probed() {
    let (transport, mut peer) = transport();
    let (first, mut updates) = handler();
    let (second, _) = handler();
    let client =
        Client::with_transport(config(), transport).subscribe(GREETING, first).subscribe(NETWORK_POLICY, second);
    let status = client.status();
    let _running = tokio::spawn(client.run());
    let mut served = None;
    for _ in 0..10 {
        let opening = peer.opening().await;
        if opening.path == NETWORK_POLICY.state_of_the_world {
            not_served(opening).await;
        } else {
            assert_eq!(opening.path, GREETING.state_of_the_world);
            let stream = opening.accept();
            stream.push(&greetings("1", &[])).await;
            updates.accept().await;
            served = Some(stream);
        }
    }
    assert!(served.is_some());
    assert_eq!(status.mode(), Some(Variant::Split));
    let policies = status.stream(NETWORK_POLICY.type_url).unwrap();
    assert_eq!(policies.last_error, Some(unimplemented().to_string()));
}

#[tokio::test(start_paused = true)]
async fn another_failure_is_no_reason_to_try_another_variant() {
    let mut world = start();
    for _ in 0..10 {
        let opening = world.peer.opening().await;
        assert_eq!(opening.path, GREETING.state_of_the_world);
        opening.accept().end(TransportError::Status { code: "NotFound".into(), message: "node".into() }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fixed_mode_is_kept() {
    for (variant, path) in [
        (Variant::Split, GREETING.state_of_the_world),
        (Variant::Ads, AGGREGATED),
        (Variant::DeltaSplit, GREETING.incremental),
    ] {
        let mut world = start_with(Mode::Fixed(variant));
        for _ in 0..5 {
            let opening = world.peer.opening().await;
            assert_eq!(opening.path, path);
            not_served(opening).await;
        }
    }
}

/// What a Cilium agent answers for the `Delta` methods that it registers and does not implement.
fn plain_error() -> TransportError {
    TransportError::Status { code: "Unknown".into(), message: "not implemented".into() }
}

#[tokio::test(start_paused = true)]
async fn a_variant_is_left_when_the_agent_answers_with_plain_errors_or_does_not_serve_the_first_type() {
    for answer in [
        plain_error(),
        TransportError::Status { code: "Unknown".into(), message: "no such thing".into() },
        TransportError::Status { code: "Internal".into(), message: "Delta is Not Implemented".into() },
        // Says nothing about the variant, and so must not keep it either.
        TransportError::Status { code: "Unavailable".into(), message: "busy".into() },
    ] {
        let (transport, mut peer) = transport();
        let (first, mut updates) = handler();
        let (second, _) = handler();
        let config = crate::ClientConfig { mode: Mode::Auto(Variant::DeltaSplit), ..config() };
        let client =
            Client::with_transport(config, transport).subscribe(NETWORK_POLICY, first).subscribe(LISTENER, second);
        let status = client.status();
        let _running = tokio::spawn(client.run());
        let mut attempts = 0;
        let policies = loop {
            let opening = peer.opening().await;
            attempts += 1;
            assert!(attempts < 20, "stuck with {answer}");
            match opening.path {
                _ if opening.is_given_up() => {}
                path if path == NETWORK_POLICY.incremental => not_served(opening).await,
                path if path == LISTENER.incremental => opening.accept().end(answer.clone()).await,
                path if path == LISTENER.state_of_the_world => drop(opening.accept()),
                path => {
                    assert_eq!(path, NETWORK_POLICY.state_of_the_world);
                    break opening.accept();
                }
            }
        };
        policies.push(&DiscoveryResponse { type_url: String::new(), ..greetings("1", &[]) }).await;
        updates.accept().await;
        assert_eq!(status.mode(), Some(Variant::Split));
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_error_for_the_only_type_leaves_a_variant_and_the_last_good_one_is_the_first_of_each_round() {
    let mut world = start_with(Mode::Auto(Variant::Ads));
    let stream = world.peer.accept().await;
    stream.push(&greetings("1", &["a"])).await;
    world.updates.accept().await;
    drop(stream);
    for _ in 0..3 {
        for path in [AGGREGATED, GREETING.state_of_the_world, GREETING.incremental] {
            let opening = world.peer.opening().await;
            assert_eq!(opening.path, path);
            opening.accept().end(plain_error()).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_error_after_a_response_does_not_leave_a_variant() {
    let mut world = start();
    for version in ["1", "2", "3"] {
        let opening = world.peer.opening().await;
        assert_eq!(opening.path, GREETING.state_of_the_world);
        let mut stream = opening.accept();
        stream.push(&greetings(version, &["a"])).await;
        world.updates.accept().await;
        stream.request().await;
        stream.end(plain_error()).await;
    }
}
