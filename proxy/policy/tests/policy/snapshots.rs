//! One snapshot after another: what is reused, who owns an address, what is listed.

use std::sync::Arc;

use tollgate_policy::{
    ConnectionVerdict, Direction, EndpointKey, EndpointPolicy, Flow, NetworkPolicy, PortPolicy, Snapshot,
    SnapshotBuilder,
};

use crate::support::{World, allow, flow, from, paths, policy, port};

fn only_for(endpoint_id: u64, endpoints: &[&str], remote: u32) -> NetworkPolicy {
    policy(endpoint_id, endpoints, vec![port(80, vec![from(&[remote], allow())])])
}

fn next(before: &Snapshot, policies: Vec<NetworkPolicy>) -> Snapshot {
    let mut builder = before.update();
    builder.replace_all(policies);
    builder.build()
}

fn owner(snapshot: &Snapshot, key: &str) -> Vec<Arc<EndpointPolicy>> {
    snapshot.endpoint(&EndpointKey::parse(key)).cloned().collect()
}

#[test]
fn empty_denies() {
    let world = World(Snapshot::empty());
    assert_eq!(world.0.generation(), 0);
    assert_eq!(world.both(&flow(1, 80), "/"), "NoPolicy");
}

#[test]
fn generations_reuse_what_did_not_change() {
    let shared = || vec![port(80, vec![paths(&["/a"])])];
    let first = next(&Snapshot::empty(), vec![policy(1, &["10.0.0.1"], shared()), policy(2, &["10.0.0.2"], shared())]);
    let second = next(
        &first,
        vec![policy(1, &["10.0.0.1"], shared()), policy(2, &["10.0.0.2"], vec![]), policy(3, &["c"], shared())],
    );
    assert_eq!((first.generation(), second.generation()), (1, 2));
    assert!(Arc::ptr_eq(&owner(&first, "10.0.0.1")[0], &owner(&second, "10.0.0.1")[0]));
    assert!(!Arc::ptr_eq(&owner(&first, "10.0.0.2")[0], &owner(&second, "10.0.0.2")[0]));
    // Equal rules are compiled once, whichever endpoint has them and whenever it came.
    let rules = |snapshot: &Snapshot, key: &str| -> *const PortPolicy {
        owner(snapshot, key)[0].rules(Direction::Ingress).as_ptr()
    };
    assert_eq!(rules(&first, "10.0.0.1"), rules(&first, "10.0.0.2"));
    assert_eq!(rules(&first, "10.0.0.1"), rules(&second, "c"));
    let ids: Vec<u64> = second.endpoints().map(EndpointPolicy::endpoint_id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(next(&second, vec![]).endpoints().len(), 0);
}

#[test]
fn any_spelling_of_an_address_is_one_key() {
    let snapshot = next(&Snapshot::empty(), vec![only_for(1, &["2001:DB8:0::1", "::ffff:10.0.0.1", "name"], 1)]);
    for key in ["2001:db8::1", "10.0.0.1", "name"] {
        assert_eq!(owner(&snapshot, key).len(), 1, "{key}");
    }
    assert_eq!(snapshot.conflicts().len(), 0);
}

#[test]
fn the_latest_claim_owns_an_address() {
    let address = "10.0.0.1";
    let ids = |snapshot: &Snapshot| -> Vec<u64> { owner(snapshot, address).iter().map(|p| p.endpoint_id()).collect() };
    let a = || only_for(9, &[address], 1);
    let b = || only_for(2, &[address, "10.0.0.2"], 2);
    let first = next(&Snapshot::empty(), vec![a()]);
    let both = next(&first, vec![a(), b()]);
    assert_eq!(ids(&both), [2]);
    // Remembered: the next response does not say again who came later.
    let again = next(&both, vec![a(), b()]);
    assert_eq!(ids(&again), [2]);
    let [conflict] = again.conflicts().collect::<Vec<_>>()[..] else {
        panic!("{again:?}");
    };
    assert_eq!((&*conflict.enforced[0], &*conflict.overridden[0]), ("2", "9"));
    assert_eq!(ids(&next(&again, vec![a()])), [9]);
}

/// What a new stream says counts whichever way earlier streams came to it.
#[test]
fn the_first_state_of_a_stream_is_judged_without_its_history() {
    let address = "10.0.0.1";
    let state = || vec![only_for(9, &[address], 1), only_for(2, &[address], 2)];
    let owners = |snapshot: &Snapshot| owner(snapshot, address).len();
    let on_new_stream = |before: &Snapshot, policies: Vec<NetworkPolicy>| {
        let mut builder = before.update();
        builder.forget_order();
        builder.replace_all(policies);
        builder.build()
    };
    let grown = next(&next(&Snapshot::empty(), vec![only_for(9, &[address], 1)]), state());
    assert_eq!((owners(&grown), grown.remembers_order()), (1, true));
    let again = on_new_stream(&grown, state());
    assert_eq!((owners(&again), again.remembers_order()), (2, false), "as of a process that has just started");
    assert_eq!(again.conflicts().map(|conflict| conflict.enforced.len()).collect::<Vec<_>>(), [2]);
    // From there on the order counts again: the one that comes back is the latest.
    let one = next(&again, vec![only_for(9, &[address], 1)]);
    let back = next(&one, state());
    assert_eq!(owner(&back, address).iter().map(|policy| policy.endpoint_id()).collect::<Vec<_>>(), [2]);
    // Who came with the first state is older than whoever changes later, also where nobody shared anything then.
    let alone = on_new_stream(&back, vec![only_for(2, &[address], 2)]);
    assert_eq!(owner(&next(&alone, state()), address)[0].endpoint_id(), 9);
}

#[test]
fn a_repaired_resource_has_its_old_place() {
    let address = "10.0.0.1";
    let ids = |snapshot: &Snapshot| -> Vec<u64> { owner(snapshot, address).iter().map(|p| p.endpoint_id()).collect() };
    let change = |before: &Snapshot, change: &dyn Fn(&mut SnapshotBuilder)| {
        let mut builder = before.update();
        change(&mut builder);
        builder.build()
    };
    let (old, new) = (|| only_for(1, &[address], 1), || only_for(2, &[address], 2));
    let repair = |builder: &mut SnapshotBuilder| builder.upsert("1", old());
    let broken = {
        let both = next(&next(&Snapshot::empty(), vec![old()]), vec![old(), new()]);
        assert_eq!(ids(&both), [2]);
        change(&both, &|builder| builder.set_aside("1"))
    };
    assert_eq!((ids(&broken), broken.endpoint_count(), broken.remembers_order()), (vec![2], 1, true));
    assert_eq!(ids(&change(&broken, &repair)), [2], "repaired");
    let still = change(&broken, &|builder| builder.set_aside("1"));
    assert_eq!(ids(&change(&still, &repair)), [2], "repaired at the second attempt");
    let gone = change(&broken, &|builder| assert!(!builder.remove("1")));
    assert!(!ids(&change(&gone, &repair)).contains(&2), "removed and made anew");
    assert_eq!(ids(&next(&next(&broken, vec![new()]), vec![old(), new()])), [1], "a state without it removes it");
    let anew = change(&broken, &SnapshotBuilder::forget_order);
    assert_eq!((ids(&change(&anew, &repair)), anew.remembers_order()), (vec![1], false), "forgotten with its stream");
}

#[test]
fn claims_in_one_response_must_all_allow() {
    let address = "10.0.0.1";
    let a = policy(1, &[address], vec![port(80, vec![from(&[1, 2], allow())])]);
    let b = policy(2, &[address], vec![port(80, vec![from(&[2, 3], paths(&["/b"]))])]);
    let world = World(next(&Snapshot::empty(), vec![a.clone(), b]));
    assert_eq!(world.both(&flow(1, 80), "/b"), "NoPeerRule");
    assert_eq!(world.both(&flow(2, 80), "/b"), "http");
    assert_eq!(world.both(&flow(2, 80), "/c"), "http NoHttpRule");
    assert_eq!(world.both(&flow(3, 80), "/b"), "NoPeerRule");
    assert_eq!(world.0.conflicts().next().unwrap().enforced.len(), 2);
    // The same id twice is a conflict like any other.
    let twin = only_for(1, &[address], 2);
    let world = World(next(&Snapshot::empty(), vec![a, twin]));
    assert_eq!(world.both(&flow(1, 80), "/"), "NoPeerRule");
    assert_eq!(world.both(&flow(2, 80), "/"), "tcp");
}

#[test]
fn single_resources() {
    let mut builder = Snapshot::empty().update();
    builder.upsert("policy-42", only_for(42, &["10.0.0.1"], 1));
    builder.upsert("other", only_for(43, &["10.0.0.2"], 1));
    let first = builder.build();
    let mut builder = first.update();
    assert!(builder.remove("other"));
    assert!(!builder.remove("10.0.0.1"));
    builder.upsert("policy-42", only_for(42, &["10.0.0.1"], 2));
    let world = World(builder.build());
    assert_eq!(world.0.endpoints().map(EndpointPolicy::resource).collect::<Vec<_>>(), ["policy-42"]);
    assert!(world.allows(2, 80, "/") && !world.allows(1, 80, "/"));
    assert_eq!(World(first).both(&flow(1, 80), "/"), "tcp");
}

/// An Ingress policy is found by its name; an address never finds it.
#[test]
fn a_name_finds_its_policy() {
    let mut builder = Snapshot::empty().update();
    builder.replace_all([policy(7, &["kube-system/ingress", "10.0.0.2"], vec![port(80, vec![])])]);
    let snapshot = builder.build();
    let allowed = |key: &str| {
        let endpoint = EndpointKey::parse(key);
        let flow = Flow { endpoint: &endpoint, ..flow(1, 80) };
        matches!(snapshot.evaluate_connection(&flow), ConnectionVerdict::AllowTcp { .. })
    };
    assert!(allowed("kube-system/ingress") && allowed("10.0.0.2"));
    assert!(!allowed("kube-system/Ingress") && !allowed("10.0.0.1"));
}
