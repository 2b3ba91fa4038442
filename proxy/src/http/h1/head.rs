//! Finds the end of an HTTP/1 head in a growing buffer, strictly: CRLF line ends only.
//!
//! A bare LF ends a line for some readers and not for others (RFC 9112 section 2.2 lets a recipient choose), so a head
//! that holds one is refused instead of passed on for the next hop to choose.

use crate::reason::Reason;

/// Largest head accepted, in bytes; the limit that Cilium's Envoy has (60 KiB).
pub(crate) const MAX_HEAD: usize = 60 * 1024;

/// Most header fields accepted in a head.
pub(crate) const MAX_FIELDS: usize = 100;

/// What is known about the head in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadEnd {
    /// More bytes are needed.
    Partial,
    /// The head is the first so many bytes, its final empty line included.
    At(usize),
    /// A line ends without CR.
    BareLineFeed,
    /// No end within [`MAX_HEAD`]. `in_first_line` tells a long request target from long header fields.
    TooLong {
        /// Whether not even the first line ended.
        in_first_line: bool,
    },
}

impl HeadEnd {
    /// Why the head is refused as it stands, when it is.
    pub(crate) const fn refusal(self) -> Option<(Reason, &'static str)> {
        match self {
            Self::Partial | Self::At(_) => None,
            Self::BareLineFeed => Some((Reason::MalformedRequest, "a line ends without CR")),
            Self::TooLong { in_first_line: true } => Some((Reason::TargetTooLong, "the request line is over 60 KiB")),
            Self::TooLong { in_first_line: false } => Some((Reason::HeadersTooLarge, "the head is over 60 KiB")),
        }
    }
}

/// Scans each byte once, however slowly they come.
#[derive(Debug, Default)]
pub(crate) struct HeadScanner {
    scanned: usize,
    line_start: usize,
}

impl HeadScanner {
    /// Whether nothing was scanned yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.scanned == 0
    }

    /// Looks at `buffer`, which holds what the last call saw and possibly more.
    pub(crate) fn scan(&mut self, buffer: &[u8]) -> HeadEnd {
        let window = &buffer[..buffer.len().min(MAX_HEAD)];
        while let Some(offset) = memchr::memchr(b'\n', &window[self.scanned..]) {
            let newline = self.scanned + offset;
            if newline == 0 || window[newline - 1] != b'\r' {
                return HeadEnd::BareLineFeed;
            }
            self.scanned = newline + 1;
            if newline - 1 == self.line_start {
                return HeadEnd::At(newline + 1);
            }
            self.line_start = newline + 1;
        }
        self.scanned = window.len();
        if window.len() == MAX_HEAD {
            HeadEnd::TooLong { in_first_line: self.line_start == 0 }
        } else {
            HeadEnd::Partial
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> HeadEnd {
        HeadScanner::default().scan(bytes)
    }

    #[test]
    fn ends() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET"), HeadEnd::At(27));
        assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\r\n"), HeadEnd::Partial);
        assert_eq!(scan(b"GET / HTTP/1.1\nHost: a\n\n"), HeadEnd::BareLineFeed);
        assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\r\n\n"), HeadEnd::BareLineFeed);
        assert_eq!(scan(b"\n"), HeadEnd::BareLineFeed);
    }

    #[test]
    fn byte_by_byte_is_the_same() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut scanner = HeadScanner::default();
        for end in 0..head.len() {
            assert_eq!(scanner.scan(&head[..end]), HeadEnd::Partial, "{end}");
        }
        assert_eq!(scanner.scan(head), HeadEnd::At(head.len()));
    }

    #[test]
    fn limits() {
        let long = vec![b'a'; MAX_HEAD + 1];
        assert_eq!(scan(&long), HeadEnd::TooLong { in_first_line: true });
        let mut fields = b"GET / HTTP/1.1\r\nX: ".to_vec();
        fields.extend_from_slice(&long);
        assert_eq!(scan(&fields), HeadEnd::TooLong { in_first_line: false });
    }
}
