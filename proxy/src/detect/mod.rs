//! Which protocol the first bytes of a connection speak, on ports whose rules are about HTTP.
//!
//! Anything that is neither HTTP/1 nor HTTP/2 with prior knowledge (RFC 9113 section 3.4) is refused: passing unknown bytes
//! under an HTTP rule would be a way around it.

/// The client connection preface of HTTP/2.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detected {
    /// More bytes are needed.
    Undecided,
    Http1,
    Http2,
    /// Neither; TLS for example.
    Unknown,
}

/// Looks at the first bytes of a connection; [`PREFACE`]`.len()` of them always decide.
pub(crate) fn detect(bytes: &[u8]) -> Detected {
    let common = bytes.len().min(PREFACE.len());
    if common > 0 && bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Detected::Http2 } else { Detected::Undecided };
    }
    match bytes.first() {
        None => Detected::Undecided,
        // A method is a token (RFC 9110 section 5.6.2); an empty line may come before it.
        Some(byte) if byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~\r\n".contains(byte) => Detected::Http1,
        Some(_) => Detected::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes() {
        for (bytes, expected) in [
            (&b""[..], Detected::Undecided),
            (b"P", Detected::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Detected::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Detected::Http2),
            (b"PRI / HTTP/1.1\r\n", Detected::Http1),
            (b"POST", Detected::Http1),
            (b"get", Detected::Http1),
            (b"\r\nGET", Detected::Http1),
            (b"\x16\x03\x01", Detected::Unknown),
            (b"\0", Detected::Unknown),
            (b" GET", Detected::Unknown),
        ] {
            assert_eq!(detect(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
