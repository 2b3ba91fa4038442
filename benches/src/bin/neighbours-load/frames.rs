//! HTTP/2 frames by hand (RFC 9113 section 4 and 6): a well-behaved library would not send these.

/// DATA, section 6.1.
pub(crate) const DATA: u8 = 0x0;
/// HEADERS, section 6.2.
pub(crate) const HEADERS: u8 = 0x1;
/// PRIORITY, section 6.3.
pub(crate) const PRIORITY: u8 = 0x2;
/// RST_STREAM, section 6.4.
pub(crate) const RST_STREAM: u8 = 0x3;
/// SETTINGS, section 6.5.
pub(crate) const SETTINGS: u8 = 0x4;
/// PING, section 6.7.
pub(crate) const PING: u8 = 0x6;
/// GOAWAY, section 6.8.
pub(crate) const GOAWAY: u8 = 0x7;
/// WINDOW_UPDATE, section 6.9.
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
/// CONTINUATION, section 6.10.
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const CANCEL: u32 = 0x8;
const MAX_WINDOW: u32 = 0x7fff_ffff;
const DEFAULT_WINDOW: u32 = 65_535;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 0x4;

/// Appends one frame.
pub(crate) fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The preface and SETTINGS.
pub(crate) fn greeting() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    push(&mut out, SETTINGS, 0, 0, &[]);
    out
}

/// The preface, with the largest windows for what comes back.
pub(crate) fn generous_greeting() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let window = [SETTINGS_INITIAL_WINDOW_SIZE.to_be_bytes().as_slice(), &MAX_WINDOW.to_be_bytes()].concat();
    push(&mut out, SETTINGS, 0, 0, &window);
    push(&mut out, WINDOW_UPDATE, 0, 0, &(MAX_WINDOW - DEFAULT_WINDOW).to_be_bytes());
    out
}

/// Appends a GET; without `ends` its body never ends.
pub(crate) fn request(out: &mut Vec<u8>, stream: u32, path: &str, ends: bool) {
    push(out, HEADERS, END_HEADERS | if ends { END_STREAM } else { 0 }, stream, &fields(path));
}

/// Appends a GET that puts a field of `bytes` bytes into the peer's table (RFC 7541 section 6.2.1) and then names it `references` times.
/// A peer whose table has no room for it reads of an index that is not there.
pub(crate) fn bomb(out: &mut Vec<u8>, stream: u32, path: &str, bytes: u16, references: usize) {
    const NEW_NAME: u8 = 0x40;
    const NEWEST: u8 = 0x80 | 62;
    let mut block = fields(path);
    block.extend_from_slice(&[NEW_NAME, 1, b'x']);
    integer(&mut block, 0x7f, bytes);
    block.resize(block.len() + usize::from(bytes), b'a');
    block.resize(block.len() + references, NEWEST);
    push(out, HEADERS, END_HEADERS | END_STREAM, stream, &block);
}

/// An integer that does not fit into a prefix of ones (RFC 7541 section 5.1).
fn integer(block: &mut Vec<u8>, prefix: u8, value: u16) {
    block.push(prefix);
    let mut rest = value - u16::from(prefix);
    while rest >= 0x80 {
        block.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// Appends a HEADERS frame that CONTINUATION has to follow.
pub(crate) fn open_request(out: &mut Vec<u8>, stream: u32, path: &str) {
    push(out, HEADERS, 0, stream, &fields(path));
}

/// Appends the cancellation of a stream.
pub(crate) fn cancel(out: &mut Vec<u8>, stream: u32) {
    push(out, RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
}

/// A request's fields in HPACK (RFC 7541): indexed where the static table has them, else literals that are not indexed.
fn fields(path: &str) -> Vec<u8> {
    const GET: u8 = 0x82;
    const HTTP: u8 = 0x86;
    const AUTHORITY: u8 = 0x01;
    const PATH: u8 = 0x04;
    let mut block = vec![GET, HTTP];
    for (name, value) in [(AUTHORITY, "flood"), (PATH, path)] {
        // Shorter than 127 bytes, so that the length is one byte.
        block.extend_from_slice(&[name, value.len().min(126) as u8]);
        block.extend_from_slice(&value.as_bytes()[..value.len().min(126)]);
    }
    block
}

/// Follows the frames that a peer sends.
#[derive(Default)]
pub(crate) struct Follower {
    head: Vec<u8>,
    skip: usize,
    code: Vec<u8>,
    goaway: bool,
}

impl Follower {
    /// Takes what was read; the error code when that completes a GOAWAY.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Option<u32> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                if self.goaway && self.code.len() < 8 {
                    self.code.extend(bytes[..count].iter().take(8 - self.code.len()));
                }
                self.skip -= count;
                bytes = &bytes[count..];
                if self.goaway
                    && let Some(code) = self.code.get(4..8)
                {
                    return code.try_into().ok().map(u32::from_be_bytes);
                }
                continue;
            }
            let count = (9 - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if let [a, b, c, kind, ..] = self.head[..]
                && self.head.len() == 9
            {
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.goaway = kind == GOAWAY;
                self.head.clear();
            }
        }
        None
    }
}
