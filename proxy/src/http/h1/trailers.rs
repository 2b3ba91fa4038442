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

/// The fields of a complete trailer `section` (its final empty line included) that are not forbidden: the name of each, and the line that
/// passes it on. Responses pass all of them, requests only some.
pub(crate) fn harmless(section: &[u8]) -> Result<Vec<(&str, Vec<u8>)>, TrailerError> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((length, fields))) = httparse::parse_headers(section, &mut storage) else {
        return Err(TrailerError);
    };
    if length != section.len() {
        return Err(TrailerError);
    }
    let is_forbidden = |name: &str| FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden));
    let passing = fields.iter().filter(|field| !is_forbidden(field.name)).map(|field| {
        let mut line = Vec::new();
        write_field(&mut line, field.name.as_bytes(), field.value);
        (field.name, line)
    });
    Ok(passing.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_fields_do_not_pass() {
        let section = b"Checksum: 1\r\nContent-Length: 9\r\nX-Auth: admin\r\nHost: evil\r\n\r\n";
        let lines = [("Checksum", b"Checksum: 1\r\n".to_vec()), ("X-Auth", b"X-Auth: admin\r\n".to_vec())];
        assert_eq!(harmless(section).unwrap(), lines);
        assert_eq!(harmless(b"\r\n").unwrap(), []);
    }

    #[test]
    fn malformed() {
        for section in [&b"bad name: 1\r\n\r\n"[..], b"a\r\n\r\n", b"a: b\r\n"] {
            assert_eq!(harmless(section), Err(TrailerError), "{}", String::from_utf8_lossy(section));
        }
    }
}
