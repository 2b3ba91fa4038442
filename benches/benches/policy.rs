//! Policy: finding an endpoint's rules and judging one request against them.
//!
//! Budget of DESIGN section 10: under 1 us against 1,000 rules, and about the same for one.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use tollgate_benches::policy::{ENDPOINT, MISS, flow, get, last_path, policy, policy_from, snapshot};
use tollgate_policy::{NetworkPolicy, Secrets, Verdict};

fn evaluate(criterion: &mut Criterion) {
    let secrets = Secrets::default();
    let mut group = criterion.benchmark_group("policy/evaluate_request");
    for rules in [1, 10, 100, 1_000, 10_000] {
        let snapshot = snapshot([policy(ENDPOINT, 1, rules)]);
        let last = last_path(rules);
        let (hit, miss) = (get(&last), get(MISS));
        assert!(matches!(snapshot.evaluate_request(&flow(), &hit, &secrets), Verdict::Allow { .. }), "{rules} rules");
        assert!(matches!(snapshot.evaluate_request(&flow(), &miss, &secrets), Verdict::Deny { .. }), "{rules} rules");
        group.bench_function(BenchmarkId::new("last_rule", rules), |bencher| {
            bencher.iter(|| snapshot.evaluate_request(black_box(&flow()), black_box(&hit), &secrets));
        });
        group.bench_function(BenchmarkId::new("denied", rules), |bencher| {
            bencher.iter(|| snapshot.evaluate_request(black_box(&flow()), black_box(&miss), &secrets));
        });
    }
    group.finish();
}

fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy/evaluate_connection");
    for endpoints in [1, 100, 1_000] {
        let others = (1..endpoints).map(|index| policy(other(index), 1 + u64::from(index), 1));
        let snapshot = snapshot(others.chain([policy(ENDPOINT, 1, 1)]));
        group.bench_function(BenchmarkId::new("endpoints", endpoints), |bencher| {
            bencher.iter(|| snapshot.evaluate_connection(black_box(&flow())));
        });
    }
    group.finish();
}

fn other(index: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 245, 0, 0).to_bits() + index))
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy/compile");
    group.sample_size(10);
    for rules in [1, 100, 1_000] {
        let source = policy(ENDPOINT, 1, rules);
        group.bench_function(BenchmarkId::new("rules", rules), |bencher| {
            bencher.iter(|| snapshot([black_box(source.clone())]));
        });
    }
    let sources: Vec<NetworkPolicy> =
        (1..=1_000).map(|index| policy_from(other(index), u64::from(index), index as usize * 10, 10)).collect();
    group.bench_function("1000_endpoints_of_10_different_rules", |bencher| {
        bencher.iter_batched(|| sources.clone(), snapshot, BatchSize::PerIteration);
    });
    // One endpoint changes: the work must not grow with the others.
    for endpoints in [1_000, 10_000] {
        let before = snapshot((1..=endpoints).map(|index| policy(other(index), u64::from(index), 10)));
        let changed = policy(other(7), 7, 11);
        group.bench_function(BenchmarkId::new("one_changes_of", endpoints), |bencher| {
            bencher.iter(|| {
                let mut builder = before.update();
                builder.upsert("7", black_box(changed.clone()));
                builder.build()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, evaluate, look_up, compile);
criterion_main!(benches);
