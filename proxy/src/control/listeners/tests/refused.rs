//! What a refused or unusable update leaves: identity maps, readiness, metrics.

use super::*;
use crate::metrics::Format;

#[tokio::test]
async fn a_refused_update_changes_no_maps_of_identities() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let (store, mut handler) = with_agents_identities(&asked, &report);
    let settings = |root: &str| IdentitySettings::of_bpf_root(Path::new(root), "cilium_ipcache_v2");
    // Where nothing is known yet, what is served has to know its peers.
    let first = with("a", |metadata| metadata.bpf_root = "/first".into());
    let taken = || with("taken", |metadata| metadata.bpf_root = "/taken".into());
    assert!(handler.apply(update(vec![first, taken()], &[])).await.is_err());
    assert_eq!(store.load().identities.settings(), &settings("/first"));
    let generation = store.load().generation;

    let second = || with("a", |metadata| metadata.bpf_root = "/second".into());
    assert!(handler.apply(update(vec![second(), taken()], &[])).await.is_err());
    assert_eq!(store.load().identities.settings(), &settings("/first"), "the update was refused");
    assert_eq!(store.load().generation, generation);
    assert!(report.read().ignored["a"].iter().any(|setting| setting.contains("other maps")), "and that is said");

    assert_eq!(handler.apply(update(vec![], &[])).await, Ok(()));
    assert_eq!(store.load().identities.settings(), &settings("/second"));
    assert!(!report.read().ignored.get("a").into_iter().flatten().any(|setting| setting.contains("other maps")));
}

#[tokio::test]
async fn a_node_without_a_listener_that_it_needs_is_not_ready() {
    let readiness = Readiness::default();
    let (asked, report) = (Arc::new(Asked::default()), Report::new(readiness.clone()));
    let mut handler = ListenerHandler::new(Arc::clone(&asked), report.clone(), DEFAULTS);
    let metrics = Metrics::new(1).0;
    metrics.watch_discovered_listeners(report);
    let not_served = || {
        let text = metrics.encode(Format::Prometheus).unwrap();
        let count = |reason| {
            let start = format!("tollgate_listeners_not_served{{reason=\"{reason}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().to_owned()
        };
        ["unsupported", "socket", "as_before"].map(count).join(" ")
    };
    let gateway = || with("gateway", |metadata| metadata.is_l7lb = true);
    let broken = || with("policy", |metadata| metadata.ipv4_source_address = "nonsense".into());
    let steps: [(_, &[&str], _, _); 9] = [
        (vec![], &[], true, "0 0 0"),
        (vec![gateway()], &[], true, "1 0 0"),
        (vec![broken()], &[], false, "2 0 0"),
        (vec![named("policy")], &[], true, "1 0 0"),
        (vec![broken()], &[], false, "2 0 0"),
        (vec![named("other")], &[], true, "2 0 0"),
        (vec![named("taken")], &[], true, "2 1 0"),
        (vec![named("taken")], &["policy", "other"], false, "1 1 0"),
        (vec![], &["gateway"], true, "0 0 0"),
    ];
    for (step, (changed, removed, ready, counts)) in steps.into_iter().enumerate() {
        let _ = handler.apply(update(changed, removed)).await; // also what is refused counts
        assert_eq!((readiness.is_ready(), not_served().as_str()), (ready, counts), "step {step}");
    }
}
