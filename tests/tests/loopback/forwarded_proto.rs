//! `http: { forwarded_proto: … }`: whose word `x-forwarded-proto` is (`spec/cilium-agent.md` section 2.3).

use std::process::Command;

use serde_json::{Value, json};
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::{http_port, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;

/// Treatment, what the client says, what the upstream hears.
const CASES: [(&str, &[&str], &[&str]); 8] = [
    ("keep", &[], &[]),
    ("keep", &["https"], &["https"]),
    ("add", &[], &["http"]),
    ("add", &["https"], &["https"]),
    ("overwrite", &[], &["http"]),
    ("overwrite", &["https"], &["http"]),
    ("overwrite", &["http"], &["http"]),
    ("overwrite", &["http", "https"], &["http"]),
];

fn options(treatment: &str) -> Options {
    Options { listener: format!("http: {{ forwarded_proto: {treatment} }}"), ..Options::default() }
}

#[test]
fn http_1() {
    for (treatment, said, heard) in CASES {
        let site = Site::new();
        let upstream = Upstream::ok(&site);
        let proxy = Proxy::with(&site, upstream.address(), &options(treatment), &[usual(&site)]);
        let said: String = said.iter().map(|value| format!("X-Forwarded-Proto: {value}\r\n")).collect();
        let mut client = Peer::connect(proxy.http());
        client.send(format!("GET /allowed HTTP/1.1\r\nHost: a\r\n{said}X-Last: 1\r\n\r\n"));
        assert_eq!(client.read_message().status(), 200);
        let received = String::from_utf8(upstream.received().concat()).unwrap();
        let fields = received.lines().filter_map(|line| line.split_once(": "));
        let got: Vec<_> = fields.filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-proto")).collect();
        assert_eq!(got.iter().map(|(_, value)| *value).collect::<Vec<_>>(), heard, "{treatment} {said}");
        assert!(received.contains("X-Last: 1\r\n"));
    }
}

/// What is asked about a request is answered as for one that comes: a client's word that does not count matches no rule.
#[test]
fn an_explanation_knows_whose_word_it_is() {
    for (treatment, allowed) in [("keep", true), ("add", true), ("overwrite", false)] {
        let site = Site::new();
        let upstream = Upstream::ok(&site);
        let rule = json!({"headers": [
            {"name": ":path", "stringMatch": {"exact": "/only"}},
            {"name": "x-forwarded-proto", "stringMatch": {"exact": "https"}},
        ]});
        let policy = ingress(&site, json!([http_port(HTTP_PORT, &[rule])]));
        let proxy = Proxy::with(&site, upstream.address(), &options(treatment), &[policy]);
        let mut client = Peer::connect(proxy.http());
        client.send("GET /only HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n");
        assert_eq!(client.read_message().status(), if allowed { 200 } else { 403 }, "{treatment}");
        let ip = proxy.http().ip();
        let asked = format!("endpoint={ip}&direction=ingress&from=7&port={HTTP_PORT}&method=GET&path=/only");
        let answer = proxy.get(&format!("/policy/explain?{asked}&header=x-forwarded-proto:%20https")).1;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["verdict"], if allowed { "allowed" } else { "denied" }, "{treatment}: {answer}");
    }
}

/// Who takes the field away as one of this hop gets ours all the same.
#[test]
fn a_field_of_this_hop_is_no_word() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::with(&site, upstream.address(), &options("add"), &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let fields = "Connection: x-forwarded-proto\r\nX-Forwarded-Proto: https\r\n";
    client.send(format!("GET /allowed HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    assert_eq!(client.read_message().status(), 200);
    upstream.expect("GET /allowed HTTP/1.1\r\nHost: a\r\nx-forwarded-proto: http\r\n\r\n");
}

#[test]
fn http_2() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    for (treatment, said, heard) in CASES {
        let proxy = Proxy::with(&site, address.parse().unwrap(), &options(treatment), &[usual(&site)]);
        let url = format!("http://{}/allowed/headers", proxy.http());
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "--max-time", "20", "--http2-prior-knowledge", &url]);
        for value in said {
            curl.args(["-H", &format!("x-forwarded-proto: {value}")]);
        }
        let output = curl.output().unwrap();
        let fields: Vec<[String; 2]> = serde_json::from_slice(&output.stdout).expect("an answer");
        let got = fields.into_iter().filter(|[name, _]| name == "x-forwarded-proto").map(|[_, value]| value);
        assert_eq!(got.collect::<Vec<_>>(), heard, "{treatment} {said:?}");
    }
}
