use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, SystemTime};

use tollgate_policy::{Direction, SecurityId};

use super::*;
use crate::flow::access_log::entry::LoggedRequest;
use crate::flow::{EntryKind, FlowConsumer, FlowSender, LossCause, Protocol, channel};
use crate::metrics::Worker;
use crate::tenant::TenantId;

const DEADLINE: Duration = Duration::from_secs(20);

fn one_worker() -> (FlowSender, FlowConsumer, AccessLogs) {
    let (mut senders, consumer) = channel(vec![Worker::for_test()], 64);
    let logs = consumer.access_logs();
    logs.start(sync_channel(0).0);
    (senders.remove(0), consumer, logs)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/nonexistent").join(name)
}

pub(in super::super) fn entry(sinks: SinkSet) -> Entry {
    let address = "127.0.0.1:1".parse().unwrap();
    let request = LoggedRequest {
        direction: Direction::Ingress,
        endpoint: "127.0.0.1".parse().unwrap(),
        proxy_id: 0,
        source: SecurityId(1),
        destination: SecurityId(2),
        downstream: address,
        original_dst: address,
        protocol: Protocol::Tcp,
        rule: None,
        reason: None,
        head: None,
        header_log: None,
    };
    let (time, tenant) = (SystemTime::now(), TenantId::UNKNOWN);
    Entry { sinks, kind: EntryKind::Denied, tenant, time, request: Arc::new(request), response: None }
}

/// As the flow thread does.
fn turn(consumer: &mut FlowConsumer, logs: &AccessLogs, limit: usize) {
    let unheld = logs.unheld();
    let mut entries = Vec::new();
    let (_, all) = consumer.drain_entries(&mut entries, limit);
    logs.offer(&mut entries);
    if all {
        logs.give_back(unheld);
    }
}

#[test]
fn what_was_logged_before_goes_out_before_the_socket_is_given_back() {
    let (sender, mut consumer, logs) = one_worker();
    let log = logs.of_listener(Some(&path("a")));
    let counters = logs.counters();
    for _ in 0..3 {
        sender.log(entry(log.sinks()));
    }
    drop(log);
    turn(&mut consumer, &logs, 2);
    assert_eq!(logs.counters().len(), 1, "one is still in the ring");
    turn(&mut consumer, &logs, 2);
    assert_eq!(logs.counters().len(), 0);
    let began = Instant::now();
    while counters[0].lost(LossCause::NoReader) < 3 {
        assert!(began.elapsed() < DEADLINE, "each was tried");
        std::thread::yield_now();
    }
}

#[test]
fn a_place_goes_to_another_path_and_a_path_that_is_asked_for_again_keeps_its_own() {
    let (_sender, mut consumer, logs) = one_worker();
    logs.open_for_all(&path("all")).unwrap();
    let (a, b) = (logs.of_listener(Some(&path("a"))), logs.of_listener(Some(&path("b"))));
    assert_eq!(logs.of_listener(Some(&path("a"))).sinks(), a.sinks(), "one socket for each path");
    let (of_a, of_b) = (a.sinks(), b.sinks());
    drop((a, b));
    let unheld = logs.unheld();
    assert_eq!(unheld, SinkSet::of(1).with(SinkSet::of(2)), "that of all stays");
    let again = logs.of_listener(Some(&path("b")));
    logs.give_back(unheld);
    assert_eq!(again.sinks(), of_b);
    let other = logs.of_listener(Some(&path("c")));
    assert_eq!(other.sinks(), of_a);
    turn(&mut consumer, &logs, 2);
    assert_eq!(logs.counters().len(), 3);
}
