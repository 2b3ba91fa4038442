//! One canonical form of a request path: what policy matches is exactly what is forwarded.
//!
//! The order of steps is Envoy's with the settings that Cilium gives it (unescape slashes, resolve dot segments, merge
//! slashes), with the fixes of 1.40: parameters on dot segments do not hide them. Stricter than Envoy where a back end
//! could read the bytes in two ways: broken escapes, `%00`, escaped octets that are not UTF-8, a fragment.
//!
//! Law: canonicalising a result again changes nothing. A second hop therefore sees the same path.

use std::fmt;

use crate::config::{EscapedSlashes, Normalize};

/// A path in canonical form, query included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanonicalPath {
    /// The bytes received are canonical already.
    Unchanged,
    /// These bytes are matched and forwarded instead.
    Rewritten(Vec<u8>),
    /// The client is sent (307) to these bytes, because they differ in escaped slashes.
    Redirect(Vec<u8>),
}

/// Why a path has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// Does not begin with `/`.
    NotAbsolute,
    /// A control character, a space, or a byte above 0x7E.
    ForbiddenByte(u8),
    /// `#`: a fragment never belongs into a request (RFC 9110 section 4.2.5).
    Fragment,
    /// `%` without two hexadecimal digits.
    BrokenEscape,
    /// `%00`.
    EscapedNul,
    /// Escaped octets that are not UTF-8, overlong forms included.
    NotUtf8,
    /// `%2F` or `%5C` where the listener refuses them.
    EscapedSlash,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAbsolute => f.write_str("the path does not begin with a slash"),
            Self::ForbiddenByte(byte) => write!(f, "the target contains the byte 0x{byte:02x}"),
            Self::Fragment => f.write_str("the target contains a fragment"),
            Self::BrokenEscape => f.write_str("a percent sign is not followed by two hexadecimal digits"),
            Self::EscapedNul => f.write_str("the path contains %00"),
            Self::NotUtf8 => f.write_str("the path contains escaped octets that are not UTF-8"),
            Self::EscapedSlash => f.write_str("the path contains an escaped slash"),
        }
    }
}

/// Canonicalises `target`, an origin-form request target (`/path?query`). The query is checked, never changed.
pub fn canonicalise(target: &[u8], mode: &Normalize) -> Result<CanonicalPath, PathError> {
    if target.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    if is_plain(target) {
        return Ok(CanonicalPath::Unchanged);
    }
    for &byte in target {
        match byte {
            b'#' => return Err(PathError::Fragment),
            0x21..=0x7E => {}
            _ => return Err(PathError::ForbiddenByte(byte)),
        }
    }
    let split = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at(split);

    let mut redirect = false;
    let mut canonical = path.to_vec();
    if mode.path {
        check_escapes(&canonical)?;
    }
    if let Some(unescaped) = treat_escaped_slashes(&canonical, mode)? {
        redirect = mode.escaped_slashes == EscapedSlashes::UnescapeAndRedirect;
        canonical = unescaped;
    }
    if mode.path {
        canonical = resolve_dot_segments(&normalise_octets(&canonical));
    }
    if mode.merge_slashes {
        merge_slashes(&mut canonical);
    }
    if redirect && canonical.starts_with(b"//") {
        // As a `location` that would be the name of another host (RFC 3986 section 4.2).
        return Err(PathError::EscapedSlash);
    }
    if !redirect && canonical == path {
        return Ok(CanonicalPath::Unchanged);
    }
    canonical.extend_from_slice(query);
    Ok(if redirect { CanonicalPath::Redirect(canonical) } else { CanonicalPath::Rewritten(canonical) })
}

/// Whether nothing in `target` can need attention under any mode: the common case, found in one pass.
fn is_plain(target: &[u8]) -> bool {
    let mut previous = 0;
    for (at, &byte) in target.iter().enumerate() {
        match byte {
            b'?' => {
                return target[at..].iter().all(|&b| matches!(b, 0x21..=0x7E) && b != b'#');
            }
            b'/' | b'.' if previous == b'/' => return false,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {}
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => {}
            _ => return false,
        }
        previous = byte;
    }
    true
}

/// Refuses escapes that readers disagree about.
fn check_escapes(path: &[u8]) -> Result<(), PathError> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let octet = escape_at(rest).ok_or(PathError::BrokenEscape)?;
        if octet == 0 {
            return Err(PathError::EscapedNul);
        }
        decoded.push(octet);
        rest = &rest[3..];
    }
    std::str::from_utf8(&decoded).map(|_| ()).map_err(|_| PathError::NotUtf8)
}

/// The octet written as `%XX` at the start of `bytes`.
fn escape_at(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else {
        return None;
    };
    let digit = |byte: u8| (byte as char).to_digit(16);
    Some((digit(*high)? * 16 + digit(*low)?) as u8)
}

/// Decodes `%2F` and `%5C` as the mode says; `None` when there is none or they are kept.
fn treat_escaped_slashes(path: &[u8], mode: &Normalize) -> Result<Option<Vec<u8>>, PathError> {
    if mode.escaped_slashes == EscapedSlashes::Keep {
        return Ok(None);
    }
    let is_slash = |rest: &[u8]| matches!(escape_at(rest), Some(b'/' | b'\\'));
    if !memchr::memchr_iter(b'%', path).any(|at| is_slash(&path[at..])) {
        return Ok(None);
    }
    if mode.escaped_slashes == EscapedSlashes::Reject {
        return Err(PathError::EscapedSlash);
    }
    let mut unescaped = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        if is_slash(&path[at..]) {
            unescaped.push(b'/');
            at += 3;
        } else {
            unescaped.push(path[at]);
            at += 1;
        }
    }
    Ok(Some(unescaped))
}

/// RFC 3986 section 6.2.2.2 (unreserved octets are written plainly), `\` as `/`, and the octets that a path may not hold
/// are escaped, each as Envoy does it.
fn normalise_octets(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        match path[at] {
            b'%' => {
                if let Some(octet @ (b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~')) =
                    escape_at(&path[at..])
                {
                    out.push(octet);
                } else {
                    out.extend_from_slice(&path[at..(at + 3).min(path.len())]);
                }
                at += 3;
                continue;
            }
            b'\\' => out.push(b'/'),
            byte @ (b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    out
}

/// RFC 3986 section 5.2.4. A dot segment stays one when it carries parameters (`..;x`), because servlet containers cut
/// parameters before they resolve (CVE-2026-73551).
fn resolve_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|&b| b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let name = &segment[..memchr::memchr(b';', segment).unwrap_or(segment.len())];
        let last = segments.peek().is_none();
        match name {
            b"." | b".." => {
                if name == b".." {
                    let parent = memchr::memrchr(b'/', &out).unwrap_or(0);
                    out.truncate(parent);
                }
                if last {
                    out.push(b'/');
                }
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// Runs of slashes become one.
fn merge_slashes(path: &mut Vec<u8>) {
    path.dedup_by(|a, b| *a == b'/' && *b == b'/');
}

#[cfg(test)]
mod tests;
