//! Requests that are sent again, where a listener asks for it (`spec/cilium-agent.md` section 2.3).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::process::Process;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::{OK, Upstream, next_request};
use tollgate_tests::wait::until;

const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /allowed HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
const ERROR: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

fn proxy(site: &Site, upstream: SocketAddr, retries: u32) -> Proxy {
    proxy_with(site, upstream, &format!("retries: {retries}"))
}

fn proxy_with(site: &Site, upstream: SocketAddr, http: &str) -> Proxy {
    let listener = format!("reason_header: true, http: {{ {http} }}");
    Proxy::with(site, upstream, &Options { listener, ..Options::default() }, &[usual(site)])
}

/// Fails with 503, then without a word, then answers.
fn recovering(site: &Site) -> Upstream {
    Upstream::scripted(site, |peer, connection| {
        while next_request(peer).is_some() {
            match connection {
                0 => peer.send(ERROR),
                1 => return,
                _ => peer.send(OK),
            }
        }
    })
}

#[test]
fn a_failing_upstream_is_asked_again_with_the_same_request() {
    let site = Site::new();
    let upstream = recovering(&site);
    let proxy = proxy(&site, upstream.address(), 3);
    let mut client = Peer::connect(proxy.http());
    let request = format!("{POST}body");
    client.send(format!("{request}{GET}"));
    for _ in 0..2 {
        let answer = client.read_message();
        assert_eq!((answer.status(), &*answer.body), (200, &b"ok"[..]));
    }
    let received: Vec<_> =
        upstream.received().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    // What follows is sent once.
    assert_eq!(received, [request.clone(), request.clone(), format!("{request}{GET}")]);
    assert!(proxy.metric("tollgate_upstream_retries_total") == 2.0);
    assert!(proxy.expect_flows(2).iter().all(|flow| flow["l7"]["http"]["code"] == 200), "{:?}", proxy.flows());
}

#[test]
fn the_last_answer_is_the_clients() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, ERROR);
    let proxy = proxy(&site, upstream.address(), 2);
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    let answer = client.read_message();
    assert_eq!((answer.status(), &*answer.body), (503, &b"busy"[..]));
    assert_eq!(answer.field("x-tollgate-reason"), None, "it is the upstream's own");
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn an_upstream_that_cannot_be_reached_is_tried_again() {
    let site = Site::new();
    let proxy = proxy(&site, site.at(9), 2);
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    let answer = client.read_message();
    assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (503, Some(Reason::UpstreamConnect.code())));
    assert!(proxy.metric("tollgate_upstream_retries_total") == 2.0);
}

#[test]
fn what_cannot_be_sent_twice_is_sent_once() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, ERROR);
    let proxy = proxy(&site, upstream.address(), 3);
    // A body that comes later streams.
    let mut client = Peer::connect(proxy.http());
    client.send(POST);
    until("the head at the upstream", || (!upstream.text().is_empty()).then_some(()));
    client.send("body");
    assert_eq!(client.read_message().status(), 503);
    // So does one without a length.
    client.send("POST /allowed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
    assert_eq!(client.read_message().status(), 503);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn nothing_is_sent_again_unasked_or_after_an_interim_response() {
    let site = Site::new();
    let upstream = Upstream::answering(&site, format!("HTTP/1.1 103 Early Hints\r\n\r\n{ERROR}"));
    for retries in [0, 3] {
        let proxy = proxy(&site, upstream.address(), retries);
        let before = upstream.connections();
        let mut client = Peer::connect(proxy.http());
        client.send(GET);
        assert_eq!(client.read_message().status(), 103);
        assert_eq!(client.read_message().status(), 503);
        assert_eq!(upstream.connections(), before + 1);
    }
}

/// A client that has ended its side may still read; nobody is asked again for it, and what it gets is the upstream's word.
#[test]
fn a_client_that_ended_its_side_gets_the_upstreams_own_answer() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_to_end();
        peer.send(ERROR);
    });
    let proxy = proxy(&site, upstream.address(), 2);
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    client.finish_sending();
    let answer = client.read_message();
    assert_eq!((answer.status(), &*answer.body), (503, &b"busy"[..]));
    assert_eq!(upstream.connections(), 1);
}

/// Says nothing to the first requests, and answers the next ones.
fn late(site: &Site, silent: usize) -> Upstream {
    Upstream::scripted(site, move |peer, connection| {
        while next_request(peer).is_some() {
            if connection >= silent {
                peer.send(OK);
            }
        }
    })
}

