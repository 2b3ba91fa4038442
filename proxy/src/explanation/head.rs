//! A question about a request as the head of an HTTP/1.1 request.

use super::{Asked, NoAnswer};
use crate::http::h1::{Refusal, write_field};
use crate::reason::Reason;

/// A request in words and in bytes.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) method: String,
    pub(super) authority: String,
    /// As given.
    pub(super) path: String,
    /// The head; or why it would be refused, where its bytes would say something else than was asked.
    pub(super) bytes: Result<Vec<u8>, Refusal>,
}

/// `None` when no request is asked about.
///
/// # Errors
/// The host is given twice.
pub(super) fn write(asked: &Asked) -> Result<Option<Written>, NoAnswer> {
    let Some((method, path)) = &asked.request else { return Ok(None) };
    let is_host = |name: &str| name.eq_ignore_ascii_case("host");
    let mut hosts = asked.headers.iter().filter(|(name, _)| is_host(name)).map(|(_, value)| value).chain(&asked.host);
    let authority = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(NoAnswer::TwoHosts);
    }
    let authority = authority.unwrap_or_else(|| std::net::SocketAddr::new(asked.endpoint, asked.port).to_string());
    let others = asked.headers.iter().filter(|(name, _)| !is_host(name));
    let bytes = match ends_target(path).or_else(|| ends_target(&authority)) {
        // Written out it would end the request line, or its field, in the middle.
        Some(byte) => Err(Refusal {
            reason: Reason::MalformedRequest,
            detail: format!("the target or host contains the byte 0x{byte:02x}; a client has to escape it"),
        }),
        None => Ok(bytes(method, path, &authority, others)),
    };
    Ok(Some(Written { method: method.clone(), authority, path: path.clone(), bytes }))
}

/// A blank or control character. Whatever else stands in a target is for the reader of the head to judge.
fn ends_target(text: &str) -> Option<u8> {
    text.bytes().find(|byte| *byte <= b' ' || *byte == 0x7f)
}

fn bytes<'a>(method: &str, path: &str, authority: &str, fields: impl Iterator<Item = &'a (String, String)>) -> Vec<u8> {
    let mut out = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
    write_field(&mut out, b"Host", authority.as_bytes());
    for (name, value) in fields {
        write_field(&mut out, name.as_bytes(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::config::Normalize;
    use crate::http::h1::{self, FieldStorage, MAX_FIELDS};

    /// What is refused here without being read would be refused for the same reason if it was sent.
    #[test]
    fn what_cannot_be_written_is_refused_when_it_comes() {
        let refused = |target: &str| {
            let head = bytes("GET", target, "a", [].iter());
            let mut storage: FieldStorage<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
            h1::read(&head, &mut storage, &Normalize::default()).err().map(|refusal| refusal.reason)
        };
        for byte in (0..=0x20).chain([0x7f]) {
            let target = format!("/a{}b", char::from(byte));
            assert_eq!(ends_target(&target), Some(byte));
            assert_eq!(refused(&target), Some(Reason::MalformedRequest), "0x{byte:02x}");
        }
        for target in ["/a\u{e9}", "/a#b", "/%zz"] {
            assert_eq!((ends_target(target), refused(target)), (None, Some(Reason::AmbiguousPath)), "{target}");
        }
    }
}
