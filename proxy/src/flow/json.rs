//! Flow records as JSON lines, in the shape of Hubble's `flow.Flow` (its protobuf JSON mapping: 64-bit `latency_ns`
//! as a string) plus what Hubble has no field for.
//!
//! One record is one line, whatever its bytes are. What the peer sent (method, authority, path, headers) is written as
//! printable ASCII: a backslash becomes `\\`, and each byte outside 0x20..=0x7E becomes `\xNN` (two upper-case hex
//! digits), both before JSON's own quoting. So a reader who has decoded the JSON string finds neither control
//! characters nor invalid or deceiving Unicode in it, and [`unescape`] gives the exact bytes back. Names from the
//! configuration and the control plane are ordinary JSON strings.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use tollgate_policy::LoggedHeader;

use super::{FlowRecord, HttpRecord, Outcome, Protocol, Sequenced};
use crate::reason::Reason;
use crate::tenant::NamesNow;

/// Appends the record as one line of JSON, with its newline. `names` are those of tenants.
pub fn write_line(out: &mut Vec<u8>, item: &Sequenced, names: &NamesNow) {
    write(out, &item.record, names.of(item.record.tenant), (item.worker, item.seq));
}

/// How long the line of a record is, but for what the flow thread adds: its tenant's name, and which limit refused it. `scratch`
/// is room to find out in.
pub(super) fn length(scratch: &mut Vec<u8>, record: &FlowRecord, place: (u16, u64)) -> usize {
    scratch.clear();
    write(scratch, record, None, place);
    scratch.len()
}

/// `place` is the worker and the number of the record among those of it.
fn write(out: &mut Vec<u8>, record: &FlowRecord, tenant: Option<&str>, place: (u16, u64)) {
    out.extend_from_slice(b"{\"time\":\"");
    time(out, record.time);
    out.extend_from_slice(b"\",\"verdict\":\"");
    out.extend_from_slice(match record.outcome {
        Outcome::Forwarded => b"FORWARDED",
        Outcome::Denied => b"DROPPED",
        Outcome::Failed => b"ERROR",
    });
    addresses(out, record);
    out.extend_from_slice(b",\"source\":{\"identity\":");
    integer(out, record.source.0);
    out.extend_from_slice(b"},\"destination\":{\"identity\":");
    integer(out, record.destination.0);
    out.extend_from_slice(match record.direction {
        tollgate_policy::Direction::Ingress => b"},\"traffic_direction\":\"INGRESS\"".as_slice(),
        tollgate_policy::Direction::Egress => b"},\"traffic_direction\":\"EGRESS\"",
    });
    match &record.http {
        Some(http) => layer7(out, record, http),
        None => out.extend_from_slice(b",\"Type\":\"L3_L4\""),
    }
    policy(out, record);
    if let Some(reason) = record.reason {
        out.extend_from_slice(b",\"reason\":\"");
        out.extend_from_slice(reason.code().as_bytes());
        out.push(b'"');
    }
    if let Some(detail) = &record.detail {
        out.extend_from_slice(b",\"detail\":");
        text(out, detail);
    }
    if let Some(reason) = record.would_limit {
        out.extend_from_slice(b",\"would_limit\":\"");
        out.extend_from_slice(reason.code().as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b",\"listener\":");
    text(out, &record.listener);
    if let Some(tenant) = tenant {
        out.extend_from_slice(b",\"tenant\":");
        text(out, tenant);
    }
    if let Some(upstream) = record.upstream {
        out.extend_from_slice(b",\"upstream\":\"");
        socket_address(out, upstream);
        out.push(b'"');
    }
    if let Some(source) = record.upstream_source {
        out.extend_from_slice(b",\"upstream_source\":\"");
        socket_address(out, source);
        out.push(b'"');
    }
    field(out, b",\"bytes_up\":", record.bytes_up);
    field(out, b",\"bytes_down\":", record.bytes_down);
    field(out, b",\"duration_us\":", record.duration_us);
    for (name, spent) in [(&b",\"cpu_us\":"[..], record.cpu_us), (b",\"queue_us\":", record.queue_us)] {
        if let Some(spent) = spent {
            field(out, name, spent);
        }
    }
    if record.paced_us > 0 {
        field(out, b",\"paced_us\":", record.paced_us);
        out.extend_from_slice(b",\"paced_by\":\"");
        out.extend_from_slice(Reason::TenantBandwidth.code().as_bytes());
        out.push(b'"');
    }
    field(out, b",\"worker\":", place.0);
    field(out, b",\"seq\":", place.1);
    out.extend_from_slice(b"}\n");
}

/// Appends a line that stands for `count` records which a follower missed, in the form of Hubble's `LostEvent`.
pub fn write_lost(out: &mut Vec<u8>, count: u64) {
    field(out, b"{\"lost_events\":{\"source\":\"FOLLOWER\",\"num_events_lost\":", count);
    out.extend_from_slice(b"}}\n");
}

fn addresses(out: &mut Vec<u8>, record: &FlowRecord) {
    let (source, destination) = (record.downstream.ip().to_canonical(), record.original_dst.ip().to_canonical());
    out.extend_from_slice(b"\",\"IP\":{\"source\":\"");
    address(out, source);
    out.extend_from_slice(b"\",\"destination\":\"");
    address(out, destination);
    out.extend_from_slice(if destination.is_ipv4() {
        b"\",\"ipVersion\":\"IPv4\"}".as_slice()
    } else {
        b"\",\"ipVersion\":\"IPv6\"}"
    });
    field(out, b",\"l4\":{\"TCP\":{\"source_port\":", record.downstream.port());
    field(out, b",\"destination_port\":", record.original_dst.port());
    out.extend_from_slice(b"}}");
}

fn layer7(out: &mut Vec<u8>, record: &FlowRecord, http: &HttpRecord) {
    out.extend_from_slice(b",\"Type\":\"L7\",\"l7\":{\"type\":\"REQUEST\",\"latency_ns\":\"");
    integer(out, record.duration_us.saturating_mul(1000));
    field(out, b"\",\"http\":{\"code\":", http.status);
    out.extend_from_slice(b",\"method\":\"");
    untrusted(out, http.method());
    out.extend_from_slice(b"\",\"url\":\"");
    // `*` and other targets that are no path stand alone (RFC 9112 section 3.2).
    if http.path().first() == Some(&b'/') {
        out.extend_from_slice(b"http://");
        untrusted(out, http.authority());
    }
    untrusted(out, http.path());
    out.extend_from_slice(b"\",\"protocol\":\"");
    out.extend_from_slice(match record.protocol {
        Protocol::Tcp => b"".as_slice(),
        Protocol::Http10 => b"HTTP/1.0",
        Protocol::Http11 => b"HTTP/1.1",
        Protocol::Http2 => b"HTTP/2",
    });
    out.push(b'"');
    if let Some(log) = &record.header_log {
        fields(out, b",\"missing_headers\":[", &log.missing);
        fields(out, b",\"rejected_headers\":[", &log.rejected);
    }
    out.extend_from_slice(b"}}");
}

/// Nothing for an empty list; the members are those of Hubble's `HTTPHeader`.
fn fields(out: &mut Vec<u8>, key: &[u8], list: &[LoggedHeader]) {
    for (index, header) in list.iter().enumerate() {
        out.extend_from_slice(if index == 0 { key } else { b"," });
        out.extend_from_slice(b"{\"key\":\"");
        untrusted(out, header.name.as_bytes());
        out.extend_from_slice(b"\",\"value\":\"");
        untrusted(out, &header.value);
        out.extend_from_slice(b"\"}");
    }
    if !list.is_empty() {
        out.push(b']');
    }
}

fn policy(out: &mut Vec<u8>, record: &FlowRecord) {
    field(out, b",\"policy\":{\"generation\":", record.generation);
    if let Some(rule) = &record.rule {
        field(out, b",\"name\":\"", rule.endpoint_id);
        out.extend_from_slice(b"\",\"rule\":\"");
        display(out, rule);
        out.push(b'"');
        if let Some(name) = &record.rule_name {
            out.extend_from_slice(b",\"rule_name\":");
            text(out, name);
        }
    }
    if let Some(miss) = &record.nearest_miss {
        if record.rule.is_none() {
            field(out, b",\"name\":\"", miss.rule.endpoint_id);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"nearest_miss\":{\"rule\":\"");
        display(out, miss.rule);
        out.push(b'"');
        if let Some(name) = &miss.name {
            out.extend_from_slice(b",\"name\":");
            text(out, name);
        }
        out.extend_from_slice(b",\"field\":");
        text(out, &miss.field);
        out.extend_from_slice(b",\"expected\":");
        text(out, &miss.expected);
        out.extend_from_slice(b",\"matched\":[");
        for (index, matched) in miss.matched.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            text(out, matched);
        }
        out.extend_from_slice(b"]}");
    }
    out.push(b'}');
}

