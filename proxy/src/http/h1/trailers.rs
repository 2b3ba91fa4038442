//! Which trailer fields pass: those that were announced and that cannot be mistaken for a header field that decides
//! something (RFC 9110 sections 6.5.1 and 6.6.2).

/// Largest trailer section, in bytes.
pub(crate) const MAX_TRAILERS: usize = 8 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;
/// The empty line behind all fields.
const END: &[u8] = b"\r\n";

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

/// Checks a complete trailer `section` (its final empty line included), and moves the lines of those fields to its end that are not
/// forbidden, as they came. Returns how many bytes before them are left out. Responses pass all that is left, requests only some.
pub(crate) fn keep_harmless(section: &mut [u8]) -> Result<usize, TrailerError> {
    let (lines, count) = judged(section)?;
    // The empty line stays where it is.
    let mut kept = section.len() - END.len();
    let mut line_end = kept;
    for &(start, is_harmless) in lines[..count].iter().rev() {
        if is_harmless {
            section.copy_within(start..line_end, kept - (line_end - start));
            kept -= line_end - start;
        }
        line_end = start;
    }
    Ok(kept)
}

/// Where each line begins, and whether it is harmless; and how many there are.
fn judged(section: &[u8]) -> Result<([(usize, bool); MAX_TRAILER_FIELDS], usize), TrailerError> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((length, fields))) = httparse::parse_headers(section, &mut storage) else {
        return Err(TrailerError);
    };
    let mut lines = [(0, false); MAX_TRAILER_FIELDS];
    let mut start = 0;
    for (line, field) in lines.iter_mut().zip(fields.iter()) {
        let text = first_line(&section[start..]);
        // That is one field to a line, without anything between them.
        if name_of(text) != Some(field.name.as_bytes()) {
            return Err(TrailerError);
        }
        *line = (start, !FORBIDDEN.iter().any(|forbidden| field.name.eq_ignore_ascii_case(forbidden)));
        start += text.len();
    }
    match length == section.len() && section[start..] == *END {
        true => Ok((lines, fields.len())),
        false => Err(TrailerError),
    }
}

/// The first line, its end included.
fn first_line(section: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', section).map_or(section, |end| &section[..=end])
}

/// The name of the field of a line; `None` for the empty one behind all.
fn name_of(line: &[u8]) -> Option<&[u8]> {
    memchr::memchr(b':', line).map(|colon| &line[..colon])
}

/// A place in a section of harmless fields that is passed on as far as each field may pass when its receiver takes it.
#[derive(Debug)]
pub(crate) struct Passing<'s> {
    section: &'s [u8],
    /// Where the line begins that is next.
    line: usize,
    /// What was taken before it, or of it.
    taken: usize,
}

impl<'s> Passing<'s> {
    pub(crate) fn new(section: &'s [u8]) -> Self {
        Self { section, line: 0, taken: 0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.taken == self.section.len()
    }

    /// What may be taken now, up to the next field that may not pass. `None` if that is the one of which a part was taken.
    pub(crate) fn next(&mut self, passes: Passes<'_>) -> Option<&'s [u8]> {
        loop {
            let line = self.first_line();
            if may_pass(line, passes) {
                break;
            }
            if self.taken > self.line {
                return None;
            }
            self.line += line.len();
            self.taken = self.line;
        }
        let mut end = self.line;
        while end < self.section.len() {
            let line = first_line(&self.section[end..]);
            if !may_pass(line, passes) {
                break;
            }
            end += line.len();
        }
        Some(&self.section[self.taken..end])
    }

    /// Notes that so many bytes of it were taken.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        while self.line < self.taken && self.line + self.first_line().len() <= self.taken {
            self.line += self.first_line().len();
        }
    }

    fn first_line(&self) -> &'s [u8] {
        first_line(&self.section[self.line..])
    }
}

/// The empty line behind all always does.
fn may_pass(line: &[u8], passes: Passes<'_>) -> bool {
    name_of(line).is_none_or(passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harmless(section: &[u8]) -> Result<Vec<u8>, TrailerError> {
        let mut section = section.to_vec();
        let left_out = keep_harmless(&mut section)?;
        Ok(section.split_off(left_out))
    }

    #[test]
    fn forbidden_fields_do_not_pass() {
        let section = b"Checksum:1\r\nContent-Length: 9\r\nX-Auth:  admin \r\nHost: evil\r\n\r\n";
        assert_eq!(harmless(section).unwrap(), b"Checksum:1\r\nX-Auth:  admin \r\n\r\n");
        assert_eq!(harmless(b"Host: a\r\nTE: b\r\n\r\n").unwrap(), b"\r\n");
        assert_eq!(harmless(b"\r\n").unwrap(), b"\r\n");
    }

    #[test]
    fn malformed() {
        let sections = [&b"bad name: 1\r\n\r\n"[..], b"a\r\n\r\n", b"a: b\r\n", b"a: b\r\n c\r\n\r\n", b"a: b\n\n"];
        for section in sections {
            assert_eq!(harmless(section), Err(TrailerError), "{}", String::from_utf8_lossy(section));
        }
    }

    #[test]
    fn what_may_pass_goes_at_once() {
        let mut passing = Passing::new(b"a: 1\r\nb: 2\r\nc: 3\r\nb: 4\r\n\r\n");
        assert_eq!(passing.next(&|_| true), Some(passing.section), "all");
        assert_eq!(passing.next(&|name| name != b"b"), Some(&b"a: 1\r\n"[..]));
        passing.took(6);
        assert_eq!(passing.next(&|name| name != b"b"), Some(&b"c: 3\r\n"[..]), "it is left out");
        passing.took(1);
        assert_eq!(passing.next(&|name| name != b"c"), None, "a part of it has left");
        assert_eq!(passing.next(&|_| true), Some(&b": 3\r\nb: 4\r\n\r\n"[..]));
        passing.took(5);
        assert_eq!(passing.next(&|_| false), Some(&b"\r\n"[..]));
        passing.took(1);
        assert!(!passing.is_done());
        assert_eq!(passing.next(&|_| false), Some(&b"\n"[..]));
        passing.took(1);
        assert!(passing.is_done());
    }
}
