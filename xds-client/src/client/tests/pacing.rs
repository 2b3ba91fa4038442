//! A peer that answers every answer does not make the client spin.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::scripted::{World, greetings, start};

/// How often the peer got an answer within an hour when it sent `bad` or the same good state again after each.
async fn answers_in_an_hour(bad: bool) -> u32 {
    let World { mut peer, mut updates, running, .. } = start();
    let mut stream = peer.accept().await;
    let mut response = greetings("1", &["same"]);
    if bad {
        response.resources[0].value = vec![0xff];
    } else {
        tokio::spawn(async move {
            loop {
                updates.accept().await;
            }
        });
    }
    let mut answers = 0;
    let _ = timeout(Duration::from_secs(3600), async {
        loop {
            stream.push(&response).await;
            stream.request().await;
            answers += 1;
        }
    })
    .await;
    running.abort();
    answers
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_repeats_itself_is_answered_about_once_a_second() {
    for bad in [true, false] {
        let answers = answers_in_an_hour(bad).await;
        assert!((3600..8000).contains(&answers), "{answers} answers");
    }
}

#[tokio::test(start_paused = true)]
async fn what_changes_something_is_answered_at_once_also_after_repetitions() {
    let mut world = start();
    let mut stream = world.peer.accept().await;
    for _ in 0..50 {
        stream.push(&greetings("1", &["same"])).await;
        world.updates.accept().await;
        stream.request().await;
    }
    for version in 2..50 {
        stream.push(&greetings(&version.to_string(), &[&version.to_string()])).await;
        let before = Instant::now();
        world.updates.accept().await;
        stream.request().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
