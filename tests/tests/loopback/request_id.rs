//! `http: { request_id: true }`: requests that come without `x-request-id` are forwarded with one, the others as they are.

use std::process::Command;

use tollgate_tests::peer::Peer;
use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;

fn options() -> Options {
    Options { listener: "http: { request_id: true }".into(), ..Options::default() }
}

/// Whether `text` is a UUID of version 4 in lower case.
fn is_uuid(text: &str) -> bool {
    let shape = "xxxxxxxx-xxxx-4xxx-vxxx-xxxxxxxxxxxx";
    let fits = |(shape, c): (char, char)| match shape {
        'x' => matches!(c, '0'..='9' | 'a'..='f'),
        'v' => matches!(c, '8' | '9' | 'a' | 'b'),
        other => c == other,
    };
    text.len() == shape.len() && shape.chars().zip(text.chars()).all(fits)
}

#[test]
fn http_1_requests_get_one_of_their_own() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let proxy = Proxy::with(&site, upstream.address(), &options(), &[usual(&site)]);
    let mut client = Peer::connect(proxy.http());
    let request = |name: &str, fields: &str| format!("GET /{name} HTTP/1.1\r\nHost: a\r\n{fields}X-Last:  1\r\n\r\n");
    // The third takes the client's away as a field of this hop, so that none is left.
    let asked = [
        ("allowed1", ""),
        ("allowed2", ""),
        ("allowed3", "Connection: x-request-id\r\nX-Request-Id: mine\r\n"),
        ("allowed4", "X-REQUEST-ID: mine\r\n"),
        ("allowed5", "x-request-id: \r\n"),
    ];
    for (name, fields) in asked {
        client.send(request(name, fields));
        assert_eq!(client.read_message().status(), 200);
    }
    let received = String::from_utf8(upstream.received().concat()).unwrap();
    let heads: Vec<&str> = received.split_inclusive("\r\n\r\n").collect();
    let mut ids = Vec::new();
    for (head, (name, _)) in heads.iter().zip(asked).take(3) {
        let start = format!("GET /{name} HTTP/1.1\r\nHost: a\r\nX-Last: 1\r\nx-request-id: ");
        let id = head.strip_prefix(&start).and_then(|rest| rest.strip_suffix("\r\n\r\n")).expect(head);
        assert!(is_uuid(id), "{id}");
        ids.push(id);
    }
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    for (head, (name, fields)) in heads.iter().zip(asked).skip(3) {
        assert_eq!(*head, request(name, fields), "its bytes stay");
    }
    assert_eq!(heads.len(), asked.len());
}

#[test]
fn http_2_requests_get_one_of_their_own() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    for (wanted, options) in [(true, options()), (false, Options::default())] {
        let proxy = Proxy::with(&site, address.parse().unwrap(), &options, &[usual(&site)]);
        let received = |field: &str| {
            let url = format!("http://{}/allowed/headers", proxy.http());
            let arguments = ["-sS", "--noproxy", "*", "--max-time", "20", "--http2-prior-knowledge", "-H", field, &url];
            let output = Command::new("curl").args(arguments).output().unwrap();
            let fields: Vec<[String; 2]> = serde_json::from_slice(&output.stdout).expect("an answer");
            let ids = fields.into_iter().filter(|[name, _]| name == "x-request-id");
            ids.map(|[_, value]| value).collect::<Vec<_>>()
        };
        let (one, other) = (received("x-a: 1"), received("x-a: 1"));
        if wanted {
            assert!(one.len() == 1 && is_uuid(&one[0]) && is_uuid(&other[0]) && one != other, "{one:?} {other:?}");
        } else {
            assert!(one.is_empty(), "{one:?}");
        }
        assert_eq!(received("x-request-id: mine"), ["mine"]);
    }
}
