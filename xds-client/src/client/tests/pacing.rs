//! A peer that answers every answer does not make the client spin.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::scripted::{World, any, greetings, start};

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
    let answers = answers_in_an_hour(false).await;
    assert!((3600..8000).contains(&answers), "{answers} answers");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_repeated_more_and_more_slowly() {
    let answers = answers_in_an_hour(true).await;
    assert!((1800..1810).contains(&answers), "{answers} answers: every two seconds, after a few");
    let mut world = start();
    let mut stream = world.peer.accept().await;
    let bad = |others: &[&str]| {
        let mut response = greetings("1", others);
        response.resources.push(any(&[0xff]));
        response
    };
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let before = Instant::now();
        stream.push(&bad(&[])).await;
        stream.request().await;
        pauses.push(before.elapsed().as_millis());
    }
    assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 2000, 2000]);
    // What comes with it for others is in force at once, and said at once.
    let before = Instant::now();
    stream.push(&bad(&["news"])).await;
    world.updates.accept().await;
    stream.request().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
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
