//! Flow records: what a worker pays for one, and what the flow thread pays to take it.

use std::hint::black_box;
use std::rc::Rc;
use std::time::SystemTime;

use criterion::{Criterion, criterion_group};
use tollgate::flow::{FlowConsumer, FlowRecord, FlowSender, HttpRecord, OpenFlow, Outcome, Protocol, channel};
use tollgate::metrics;
use tollgate::reason::Reason;
use tollgate_policy::{Direction, SecurityId};

const RING: usize = 1024;

fn ring() -> (Rc<FlowSender>, FlowConsumer) {
    let (_, workers) = metrics::Metrics::new(1);
    let (mut senders, consumer) = channel(workers, RING);
    (Rc::new(senders.remove(0)), consumer)
}

fn record(listener: &std::sync::Arc<str>) -> FlowRecord {
    let (downstream, original_dst) = (([10, 244, 1, 17], 43210).into(), ([10, 244, 2, 232], 5000).into());
    let (time, protocol) = (SystemTime::now(), Protocol::Http11);
    FlowRecord {
        upstream: Some(original_dst),
        source: SecurityId(32226),
        http: Some(HttpRecord::new(b"GET", b"helloworld:5000", b"/api/v1/svc00042/items/12345")),
        generation: 1,
        ..FlowRecord::new(time, listener.clone(), Direction::Ingress, downstream, original_dst, protocol)
    }
}

fn finish(criterion: &mut Criterion) {
    let (sender, mut consumer) = ring();
    let listener = "ingress".into();
    let mut batch = Vec::with_capacity(RING);
    let mut group = criterion.benchmark_group("flow");
    group.bench_function("record_and_take", |bencher| {
        bencher.iter(|| {
            let flow = OpenFlow::new(Rc::clone(&sender), record(&listener));
            flow.add_down(64);
            flow.finish(Outcome::Forwarded, None);
            // Taken at once, so that no record meets a full ring.
            assert_eq!(consumer.drain(&mut batch, RING), 1);
            batch.clear();
        });
    });
    group.bench_function("record_lost_to_a_full_ring", |bencher| {
        bencher.iter(|| OpenFlow::new(Rc::clone(&sender), record(&listener)).finish(Outcome::Forwarded, None));
    });
    group.bench_function("refusal_and_take", |bencher| {
        consumer.drain(&mut batch, RING);
        batch.clear();
        bencher.iter(|| {
            OpenFlow::new(Rc::clone(&sender), record(&listener))
                .finish(Outcome::Denied, black_box(Some(Reason::RequestNotAllowed)));
            assert_eq!(consumer.drain(&mut batch, RING), 1);
            batch.clear();
        });
    });
    group.finish();
}

criterion_group!(benches, finish);
