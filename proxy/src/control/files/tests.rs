use std::num::NonZeroU32;
use std::sync::mpsc;

use tollgate_policy::EndpointPolicy;
use tollgate_proto::json::network_policy_from_json;

use super::*;
use crate::control::WorldStore;
use crate::control::compile::Shortage;
use crate::identity::{IdentityTable, Sources};
use crate::readiness::Readiness;
use crate::tenant::{Books, Group, Member, PolicyBudget, Registry, Settings, TenantConfig};

/// It may compile for a millisecond each second.
const POOR: u64 = 9;

fn files() -> PolicyFiles {
    let policy = PolicyBudget { compile_millis_per_second: NonZeroU32::new(1), ..PolicyBudget::default() };
    let settings = Settings { policy, ..Settings::default() };
    let poor = Group { name: "poor".into(), members: vec![Member::Endpoint(POOR)], settings };
    let tenants = TenantConfig { groups: vec![poor], ..TenantConfig::default() };
    let registry = Registry::new(Arc::new(Books::default()), tenants);
    let store = WorldStore::with_tenants(Sources::of_table(IdentityTable::default()), registry);
    let first = Readiness::default().pending("first policy");
    PolicyFiles::new(Arc::new(Control::new(Arc::new(store), Arc::default(), first)))
}

type File = (Arc<cilium::NetworkPolicy>, FilePlace);

fn file(endpoint: u64, address: &str, rules: u32) -> File {
    let rule = |i| {
        let path = format!("/thing-{i}/[a-z]+");
        serde_json::json!({ "headers": [{ "name": ":path", "safeRegexMatch": { "regex": path } }] })
    };
    let rules: Vec<_> = (0..rules).map(rule).collect();
    let policy = serde_json::json!({
        "endpointId": endpoint.to_string(),
        "endpointIps": [address],
        "ingressPerPortPolicies": [{ "port": 80, "rules": [{ "httpRules": { "httpRules": rules } }] }],
    });
    let policy = network_policy_from_json(&policy.to_string()).unwrap();
    let place = FilePlace { file: std::path::Path::new("1.json").into(), line: None };
    (Arc::new(policy), place)
}

fn small(endpoint: u64, rules: u32) -> File {
    file(endpoint, &format!("10.0.0.{endpoint}"), rules)
}

/// So many rules are too much to be waited for.
const MANY: u32 = 1000;

fn large(endpoint: u64, more: u32) -> File {
    small(endpoint, MANY + more)
}

async fn replace(files: &mut PolicyFiles, all: &[File]) {
    files.replace(all.to_vec()).await;
    assert_eq!(files.again, None);
}

/// Endpoint ids and HTTP rules of what is in force, but for what denies until it is compiled.
fn in_force(files: &PolicyFiles) -> Vec<(u64, usize)> {
    let world = files.control.store().load().clone();
    let whole = world.policy.endpoints().filter(|policy| !policy.is_unfinished());
    whole.map(|policy: &EndpointPolicy| (policy.endpoint_id(), policy.rule_count() - 1)).collect()
}

async fn put(files: &mut PolicyFiles) {
    let event = files.next().await;
    files.follow(event).await;
}

const LARGE_ONE: usize = MANY as usize;

#[tokio::test]
async fn a_large_policy_holds_up_no_other_and_what_was_before_stays() {
    let mut files = files();
    replace(&mut files, &[small(1, 1), large(2, 1)]).await;
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE + 1)], "the first time all at once");
    replace(&mut files, &[large(2, 2), small(1, 2), large(3, 0)]).await;
    assert_eq!(in_force(&files), [(1, 2), (2, LARGE_ONE + 1)], "nothing is refused meanwhile, or let in");
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 2), (2, LARGE_ONE + 1), (3, LARGE_ONE)], "the smaller one first");
    put(&mut files).await;
    let all = [(1, 2), (2, LARGE_ONE + 2), (3, LARGE_ONE)];
    assert_eq!(in_force(&files), all);
    assert_eq!(files.control.places().len(), 3);
    // The same again changes nothing, wherever it stands.
    let generation = files.control.store().load().generation;
    let mut again = [small(1, 2), large(2, 2), large(3, 0)];
    again[1].1.line = Some(7);
    replace(&mut files, &again).await;
    assert!(files.tasks.is_empty() && files.control.store().load().generation == generation);
    assert_eq!(files.control.places()["2"].line, Some(7));
}

