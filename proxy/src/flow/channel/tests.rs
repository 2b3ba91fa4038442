use std::rc::Rc;
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::flow::{ENDINGS, HttpRecord, OpenFlow, Outcome};
use crate::metrics::{Metrics, Worker};
use crate::reason::Reason;
use crate::tenant::TenantId;

fn boxed(outcome: Outcome) -> Box<FlowRecord> {
    Box::new(FlowRecord::for_test(outcome))
}

/// The same of another tenant each time.
fn by_another(outcome: Outcome) -> Box<FlowRecord> {
    thread_local!(static LAST: Cell<u32> = const { Cell::new(100) });
    let mut record = boxed(outcome);
    record.tenant = TenantId::from_raw(LAST.get());
    LAST.set(LAST.get() + 1);
    record
}

fn one_worker(capacity: usize) -> (FlowSender, FlowConsumer) {
    let (mut senders, consumer) = channel(vec![Worker::for_test()], capacity);
    (senders.remove(0), consumer)
}

fn drain(consumer: &mut FlowConsumer) -> Vec<Sequenced> {
    let mut batch = Vec::new();
    while consumer.drain(&mut batch, 64) > 0 {}
    batch
}

#[test]
fn a_quarter_of_the_ring_is_kept_for_denials() {
    let (sender, mut consumer) = one_worker(8);
    for outcome in [Outcome::Forwarded, Outcome::Failed].into_iter().cycle().take(10) {
        sender.send(by_another(outcome));
    }
    for _ in 0..3 {
        sender.send(by_another(Outcome::Denied));
    }
    let seqs: Vec<u64> = drain(&mut consumer).iter().map(|item| item.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3, 4, 5, 10, 11]);
    sender.send(boxed(Outcome::Forwarded));
    assert_eq!(drain(&mut consumer)[0].seq, 13, "what was lost in between keeps its numbers");
}

#[test]
fn what_a_limit_refuses_is_no_denial() {
    let (sender, mut consumer) = one_worker(8);
    for _ in 0..10 {
        let mut record = by_another(Outcome::Denied);
        record.reason = Some(Reason::TenantRate);
        sender.send(record);
    }
    for _ in 0..2 {
        assert!(sender.send(by_another(Outcome::Denied)));
    }
    let denials: Vec<bool> = drain(&mut consumer).iter().map(|item| item.record.is_denial()).collect();
    assert_eq!(denials, [false, false, false, false, false, false, true, true]);
}

#[test]
fn a_ring_holds_so_many_bytes() {
    let (sender, mut consumer) = one_worker(8192);
    let long = |outcome| {
        let mut record = by_another(outcome);
        record.http = Some(HttpRecord::new(b"GET", &[b'a'; 60 << 10], b"/"));
        record
    };
    let sent = |outcome| (0..).take_while(|_| sender.send(long(outcome))).count() as u64;
    let (others, denials) = (sent(Outcome::Forwarded), sent(Outcome::Denied));
    let each = 61 << 10;
    assert!((others, denials) >= (3, 1) && (others + denials) * (60 << 10) <= RingLoad::MOST, "{others} {denials}");
    assert!((others + 1) * each > RingLoad::MOST / 4 * 3 && (others + denials + 1) * each > RingLoad::MOST);
    let load = &consumer.loads()[0];
    assert!(load.bytes() > RingLoad::MOST - each && load.bytes() <= RingLoad::MOST);
    assert_eq!(drain(&mut consumer).len() as u64, others + denials);
    assert_eq!(load.bytes(), 0);
    assert!(sender.send(long(Outcome::Forwarded)), "there is room again");
}

