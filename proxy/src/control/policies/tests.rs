use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Poll, Wake};

use prost::Message as _;
use tollgate_policy::{ConnectionVerdict, Direction, EndpointKey, Flow, Limits, SecurityId, ServerName};

use super::super::files::PolicyFiles;
use super::*;
use crate::identity::Sources;
use crate::readiness::Readiness;

/// Whoever is told of the new world does not take it well.
struct Panics {
    control: Arc<Control>,
    remembered: Mutex<Option<usize>>,
}

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        *self.remembered.lock().unwrap() = Some(self.control.received().len());
        panic!("a defect behind the publication");
    }
}

fn control() -> (Arc<WorldStore>, Arc<Control>, Readiness) {
    let store = Arc::new(WorldStore::new(Sources::of_table(IdentityTable::default())));
    let readiness = Readiness::default();
    let control = Control::new(Arc::clone(&store), Arc::default(), readiness.pending("first policy"));
    (store, Arc::new(control), readiness)
}

fn received(id: u64) -> Received {
    let policy = cilium::NetworkPolicy {
        endpoint_ips: vec![format!("10.0.0.{id}")],
        endpoint_id: id,
        ..cilium::NetworkPolicy::default()
    };
    Received::new(id.to_string(), Arc::new(policy), None, None)
}

#[tokio::test]
async fn what_is_in_force_is_never_refused() {
    let (store, control, readiness) = control();
    let mut worlds = store.subscribe();
    let mut told = pin!(worlds.changed());
    let panics = Arc::new(Panics { control: Arc::clone(&control), remembered: Mutex::default() });
    let waker = Arc::clone(&panics).into();
    assert!(matches!(told.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending));
    let update = vec![received(1), received(2)];
    let update = control.update_policies(update, Vec::new(), ClaimOrder::BeginsAnew).await;
    let in_force = || store.load().policy.endpoints().map(|policy| policy.endpoint_id()).collect::<Vec<_>>();
    assert_eq!((update.is_ok(), in_force().len()), (true, 2), "it is in force");
    assert_eq!(*panics.remembered.lock().unwrap(), Some(0), "and was not shown before");
    assert!(control.received().len() == 2 && readiness.waiting_for().is_empty());
    let place = FilePlace { file: std::path::Path::new("1.yaml").into(), line: None };
    let mut files = PolicyFiles::new(Arc::clone(&control));
    files.replace(vec![(received(1).policy, place)]).await;
    assert_eq!(in_force(), [1], "and what was in force goes");
}

/// What cannot be finished is told as refused, so none of it stays.
#[tokio::test]
async fn of_first_policies_that_fail_nothing_stays_in_force() {
    let (store, control, readiness) = control();
    let mut some = store.load().policy.update();
    for received in [received(1), received(2)] {
        let policy = NetworkPolicy::try_from(&*received.policy).unwrap();
        some.insert(&received.name, store.load().policy.draft(policy, &Limits::default()));
    }
    control.publish_some(some.build(), [IpAddr::from([10, 0, 0, 9])].into());
    assert_eq!((store.load().policy.endpoint_count(), readiness.is_ready()), (2, false));
    control.take_back(&["1".to_owned(), "3".to_owned()]);
    let ids: Vec<u64> = store.load().policy.endpoints().map(EndpointPolicy::endpoint_id).collect();
    assert_eq!((ids, store.load().has_policy), (vec![2], false));
    control.update_policies(vec![received(1)], Vec::new(), ClaimOrder::BeginsAnew).await.unwrap();
    assert!(readiness.is_ready() && store.load().coming.is_empty());
    control.take_back(&["1".to_owned()]);
    assert_eq!(store.load().policy.endpoint_count(), 2, "of what is whole the last good state stays");
}

#[tokio::test]
async fn a_new_stream_forgets_who_claimed_an_address_first() {
    let (store, control, _) = control();
    let claims = |id, address: &str| {
        let mut received = received(id);
        Arc::make_mut(&mut received.policy).endpoint_ips = vec![address.to_owned()];
        received
    };
    let update = async |changed, order| control.update_policies(changed, Vec::new(), order).await.unwrap();
    let owners = || store.load().policy.endpoint(&EndpointKey::parse("10.0.0.1")).count();
    update(vec![claims(1, "10.0.0.1")], ClaimOrder::BeginsAnew).await;
    update(vec![claims(2, "10.0.0.1")], ClaimOrder::Continues).await;
    let mut broken = claims(1, "10.0.0.1");
    Arc::make_mut(&mut broken.policy).endpoint_ips.clear();
    update(vec![broken], ClaimOrder::Continues).await;
    update(vec![claims(1, "10.0.0.1")], ClaimOrder::Continues).await;
    assert_eq!(store.load().policy.endpoint(&EndpointKey::parse("10.0.0.1")).next().unwrap().endpoint_id(), 2);
    assert_eq!(owners(), 1, "the latest claim counts, and a repair is none");
    update(Vec::new(), ClaimOrder::BeginsAnew).await;
    assert_eq!(owners(), 2, "nothing says any more which is the latest");
    let generation = store.load().generation;
    update(Vec::new(), ClaimOrder::BeginsAnew).await;
    assert_eq!(store.load().generation, generation, "open flows are not judged again for nothing");
}

