//! Which trailer fields pass: those that were announced and that cannot be mistaken for a header field that decides
//! something (RFC 9110 sections 6.5.1 and 6.6.2).

use super::request::write_field;

/// Largest trailer section, in bytes.
pub(crate) const MAX_TRAILERS: usize = 8 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;

/// Fields that frame, route, authenticate or describe the content: never taken from a trailer section.
pub(crate) const FORBIDDEN: [&str; 20] = [
    "transfer-encoding",
    "content-length",
    "host",
    "connection",
    "trailer",
    "te",
    "upgrade",
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "content-type",
    "content-encoding",
    "content-range",
    "cache-control",
    "expect",
    "max-forwards",
    "range",
    "age",
    "location",
];

/// A trailer section that does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed trailer section")]
pub(crate) struct TrailerError;

/// Whether the field of this name may pass.
pub(crate) type Passes<'a> = &'a dyn Fn(&[u8]) -> bool;

/// Rewrites a complete trailer `section` (its final empty line included) with the fields that may pass. Requests pass
/// only those of which `passes` says so; responses (`None`) all that are not forbidden.
pub(crate) fn filter(section: &[u8], passes: Option<Passes<'_>>) -> Result<Vec<u8>, TrailerError> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((length, fields))) = httparse::parse_headers(section, &mut storage) else {
        return Err(TrailerError);
    };
    if length != section.len() {
        return Err(TrailerError);
    }
    let mut out = Vec::with_capacity(section.len());
    for field in fields {
        let forbidden = FORBIDDEN.iter().any(|name| field.name.eq_ignore_ascii_case(name));
        if !forbidden && passes.is_none_or(|passes| passes(field.name.as_bytes())) {
            write_field(&mut out, field.name.as_bytes(), field.value);
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announced_and_harmless_fields_pass() {
        let section = b"Checksum: 1\r\nContent-Length: 9\r\nX-Auth: admin\r\nHost: evil\r\n\r\n";
        let announced = |name: &[u8]| matches!(name, b"Checksum" | b"Host");
        assert_eq!(filter(section, Some(&announced)).unwrap(), b"Checksum: 1\r\n\r\n");
        assert_eq!(filter(section, Some(&|_| false)).unwrap(), b"\r\n");
        assert_eq!(filter(section, None).unwrap(), b"Checksum: 1\r\nX-Auth: admin\r\n\r\n");
    }

    #[test]
    fn malformed() {
        for section in [&b"bad name: 1\r\n\r\n"[..], b"a\r\n\r\n", b"a: b\r\n"] {
            assert_eq!(filter(section, None), Err(TrailerError), "{}", String::from_utf8_lossy(section));
        }
    }
}