/// One tenant sends denials without end, and nobody takes them: what others are denied is recorded all the same. By the number
/// of records, and by their bytes.
#[test]
fn a_flood_of_denials_takes_no_room_from_others() {
    for path in [1, 60 << 10] {
        let (sender, mut consumer) = one_worker(1024);
        let of = |tenant: u32, outcome| {
            let mut record = boxed(outcome);
            record.tenant = TenantId::from_raw(tenant);
            record.http = Some(HttpRecord::new(b"GET", &vec![b'a'; path], b"/"));
            record
        };
        let flood = (0..5_000).filter(|_| sender.send(of(80, Outcome::Denied))).count();
        assert!(flood > 40, "{flood}");
        let room = if path == 1 { 30 } else { 2 };
        for tenant in [90, 1000] {
            assert!((0..room).all(|_| sender.send(of(tenant, Outcome::Denied))), "{tenant} with {path}");
        }
        let mut sent = [0_usize; 2];
        for item in drain(&mut consumer) {
            match item.record.tenant.raw() {
                80 => sent[0] += 1,
                _ => sent[1] += 1,
            }
        }
        assert_eq!(sent, [flood, 2 * room]);
        // Nor do allowed flows.
        assert!((0..5_000).any(|_| !sender.send(of(80, Outcome::Forwarded))));
        assert!((0..room).all(|_| sender.send(of(1000, Outcome::Denied))), "with {path}");
    }
}

#[test]
fn every_ring_gets_its_turn() {
    let (senders, mut consumer) = channel(vec![Worker::for_test(), Worker::for_test()], 64);
    for _ in 0..50 {
        senders[0].send(boxed(Outcome::Forwarded));
    }
    senders[1].send(boxed(Outcome::Denied));
    let mut batch = Vec::new();
    assert_eq!(consumer.drain(&mut batch, 10), 6);
    assert_eq!(batch[5].worker, 1);
}

#[test]
fn an_unfinished_flow_sends_its_record() {
    let (sender, mut consumer) = one_worker(8);
    let sender = Rc::new(sender);
    drop(OpenFlow::new(Rc::clone(&sender), FlowRecord::for_test(Outcome::Forwarded)));
    let mut open = OpenFlow::new(Rc::clone(&sender), FlowRecord::for_test(Outcome::Forwarded));
    open.add_up(3);
    open.add_down(4);
    open.if_dropped(Outcome::Forwarded, Some(Reason::DownstreamReset));
    drop(open);
    OpenFlow::new(Rc::clone(&sender), FlowRecord::for_test(Outcome::Failed)).finish(Outcome::Forwarded, None);
    let ends: Vec<_> = drain(&mut consumer)
        .into_iter()
        .map(|item| (item.record.outcome, item.record.reason, item.record.bytes_up, item.record.bytes_down))
        .collect();
    assert_eq!(
        ends,
        [
            (Outcome::Failed, Some(Reason::Dropped), 0, 0),
            (Outcome::Forwarded, Some(Reason::DownstreamReset), 3, 4),
            (Outcome::Forwarded, None, 0, 0),
        ]
    );
}

#[test]
fn a_panicking_task_sends_its_record() {
    let (sender, mut consumer) = one_worker(8);
    let sender = Rc::new(sender);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut open = OpenFlow::new(Rc::clone(&sender), FlowRecord::for_test(Outcome::Forwarded));
        open.if_dropped(Outcome::Forwarded, Some(Reason::DownstreamReset));
        panic!("a defect");
    }));
    assert!(result.is_err());
    let record = &drain(&mut consumer)[0].record;
    assert_eq!((record.outcome, record.reason), (Outcome::Failed, Some(Reason::Internal)));
}

#[test]
fn a_sleeping_consumer_is_woken_by_each_first_record() {
    let (sender, mut consumer) = one_worker(8);
    let (seen, woken) = mpsc::sync_channel(0);
    let consumer = std::thread::spawn(move || {
        let mut batch = Vec::new();
        while batch.len() < 3 {
            if consumer.drain(&mut batch, 64) > 0 {
                seen.send(batch.len()).unwrap();
            } else {
                consumer.sleep();
            }
        }
    });
    for expected in 1..=3 {
        sender.send(boxed(Outcome::Forwarded));
        assert_eq!(woken.recv().unwrap(), expected);
    }
    consumer.join().unwrap();
}

