//! What remote identities of one tenant leave each other of its places. One floods, the other has a little to ask, and there is a
//! neighbour.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::peer::{Message, Peer};
use tollgate_tests::policy::{http_rule, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

use super::tenants::{client_address, connect};
use super::two_tenants::{AT_ONCE, GET, ask, expect_overload, held_upstream, waiting};

const FLOOD: u32 = 100;
const NEIGHBOUR_PORT: u16 = 25082;
const NEIGHBOUR: &str = "192.0.2.1";

/// A tenant `busy` that has these settings and two remote identities, and `endpoint-8`, which has none.
struct Shared {
    proxy: Proxy,
    flood: IpAddr,
    calm: IpAddr,
    neighbour: SocketAddr,
}

impl Shared {
    fn start(site: &Site, upstream: &Upstream, settings: &str, top: &str) -> Self {
        Self::with(site, upstream, settings, top, 2)
    }

    fn with(site: &Site, upstream: &Upstream, settings: &str, top: &str, workers: usize) -> Self {
        let (flood, calm) = (client_address(site, 1), client_address(site, 2));
        let neighbour = site.at(NEIGHBOUR_PORT);
        let listener = "reason_header: true";
        let top = format!(
            "- {{ name: neighbour, address: \"{neighbour}\", endpoint: {NEIGHBOUR}, direction: ingress, transparent: false, upstream: \"{}\", {listener} }}\n\
             tenants: {{ groups: [{{ name: busy, members: {{ endpoint_ids: [7] }}, {settings} }}] }}\n{top}",
            upstream.address(),
        );
        let identities =
            format!("[{{ identity: {FLOOD}, addresses: [{flood}] }}, {{ identity: 200, addresses: [{calm}] }}]");
        let options = Options { listener: listener.into(), top, identities, workers, ..Options::default() };
        let of_neighbour = network_policy_from_value(json!({
            "endpointIps": [NEIGHBOUR],
            "endpointId": "8",
            "ingressPerPortPolicies": [
                {"port": NEIGHBOUR_PORT, "rules": [{"httpRules": {"httpRules": [http_rule("GET", "/allowed.*")]}}]},
            ],
        }));
        let policies = [usual(site), of_neighbour.unwrap()];
        Self { proxy: Proxy::with(site, upstream.address(), &options, &policies), flood, calm, neighbour }
    }

    fn flood(&self) -> Peer {
        connect(self.flood, self.proxy.http())
    }

    /// The other identity has room, and so has the neighbour.
    fn others_are_served(&self, at_once: usize) {
        let mut calm: Vec<Peer> = (0..at_once).map(|_| connect(self.calm, self.proxy.http())).collect();
        for client in &mut calm {
            assert_eq!(ask(client, AT_ONCE).status(), 200);
        }
        assert_eq!(ask(&mut connect(self.calm, self.neighbour), AT_ONCE).status(), 200);
        let scrape = self.proxy.get("/metrics").1;
        let of_neighbour = |line: &&str| line.starts_with("tollgate_tenant_refusals_total{tenant=\"endpoint-8\"");
        assert_eq!(scrape.lines().find(of_neighbour), None);
    }

    /// So many were refused, by the metric and by the records, all of whoever floods.
    fn expect_refused(&self, reason: Reason, times: usize, detail: &str) {
        let records = until("the records", || {
            let records = self.proxy.flows().into_iter().filter(|flow| flow["reason"] == reason.code());
            let records: Vec<Value> = records.collect();
            (records.len() >= times).then_some(records)
        });
        assert_eq!(records.len(), times);
        for record in &records {
            let said = [&record["tenant"], &record["verdict"], &record["source"]["identity"], &record["detail"]];
            assert_eq!(said, [&json!("busy"), &json!("DROPPED"), &json!(FLOOD), &json!(detail)], "{record}");
        }
        assert_eq!(self.counted("refusals_total", reason), times);
    }

    /// By the metric, which is there once something was refused.
    fn counted(&self, metric: &str, reason: Reason) -> usize {
        let series = format!("tollgate_tenant_{metric}{{tenant=\"busy\",reason=\"{}\"}} ", reason.code());
        let scrape = self.proxy.get("/metrics").1;
        scrape.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    /// Requests that wait for the upstream, of whoever floods.
    fn waiting(&self, upstream: &Upstream, requests: usize) -> Vec<Peer> {
        waiting(upstream, requests, || self.flood())
    }
}

/// One of the reasons that mean overload, and whose limit it is.
fn expect_refusal(answer: &Message, reason: Reason, scope: &str) {
    expect_overload(answer, reason);
    assert_eq!(answer.field("x-tollgate-limit"), Some(&*format!("{};scope={scope}", reason.code())));
}

#[test]
fn a_flood_of_requests_leaves_others_room_below_the_ceiling() {
    let site = Site::new();
    let (upstream, go_on) = held_upstream(&site);
    let shared = Shared::start(&site, &upstream, "ceilings: { in_flight: 16 }", "");
    let mut waiting = shared.waiting(&upstream, 14);
    let mut more = shared.flood();
    for _ in 0..3 {
        expect_refusal(&ask(&mut more, GET), Reason::TenantInFlight, "flow");
    }
    shared.others_are_served(3);
    shared.expect_refused(Reason::TenantInFlight, 3, "one remote identity's part of ceilings.in_flight: 16");
    (0..16).for_each(|_| go_on.send(()).unwrap());
    for client in &mut waiting {
        assert_eq!(client.read_message().status(), 200);
    }
    until("a place", || (ask(&mut more, GET).status() == 200).then_some(()));
}

#[test]
fn a_flood_of_requests_leaves_others_room_in_the_share() {
    let site = Site::new();
    let (upstream, _go_on) = held_upstream(&site);
    let shared = Shared::start(&site, &upstream, "weight: 1", "limits: { in_flight: 32 }");
    let _waiting = shared.waiting(&upstream, 14);
    expect_refusal(&ask(&mut shared.flood(), GET), Reason::TenantShare, "flow");
    shared.others_are_served(3);
    let detail = "one remote identity's part of its share of limits.in_flight: 32";
    shared.expect_refused(Reason::TenantShare, 1, detail);
}

/// The neighbour comes when the flood has its part: the tenant may have less now than it has, and others of it are served all the same.
#[test]
fn a_share_that_shrinks_shuts_nobody_out() {
    let site = Site::new();
    let (upstream, _go_on) = held_upstream(&site);
    let shared = Shared::start(&site, &upstream, "weight: 1", "limits: { in_flight: 32 }");
    let _waiting = shared.waiting(&upstream, 14);
    let _of_neighbour = waiting(&upstream, 7, || connect(shared.flood, shared.neighbour));
    expect_refusal(&ask(&mut shared.flood(), GET), Reason::TenantShare, "shared");
    shared.others_are_served(1);
    expect_refusal(&ask(&mut shared.flood(), GET), Reason::TenantShare, "shared");
    shared.others_are_served(1);
    shared.expect_refused(Reason::TenantShare, 2, "its share of limits.in_flight: 32");
}

#[test]
fn a_flood_of_connections_leaves_others_room() {
    let reset = |settings: &str, top: &str, reason, detail: &str| {
        let site = Site::new();
        let upstream = Upstream::ok(&site);
        let shared = Shared::start(&site, &upstream, settings, top);
        let mut open: Vec<Peer> = (0..28).map(|_| shared.flood()).collect();
        for client in &mut open {
            assert_eq!(ask(client, GET).status(), 200);
        }
        (0..3).for_each(|_| shared.flood().expect_reset());
        shared.others_are_served(4);
        shared.expect_refused(reason, 3, detail);
        for client in &mut open {
            assert_eq!(ask(client, GET).status(), 200, "what is open stays");
        }
        drop(open);
        until("a place", || {
            let mut client = shared.flood();
            client.try_send(GET).ok()?;
            client.wait_for_bytes().then_some(())
        });
    };
    let detail = "one remote identity's part of ceilings.connections: 32";
    let off = "limits: { idle_connections: \"off\" }";
    reset("ceilings: { connections: 32 }", off, Reason::TenantConnections, detail);
    let detail = "one remote identity's part of its share of max_connections: 64";
    reset("weight: 1", &format!("max_connections: 64\n{off}"), Reason::TenantShare, detail);
}

/// Idle connections make room for others: those of whoever has most, though they were opened last. Each worker looks after its own.
#[test]
fn who_has_most_connections_makes_room_first() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let patience = "before_request: 0s, while_not_reading: 0s, between_requests: 0s";
    let idle = format!("limits: {{ idle_connections: {{ above_percent: 80, {patience} }} }}");
    let shared = Shared::with(&site, &upstream, "ceilings: { connections: 32 }", &idle, 1);
    let mut calm: Vec<Peer> = (0..3).map(|_| connect(shared.calm, shared.proxy.http())).collect();
    calm.iter_mut().for_each(|client| assert_eq!(ask(client, AT_ONCE).status(), 200));
    let mut flood = Vec::new();
    for _ in 0..60 {
        let mut client = shared.flood();
        assert_eq!(ask(&mut client, GET).status(), 200, "its own make room");
        flood.push(client);
    }
    for _ in 0..5 {
        let mut client = connect(shared.calm, shared.proxy.http());
        assert_eq!(ask(&mut client, AT_ONCE).status(), 200);
        calm.push(client);
    }
    calm.iter_mut().for_each(|client| assert_eq!(ask(client, AT_ONCE).status(), 200));
    let reaped = shared.proxy.flows().into_iter().filter(|flow| flow["reason"] == Reason::IdleReaped.code());
    let reaped: Vec<Value> = reaped.collect();
    assert!(reaped.len() > 20, "{}", reaped.len());
    assert!(reaped.iter().all(|flow| flow["source"]["identity"] == FLOOD), "{reaped:?}");
}

#[test]
fn shadow_refuses_nobody_its_part() {
    let site = Site::new();
    let (upstream, go_on) = held_upstream(&site);
    let settings = "shadow: true, ceilings: { connections: 16, in_flight: 16 }";
    let shared = Shared::start(&site, &upstream, settings, "limits: { idle_connections: \"off\" }");
    let mut waiting = shared.waiting(&upstream, 20);
    (0..20).for_each(|_| go_on.send(()).unwrap());
    for client in &mut waiting {
        assert_eq!(client.read_message().status(), 200);
    }
    for reason in [Reason::TenantConnections, Reason::TenantInFlight] {
        assert_eq!(shared.counted("shadow_refusals_total", reason), 6, "{reason:?}");
        assert!(shared.proxy.flows().iter().all(|flow| flow["reason"] != reason.code()));
    }
    shared.others_are_served(1);
}
