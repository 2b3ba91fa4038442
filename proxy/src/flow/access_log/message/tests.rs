use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tollgate_policy::{HeaderLog, RuleRef, SecurityId};

use super::*;
use crate::flow::access_log::SinkSet;
use crate::flow::access_log::entry::LoggedResponse;
use crate::reason::Reason;
use crate::tenant::TenantId;

fn fields(list: &[(&str, &[u8])]) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in list {
        fields.push(name.as_bytes(), value);
    }
    fields
}

fn request(head: Option<Fields>) -> LoggedRequest {
    LoggedRequest {
        direction: Direction::Ingress,
        endpoint: "10.244.2.232".parse().unwrap(),
        proxy_id: 11750,
        source: SecurityId(32226),
        destination: SecurityId(0),
        downstream: "[::ffff:10.244.1.17]:40000".parse().unwrap(),
        original_dst: "[fd00::2]:5000".parse().unwrap(),
        protocol: Protocol::Http11,
        rule: Some(RuleRef {
            endpoint_id: 69,
            direction: Direction::Ingress,
            port_entry: 0,
            rule: Some(1),
            http_rule: None,
        }),
        reason: None,
        head,
        header_log: None,
    }
}

fn entry(kind: EntryKind, request: LoggedRequest, response: Option<(u16, Fields)>) -> Entry {
    Entry {
        sinks: SinkSet::default(),
        kind,
        tenant: TenantId::UNKNOWN,
        time: SystemTime::UNIX_EPOCH + Duration::new(1, 23),
        request: Arc::new(request),
        response: response.map(|(status, fields)| Arc::new(LoggedResponse { status, fields })),
    }
}

/// Encoded and read back.
fn message(entry: &Entry) -> LogEntry {
    let mut bytes = Vec::new();
    encode(entry, &mut bytes);
    assert!(bytes.len() <= MAX, "{} bytes", bytes.len());
    LogEntry::decode(&bytes[..]).unwrap()
}

fn http_of(message: LogEntry) -> HttpLogEntry {
    match message.l7 {
        Some(L7::Http(http)) => http,
        other => panic!("{other:?}"),
    }
}

fn pairs(list: &[KeyValue]) -> Vec<(&str, &str)> {
    list.iter().map(|field| (&*field.key, &*field.value)).collect()
}

const HEAD: &[(&str, &[u8])] = &[
    (":method", b"GET"),
    (":authority", b"helloworld:5000"),
    (":path", b"/hello?a=b"),
    (":scheme", b"http"),
    ("Host", b"helloworld:5000"),
    ("X-Forwarded-Proto", b"https"),
    ("X-Request-Id", b"1234"),
    ("User-Agent", b"curl"),
];

#[test]
fn a_request_has_every_field() {
    let message = message(&entry(EntryKind::Request, request(Some(fields(HEAD))), None));
    let http = HttpLogEntry {
        http_protocol: HttpProtocol::Http11.into(),
        scheme: "https".into(),
        host: "helloworld:5000".into(),
        path: "/hello?a=b".into(),
        method: "GET".into(),
        headers: [(":scheme", "http"), ("x-request-id", "1234"), ("user-agent", "curl")]
            .map(|(key, value)| KeyValue { key: key.into(), value: value.into() })
            .into(),
        ..HttpLogEntry::default()
    };
    let expected = LogEntry {
        timestamp: 1_000_000_023,
        is_ingress: true,
        entry_type: EntryType::Request.into(),
        policy_name: "10.244.2.232".into(),
        proxy_id: 11750,
        cilium_rule_ref: "69 ingress_per_port_policies[0].rules[1]".into(),
        source_security_id: 32226,
        destination_security_id: 0,
        source_address: "10.244.1.17:40000".into(),
        destination_address: "[fd00::2]:5000".into(),
        l7: Some(L7::Http(http)),
    };
    assert_eq!(message, expected);
}

#[test]
fn a_response_keeps_the_request_and_its_id_in_front() {
    let answer = fields(&[("Server", b"x"), ("x-request-id", b"1234"), ("X-Request-ID", b"other")]);
    let message = message(&entry(EntryKind::Response, request(Some(fields(HEAD))), Some((404, answer))));
    assert_eq!(message.entry_type(), EntryType::Response);
    let http = http_of(message);
    assert_eq!((http.status, &*http.path, &*http.scheme), (404, "/hello?a=b", "https"));
    assert_eq!(pairs(&http.headers), [("x-request-id", "1234"), ("server", "x"), ("x-request-id", "other")]);
}