#[test]
fn a_try_that_takes_too_long_is_given_up() {
    let site = Site::new();
    for (retries, time, silent, status) in [(2, "3s", 1, 200), (1, "300ms", 9, 504), (0, "300ms", 9, 504)] {
        let upstream = late(&site, silent);
        let proxy = proxy_with(&site, upstream.address(), &format!("retries: {retries}, per_try_timeout: {time}"));
        let mut client = Peer::connect(proxy.http());
        client.send(format!("{POST}body"));
        let answer = client.read_message();
        assert_eq!(answer.status(), status, "{retries} {silent}");
        let reason = (status == 504).then_some(Reason::UpstreamTimeout.code());
        assert_eq!(answer.field("x-tollgate-reason"), reason);
        let tries = silent.min(retries) + 1;
        assert_eq!(upstream.connections(), tries);
        let all = "the tries that were given up to end at the upstream";
        until(all, || (upstream.finished() >= silent.min(tries)).then_some(()));
    }
}

/// The time of the whole exchange is no try's: when it is over, it is over.
#[test]
fn the_time_of_the_exchange_goes_over_that_of_a_try() {
    let site = Site::new();
    let upstream = late(&site, 9);
    let proxy = proxy_with(&site, upstream.address(), "retries: 9, per_try_timeout: 400ms, timeout: 600ms");
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    assert_eq!(client.read_message().status(), 504);
    assert!(upstream.connections() < 10);
}

/// A response that has begun is no concern of a try's time.
#[test]
fn a_response_that_has_begun_goes_on() {
    let site = Site::new();
    let upstream = Upstream::scripted(&site, |peer, _| {
        peer.read_head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha");
        std::thread::sleep(std::time::Duration::from_millis(3300));
        peer.send("lf");
        peer.read_to_any_end();
    });
    let proxy = proxy_with(&site, upstream.address(), "retries: 1, per_try_timeout: 3s");
    let mut client = Peer::connect(proxy.http());
    client.send(GET);
    assert_eq!(&*client.read_message().body, b"half");
    assert_eq!(upstream.connections(), 1);
}

/// A try is a request like any other: what is denied by then is not sent.
#[test]
fn what_is_revoked_between_two_tries_is_refused() {
    let site = Site::new();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let upstream = Upstream::scripted(&site, |_, _| {});
        let proxy = proxy(&site, upstream.address(), 10);
        let url = format!("http://{}/allowed", proxy.http());
        let refused = (0..20).find_map(|_| {
            proxy.push(&[usual(&site)]);
            let before = upstream.connections();
            let mut client = Command::new("curl");
            client.args(["-sS", "--noproxy", "*", "--max-time", "20", "-o", "/dev/null", "-D", "-", version, &url]);
            let client = client.stdout(Stdio::piped()).spawn().expect("curl is installed; see tests/missing-packages");
            until("the first try", || (upstream.connections() > before).then_some(()));
            proxy.push(&[ingress(&site, json!([http_port(HTTP_PORT, &[http_rule("GET", "/other")])]))]);
            let answer = String::from_utf8(client.wait_with_output().unwrap().stdout).unwrap();
            // Unless all tries were made before.
            let too_late = answer.contains(Reason::UpstreamReset.code());
            (!too_late).then_some(answer)
        });
        let refused = refused.expect("one of twenty is revoked in time");
        let status = if version == "--http1.1" { "HTTP/1.1 403" } else { "HTTP/2 403" };
        assert!(refused.starts_with(status) && refused.contains(Reason::Revoked.code()), "{refused}");
    }
}

/// An upstream of `h2_upstream.py`, and how often it was asked for each path.
struct Http2Upstream {
    process: Process,
    address: SocketAddr,
}

impl Http2Upstream {
    /// `None` without Python.
    fn start(site: &Site) -> Option<Self> {
        let (process, address) = script::serve(python()?, site, "h2_upstream.py", &[&site.ip().to_string()]);
        Some(Self { process, address: address.parse().unwrap() })
    }

    fn asked(&self) -> BTreeMap<String, usize> {
        let mut asked = BTreeMap::new();
        for line in self.process.output().lines().skip(1) {
            let event: Value = serde_json::from_str(line).expect(line);
            if let Some(path) = event["request"].as_str() {
                *asked.entry(path.to_owned()).or_default() += 1;
            }
        }
        asked
    }
}