#[tokio::test]
async fn what_is_newer_counts() {
    let mut files = files();
    replace(&mut files, &[large(1, 0), large(2, 0), small(3, 3)]).await;
    replace(&mut files, &[large(1, 1), large(2, 1), small(3, 3)]).await;
    // One is under way, and the other one waits.
    replace(&mut files, &[small(1, 1), large(2, 2), small(3, 3)]).await;
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE), (3, 3)]);
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE), (3, 3)], "compiled for nothing");
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE + 2), (3, 3)]);
    replace(&mut files, &[small(1, 1), large(2, 3)]).await;
    replace(&mut files, &[small(1, 1)]).await;
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 1)], "what is gone stays gone");
    assert!(files.tasks.is_empty() && files.control.policy_memory().0 < 1 << 16);
}

/// Else whoever changes a file all the time would keep in force what it said at first.
#[tokio::test]
async fn what_is_changed_all_the_time_comes_into_force_step_by_step() {
    let mut files = files();
    files.patience = Duration::from_secs(60); // however slow this machine is
    replace(&mut files, &[small(1, 1), large(2, 0), small(3, 1)]).await;
    replace(&mut files, &[small(1, 1), large(2, 1), small(3, 1)]).await;
    // Who corrects a mistake at once is not kept waiting for it to come into force.
    replace(&mut files, &[small(1, 1), large(2, 2), small(3, 1)]).await;
    put(&mut files).await;
    assert_eq!(in_force(&files)[1], (2, LARGE_ONE), "the first one");
    // But something does, in the end.
    let have_waited = |files: &mut PolicyFiles| files.under_way.as_mut().unwrap().since -= files.patience / 2;
    for more in 3..6 {
        have_waited(&mut files);
        replace(&mut files, &[small(1, 1), large(2, more), small(3, 1)]).await;
        put(&mut files).await;
        assert_eq!(in_force(&files)[1], (2, LARGE_ONE + more as usize - 1));
    }
    // Nor does it begin to wait anew, where others are compiled before it.
    have_waited(&mut files);
    replace(&mut files, &[large(1, 0), large(2, 6), small(3, 1)]).await;
    let since = |files: &PolicyFiles| files.waiting.iter().map(|one| (one.received.name.clone(), one.since)).collect();
    let before: HashMap<String, Instant> = since(&files);
    replace(&mut files, &[large(1, 0), large(2, 7), small(3, 1)]).await;
    let after: HashMap<String, Instant> = since(&files);
    assert_eq!((before.len(), &before), (2, &after));
    put(&mut files).await;
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, LARGE_ONE), (2, LARGE_ONE + 5), (3, 1)]);
    // One that is under way with another address is no step.
    replace(&mut files, &[large(1, 0), file(2, "10.0.0.7", MANY), small(3, 1)]).await;
    let generation = files.control.store().load().generation;
    put(&mut files).await;
    assert_eq!(files.control.store().load().generation, generation);
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, LARGE_ONE), (2, LARGE_ONE), (3, 1)]);
    assert!(files.tasks.is_empty() && files.waiting.is_empty());
}

/// Who claimed an address first must not depend on who takes how long.
#[tokio::test]
async fn who_shares_an_address_does_not_wait() {
    let mut files = files();
    replace(&mut files, &[small(1, 1)]).await;
    replace(&mut files, &[small(1, 1), file(2, "10.0.0.7", 2), file(3, "10.0.0.7", MANY)]).await;
    assert_eq!(in_force(&files), [(1, 1), (2, 2), (3, LARGE_ONE)]);
    let world = files.control.store().load().clone();
    assert_eq!(world.policy.endpoint(&EndpointKey::parse("10.0.0.7")).count(), 2, "both have to allow");
    // Nor does one that waits already.
    let mut all = vec![small(1, 1), file(2, "10.0.0.7", 2), file(3, "10.0.0.7", MANY), file(4, "10.0.0.8", MANY)];
    replace(&mut files, &all).await;
    assert_eq!(in_force(&files).len(), 3);
    all.push(file(5, "10.0.0.8", 1));
    replace(&mut files, &all).await;
    assert_eq!(in_force(&files).len(), 5);
    put(&mut files).await;
    assert!(files.tasks.is_empty() && in_force(&files).len() == 5);
    // What somebody has in force is not taken away by somebody who waits.
    replace(&mut files, &[small(1, 1), file(6, "10.0.0.7", MANY)]).await;
    assert_eq!(in_force(&files), [(1, 1), (6, LARGE_ONE)]);
}

