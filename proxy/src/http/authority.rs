//! Checks a `Host` / `:authority` value (RFC 9110 section 7.2, RFC 3986 section 3.2), so that no two readers can find two
//! different hosts in it.

/// Why an authority is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// Nothing there.
    #[error("empty")]
    Empty,
    /// `user@host`.
    #[error("contains userinfo")]
    Userinfo,
    /// A byte that no host holds.
    #[error("contains a byte that no host name has")]
    Byte,
    /// The part after the last colon is not a port.
    #[error("the port is not a number up to 65535")]
    Port,
}

/// Accepts `host`, `host:port`, `[v6]` and `[v6]:port`.
pub(crate) fn check(authority: &[u8]) -> Result<(), AuthorityError> {
    if authority.is_empty() {
        return Err(AuthorityError::Empty);
    }
    if authority.contains(&b'@') {
        return Err(AuthorityError::Userinfo);
    }
    let (host, port) = match authority {
        [b'[', rest @ ..] => {
            let end = memchr::memchr(b']', rest).ok_or(AuthorityError::Byte)?;
            let address = std::str::from_utf8(&rest[..end]).map_err(|_| AuthorityError::Byte)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| AuthorityError::Byte)?;
            match &rest[end + 1..] {
                [] => return Ok(()),
                [b':', port @ ..] => return check_port(port),
                _ => return Err(AuthorityError::Byte),
            }
        }
        _ => match memchr::memrchr(b':', authority) {
            Some(colon) => (&authority[..colon], Some(&authority[colon + 1..])),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err(AuthorityError::Empty);
    }
    let allowed = |b: &u8| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'='
            )
    };
    if !host.iter().all(allowed) {
        return Err(AuthorityError::Byte);
    }
    port.map_or(Ok(()), check_port)
}

fn check_port(port: &[u8]) -> Result<(), AuthorityError> {
    let digits = !port.is_empty() && port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(port).ok().and_then(|text| text.parse::<u16>().ok());
    if digits && number.is_some() { Ok(()) } else { Err(AuthorityError::Port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        for host in ["a", "a.b", "a:80", "10.0.0.1:5000", "[::1]", "[fd00::2]:5000", "a_b", "A.example."] {
            assert_eq!(check(host.as_bytes()), Ok(()), "{host}");
        }
    }

    #[test]
    fn refused() {
        for (host, error) in [
            ("", AuthorityError::Empty),
            (":80", AuthorityError::Empty),
            ("a@b", AuthorityError::Userinfo),
            ("a, b", AuthorityError::Byte),
            ("a/b", AuthorityError::Byte),
            ("a b", AuthorityError::Byte),
            ("a:b:80", AuthorityError::Byte),
            ("[::1", AuthorityError::Byte),
            ("[::1]x", AuthorityError::Byte),
            ("[zz]", AuthorityError::Byte),
            ("a\u{e9}", AuthorityError::Byte),
            ("a:", AuthorityError::Port),
            ("a:70000", AuthorityError::Port),
            ("a:+1", AuthorityError::Port),
            ("[::1]:x", AuthorityError::Port),
        ] {
            assert_eq!(check(host.as_bytes()), Err(error), "{host}");
        }
    }
}
