use proptest::prelude::*;
use serde_json::Value;
use tollgate_schedule::TenantId;

use super::*;
use crate::flow::{HttpRecord, Outcome};
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
    // Of the many that are no denials.
    assert_eq!(read_all(&mut log.reader(all(), 100)), [0, 3, 4, 5, 6, 7, 8, 9]);
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
    // What it would have refused is neither.
    let mut shadowed = item(11, Outcome::Forwarded);
    shadowed.record.would_limit = Some(Reason::TenantRate);
    log.append(&mut vec![shadowed]);
    let of_shadow = FlowFilter { would_limit: true, ..FlowFilter::default() };
    assert_eq!(read_all(&mut log.reader(of_shadow.clone(), 9)), [11]);
    assert_eq!(read_all(&mut log.reader(FlowFilter { limited: true, ..of_shadow }, 9)), [10, 11]);
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
    assert_eq!(read_all(&mut reader), [-5, 9, 10]);
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
    assert_eq!(recent.bytes, recent.records.values().map(memory).sum::<usize>());
    assert_eq!(recent.end, 51);
    let parts = recent.parts.values();
    assert_eq!(recent.records.len(), parts.map(|part| part.positions.len()).sum::<usize>());
}

fn of_tenant(seq: u64, tenant: u32, outcome: Outcome) -> Sequenced {
    let mut item = item(seq, outcome);
    item.record.tenant = TenantId::from_raw(tenant);
    item
}

#[test]
fn a_loud_tenant_forgets_its_own() {
    let log = FlowLog::new(64, usize::MAX, Names::default());
    let denied = || FlowFilter { denied: true, ..FlowFilter::default() };
    log.append(&mut vec![of_tenant(0, 99, Outcome::Denied), of_tenant(1, 99, Outcome::Forwarded)]);
    let mut follower = log.reader(FlowFilter::default(), 2);
    log.append(&mut vec![of_tenant(2, 98, Outcome::Denied)]);
    log.append(&mut (3..1000).map(|seq| of_tenant(seq, 98, Outcome::Forwarded)).collect());
    assert_eq!(read_all(&mut log.reader(denied(), 100)), [0, 2], "its own denial, too");
    let kept = read_all(&mut log.reader(FlowFilter::default(), 100));
    assert_eq!(kept, [0, 1, 2].into_iter().chain(1000 - 61..1000).collect::<Vec<_>>());
    let missed = [-936, 0, 1, 2].into_iter().chain(1000 - 61..1000);
    assert_eq!(read_all(&mut follower), missed.collect::<Vec<_>>(), "what is still there is not missed");
}

#[test]
fn what_is_forgotten_under_a_reader_is_missed() {
    let log = log_of(4, 4);
    // 0 and 3 are denials.
    let mut reader = log.reader(FlowFilter::default(), 4);
    let mut later = log.reader(FlowFilter { denied: true, ..FlowFilter::default() }, 2);
    log.append(&mut (4..6).map(|seq| item(seq, Outcome::Forwarded)).collect());
    assert_eq!(read_all(&mut reader), [-2, 0, 3, 4, 5]);
    log.append(&mut (6..8).map(|seq| item(seq, Outcome::Forwarded)).collect());
    assert_eq!(read_all(&mut later), [-4, 0, 3]);
}

proptest! {
    /// The bounds hold; who has no more than an equal part of them loses nothing, whatever others do; a follower finds each record
    /// or is told of it.
    #[test]
    fn nobody_forgets_for_others(
        most in 8_usize..64,
        batches in prop::collection::vec((0_u32..4, any::<bool>(), 1_usize..40), 1..40),
    ) {
        let log = FlowLog::new(most, usize::MAX, Names::default());
        let mut follower = log.reader(FlowFilter::default(), 0);
        let mut all = 0;
        let mut of_part = BTreeMap::<Part, usize>::new();
        for (tenant, denied, count) in batches {
            let outcome = if denied { Outcome::Denied } else { Outcome::Forwarded };
            log.append(&mut (all..all + count as u64).map(|seq| of_tenant(seq, tenant + 90, outcome)).collect());
            all += count as u64;
            *of_part.entry((tenant as usize + 90, denied)).or_default() += count;
            let recent = log.lock();
            prop_assert_eq!(recent.records.len() as u64, all.min(most as u64));
            for (part, made) in &of_part {
                let kept = recent.parts.get(part).map_or(0, |part| part.positions.len());
                prop_assert!(kept >= *made.min(&(most / 8)), "{} of {}", kept, made);
            }
        }
        let lines = read_all(&mut follower);
        let missed: u64 = lines.iter().filter(|line| **line < 0).map(|line| line.unsigned_abs()).sum();
        let read = lines.iter().filter(|line| **line >= 0).count() as u64;
        prop_assert_eq!(read + missed, all);
    }
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
