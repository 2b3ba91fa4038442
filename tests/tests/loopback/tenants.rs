//! Who pays for what: accounts of endpoints and groups, and groups that change under open connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tollgate::reason::Reason;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_from_value;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::http_rule;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::{ControlPlane, python};
use tollgate_tests::site::{HTTP_PORT, Site, TCP_PORT};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const DENIED: &str = "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n";
/// Of an answer of the usual upstream.
const BODY: u64 = 2;

/// A client's address, which no other has: the local endpoint of what leaves it.
pub(crate) fn client_address(site: &Site, last: u8) -> IpAddr {
    let IpAddr::V4(site) = site.ip() else { panic!("sites have IPv4 addresses") };
    let [_, b, c, _] = site.octets();
    Ipv4Addr::new(127, b.wrapping_add(64), c, last).into()
}

pub(crate) fn connect(from: IpAddr, to: SocketAddr) -> Peer {
    try_connect(from, to).unwrap()
}

pub(crate) fn try_connect(from: IpAddr, to: SocketAddr) -> std::io::Result<Peer> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&to.into())?;
    Ok(Peer::new(TcpStream::from(socket)))
}

/// What an endpoint may ask for, as JSON.
pub(crate) fn policy(endpoint: u64, address: IpAddr) -> Value {
    json!({
        "endpointIps": [address.to_string()],
        "endpointId": endpoint.to_string(),
        "egressPerPortPolicies": [
            {"port": HTTP_PORT, "rules": [{"httpRules": {"httpRules": [http_rule("GET|POST", "/allowed.*")]}}]},
            {"port": TCP_PORT},
        ],
    })
}

pub(crate) fn message(policy: Value) -> NetworkPolicy {
    network_policy_from_value(policy).unwrap()
}

fn ask(client: &mut Peer, request: &str) -> u16 {
    client.send(request);
    client.read_message().status()
}

/// The entry of `/tenants`.
pub(crate) fn tenant(proxy: &Proxy, name: &str) -> Value {
    let (status, body) = proxy.get("/tenants");
    assert_eq!(status, 200, "{body}");
    let shown: Value = serde_json::from_str(&body).unwrap();
    let all = shown["tenants"].as_array().unwrap();
    all.iter().find(|tenant| tenant["name"] == name).cloned().unwrap_or(Value::Null)
}

pub(crate) fn metric(proxy: &Proxy, name: &str, labels: &str) -> u64 {
    proxy.metric(&format!("tollgate_tenant_{name}{{{labels}}}")) as u64
}

