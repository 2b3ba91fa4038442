use std::num::{NonZeroU32, NonZeroU64};
use std::pin::pin;
use std::task::{Context, Wake};
use std::time::Duration;

use prost::Message as _;
use tokio::time::sleep;
use tollgate_policy::{EndpointPolicy, Limits};
use tollgate_proto::cilium;
use tollgate_proto::json::network_policy_from_json;

use super::budget::{Allowance, Owner};
use super::terms::MEMORY;
use super::*;
use crate::control::{Received, WorldStore};
use crate::identity::{IdentityTable, Sources};
use crate::readiness::Readiness;
use crate::tenant::{Books, Delivered, Group, Member, PolicyBudget, Registry, Settings, TenantConfig};

/// Endpoints from 100 on are in a group that may compile for a millisecond each second.
const POOR: u64 = 100;

fn group(policy: PolicyBudget) -> Group {
    Group {
        name: "poor".into(),
        members: (POOR..POOR + 10).map(Member::Endpoint).collect(),
        settings: Settings { policy, ..Settings::default() },
    }
}

fn poor() -> PolicyBudget {
    PolicyBudget { compile_millis_per_second: NonZeroU32::new(1), ..PolicyBudget::default() }
}

fn control() -> Arc<Control> {
    let tenants = TenantConfig { groups: vec![group(poor())], ..TenantConfig::default() };
    let registry = Registry::new(Arc::new(Books::default()), tenants);
    let store = WorldStore::with_tenants(Sources::of_table(IdentityTable::default()), registry);
    Arc::new(Control::new(Arc::new(store), Arc::default(), Readiness::default().pending("first policy")))
}

fn with_paths(endpoint: u64, paths: impl Iterator<Item = String>) -> Received {
    let rule =
        |path: String| serde_json::json!({ "headers": [{ "name": ":path", "safeRegexMatch": { "regex": path } }] });
    let rules: Vec<_> = paths.map(rule).collect();
    let policy = serde_json::json!({
        "endpointId": endpoint.to_string(),
        "endpointIps": [format!("10.0.0.{endpoint}")],
        "ingressPerPortPolicies": [{ "port": 80, "rules": [{ "httpRules": { "httpRules": rules } }] }],
    });
    let policy: cilium::NetworkPolicy = network_policy_from_json(&policy.to_string()).unwrap();
    Received::new(endpoint.to_string(), Arc::new(policy), None, None)
}

/// More than five milliseconds' work.
fn heavy(endpoint: u64, word: &str) -> Received {
    with_paths(endpoint, (0..100).map(|i| format!("/{word}{i}.*x.{{50}}")))
}

fn light(endpoint: u64) -> Received {
    with_paths(endpoint, std::iter::once("/[a-z]".to_owned()))
}

async fn update(control: &Arc<Control>, changed: Vec<Received>) {
    control.update_policies(changed, Vec::new(), ClaimOrder::Continues).await.unwrap();
}

fn is_unfinished(control: &Control, endpoint: u64) -> bool {
    control.store().load().policy.policy(&endpoint.to_string()).is_some_and(EndpointPolicy::is_unfinished)
}

async fn put(control: &Arc<Control>, ready: background::Ready) {
    let control = Arc::clone(control);
    run_soon(move || control.put(vec![ready])).await.unwrap();
}