/// What was there may allow what is forbidden now, and nobody knows when the rest is compiled: so it denies.
#[tokio::test]
async fn what_is_beyond_its_tenants_budget_denies_and_holds_up_nobody() {
    let mut files = files();
    replace(&mut files, &[small(1, 1), small(POOR, 1)]).await;
    replace(&mut files, &[small(1, 1), large(POOR, 0)]).await;
    put(&mut files).await;
    let waits = || {
        let world = files.control.store().load().clone();
        world.policy.policy(&POOR.to_string()).unwrap().is_unfinished()
    };
    for _ in 0..6000 {
        if !waits() {
            break;
        }
        assert_eq!(in_force(&files)[0], (1, 1), "others go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(in_force(&files), [(1, 1), (POOR, LARGE_ONE)], "and it is not the old one");
    assert!(files.tasks.is_empty());
}

/// What was there may allow what is forbidden now.
#[tokio::test]
async fn what_takes_too_long_denies_until_it_is_compiled() {
    let mut files = files();
    replace(&mut files, &[small(1, 1), small(2, 1), small(3, 1)]).await;
    replace(&mut files, &[small(1, 1), large(2, 0), large(3, 0)]).await;
    assert_eq!(in_force(&files), [(1, 1), (2, 1), (3, 1)]);
    files.patience = Duration::ZERO;
    files.follow(Event::Overdue).await;
    assert!(files.waiting.is_empty());
    let finished = |files: &PolicyFiles| in_force(files).len();
    assert!(!in_force(&files).iter().any(|&(id, rules)| id > 1 && rules == 1), "neither has what it had");
    for _ in 0..6000 {
        if finished(&files) == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE), (3, LARGE_ONE)]);
    put(&mut files).await;
    assert!(files.tasks.is_empty() && files.under_way.is_none());
    assert_eq!(in_force(&files).len(), 3, "what was compiled for nothing changes nothing");
}

/// Until somebody touches a file there would be no policy at all, or the one from before.
#[tokio::test]
async fn what_is_not_taken_over_is_tried_again_ever_later() {
    let mut files = files();
    let shortage = Shortage::with_defects(2);
    files.replace(vec![small(1, 1)]).await;
    assert!(in_force(&files).is_empty() && files.again.is_some() && files.pause > PAUSE);
    put(&mut files).await;
    assert!(in_force(&files).is_empty() && files.again.is_some() && files.pause > 2 * PAUSE);
    put(&mut files).await;
    assert_eq!((in_force(&files), files.again), (vec![(1, 1)], None));
    drop(shortage);
    // The same of a change, and of what was compiled beside updates and is not put in force.
    let shortage = Shortage::with_defects(1);
    files.replace(vec![small(1, 2)]).await;
    assert!(in_force(&files) == [(1, 1)] && files.pause == 2 * PAUSE);
    put(&mut files).await;
    assert_eq!((in_force(&files), files.again), (vec![(1, 2)], None));
    replace(&mut files, &[large(1, 0)]).await;
    let compiled = files.next().await;
    drop(shortage);
    let shortage = Shortage::with_defects(1);
    files.follow(compiled).await;
    assert!(in_force(&files) == [(1, 2)] && files.again.is_some());
    put(&mut files).await;
    assert!(files.under_way.is_some(), "it is compiled anew");
    put(&mut files).await;
    assert_eq!((in_force(&files), files.again), (vec![(1, LARGE_ONE)], None));
    drop(shortage);
}

/// The kernel may give none, for a while, and a denial must not wait for that.
#[tokio::test]
async fn without_a_thread_it_is_done_on_this_one() {
    let mut files = files();
    let shortage = Shortage::begin();
    replace(&mut files, &[small(1, 1), large(2, 0)]).await;
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE)]);
    replace(&mut files, &[small(1, 2), large(2, 1)]).await;
    assert_eq!(in_force(&files), [(1, 2), (2, LARGE_ONE)]);
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 2), (2, LARGE_ONE + 1)]);
    drop(shortage);
}