fn field(out: &mut Vec<u8>, key: &[u8], value: impl itoa::Integer) {
    out.extend_from_slice(key);
    integer(out, value);
}

fn integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Only for types whose text needs no quoting.
fn display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{value}");
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                integer(out, octet);
            }
        }
        IpAddr::V6(v6) => display(out, v6),
    }
}

fn socket_address(out: &mut Vec<u8>, socket: SocketAddr) {
    match socket.ip().to_canonical() {
        ip @ IpAddr::V4(_) => address(out, ip),
        IpAddr::V6(v6) => display(out, format_args!("[{v6}]")),
    }
    field(out, b":", socket.port());
}

/// RFC 3339, UTC, nanoseconds. Before 1970 (a clock that was never set) is written as 1970.
fn time(out: &mut Vec<u8>, time: SystemTime) {
    display(out, humantime::format_rfc3339_nanos(time.max(SystemTime::UNIX_EPOCH)));
}

/// Bytes from the peer; see the module's documentation.
fn untrusted(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\\\\\"),
            byte => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'\\', b'x', high, low]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// The bytes that `escaped` stands for, by the rule of this module; `None` if it breaks the rule.
pub fn unescape(escaped: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                bytes.push(b'\\');
                tail
            }
            (b'\\', [b'x', high, low, tail @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
                tail
            }
            (b' '..=b'~', tail) if *first != b'\\' => {
                bytes.push(*first);
                tail
            }
            _ => return None,
        };
    }
    Some(bytes)
}

/// A JSON string. Control characters of both sets and the Unicode line separators are escaped, so that printing it
/// raw cannot steer a terminal either.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() || matches!(c, '"' | '\\' | '\u{2028}' | '\u{2029}')) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let mut chars = tail.chars();
        match chars.next() {
            Some(c @ ('"' | '\\')) => display(out, format_args!("\\{c}")),
            Some(c) => display(out, format_args!("\\u{:04x}", u32::from(c))),
            None => {}
        }
        rest = chars.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests;
