//! Descriptors: the kernel's table of them, and their limit, which bounds what tenants share.

use serde_json::Value;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::tenants::{client_address, connect, message, metric, policy};

/// When the kernel has to make it larger, the worker waits for it, and everybody for the worker.
#[test]
fn the_table_of_descriptors_has_room_for_all_connections_from_the_start() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let options = Options { top: "max_connections: 700".into(), ..Options::default() };
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.process().id())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
    assert!(size.trim().parse::<u64>().unwrap() >= 1400, "{size}");
}

/// Far below `max_connections` one tenant would have them all: then nobody is accepted any more, and no upstream is connected.
#[test]
fn a_tenant_does_not_use_up_the_descriptors() {
    const HOARD: u64 = 400;
    tollgate_net::raise_nofile().unwrap();
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let (hoarder, neighbour) = (client_address(&site, 1), client_address(&site, 2));
    let top = "limits: { idle_connections: \"off\" }".into();
    let options = Options { direction: "egress", top, open_files: Some(700), ..Options::default() };
    let policies = [message(policy(7, hoarder)), message(policy(8, neighbour))];
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &policies);

    // Each has an upstream connection at once.
    let _hoard: Vec<Peer> = (0..HOARD).map(|_| connect(hoarder, proxy.tcp())).collect();
    let of_hoarder = "tenant=\"endpoint-7\"";
    let pauses = || proxy.metric("tollgate_accept_errors_total{kind=\"descriptors\"}");
    let refused = || {
        let series = format!("tollgate_tenant_refusals_total{{{of_hoarder},reason=\"tenant_share\"}} ");
        let scrape = proxy.get("/metrics").1;
        scrape.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse::<u64>().unwrap())
    };
    until("what becomes of them", || {
        let open = metric(&proxy, "connections_open", of_hoarder);
        (pauses() > 0.0 || open + refused() == HOARD).then_some(())
    });
    assert_eq!(pauses(), 0.0, "accepting does not pause");
    assert!(refused() >= 225, "{} refused", refused());
    let mut clients: Vec<Peer> = (0..10).map(|_| connect(neighbour, proxy.http())).collect();
    for client in &mut clients {
        client.send("GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.read_message().status(), 200);
    }
    assert_eq!(metric(&proxy, "connections_open", of_hoarder), HOARD - refused(), "and nobody loses what it has");

    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    assert_eq!(status["limits"]["connections"], 175, "half of the descriptors, two for each connection");
    let log = proxy.process().output();
    let warned = log.lines().find(|line| line.contains("limit of open files is too low")).expect(&log);
    assert!(["700", "50000", "175", "RLIMIT_NOFILE"].iter().all(|part| warned.contains(part)), "{warned}");
}