/// A rule on port 80 that would admit everybody, with bytes of a field from the future in it.
fn admits_with_unknown_field(rule_suffix: &[u8], entry_suffix: &[u8]) -> bool {
    let nested = |tag: u8, bytes: &[u8]| [&[tag, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let rule = nested(0x1a, &[&nested(0x2a, b"r")[..], rule_suffix].concat());
    let entry = nested(0x1a, &[&[0x08, 80][..], &rule, entry_suffix].concat());
    let bytes = [&nested(0x0a, b"10.0.0.1")[..], &[0x10, 69], &entry].concat();
    let policy = cilium::NetworkPolicy::decode(&bytes[..]).unwrap();
    let mut model = NetworkPolicy::try_from(&policy).unwrap();
    set_unknown_fields_aside(&mut model, &bytes);
    let mut builder = Snapshot::empty().update();
    builder.replace_all([model]);
    let endpoint = EndpointKey::parse("10.0.0.1");
    let flow = Flow {
        direction: Direction::Ingress,
        endpoint: &endpoint,
        remote: SecurityId(7),
        port: 80,
        proxy_id: 0,
        server_name: ServerName::Unknown,
    };
    !matches!(builder.build().evaluate_connection(&flow), ConnectionVerdict::Deny { .. })
}

#[test]
fn a_problem_is_news_once_and_again_after_it_was_gone() {
    let mut warned = Warned::default();
    let mut keep =
        |subject, problems: &[&str]| warned.keep(subject, problems.iter().map(|&problem| problem.to_owned()).collect());
    assert_eq!(keep("1", &["b", "a", "b"]), ["a", "b"]);
    assert_eq!(keep("1", &["c", "b"]), ["c"]);
    assert_eq!(keep("2", &["b"]), ["b"]);
    assert_eq!(keep("1", &["a", "b", "c"]), ["a"]);
}

#[test]
fn a_field_from_the_future_never_widens_a_rule() {
    let unknown = [0x98, 0x06, 0x01];
    assert!(admits_with_unknown_field(&[], &[]));
    assert!(!admits_with_unknown_field(&unknown, &[]));
    assert!(!admits_with_unknown_field(&[], &unknown));
}

/// It is a mistake in a policy, not a permission for others.
#[tokio::test]
async fn what_an_unusable_policy_claims_nobody_decides_alone() {
    for (id, addresses) in [(0, &["10.0.0.1"][..]), (7, &["", "10.0.0.1"])] {
        let (store, control, _) = control();
        let mut other = received(5);
        let all = cilium::PortNetworkPolicy::default();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let policy = Arc::make_mut(&mut other.policy);
        policy.endpoint_ips = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        policy.ingress_per_port_policies = vec![all.clone()];
        let mut unusable = received(id);
        let policy = Arc::make_mut(&mut unusable.policy);
        (policy.endpoint_ips, policy.ingress_per_port_policies) = (addresses, vec![all]);
        control.update_policies(vec![other, unusable], Vec::new(), ClaimOrder::BeginsAnew).await.unwrap();
        let refused: Vec<String> = control.refused().into_iter().map(|refused| refused.name).collect();
        assert_eq!(refused, [id.to_string()]);
        let admits = |endpoint: &str| {
            let endpoint = EndpointKey::parse(endpoint);
            let (direction, remote, server_name) = (Direction::Ingress, SecurityId(7), ServerName::Unknown);
            let flow = Flow { direction, endpoint: &endpoint, remote, port: 80, proxy_id: 0, server_name };
            !matches!(store.load().policy.evaluate_connection(&flow), ConnectionVerdict::Deny { .. })
        };
        assert_eq!((admits("10.0.0.1"), admits("10.0.0.2")), (false, true), "{id}");
    }
}
