use serde_json::Value;

use super::*;
use crate::flow::HttpRecord;
use crate::reason::Reason;

fn item(seq: u64, outcome: Outcome) -> Sequenced {
    Sequenced { worker: 0, seq, record: Box::new(FlowRecord::for_test(outcome)) }
}

/// `seq` of each line, or the number of missed records, negative.
fn read_all(reader: &mut FlowReader) -> Vec<i64> {
    let mut out = Vec::new();
    while reader.read(&mut out) {}
    String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|json| match &json["lost_events"] {
            Value::Null => json["seq"].as_i64().unwrap(),
            lost => -lost["num_events_lost"].as_i64().unwrap(),
        })
        .collect()
}

fn log_of(count: u64, max_records: usize) -> Arc<FlowLog> {
    let log = FlowLog::new(max_records, usize::MAX, Names::default());
    let outcome = |seq| {
        if seq % 3 == 0 { Outcome::Denied } else { Outcome::Forwarded }
    };
    log.append(&mut (0..count).map(|seq| item(seq, outcome(seq))).collect());
    log
}

#[test]
fn the_last_matching_records_are_read() {
    let log = log_of(10, 8);
    let all = FlowFilter::default;
    let denied = || FlowFilter { denied: true, ..FlowFilter::default() };
    assert_eq!(read_all(&mut log.reader(all(), 3)), [7, 8, 9]);
    assert_eq!(read_all(&mut log.reader(all(), 100)), [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(read_all(&mut log.reader(denied(), 2)), [6, 9]);
    assert_eq!(read_all(&mut log.reader(denied(), 0)), [0; 0]);
    // What a limit refused is no denial.
    let mut limited = item(10, Outcome::Denied);
    limited.record.reason = Some(Reason::TenantRate);
    log.append(&mut vec![limited]);
    let of_limits = FlowFilter { limited: true, ..FlowFilter::default() };
    assert_eq!(read_all(&mut log.reader(of_limits.clone(), 9)), [10]);
    assert_eq!(read_all(&mut log.reader(denied(), 2)), [6, 9]);
    assert_eq!(read_all(&mut log.reader(FlowFilter { denied: true, ..of_limits }, 2)), [9, 10]);
}

#[test]
fn a_log_longer_than_a_page_is_read_whole() {
    let log = log_of(1000, 1000);
    assert_eq!(read_all(&mut log.reader(FlowFilter::default(), 1000)), (0..1000).collect::<Vec<_>>());
}

#[test]
fn a_slow_reader_is_told_what_it_missed() {
    let log = log_of(4, 4);
    let mut reader = log.reader(FlowFilter::default(), 0);
    assert_eq!(read_all(&mut reader), [0; 0]);
    log.append(&mut (4..11).map(|seq| item(seq, Outcome::Forwarded)).collect());
    assert_eq!(read_all(&mut reader), [-3, 7, 8, 9, 10]);
}

#[test]
fn memory_is_bounded() {
    let log = FlowLog::new(1000, 64 << 10, Names::default());
    let mut big = item(0, Outcome::Forwarded);
    big.record.http = Some(HttpRecord::new(b"GET", &[b'a'; 10 << 10], b"/"));
    let mut batch = vec![big];
    batch.extend((1..50).map(|seq| item(seq, Outcome::Forwarded)));
    log.append(&mut batch);
    assert_eq!(log.lock().records.len(), 50);
    let mut too_big = item(50, Outcome::Forwarded);
    too_big.record.http = Some(HttpRecord::new(b"GET", &[b'a'; 60 << 10], b"/"));
    log.append(&mut vec![too_big]);
    let recent = log.lock();
    assert!(recent.bytes <= 64 << 10, "{}", recent.bytes);
    assert_eq!(recent.bytes, recent.records.iter().map(|item| memory(&item.record)).sum::<usize>());
    assert_eq!(recent.end(), 51);
}

#[tokio::test]
async fn a_follower_wakes_for_a_record() {
    let log = log_of(2, 8);
    let mut reader = log.reader(FlowFilter::default(), 1);
    reader.wait().await;
    assert_eq!(read_all(&mut reader), [1]);
    let follower = tokio::spawn(async move {
        reader.wait().await;
        read_all(&mut reader)
    });
    tokio::task::yield_now().await;
    log.append(&mut vec![item(2, Outcome::Denied)]);
    assert_eq!(follower.await.unwrap(), [2]);
}