#[test]
fn egress_names_the_destination() {
    let egress =
        LoggedRequest { direction: Direction::Egress, destination: SecurityId(12001), ..request(Some(fields(HEAD))) };
    let message = message(&entry(EntryKind::Request, egress, None));
    assert_eq!((message.is_ingress, message.destination_security_id), (false, 12001));
}

#[test]
fn a_refused_connection_has_no_http_part() {
    let refused = LoggedRequest { reason: Some(Reason::PeerNotAllowed), ..request(None) };
    let message = message(&entry(EntryKind::Denied, refused, None));
    assert_eq!((message.entry_type(), &message.l7), (EntryType::Denied, &None));
    assert_eq!(message.cilium_rule_ref, "peer_not_allowed; nearest: 69 ingress_per_port_policies[0].rules[1]");
}

#[test]
fn the_largest_fields_go_first_and_the_id_stays() {
    let big = [b'v'; 1500];
    let head =
        [HEAD, &[("x-big", &big[..]), ("x-small", b"1"), ("x-bigger", &[b'w'; 1600]), ("x-bin", b"a\xffb")]].concat();
    let mut logged = request(Some(fields(&head)));
    let values = |length| vec![LoggedHeader { name: "x-user".into(), value: vec![b'u'; length].into() }];
    logged.header_log = Some(Box::new(HeaderLog { missing: values(700), rejected: values(256) }));
    let http = http_of(message(&entry(EntryKind::Request, logged, None)));
    let names: Vec<_> = http.headers.iter().map(|field| &*field.key).collect();
    let expected = [":scheme", "x-request-id", "user-agent", "x-big", "x-small", "x-bin", "x-tollgate-trimmed"];
    assert_eq!(names, expected);
    assert_eq!(http.headers[5].value, "a\u{fffd}b");
    assert_eq!(http.headers[6].value, "headers=1 found=0 path_bytes=0");
    assert_eq!((http.missing_headers.len(), http.rejected_headers.len()), (1, 1));
}

#[test]
fn a_long_path_is_cut_after_everything_else_was() {
    let long = [b'p'; 4096];
    let mut head =
        fields(&[(":method", b"GET"), (":authority", &[b'h'; 600]), (":path", &long), ("x-request-id", b"12")]);
    head.push(b"x-other", &[b'o'; 3000]);
    let http = http_of(message(&entry(EntryKind::Request, request(Some(head)), None)));
    assert_eq!((http.host.len(), http.host.ends_with("h...")), (MAX_HOST, true));
    assert!(http.path.len() > 3000 && http.path.ends_with("p..."), "{}", http.path.len());
    assert_eq!(http.headers[0].key, "x-request-id");
    assert_eq!(http.headers.len(), 2, "{:?}", http.headers);
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (any::<u8>(), 0..6000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_fits_and_decodes(
        texts in [any_text(), any_text(), any_text()],
        head in prop::collection::vec(
            (prop_oneof!["[a-zA-Z-]{0,20}", Just("x-forwarded-proto".into()), "[a-z]{0,5000}"], any_text()), 0..30),
        id in any_text(),
        answer in prop::collection::vec(("[a-z]{0,20}", any_text()), 0..30),
        logged in prop::collection::vec(any_text(), 0..32),
        answered: bool,
    ) {
        let mut fields = Fields::default();
        for (name, value) in [":method", ":authority", ":path"].iter().zip(&texts) {
            fields.push(name.as_bytes(), value);
        }
        for (name, value) in &head {
            fields.push(name.as_bytes(), value);
        }
        fields.push(b"x-request-id", &id);
        let mut request = request(Some(fields));
        let list: Vec<_> = logged
            .iter()
            .map(|value| LoggedHeader { name: "n".into(), value: value[..value.len().min(256)].into() })
            .collect();
        request.header_log = Some(Box::new(HeaderLog { missing: list.clone(), rejected: list }));
        let mut response = Fields::default();
        answer.iter().for_each(|(name, value)| response.push(name.as_bytes(), value));
        let kind = if answered { EntryKind::Response } else { EntryKind::Denied };
        let http = http_of(message(&entry(kind, request, answered.then_some((200, response)))));
        if id.len() <= 100 {
            let id = String::from_utf8_lossy(&id);
            prop_assert!(http.headers.iter().any(|field| field.key == "x-request-id" && field.value == id));
        }
    }
}
