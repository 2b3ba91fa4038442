//! `normalize: { field_underscores }`: names that a back end may take for others (`headers_with_underscores_action` of Envoy).

use std::process::Command;

use serde_json::Value;
use tollgate::reason::Reason;
use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;

fn options(treatment: &str) -> Options {
    let listener = format!("reason_header: true, normalize: {{ field_underscores: {treatment} }}");
    Options { listener, ..Options::default() }
}

#[test]
fn http_1_fields_and_trailers() {
    const HEAD: &str = "PUT /allowed HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n";
    const REST: &str = "Transfer-Encoding: chunked\r\nTrailer: X_T, X-T\r\n\r\n";
    let site = Site::new();
    for (treatment, field, trailer) in [("keep", "X_A: 2\r\n", "X_T: 1\r\n"), ("drop", "", ""), ("reject", "", "")] {
        let upstream = Upstream::ok(&site);
        let proxy = Proxy::with(&site, upstream.address(), &options(treatment), &[usual(&site)]);
        let mut client = Peer::connect(proxy.http());
        if treatment == "reject" {
            client.send(format!("{HEAD}X_A: 2\r\n{REST}0\r\n\r\n"));
            let answer = client.read_message();
            let reason = Some(Reason::MalformedRequest.code());
            assert_eq!((answer.status(), answer.field("x-tollgate-reason")), (400, reason));
            client = Peer::connect(proxy.http());
        }
        let sent = if treatment == "reject" { "" } else { "X_A: 2\r\n" };
        client.send(format!("{HEAD}{sent}{REST}0\r\nX_T: 1\r\nX-T: 2\r\n\r\n"));
        assert_eq!(client.read_message().status(), 200, "{treatment}");
        let received = String::from_utf8(upstream.received().concat()).unwrap();
        assert_eq!(received, format!("{HEAD}{field}{REST}0\r\n{trailer}X-T: 2\r\n\r\n"), "{treatment}");
    }
}

#[test]
fn http_2_fields() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    for (treatment, status, passes) in [("keep", "200", true), ("drop", "200", false), ("reject", "400", false)] {
        let proxy = Proxy::with(&site, address.parse().unwrap(), &options(treatment), &[usual(&site)]);
        let url = format!("http://{}/allowed/headers", proxy.http());
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--http2-prior-knowledge", "-H", "x_a: 2", "-H", "x-a: 1"])
            .args(["-w", "\n%{http_code}", &url])
            .output()
            .expect("curl is installed; see tests/missing-packages");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, got) = text.rsplit_once('\n').unwrap();
        assert_eq!(got, status, "{treatment}: {body}");
        if status == "200" {
            let fields: Vec<(String, Value)> = serde_json::from_str(body).unwrap();
            let has = |name: &str| fields.iter().any(|(field, _)| field == name);
            assert_eq!((has("x-a"), has("x_a")), (true, passes), "{body}");
        }
    }
}