#[test]
fn the_wall_clock_is_extended_for_a_second() {
    let (sender, _consumer) = one_worker(8);
    let (read_at, time) = sender.clock.get();
    assert_eq!(sender.wall_clock(read_at), time);
    assert_eq!(sender.wall_clock(read_at + CLOCK_AGE / 2), time + CLOCK_AGE / 2);
    let before = Duration::from_millis(300);
    assert_eq!(sender.wall_clock(read_at - before), time - before, "a flow that began before the reading");
    let later = read_at + 2 * CLOCK_AGE;
    let fresh = sender.wall_clock(later);
    assert_ne!(fresh, time + 2 * CLOCK_AGE, "read again, not extended");
    assert_eq!(sender.wall_clock(later + CLOCK_AGE / 2), fresh + CLOCK_AGE / 2);
}

#[test]
fn a_ring_is_pressed_when_a_quarter_of_it_is_taken() {
    let (_metrics, workers) = Metrics::new(2);
    let (senders, mut consumer) = channel(workers, 32);
    for _ in 0..8 {
        senders[1].send(boxed(Outcome::Forwarded));
    }
    assert!(!consumer.is_pressed());
    senders[1].send(boxed(Outcome::Forwarded));
    assert!(consumer.is_pressed());
    assert_eq!(drain(&mut consumer).len(), 9);
    assert!(!consumer.is_pressed());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A record that ends so, which a limit may have done.
    Send(Outcome, Option<Reason>),
    Drain(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let ends = [
        Step::Send(Outcome::Forwarded, None),
        Step::Send(Outcome::Denied, Some(Reason::DenyRule)),
        Step::Send(Outcome::Denied, Some(Reason::TenantRate)),
        Step::Send(Outcome::Failed, None),
    ];
    prop_oneof![
        6 => prop::sample::select(ends.to_vec()),
        1 => (1_usize..20).prop_map(Step::Drain),
    ]
}

proptest! {
    /// Whatever the consumer does: what came out and what was counted as lost make up what was sent, the gaps in the
    /// numbers are exactly the losses, and no denial is lost while an allowed flow gets in.
    #[test]
    fn losses_are_exact(capacity in 8_usize..40, steps in prop::collection::vec(step(), 0..300)) {
        let (metrics, workers) = Metrics::new(1);
        let (senders, mut consumer) = channel(workers, capacity);
        let mut sent = [0_u64; ENDINGS.len()];
        let mut out: Vec<Sequenced> = Vec::new();
        let mut free = capacity;
        for step in steps {
            match step {
                Step::Send(outcome, reason) => {
                    let lost_before = metrics.flow_records_lost();
                    let mut record = by_another(outcome);
                    record.reason = reason;
                    sent[record.ending()] += 1;
                    senders[0].send(record);
                    let lost = metrics.flow_records_lost() != lost_before;
                    let reserve = if reason == Some(Reason::DenyRule) { 0 } else { capacity / 4 };
                    prop_assert_eq!(lost, free <= reserve);
                    free -= usize::from(!lost);
                }
                Step::Drain(limit) => free += consumer.drain(&mut out, limit),
            }
        }
        out.extend(drain(&mut consumer));
        let lost = metrics.flow_records_lost();
        for ending in 0..ENDINGS.len() {
            let came = out.iter().filter(|item| item.record.ending() == ending).count() as u64;
            prop_assert_eq!(came + lost[ending], sent[ending]);
        }
        let end = out.last().map_or(0, |item| item.seq + 1);
        let gaps = end - out.len() as u64;
        let trailing = sent.iter().sum::<u64>() - end;
        prop_assert_eq!(gaps + trailing, lost.iter().sum::<u64>());
        prop_assert!(out.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    }
}