/// Else each failure would leave what an endpoint had in force for as long again.
#[tokio::test]
async fn what_waits_goes_on_waiting_when_others_are_not_taken_over() {
    let mut files = files();
    replace(&mut files, &[small(1, 1), small(2, 1)]).await;
    let shortage = Shortage::with_defects(1);
    files.replace(vec![small(1, 2), large(2, 0)]).await;
    drop(shortage);
    let failed = Instant::now();
    assert!(in_force(&files) == [(1, 1), (2, 1)] && files.again.is_some());
    files.take_over().await;
    assert_eq!((in_force(&files), files.again), (vec![(1, 2), (2, 1)], None));
    assert!(files.waiting.len() == 1 && files.waiting[0].since < failed);
    put(&mut files).await; // for nothing
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 2), (2, LARGE_ONE)]);
}

/// Else an endpoint whose file changes all the time would deny nearly all the time.
#[tokio::test]
async fn what_is_overdue_comes_into_force_all_the_same_unless_what_is_newer_denies() {
    let mut files = files();
    replace(&mut files, &[small(1, 1), large(2, 0)]).await;
    replace(&mut files, &[small(1, 1), large(2, 1)]).await;
    files.patience = Duration::ZERO;
    files.follow(Event::Overdue).await;
    assert!(files.under_way.as_ref().unwrap().is_wanted);
    files.patience = Duration::from_secs(60);
    put(&mut files).await;
    assert_eq!(in_force(&files), [(1, 1), (2, LARGE_ONE + 1)]);
    assert!(files.under_way.is_none());
    // What is newer counts also while it denies.
    replace(&mut files, &[small(1, 1), large(2, 2)]).await;
    files.under_way.as_mut().unwrap().since -= files.patience;
    files.follow(Event::Overdue).await;
    replace(&mut files, &[small(1, 1), large(2, 3)]).await;
    assert!(files.under_way.as_ref().unwrap().is_wanted && files.waiting.len() == 1);
    files.waiting[0].since -= files.patience;
    files.follow(Event::Overdue).await;
    assert!(!files.under_way.as_ref().unwrap().is_wanted && files.waiting.is_empty());
    put(&mut files).await;
    assert!(!in_force(&files).contains(&(2, LARGE_ONE + 2)));
}

#[tokio::test]
async fn a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one() {
    let parent = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (parent.path().join("policies"), parent.path().join("elsewhere"));
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("a.yaml"), "endpoint_id: 2\nendpoint_ips: [10.0.0.2]\n").unwrap();
    let directory = Directory::open(&path).unwrap();
    std::fs::rename(&path, &elsewhere).unwrap();
    let control = files().control;
    let until = async |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let observed = async {
        until(&|| !control.refused().is_empty()).await;
        // What would be taken over is before the next event.
        tokio::task::yield_now().await;
        assert!(!control.store().load().has_policy);
        std::fs::rename(&elsewhere, &path).unwrap();
        until(&|| control.store().load().has_policy).await;
        assert_eq!(control.store().load().policy.endpoint_count(), 1);
    };
    tokio::select! {
        () = Arc::clone(&control).follow_directory(directory) => unreachable!("it follows for ever"),
        observed = tokio::time::timeout(Duration::from_secs(60), observed) => observed.unwrap(),
    }
}

/// To free ten thousand rules takes as long as some hundred requests: no work for a thread that the kernel takes for as important as a
/// worker, whether they came into force or not.
#[tokio::test]
async fn large_policies_are_freed_aside() {
    /// Holds up whoever frees it.
    struct Stone(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Drop for Stone {
        fn drop(&mut self) {
            let _ = (self.0.send(()), self.1.recv());
        }
    }
    let mut files = files();
    let replaced = |file: &File| Arc::downgrade(&file.0);
    let (first, never, last) = (large(1, 0), large(1, 1), large(1, 2));
    let all = [&first, &never].map(replaced);
    replace(&mut files, &[first]).await;
    let ((begin, begun), (release, held_up)) = (mpsc::channel(), mpsc::channel());
    files.control.store().retired.free(Stone(begin, held_up));
    begun.recv().unwrap();
    replace(&mut files, &[never]).await;
    replace(&mut files, &[last]).await;
    put(&mut files).await;
    assert_eq!(all.each_ref().map(|policy| policy.strong_count() > 0), [true; 2], "nobody has freed them yet");
    drop(release);
    while all.iter().any(|policy| policy.strong_count() > 0) {
        std::thread::sleep(Duration::from_millis(1));
    }
}
