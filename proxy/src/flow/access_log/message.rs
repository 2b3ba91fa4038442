//! From an entry to the bytes of a `cilium.LogEntry`.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::SystemTime;

use prost::Message as _;
use tollgate_policy::{Direction, LoggedHeader};
use tollgate_proto::cilium::log_entry::L7;
use tollgate_proto::cilium::{EntryType, HttpLogEntry, HttpProtocol, KeyValue, LogEntry};

use super::entry::{Entry, EntryKind, Fields, LoggedRequest};
use crate::flow::Protocol;
use crate::http::request_id;

/// Most bytes of a packet: the agent reads 4,096 at once and throws away what is longer.
pub(super) const MAX: usize = 4095;
/// Room for the field that says what was left out.
const NOTE: usize = 96;
/// Its name.
const NOTE_NAME: &str = "x-tollgate-trimmed";
/// Ends a text whose rest was left out.
const CUT: &str = "...";
/// Most bytes of the texts that a client chooses, beside path and fields. With them, and an `x-request-id` no longer than
/// [`MAX_REQUEST_ID`], there is always room for a path.
const MAX_HOST: usize = 512;
const MAX_METHOD: usize = 64;
const MAX_SCHEME: usize = 64;
/// An `x-request-id` over this is a field like others.
const MAX_REQUEST_ID: usize = 512;

/// Appends the message, [`MAX`] bytes at most.
pub(super) fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let request = &entry.request;
    let mut message = LogEntry {
        timestamp: nanoseconds(entry.time),
        is_ingress: request.direction == Direction::Ingress,
        entry_type: match entry.kind {
            EntryKind::Request => EntryType::Request,
            EntryKind::Response => EntryType::Response,
            EntryKind::Denied => EntryType::Denied,
        }
        .into(),
        policy_name: request.endpoint.to_canonical().to_string(),
        proxy_id: request.proxy_id.into(),
        cilium_rule_ref: rule_ref(request),
        source_security_id: request.source.0,
        destination_security_id: request.destination.0,
        source_address: address(request.downstream),
        destination_address: address(request.original_dst),
        l7: None,
    };
    if let Some(head) = &request.head {
        let (http, left_out) = http(entry, request, head);
        message.l7 = Some(L7::Http(http));
        trim(&mut message, left_out);
    }
    // Writing to a Vec cannot fail.
    let _ = message.encode(out);
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

fn address(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// The rule that admitted, or why nothing did and which rule came closest.
fn rule_ref(request: &LoggedRequest) -> String {
    match (request.reason, request.rule) {
        (Some(reason), Some(rule)) => format!("{}; nearest: {rule}", reason.code()),
        (Some(reason), None) => reason.code().to_owned(),
        (None, Some(rule)) => rule.to_string(),
        (None, None) => String::new(),
    }
}

/// The HTTP part, and how many fields are not in it already.
fn http(entry: &Entry, request: &LoggedRequest, head: &Fields) -> (HttpLogEntry, usize) {
    let mut http = HttpLogEntry {
        http_protocol: match request.protocol {
            Protocol::Http10 => HttpProtocol::Http10,
            Protocol::Http2 => HttpProtocol::Http2,
            Protocol::Http11 | Protocol::Tcp => HttpProtocol::Http11,
        }
        .into(),
        ..HttpLogEntry::default()
    };
    let mut id = None;
    for (name, value) in head.iter() {
        let value = text(value);
        match name {
            b":method" => http.method = cut(value, MAX_METHOD),
            b":authority" => http.host = cut(value, MAX_HOST),
            b":path" => http.path = value,
            b"x-forwarded-proto" => http.scheme = cut(value, MAX_SCHEME),
            b"host" => {}
            _ => {
                let field = KeyValue { key: text(name), value };
                if name == request_id::NAME.as_bytes() && id.is_none() {
                    id = Some(field.clone());
                }
                http.headers.push(field);
            }
        }
    }
    if http.scheme.is_empty() && !http.method.is_empty() {
        // TLS is not terminated here.
        "http".clone_into(&mut http.scheme);
    }
    if let Some(log) = &request.header_log {
        http.missing_headers = log.missing.iter().map(logged).collect();
        http.rejected_headers = log.rejected.iter().map(logged).collect();
    }
    let mut left_out = head.left_out();
    if let Some(response) = &entry.response {
        http.status = response.status.into();
        http.headers.clear();
        let id_value = id.as_ref().map(|id| id.value.clone());
        http.headers.extend(id);
        for (name, value) in response.fields.iter() {
            let field = KeyValue { key: text(name), value: text(value) };
            if field.key != request_id::NAME || Some(&field.value) != id_value.as_ref() {
                http.headers.push(field);
            }
        }
        left_out = response.fields.left_out();
    }
    (http, left_out)
}

fn logged(header: &LoggedHeader) -> KeyValue {
    KeyValue { key: header.name.to_string(), value: text(&header.value) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// At most `most` bytes of the text, with a mark if some are missing.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most.saturating_sub(CUT.len())));
        text.push_str(CUT);
    }
    text
}

/// Makes the message fit: fields go first, the largest of them before others, then what header matches found, then the end
/// of the path. A field says what is missing.
fn trim(message: &mut LogEntry, left_out: usize) {
    let size = message.encoded_len();
    let Some(L7::Http(http)) = &mut message.l7 else { return };
    if size <= MAX && left_out == 0 {
        return;
    }
    let mut over = (size + NOTE).saturating_sub(MAX);
    let id = http.headers.iter().position(|field| field.key == request_id::NAME);
    let id = id.filter(|&id| http.headers[id].value.len() <= MAX_REQUEST_ID);
    let headers = left_out + drop_largest(&mut http.headers, &mut over, id);
    let found = drop_largest(&mut http.missing_headers, &mut over, None)
        + drop_largest(&mut http.rejected_headers, &mut over, None);
    if over > 0 {
        let room = http.path.len().saturating_sub(over);
        http.path = cut(std::mem::take(&mut http.path), room);
    }
    let value = format!("headers={headers} found={found} path_bytes={over}");
    http.headers.push(KeyValue { key: NOTE_NAME.to_owned(), value });
}

/// Takes the largest fields out until the message is no longer `over` by anything, but never the one at `kept`. Returns how
/// many it took.
fn drop_largest(fields: &mut Vec<KeyValue>, over: &mut usize, kept: Option<usize>) -> usize {
    let size = |field: &KeyValue| field.key.len() + field.value.len();
    let mut order: Vec<usize> = (0..fields.len()).filter(|&index| kept != Some(index)).collect();
    order.sort_by_key(|&index| Reverse(size(&fields[index])));
    let mut dropped = vec![false; fields.len()];
    let mut count = 0;
    for index in order {
        if *over == 0 {
            break;
        }
        *over = over.saturating_sub(fields[index].encoded_len());
        dropped[index] = true;
        count += 1;
    }
    let mut dropped = dropped.into_iter();
    fields.retain(|_| dropped.next() != Some(true));
    count
}

#[cfg(test)]
mod tests;
