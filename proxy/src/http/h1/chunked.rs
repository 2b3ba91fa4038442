//! Follows the chunked transfer coding (RFC 9112 section 7.1) without re-framing it: the bytes are forwarded as they came,
//! after every one of them was understood.
//!
//! Strict where readers are known to disagree: a size is 1 to 16 hexadecimal digits and nothing else, and fits a signed
//! 64-bit number, every line ends in CRLF, extensions hold no control characters and stay small next to the data.

/// Extension bytes allowed per body before the share of the data counts.
const EXTENSION_ALLOWANCE: u64 = 16 * 1024;
/// Above the allowance, one extension byte for so many bytes of data.
const DATA_PER_EXTENSION_BYTE: u64 = 16;

/// The bytes are not a well-formed chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    /// The chunk size is not plain hexadecimal digits.
    #[error("malformed chunk size")]
    Size,
    /// A chunk extension with control characters.
    #[error("malformed chunk extension")]
    Extension,
    /// Extensions out of proportion to the data.
    #[error("chunk extensions over the limit")]
    ExtensionLimit,
    /// CRLF expected.
    #[error("malformed line end in a chunked body")]
    LineEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        digits: u8,
    },
    Padding,
    Extension,
    SizeLineFeed,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    /// After the line of the last chunk: the trailer section follows.
    Trailers,
}

/// Where in a chunked body the next byte stands.
#[derive(Debug)]
pub(crate) struct ChunkScanner {
    state: State,
    /// Size being read, then data bytes left in the chunk.
    remaining: u64,
    extension_bytes: u64,
    data_bytes: u64,
    /// Blanks between a size and CRLF, which some servers write, are tolerated in responses only.
    padding_allowed: bool,
}

impl ChunkScanner {
    /// A scanner at the start of a request's body.
    pub(crate) fn request() -> Self {
        Self {
            state: State::Size { digits: 0 },
            remaining: 0,
            extension_bytes: 0,
            data_bytes: 0,
            padding_allowed: false,
        }
    }

    /// A scanner at the start of a response's body.
    pub(crate) fn response() -> Self {
        Self { padding_allowed: true, ..Self::request() }
    }

    /// Whether the last chunk has passed and the trailer section comes next.
    pub(crate) fn at_trailers(&self) -> bool {
        self.state == State::Trailers
    }

    /// Data bytes seen, framing excluded.
    #[cfg(test)]
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Moves over `bytes` and says how many of them come before the trailer section.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Trailers => break,
                State::Data => {
                    let take = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += take;
                    self.remaining -= take as u64;
                    self.data_bytes += take as u64;
                    if self.remaining == 0 {
                        self.state = State::DataCarriageReturn;
                    }
                }
                _ => {
                    self.framing_byte(bytes[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (self.state, byte) {
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < 16 => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.remaining = self.remaining << 4 | u64::from(digit);
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 1.. } | State::Padding, b'\r') => State::SizeLineFeed,
            (State::Size { digits: 1.. }, b';') => State::Extension,
            (State::Size { digits: 1.. } | State::Padding, b' ' | b'\t') if self.padding_allowed => {
                self.count_extension()?;
                State::Padding
            }
            (State::Extension, b'\r') => State::SizeLineFeed,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count_extension()?;
                State::Extension
            }
            (State::SizeLineFeed, b'\n') if i64::try_from(self.remaining).is_err() => return Err(ChunkError::Size),
            (State::SizeLineFeed, b'\n') if self.remaining == 0 => State::Trailers,
            (State::SizeLineFeed, b'\n') => State::Data,
            (State::DataCarriageReturn, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => State::Size { digits: 0 },
            (State::Size { .. } | State::Padding, _) => return Err(ChunkError::Size),
            (State::Extension, _) => return Err(ChunkError::Extension),
            _ => return Err(ChunkError::LineEnd),
        };
        Ok(())
    }

    fn count_extension(&mut self) -> Result<(), ChunkError> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_ALLOWANCE + self.data_bytes / DATA_PER_EXTENSION_BYTE {
            return Err(ChunkError::ExtensionLimit);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bytes: &[u8]) -> Result<(usize, bool), ChunkError> {
        let mut scanner = ChunkScanner::request();
        let n = scanner.advance(bytes)?;
        Ok((n, scanner.at_trailers()))
    }

    #[test]
    fn well_formed() {
        assert_eq!(run(b"3\r\nabc\r\n0\r\n\r\nGET"), Ok((11, true)));
        assert_eq!(run(b"A;name=\"v\"\r\n0123456789\r\n000\r\nX: y\r\n\r\n"), Ok((29, true)));
        assert_eq!(run(b"3\r\nab"), Ok((5, false)));
    }

    /// Rows 26–38 of the bad-input matrix.
    #[test]
    fn refused() {
        for (bytes, error) in [
            (&b"0x3\r\nabc"[..], ChunkError::Size),
            (b"+3\r\nabc", ChunkError::Size),
            (b"-1\r\nabc", ChunkError::Size),
            (b"3 x\r\nabc", ChunkError::Size),
            (b"3 \r\nabc", ChunkError::Size),
            (b"10000000000000003\r\n", ChunkError::Size),
            (b"8000000000000000\r\nabc", ChunkError::Size),
            (b"\r\nabc", ChunkError::Size),
            (b"3;\nxx\r\nabc", ChunkError::Extension),
            (b"3;a\rb\r\n", ChunkError::LineEnd),
            (b"3\nabc", ChunkError::Size),
            (b"3\r\nabcXX0\r\n", ChunkError::LineEnd),
            (b"3\r\nabc\n0\r\n\r\n", ChunkError::LineEnd),
            (b"0\n\r\n", ChunkError::Size),
        ] {
            assert_eq!(run(bytes), Err(error), "{}", String::from_utf8_lossy(bytes));
        }
        let long = [b"3;".as_slice(), &vec![b'a'; 64 * 1024]].concat();
        assert_eq!(run(&long), Err(ChunkError::ExtensionLimit));
        let many = [b"1;".as_slice(), &[b'a'; 60], b"\r\nx\r\n"].concat().repeat(1000);
        assert_eq!(run(&many), Err(ChunkError::ExtensionLimit));
    }

    #[test]
    fn padding_in_responses() {
        let mut scanner = ChunkScanner::response();
        assert_eq!(scanner.advance(b"3  \r\nabc\r\n0\r\n"), Ok(13));
        assert!(scanner.at_trailers());
        assert_eq!(ChunkScanner::response().advance(b"3 x\r\n"), Err(ChunkError::Size));
    }

    #[test]
    fn any_split_is_the_same() {
        let body = b"3;x\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n";
        for split in 0..body.len() {
            let mut scanner = ChunkScanner::request();
            let first = scanner.advance(&body[..split]).unwrap();
            let rest = scanner.advance(&body[first..]).unwrap();
            assert_eq!(first + rest, body.len() - 2, "{split}");
            assert_eq!(scanner.data_bytes(), 19);
        }
    }
}