async fn finished(control: &Control, endpoint: u64) {
    for _ in 0..6000 {
        if !is_unfinished(control, endpoint) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("endpoint {endpoint} is not finished after a minute");
}

/// Says that there is a thread already, so that none begins.
fn hold_the_background(control: &Control) {
    let (owner, allowance) = (Owner::Endpoint(0), Allowance::of(&Settings::default()));
    let terms = Terms { owner, allowance, limits: Limits::default(), memory: MEMORY };
    for haste in [Haste::Soon, Haste::Late] {
        assert!(control.background().add(haste, "nobody", terms, 0));
    }
}

async fn run_the_background(control: &Arc<Control>) {
    for haste in [Haste::Soon, Haste::Late] {
        run_soon(Arc::clone(control).into_background(haste)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_beyond_the_budget_of_its_tenant_comes_later_and_denies_until_then() {
    let control = control();
    hold_the_background(&control);
    update(&control, vec![light(1), heavy(POOR, "a"), light(POOR + 1), heavy(2, "b")]).await;
    assert!(!is_unfinished(&control, 1) && !is_unfinished(&control, 2), "others have a budget of their own");
    assert!(!is_unfinished(&control, POOR + 1), "what is cheap is not held up by what is not");
    let quarantined = || {
        let world = control.store().load().clone();
        world.policy.quarantined().map(|entry| entry.to_string()).collect::<Vec<_>>()
    };
    assert!(is_unfinished(&control, POOR));
    let found = quarantined();
    assert!(found.len() == 1 && found[0].starts_with("100 ") && found[0].contains("in the background"), "{found:?}");
    // What has nothing to do with it is in force at once meanwhile.
    update(&control, vec![light(3)]).await;
    assert!(is_unfinished(&control, POOR) && !is_unfinished(&control, 3));
    run_the_background(&control).await;
    assert_eq!((control.store().load().policy.endpoint_count(), quarantined()), (5, vec![]));
    // And then by itself.
    update(&control, vec![heavy(POOR, "c")]).await;
    finished(&control, POOR).await;
}

#[tokio::test]
async fn the_background_puts_nothing_in_force_that_is_not_wanted_any_more() {
    let control = control();
    hold_the_background(&control);
    let (owner, allowance) = (Owner::Endpoint(POOR), Allowance::of(&Settings::default()));
    let terms = Terms { owner, allowance, limits: Limits::default(), memory: MEMORY };
    update(&control, vec![heavy(POOR, "a")]).await;
    assert!(is_unfinished(&control, POOR));
    let name = POOR.to_string();
    let (old, same) =
        (control.prepare(&name, terms, Haste::Late).unwrap(), control.prepare(&name, terms, Haste::Late).unwrap());
    update(&control, vec![heavy(POOR, "b")]).await;
    let generation = control.store().load().policy.generation();
    put(&control, old).await;
    assert!(is_unfinished(&control, POOR) && control.store().load().policy.generation() == generation);
    update(&control, vec![heavy(POOR, "a")]).await;
    put(&control, same).await;
    assert!(!is_unfinished(&control, POOR), "it holds again what was compiled");
    let gone = control.prepare(&name, terms, Haste::Late);
    assert!(gone.is_none(), "nothing to do");
    update(&control, vec![heavy(POOR, "c")]).await;
    let ready = control.prepare(&name, terms, Haste::Late).unwrap();
    control.update_policies(Vec::new(), vec![name.clone()], ClaimOrder::Continues).await.unwrap();
    put(&control, ready).await;
    assert_eq!(control.store().load().policy.endpoint_count(), 0, "a policy that is gone stays gone");
}

#[tokio::test]
async fn the_same_again_is_not_compiled_again() {
    let control = control();
    update(&control, vec![heavy(2, "a")]).await;
    let spent = || {
        let owner = Owner::Endpoint(2);
        control.budgets().balance(owner, Allowance::of(&Settings::default()), Instant::now())
    };
    // More than five milliseconds of work, and as much time has hardly passed.
    let before = spent();
    for _ in 0..50 {
        update(&control, vec![heavy(2, "a")]).await;
    }
    assert!(spent() >= before, "{} then {}", before, spent());
}

#[tokio::test]
async fn other_limits_count_for_what_is_in_force() {
    let control = control();
    update(&control, vec![light(POOR), with_paths(1, ["/a.".to_owned(), "/b.".to_owned()].into_iter())]).await;
    let quarantined = || control.store().load().policy.quarantined_count();
    assert_eq!(quarantined(), 0);
    let of = |rules| Group {
        name: "one".into(),
        members: vec![Member::Endpoint(1)],
        ..group(PolicyBudget { rules: NonZeroU32::new(rules), ..poor() })
    };
    let deliver = |rules| {
        control.replace_tenants(
            vec![Delivered { origin: "resource one".into(), group: Ok(of(rules)), left_out: Vec::new() }],
            ClaimOrder::Continues,
        )
    };
    deliver(2);
    for _ in 0..6000 {
        if quarantined() == 1 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(quarantined(), 1, "three rules, and two are the most");
    deliver(3);
    for _ in 0..6000 {
        if quarantined() == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(quarantined(), 0);
}

/// What is in force goes on as it is until it is compiled within other limits: nobody is denied because a limit was changed.
#[tokio::test]
async fn other_limits_deny_nobody_meanwhile() {
    let control = control();
    update(&control, vec![heavy(2, "a")]).await;
    let limits = || control.store().load().policy.policy("2").unwrap().limits();
    let before = limits();
    let deliver = |rules, memory_bytes| {
        let policy =
            PolicyBudget { rules: NonZeroU32::new(rules), memory_bytes: NonZeroU64::new(memory_bytes), ..poor() };
        let few = Group { name: "few".into(), members: vec![Member::Endpoint(2)], ..group(policy) };
        let control = Arc::clone(&control);
        async move {
            let delivered = Delivered { origin: "resource few".into(), group: Ok(few), left_out: Vec::new() };
            control.store().publish_tenants(vec![delivered], ClaimOrder::Continues);
            control.compile_within_new_limits().await.unwrap();
        }
    };
    hold_the_background(&control);
    deliver(60_000, 64 << 20).await;
    assert!(!is_unfinished(&control, 2) && limits() == before, "it is kept, and waits");
    // The same policy, sent again.
    update(&control, vec![heavy(2, "a")]).await;
    assert!(!is_unfinished(&control, 2) && limits() == before);
    // Another one is another one.
    update(&control, vec![heavy(2, "c")]).await;
    assert!(is_unfinished(&control, 2));
    run_the_background(&control).await;
    assert!(!is_unfinished(&control, 2) && limits().rules == 60_000);
    // Where it does not fit, what is there stays.
    hold_the_background(&control);
    deliver(50_000, 1).await;
    run_the_background(&control).await;
    assert!(without_room(&control).is_empty() && limits().rules == 60_000);
    assert_eq!(control.policy_memory().0, world_bytes(&control), "each form once");
}

#[tokio::test]
async fn tenants_pay_for_compiling() {
    let control = control();
    hold_the_background(&control);
    update(&control, vec![heavy(POOR, "a"), light(1), heavy(2, "b")]).await;
    let compiled = |name: &str| {
        let tallies = control.store().tenants().books().tallies();
        tallies.iter().find(|tally| &*tally.name == name).map(|tally| tally.totals.compile_ns).unwrap()
    };
    let (light, heavy, provisional) = (compiled("endpoint-1"), compiled("endpoint-2"), compiled("poor"));
    assert!(light > 0 && heavy > light && provisional > 0, "{light}, {heavy}, {provisional}");
    run_the_background(&control).await;
    assert!(compiled("poor") > provisional);
    assert_eq!((compiled("endpoint-1"), compiled("endpoint-2")), (light, heavy), "nobody else does");
}

/// However many tenants there are, each of which has its budget.
#[tokio::test]
async fn an_update_waits_for_so_much_in_all() {
    let control = control();
    hold_the_background(&control);
    update(&control, vec![light(1)]).await;
    let words = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".chars();
    let policies = words.zip(2..).map(|(word, endpoint)| heavy(endpoint, &word.to_string()));
    let mut policies: Vec<Received> = policies.collect();
    policies.push(light(60));
    update(&control, policies).await;
    let unfinished: Vec<u64> = (1..=60).filter(|endpoint| is_unfinished(&control, *endpoint)).collect();
    assert!(!unfinished.is_empty() && unfinished.len() < 52, "{unfinished:?}");
    assert!(!is_unfinished(&control, 60), "the small are not held up");
    // What is within its tenants' budgets does not wait behind what is beyond.
    run_soon(Arc::clone(&control).into_background(Haste::Soon)).await.unwrap();
    assert_eq!(control.store().load().policy.unfinished_count(), 0);
}

/// About 600 KB.
fn large(endpoint: u64, rules: u32) -> Received {
    with_paths(endpoint, (0..rules).map(|i| format!("/{endpoint}/of-{rules}/{i}")))
}

fn without_room(control: &Control) -> Vec<u64> {
    let world = control.store().load().clone();
    let denying = world.policy.endpoints().filter(|policy| policy.without_room().is_some());
    denying.map(|policy| policy.endpoint_id()).collect()
}

async fn until(control: &Control, expected: &[u64]) {
    for _ in 0..6000 {
        if without_room(control) == expected {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(without_room(control), expected, "after a minute");
}

/// Endpoints 1 to 9 are in a group whose policies may take so many bytes.
fn few(control: &Arc<Control>, bytes: u64) {
    let few = Group {
        name: "few".into(),
        members: (1..10).map(Member::Endpoint).collect(),
        ..group(PolicyBudget { memory_bytes: NonZeroU64::new(bytes), ..PolicyBudget::default() })
    };
    let delivered = Delivered { origin: "resource one".into(), group: Ok(few), left_out: Vec::new() };
    control.replace_tenants(vec![delivered], ClaimOrder::Continues);
}

/// Bytes of the tenant, and its rules, which are in force.
fn held(control: &Control, name: &str) -> (u64, u64) {
    let tallies = control.store().tenants().books().tallies();
    let tally = tallies.iter().find(|tally| &*tally.name == name).unwrap();
    (tally.totals.policy_bytes, tally.totals.policy_rules)
}

#[tokio::test]
async fn who_has_no_room_denies_alone_until_there_is_some() {
    let control = control();
    few(&control, 1 << 20);
    update(&control, vec![large(1, 600), large(2, 600), large(20, 2000), light(3)]).await;
    assert_eq!(without_room(&control), [2], "both together are too much, and what else there is is not");
    let world = control.store().load().clone();
    let found: Vec<String> = world.policy.quarantined().map(|entry| entry.to_string()).collect();
    assert!(found.len() == 1 && found[0].contains("policy.memory") && found[0].contains("bytes"), "{found:?}");
    let ((few_bytes, few_rules), (other_bytes, other_rules)) = (held(&control, "few"), held(&control, "endpoint-20"));
    assert!((500_000..1 << 20).contains(&few_bytes) && other_bytes > 1 << 20, "{few_bytes}, {other_bytes}");
    assert_eq!((few_rules, other_rules), (601 + 2, 2001), "what denies is not in force");
    // It is not waited for, and another policy of the tenant has room.
    update(&control, vec![large(4, 50)]).await;
    assert_eq!(without_room(&control), [2]);
    // One that takes no more than the one before has room in any case.
    update(&control, vec![large(1, 590)]).await;
    assert_eq!(without_room(&control), [2]);
    // What another policy gives back is room, and so is what settings say.
    control.update_policies(Vec::new(), vec!["1".to_owned()], ClaimOrder::Continues).await.unwrap();
    until(&control, &[]).await;
    update(&control, vec![large(5, 601)]).await;
    assert_eq!(without_room(&control), [5]);
    few(&control, 2 << 20);
    until(&control, &[]).await;
}

#[tokio::test]
async fn policies_have_a_part_of_the_memory_and_one_tenant_half_of_that() {
    let control = control();
    control.share_memory(Some(16 << 20));
    update(&control, vec![large(20, 1200), large(21, 1000), large(22, 500), light(1)]).await;
    assert!(without_room(&control).is_empty(), "as much as fits");
    update(&control, vec![large(23, 4000), large(24, 300), light(2)]).await;
    assert_eq!(without_room(&control), [23], "half of what is left, and a little is everybody's");
    let (bytes, most) = control.policy_memory();
    assert!(bytes <= 4 << 20 && most == Some(4 << 20), "{bytes} of {most:?}");
    let mut gone: Vec<String> = [20, 21, 22].map(|id| id.to_string()).into();
    control.update_policies(Vec::new(), std::mem::take(&mut gone), ClaimOrder::Continues).await.unwrap();
    assert_eq!(without_room(&control), [23], "more than half of all");
    control.share_memory(Some(64 << 20));
    update(&control, vec![light(4)]).await;
    until(&control, &[]).await;
}

/// Both directions, each with so many rules of its own.
fn both(endpoint: u64, ingress: u32, egress: u32) -> Received {
    let mut received = large(endpoint, ingress);
    let other = large(endpoint + 100, egress).policy;
    Arc::make_mut(&mut received.policy).egress_per_port_policies = other.ingress_per_port_policies.clone();
    received
}

#[tokio::test]
async fn a_direction_that_stays_is_no_room_for_the_other_one() {
    let control = control();
    few(&control, 1 << 20);
    update(&control, vec![both(1, 600, 1)]).await;
    assert!(without_room(&control).is_empty());
    update(&control, vec![both(1, 600, 900)]).await;
    assert_eq!((without_room(&control), held(&control, "few").1), (vec![1], 601));
    update(&control, vec![both(1, 300, 300)]).await;
    assert!(without_room(&control).is_empty());
    let (bytes, rules) = held(&control, "few");
    assert!(bytes < 1 << 20 && rules == 602, "{bytes} bytes, {rules} rules");
    // What somebody else has already costs this tenant as much.
    update(&control, vec![large(20, 2000)]).await;
    let mut same = large(20, 2000);
    same.name = "2".to_owned();
    let policy = Arc::make_mut(&mut same.policy);
    (policy.endpoint_id, policy.endpoint_ips) = (2, vec!["10.0.0.2".to_owned()]);
    update(&control, vec![same.clone()]).await;
    let (after, same_rules) = held(&control, "few");
    assert!(
        without_room(&control) == [2] && after < bytes + 1000 && same_rules == rules,
        "{after} bytes, {same_rules} rules"
    );
    let generation = control.store().load().policy.generation();
    update(&control, vec![same]).await;
    assert_eq!(without_room(&control), [2]);
    let world = control.store().load().clone();
    assert!(world.policy.generation() <= generation + 1);
    few(&control, 4 << 20);
    until(&control, &[]).await;
    assert_eq!(control.policy_memory().0, world_bytes(&control), "each form once");
}

fn world_bytes(control: &Control) -> usize {
    let world = control.store().load().clone();
    let forms: std::collections::HashSet<_> = world.policy.endpoints().flat_map(EndpointPolicy::forms).collect();
    forms.iter().map(|form| form.bytes).sum()
}

#[tokio::test]
async fn what_is_not_wanted_any_more_makes_room() {
    let control = control();
    few(&control, 1 << 20);
    hold_the_background(&control);
    let remove = async |name: &str| {
        control.update_policies(Vec::new(), vec![name.to_owned()], ClaimOrder::Continues).await.unwrap();
    };
    update(&control, vec![large(1, 600)]).await;
    update(&control, vec![large(2, 600)]).await;
    assert_eq!(without_room(&control), [2]);
    remove("1").await;
    let terms = Terms::in_force(control.store().load().policy.policy("2").unwrap(), &control.store().load().tenants);
    let ready = control.prepare("2", terms, Haste::Late).unwrap();
    update(&control, vec![large(3, 600)]).await;
    assert_eq!(without_room(&control), [2, 3], "what is compiled and not in force yet has its room");
    remove("2").await;
    put(&control, ready).await;
    run_the_background(&control).await;
    until(&control, &[]).await;
    // Nor does anything keep it that ends in a panic.
    few(&control, 2 << 20);
    let room = || control.holdings().room("4", terms.owner, 2 << 20, [None, None]);
    hold_the_background(&control);
    let before = room();
    update(&control, vec![large(4, 3000)]).await;
    let terms = Terms { memory: 8 << 20, ..terms };
    let ready = control.prepare("4", terms, Haste::Late).unwrap();
    let taken = room();
    let ended = std::thread::spawn(move || {
        let _ready = ready;
        panic!("meant to be");
    });
    assert!(ended.join().is_err());
    assert!(taken < before && room() == before, "{before}, {taken}, {}", room());
}

/// Endpoint ids of what is in force.
fn in_force(control: &Control) -> Vec<u64> {
    control.store().load().policy.endpoints().map(|policy| policy.endpoint_id()).collect()
}

/// Remembers what is in force when it is told for the first time.
struct AtFirst {
    control: Arc<Control>,
    seen: std::sync::Mutex<Option<(Vec<u64>, bool, usize)>>,
}

impl Wake for AtFirst {
    fn wake(self: Arc<Self>) {
        let world = self.control.store().load().clone();
        *self.seen.lock().unwrap() = Some((in_force(&self.control), world.has_policy, world.coming.len()));
    }
}

/// Who has a small policy does not wait for a large one, and who waits for his own is not refused.
#[tokio::test]
async fn what_is_small_of_the_first_policies_is_in_force_first() {
    let control = control();
    hold_the_background(&control);
    let mut worlds = control.store().subscribe();
    let mut told = pin!(worlds.changed());
    let at_first = Arc::new(AtFirst { control: Arc::clone(&control), seen: std::sync::Mutex::default() });
    let waker = Arc::clone(&at_first).into();
    assert!(told.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    // Two claim an address, of which one is large.
    let mut shared = light(3);
    Arc::make_mut(&mut shared.policy).endpoint_ips.push("10.0.0.20".to_owned());
    update(&control, vec![large(20, 1000), large(21, 1100), shared, light(1), light(2)]).await;
    let seen = at_first.seen.lock().unwrap().take();
    assert_eq!(seen, Some((vec![1, 2], false, 3)));
    let world = control.store().load().clone();
    assert_eq!((in_force(&control), world.has_policy), (vec![1, 2, 20, 21, 3], true));
    assert!(world.coming.is_empty() && world.policy.unfinished_count() == 0);
    assert_eq!(world.policy.conflicts().map(|conflict| conflict.enforced.len()).collect::<Vec<_>>(), [2]);
    let generation = world.policy.generation();
    update(&control, vec![light(5), large(22, 1000)]).await;
    assert_eq!(control.store().load().policy.generation(), generation + 1, "an update is one world");
}

/// However small it is, and whoever has less to compile.
#[tokio::test]
async fn much_work_of_one_tenant_pushes_no_other_out_of_an_update() {
    let control = control();
    hold_the_background(&control);
    update(&control, vec![light(1)]).await;
    // More than an update waits for, in policies that are smaller than those of the others.
    let many = || (2..60).map(|endpoint| heavy(endpoint, &format!("/{endpoint}")));
    let others = [150, 151, 152, 153];
    let plain = |endpoint| with_paths(endpoint, (0..200).map(|i| format!("/{endpoint}/of-these/{i}")));
    assert!(plain(150).policy.encoded_len() > many().map(|heavy| heavy.policy.encoded_len()).max().unwrap());
    update(&control, many().chain(others.map(plain)).collect()).await;
    let unfinished = |ids: &[u64]| ids.iter().filter(|id| is_unfinished(&control, **id)).count();
    assert_eq!(unfinished(&others), 0, "each of the many is a tenant, too");
    assert!(unfinished(&(2..60).collect::<Vec<_>>()) > 10);
    // And one who has them all.
    let group = Group {
        name: "one".into(),
        members: (2..60).map(Member::Endpoint).collect(),
        ..group(PolicyBudget { compile_millis_per_second: NonZeroU32::new(1000), ..PolicyBudget::default() })
    };
    let delivered = Delivered { origin: "resource one".into(), group: Ok(group), left_out: Vec::new() };
    control.store().publish_tenants(vec![delivered], ClaimOrder::Continues);
    let again = (2..60).map(|endpoint| heavy(endpoint, &format!("/again{endpoint}")));
    let others = [154, 155, 156];
    update(&control, again.chain(others.map(|endpoint| heavy(endpoint, &format!("/other{endpoint}")))).collect()).await;
    assert_eq!(unfinished(&others), 0, "heavy ones of others have their turn");
    assert!(unfinished(&(2..60).collect::<Vec<_>>()) > 10);
}

/// An update is acknowledged, and what it does not wait for is compiled as soon as there is a thread.
#[tokio::test]
async fn without_threads_an_update_is_in_force_and_the_background_begins_later() {
    let control = control();
    let shortage = Shortage::begin();
    update(&control, vec![light(1), heavy(POOR, "a")]).await;
    assert!(!is_unfinished(&control, 1) && is_unfinished(&control, POOR));
    let retries = tokio::spawn(Arc::clone(&control).retry_background());
    drop(shortage);
    finished(&control, POOR).await;
    retries.abort();
}