#[test]
fn http_2_requests_are_sent_again_in_the_same_cases() {
    let site = Site::new();
    let Some(upstream) = Http2Upstream::start(&site) else { return };
    let proxy = proxy(&site, upstream.address, 2);
    let client = script::run(python().unwrap(), &site, "h2_client.py", &["retried", &proxy.http().to_string()]);
    let asked = upstream.asked();
    for (name, path, tries, status, body) in [
        ("bodiless", "/allowed/fail/2", 3, 200, ""),
        ("pieces", "/allowed/pieces/fail/2", 3, 200, "onetwo"),
        ("empty", "/allowed/empty/fail/1", 2, 200, ""),
        ("hangup", "/allowed/hangup/1", 2, 200, "body"),
        ("refused", "/allowed/refuse", 3, 503, "Service Unavailable\r\n"),
        // The last answer is the client's.
        ("last", "/allowed/last/fail/9", 3, 503, "busy"),
        // What is not here as a whole, or was answered in part, is sent once.
        ("large", "/allowed/large/fail/1", 1, 503, "busy"),
        ("early", "/allowed/early/1", 1, 503, "busy"),
        ("trailers", "/allowed/trailers/fail/1", 1, 503, "busy"),
        ("warned", "/allowed/warned/1", 1, 503, "busy"),
    ] {
        let answer = &client[name];
        assert_eq!((&answer["status"], &answer["body"]), (&status.into(), &body.into()), "{name}: {answer}");
        assert_eq!(asked.get(path), Some(&tries), "{name}");
    }
    assert_eq!(client["warned"]["interim"].as_array().map(Vec::len), Some(1));
    assert!(proxy.metric("tollgate_upstream_retries_total") == 10.0);
    let flows = proxy.expect_flows(10);
    let codes: Vec<_> = flows.iter().map(|flow| flow["l7"]["http"]["code"].as_u64().unwrap()).collect();
    assert_eq!(codes, [200, 200, 200, 200, 503, 503, 503, 503, 503, 503]);
}

/// The head of curl's answer.
fn curl(proxy: &Proxy, path: &str, more: &[&str]) -> String {
    let url = format!("http://{}{path}", proxy.http());
    let common = ["-sS", "--noproxy", "*", "--max-time", "20", "--http2-prior-knowledge", "-o", "/dev/null", "-D", "-"];
    let output = Command::new("curl").args(common).args(more).arg(url).output();
    let output = output.expect("curl is installed; see tests/missing-packages");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn http_2_has_the_same_time_for_each_try() {
    let site = Site::new();
    let Some(upstream) = Http2Upstream::start(&site) else { return };
    for (retries, time, path, tries, status) in [
        (2, "3s", "/allowed/silent/1", 2, 200),
        (1, "300ms", "/allowed/silent/8", 2, 504),
        (0, "300ms", "/allowed/silent/9", 1, 504),
    ] {
        let settings = format!("retries: {retries}, per_try_timeout: {time}");
        let proxy = proxy_with(&site, upstream.address, &settings);
        let head = curl(&proxy, path, &["-d", "body"]);
        assert!(head.starts_with(&format!("HTTP/2 {status}")), "{head}");
        assert_eq!(head.contains(Reason::UpstreamTimeout.code()), status == 504, "{head}");
        assert_eq!(upstream.asked()[path], tries);
    }
    let resets = || upstream.process.output().matches("\"reset\": 8").count();
    until("a reset for each try that was given up", || (resets() == 4).then_some(()));
}

#[test]
fn an_upstream_of_http_2_that_cannot_be_reached_is_tried_again() {
    let site = Site::new();
    let proxy = proxy(&site, site.at(9), 2);
    // A body that nobody has taken yet stands against nothing.
    for body in [&[][..], &["-d", "body"]] {
        let head = curl(&proxy, "/allowed", body);
        assert!(head.starts_with("HTTP/2 503") && head.contains(Reason::UpstreamConnect.code()), "{head}");
    }
    assert!(proxy.metric("tollgate_upstream_retries_total") == 4.0);
}

#[test]
fn http_2_requests_are_sent_once_unasked() {
    let site = Site::new();
    let Some(upstream) = Http2Upstream::start(&site) else { return };
    let proxy = proxy(&site, upstream.address, 0);
    for (path, status) in [("/allowed/fail/1", 503), ("/allowed/hangup/1", 503)] {
        let head = curl(&proxy, path, &["-d", "body"]);
        assert!(head.starts_with(&format!("HTTP/2 {status}")), "{head}");
        assert_eq!(upstream.asked()[path], 1);
    }
}
