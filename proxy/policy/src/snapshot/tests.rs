use std::sync::Arc;

use super::shards::Shards;
use super::*;
use crate::{NetworkPolicy, PortRule};

fn policy(endpoint_id: u64, remote: u32) -> NetworkPolicy {
    let rules = vec![PortRule { remotes: vec![remote], ..PortRule::default() }];
    NetworkPolicy {
        endpoint_id,
        endpoints: vec![EndpointKey::parse(&format!("10.0.{}.{}", endpoint_id / 250, endpoint_id % 250))],
        ingress: vec![PortPolicy { port: 80, rules, ..PortPolicy::default() }],
        egress: Vec::new(),
    }
}

fn thousand() -> Snapshot {
    let mut builder = Snapshot::empty().update();
    builder.replace_all((1..=1000).map(|id| policy(id, 1)));
    builder.build()
}

/// Shards that the two do not share.
fn copied<T>(before: &Shards<T>, after: &Shards<T>) -> usize {
    before.each().zip(after.each()).filter(|(before, after)| !Arc::ptr_eq(before, after)).count()
}

fn all_copied(before: &Snapshot, after: &Snapshot) -> [usize; 3] {
    [
        copied(&before.resources, &after.resources),
        copied(&before.claimants, &after.claimants),
        copied(&before.sides, &after.sides),
    ]
}

#[test]
fn an_update_copies_what_changed() {
    let before = thousand();
    let mut one = before.update();
    one.upsert("7", policy(7, 2));
    assert_eq!(all_copied(&before, &one.build()), [1, 1, 1]);
    // The same by a response that repeats the other 999.
    let mut all = before.update();
    all.replace_all((1..=1000).map(|id| policy(id, if id == 7 { 2 } else { 1 })));
    assert_eq!(all_copied(&before, &all.build()), [1, 1, 1]);
    let mut none = before.update();
    none.replace_all((1..=1000).map(|id| policy(id, 1)));
    assert_eq!(all_copied(&before, &none.build()), [0, 0, 0]);
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let mut snapshot = thousand();
    for remote in 2..2000 {
        let mut builder = snapshot.update();
        builder.upsert("7", policy(7, remote));
        snapshot = builder.build();
    }
    // Alive: the rules of the others, those of the last change, and no rules. What is not goes with the next addition to its shard.
    let (all, alive) = (snapshot.sides.iter().count(), snapshot.sides.iter().filter(|(_, s)| s.strong_count() > 0));
    assert!(all < 2 * 256 + 3, "{all}");
    assert_eq!(alive.count(), 3);
}

#[test]
fn what_changed_between_two_snapshots_is_found() {
    let before = thousand();
    let mut builder = before.update();
    builder.upsert("7", policy(7, 2));
    builder.upsert("8", policy(8, 1)); // as it was
    builder.remove("9");
    builder.upsert("1001", policy(1001, 1));
    let after = builder.build();
    let ids = |policies: Vec<&EndpointPolicy>| {
        let mut ids: Vec<u64> = policies.into_iter().map(EndpointPolicy::endpoint_id).collect();
        ids.sort_unstable();
        ids
    };
    let (gone, come) = after.changes_since(&before);
    assert_eq!((ids(gone), ids(come)), (vec![7, 9], vec![7, 1001]));
    let (gone, come) = after.changes_since(&after);
    assert!(gone.is_empty() && come.is_empty());
    assert_eq!(ids(after.changes_since(&Snapshot::empty()).1).len(), 1000);
}