#[test]
fn each_endpoint_has_an_account_of_its_own() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let (one, two, nobody) = (client_address(&site, 1), client_address(&site, 2), client_address(&site, 3));
    let options = Options { direction: "egress", ..Options::default() };
    let policies = [message(policy(7, one)), message(policy(8, two))];
    let options = Options { listener: "policy_wait: 10ms".into(), ..options };
    let proxy = Proxy::with(&site, upstream.address(), &options, &policies);
    let mut busy = connect(one, proxy.http());
    for (request, status) in [(GET, 200), (GET, 200), (DENIED, 403)] {
        assert_eq!(ask(&mut busy, request), status);
    }
    let mut calm = connect(two, proxy.http());
    assert_eq!(ask(&mut calm, GET), 200);
    connect(nobody, proxy.http()).expect_reset();

    let records = proxy.expect_flows(5);
    let tenants: Vec<&str> = records.iter().map(|record| record["tenant"].as_str().unwrap()).collect();
    assert_eq!(tenants, ["endpoint-7", "endpoint-7", "endpoint-7", "endpoint-8", "_unknown"]);
    let (_, body) = proxy.get("/flows?tenant=endpoint-8");
    assert_eq!(body.lines().count(), 1, "{body}");
    assert!(body.contains("\"tenant\":\"endpoint-8\""), "{body}");

    let busy_one = tenant(&proxy, "endpoint-7");
    assert_eq!(busy_one["requests"], json!({"forwarded": 2, "denied": 1, "limited": 0, "failed": 0}));
    assert_eq!(busy_one["refusals"], json!({Reason::RequestNotAllowed.code(): 1}));
    assert_eq!((&busy_one["connections"], &busy_one["connections_open"]), (&json!(1), &json!(1)));
    assert_eq!(busy_one["bytes"], json!({"up": 0, "down": 2 * BODY}));
    assert_eq!(
        tenant(&proxy, "endpoint-8")["requests"],
        json!({"forwarded": 1, "denied": 0, "limited": 0, "failed": 0})
    );
    assert_eq!(tenant(&proxy, "_unknown")["refusals"], json!({Reason::NoPolicy.code(): 1}));
    let cpu = |name: &str| tenant(&proxy, name)["cpu_seconds"].as_f64().unwrap();
    until("what the loop itself costs", || (cpu("_overhead") > 0.0).then_some(()));
    assert!(cpu("endpoint-7") > 0.0 && cpu("_accept") > 0.0, "{} {}", cpu("endpoint-7"), cpu("_accept"));
    assert!(metric(&proxy, "queue_seconds_count", r#"tenant="endpoint-7""#) > 0);
    // The metrics say the same, and add up to those of the process.
    assert_eq!(metric(&proxy, "requests_total", r#"tenant="endpoint-7",outcome="forwarded""#), 2);
    assert_eq!(metric(&proxy, "refusals_total", r#"tenant="endpoint-7",reason="request_not_allowed""#), 1);
    assert_eq!(metric(&proxy, "bytes_total", r#"tenant="endpoint-8",flow="down""#), BODY);
    assert_eq!(metric(&proxy, "connections_open", r#"tenant="endpoint-7""#), 1);
    drop(busy);
    until("the connection's end", || (metric(&proxy, "connections_open", r#"tenant="endpoint-7""#) == 0).then_some(()));
    assert_eq!(metric(&proxy, "connections_total", r#"tenant="endpoint-7""#), 1);
}

#[test]
fn what_is_paid_for_is_told_by_kind_and_by_request() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let one = client_address(&site, 1);
    let options = Options { direction: "egress", ..Options::default() };
    let proxy = Proxy::with(&site, upstream.address(), &options, &[message(policy(7, one))]);
    let mut client = connect(one, proxy.http());
    assert_eq!(ask(&mut client, GET), 200);
    let record = proxy.expect_flows(1).remove(0);
    let number = |name: &str| record[name].as_u64().unwrap_or_else(|| panic!("no {name}: {record}"));
    assert!(number("cpu_us") > 0 && number("cpu_us") <= number("duration_us") + 1000, "{record}");
    assert!(number("queue_us") <= number("duration_us") + 1000, "{record}");

    // Kinds come from a sample.
    until("each kind of work to be seen", || {
        for _ in 0..50 {
            assert_eq!(ask(&mut client, GET), 200);
        }
        let by_kind = tenant(&proxy, "endpoint-7")["cpu_seconds_by_kind"].clone();
        ["io", "http", "policy", "log"].iter().all(|kind| by_kind[kind].as_f64().unwrap() > 0.0).then_some(())
    });
    let shown = tenant(&proxy, "endpoint-7");
    let kinds: f64 =
        shown["cpu_seconds_by_kind"].as_object().unwrap().values().map(|spent| spent.as_f64().unwrap()).sum();
    let whole = shown["cpu_seconds"].as_f64().unwrap();
    assert!((kinds - whole).abs() < 1e-9, "{shown}");
    assert!(proxy.metric(r#"tollgate_tenant_cpu_seconds_total{tenant="endpoint-7",kind="http"}"#) > 0.0);

    let process: Value = serde_json::from_str::<Value>(&proxy.get("/tenants").1).unwrap()["process"].clone();
    let ratio = process["unattributed_ratio"].as_f64().unwrap();
    assert!(ratio > 0.0 && ratio < 1.0 && process["cpu_seconds"].as_f64().unwrap() > whole, "{process}");
    let told = proxy.metric("tollgate_cpu_unattributed_ratio");
    assert!(told > 0.0 && told < 1.0, "{told}");
}

/// A proxy that takes its tenants from a control plane in Python.
pub(crate) fn with_python(
    site: &Site,
    python: &Path,
    policies: &[Value],
    upstream: SocketAddr,
) -> (ControlPlane, Proxy) {
    with_python_and(site, python, policies, upstream, "")
}

/// The same with more in the configuration.
pub(crate) fn with_python_and(
    site: &Site,
    python: &Path,
    policies: &[Value],
    upstream: SocketAddr,
    top: &str,
) -> (ControlPlane, Proxy) {
    let mut control = ControlPlane::start(python).unwrap();
    let socket = site.path("python.sock");
    control.listen(&socket).unwrap();
    control.tell(&json!({"do": "set", "version": "1", "resources": policies})).unwrap();
    let options = Options { direction: "egress", mode: "split, tenants: true", top: top.into(), ..Options::default() };
    let mut proxy = Proxy::attached(site, upstream, &options, &socket);
    proxy.wait_until_ready();
    (control, proxy)
}

pub(crate) fn set_tenants(control: &mut ControlPlane, version: &str, tenants: &Value) {
    control.tell(&json!({"do": "set", "type": "Tenant", "version": version, "resources": tenants})).unwrap();
    loop {
        let answer = control.answer().unwrap();
        assert_eq!(answer["event"], "ack", "{answer}");
        if answer["type"] == "Tenant" && answer["request"]["version_info"] == version {
            return;
        }
    }
}

#[test]
fn a_control_plane_regroups_endpoints_under_open_connections() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let (one, two) = (client_address(&site, 1), client_address(&site, 2));
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one), policy(8, two)], upstream.address());
    let mut clients = [connect(one, proxy.http()), connect(two, proxy.http())];
    for client in &mut clients {
        assert_eq!(ask(client, GET), 200);
    }
    assert_eq!(tenant(&proxy, "endpoint-7")["connections_open"], 1);

    // By number, by prefix; a bad one beside them is set aside alone, and acknowledged.
    let team =
        json!({"name": "team-a", "members": {"endpointIds": ["7"], "addresses": [format!("{two}/32")]}, "weight": 3});
    let bad = json!({"name": "team-b", "members": {"endpointIds": ["7"]}});
    set_tenants(&mut control, "1", &json!([team, bad]));
    // Also of connections on which nothing happens.
    until("both connections in the group", || (tenant(&proxy, "team-a")["connections_open"] == 2).then_some(()));
    assert_eq!(tenant(&proxy, "endpoint-7")["connections_open"], 0);
    assert_eq!(tenant(&proxy, "endpoint-7")["gone"], true);
    for client in &mut clients {
        assert_eq!(ask(client, GET), 200, "the connection goes on");
    }
    let records = proxy.expect_flows(4);
    let tenants: Vec<&str> = records.iter().map(|record| record["tenant"].as_str().unwrap()).collect();
    assert_eq!(tenants, ["endpoint-7", "endpoint-8", "team-a", "team-a"]);
    let group = tenant(&proxy, "team-a");
    assert_eq!((&group["requests"]["forwarded"], &group["weight"]), (&json!(2), &json!(3)));
    // They came from other tenants: nobody has accepted them for this one.
    assert_eq!(group["connections"], 0);
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    let refused = &status["tenants"]["refused"];
    assert_eq!(refused[0]["origin"], "resource team-b");
    assert_eq!(
        refused[0]["reason"],
        "members: endpoint 7 belongs to tenant \"team-a\" already; name it in one of them"
    );

    set_tenants(&mut control, "2", &json!([]));
    until("each is on its own again", || (tenant(&proxy, "endpoint-8")["connections_open"] == 1).then_some(()));
    assert_eq!(tenant(&proxy, "team-a")["connections_open"], 0);
}

#[test]
fn a_memory_ceiling_that_comes_later_ends_what_is_beyond_it() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        while peer.wait_for_bytes() {
            peer.discard();
        }
    });
    let (one, two) = (client_address(&site, 1), client_address(&site, 2));
    let (mut control, proxy) = with_python(&site, python, &[policy(7, one), policy(8, two)], upstream.address());
    let waiting = |from| {
        let mut client = connect(from, proxy.http());
        client.send(GET);
        client
    };
    let mut neighbour = waiting(two);
    let mut clients: Vec<Peer> = (0..64).map(|_| waiting(one)).collect();
    let in_flight = |name| tenant(&proxy, name)["requests_in_flight"].clone();
    until("all requests", || (in_flight("endpoint-7") == 64).then_some(()));
    let team = json!({"name": "team-a", "members": {"endpointIds": ["7"]}, "ceilings": {"memoryBytes": "1048576"}});
    set_tenants(&mut control, "1", &json!([team]));
    let ended = until("some to go", || proxy.flows().into_iter().find(|flow| flow["reason"] == "tenant_memory"));
    assert_eq!((&ended["tenant"], &ended["l7"]["http"]["code"]), (&json!("team-a"), &json!(503)), "{ended}");
    until("the rest to fit", || (tenant(&proxy, "team-a")["memory_bytes"].as_u64()? <= 9 << 17).then_some(()));
    // Exchanges are the group's with their next byte.
    let left = in_flight("endpoint-7").as_u64().unwrap();
    assert!((20..50).contains(&left), "{left}");
    assert_eq!(in_flight("endpoint-8"), 1);
    // Those that are left wait on, and the others were told why.
    let told = tenant(&proxy, "team-a")["refusals"]["tenant_memory"].as_u64().unwrap();
    assert_eq!(told + left, 64);
    clients.retain_mut(|client| {
        client.stream().set_nonblocking(true).unwrap();
        client.stream().peek(&mut [0]).is_err()
    });
    assert_eq!(clients.len() as u64, left);
    neighbour.stream().set_nonblocking(true).unwrap();
    assert!(neighbour.stream().peek(&mut [0]).is_err(), "nobody has told it anything");
    neighbour.stream().set_nonblocking(false).unwrap();
    neighbour.finish_sending();
}

#[test]
fn an_agent_that_does_not_know_tenants_is_not_disturbed() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let one = client_address(&site, 1);
    let options = Options { direction: "egress", mode: "auto, tenants: true", ..Options::default() };
    // This control plane serves policies alone.
    let proxy = Proxy::with(&site, upstream.address(), &options, &[message(policy(7, one))]);
    assert_eq!(ask(&mut connect(one, proxy.http()), GET), 200);
    proxy.push(&[message(policy(9, one))]);
    assert_eq!(ask(&mut connect(one, proxy.http()), GET), 200);
    assert_eq!(proxy.expect_flows(2)[1]["tenant"], "endpoint-9");
}

#[test]
fn series_are_bounded_however_many_tenants_there_are() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let one = client_address(&site, 1);
    let options = Options { direction: "egress", ..Options::default() };
    let others = (1000..3000_u64).map(|id| {
        let address: IpAddr = Ipv4Addr::from(0x0a00_0000 + u32::try_from(id).unwrap()).into();
        message(json!({"endpointIps": [address.to_string()], "endpointId": id.to_string()}))
    });
    let policies: Vec<_> = others.chain([message(policy(7, one))]).collect();
    let proxy = Proxy::with(&site, upstream.address(), &options, &policies);
    assert_eq!(ask(&mut connect(one, proxy.http()), GET), 200);
    proxy.expect_flows(1);
    let scrape = proxy.get("/metrics").1;
    let series = scrape.lines().filter(|line| line.starts_with("tollgate_tenant_requests_total")).count();
    // 256 of their own and the overflow, by outcome.
    assert_eq!(series, 257 * 4);
    let all = scrape.lines().filter(|line| line.starts_with("tollgate_tenant_")).count();
    // And a histogram of ten.
    assert!(all < 257 * 30, "{all}");
    let status: Value = serde_json::from_str(&proxy.get("/status").1).unwrap();
    assert_eq!(status["tenants"]["endpoints"], 2001);
    assert_eq!(status["tenants"]["endpoints_sharing_accounts"], 2001 - tollgate::tenant::MAX_ENDPOINTS);
    let forwarded: f64 = scrape
        .lines()
        .filter(|line| line.starts_with("tollgate_tenant_requests_total") && line.contains("forwarded"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(forwarded, 1.0, "nothing is lost in the overflow");
}
