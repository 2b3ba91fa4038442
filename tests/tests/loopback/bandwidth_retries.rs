//! Requests that are sent again by a tenant whose bytes are held back: that takes its time, and costs none of theirs.

use std::net::SocketAddr;
use std::process::Command;

use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream, next_request};

use super::bandwidth::{ask, paced, request};

/// A body that goes at once the first time, and takes longer than any limit each time after that.
const BODY: usize = 14 << 10;
const CEILING: &str = "ceilings: { bytes: { per_second: 5KiB, burst: 16KiB } }";
/// Tries that fail.
const FAILURES: usize = 2;
/// Of the whole exchange, and of a try. An upstream here answers at once.
const LIMITS: [&str; 2] = ["timeout: 2s", "per_try_timeout: 2s"];

fn proxy(site: &Site, upstream: SocketAddr, limit: &str) -> Proxy {
    let top = format!("tenants: {{ groups: [{{ name: busy, members: {{ endpoint_ids: [7] }}, {CEILING} }}] }}\n");
    let listener = format!("reason_header: true, http: {{ retries: 2, {limit} }}");
    Proxy::with(site, upstream, &Options { top, listener, ..Options::default() }, &[usual(site)])
}

/// It was held back, as one exchange, for longer than its limit.
fn expect_paced(proxy: &Proxy) {
    let record = proxy.expect_flows(1).remove(0);
    assert_eq!(
        (&record["verdict"], record["bytes_up"].as_u64()),
        (&"FORWARDED".into(), Some(((FAILURES + 1) * BODY) as u64)),
        "{record}"
    );
    assert!(record["paced_us"].as_u64() > Some(2_000_000), "{record}");
    assert_eq!(paced(proxy, "busy"), 1);
}

#[test]
fn no_time_runs_while_a_second_try_is_held_back() {
    let site = Site::new();
    for limit in LIMITS {
        let upstream = Upstream::scripted(&site, |peer, connection| {
            while next_request(peer).is_some() {
                peer.send(if connection < FAILURES { "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n" } else { OK });
            }
        });
        let proxy = proxy(&site, upstream.address(), limit);
        let mut client = Peer::connect(proxy.http());
        let answer = ask(&mut client, &(request("POST", "/allowed", BODY as u64) + &"x".repeat(BODY)));
        assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (200, None), "{limit}");
        assert_eq!(upstream.connections(), FAILURES + 1);
        expect_paced(&proxy);
    }
}

#[test]
fn nor_does_it_in_http_2() {
    let Some(python) = python() else { return };
    let site = Site::new();
    for limit in LIMITS {
        let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
        let proxy = proxy(&site, address.parse().unwrap(), limit);
        let url = format!("http://{}/allowed/fail/{FAILURES}", proxy.http());
        let body = "x".repeat(BODY);
        let curl = ["-sS", "--noproxy", "*", "--max-time", "60", "--http2-prior-knowledge", "-w", "%{http_code}"];
        let output = Command::new("curl").args(curl).args(["-o", "/dev/null", "-d", &body, &url]).output();
        let output = output.expect("curl is installed; see tests/missing-packages");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "200", "{limit}: {output:?}");
        expect_paced(&proxy);
    }
}
