//! Just enough HTTP/2 (RFC 9113) to send requests by hand.

/// The client preface and empty settings.
pub const CLIENT_START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Empty settings, with which a server starts.
pub const SERVER_START: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// A whole `GET /allowed` in one HEADERS frame.
pub fn get(stream: u32) -> Vec<u8> {
    // :method GET, :scheme http, :authority a, :path /allowed (RFC 7541 appendix A and section 6.2.2)
    const BLOCK: &[u8; 15] = b"\x82\x86\x01\x01a\x04\x08/allowed";
    [&[0, 0, 15, 1, 5][..], &stream.to_be_bytes(), BLOCK].concat()
}

/// What begins the HEADERS frame of a request without a body, whoever encoded it.
pub fn headers_of(stream: u32) -> Vec<u8> {
    [&[1, 5][..], &stream.to_be_bytes()].concat()
}

/// A whole `GET` of `path` with a field `x` of `size` bytes, whose value no table keeps.
pub fn big_get(stream: u32, path: &str, size: usize) -> Vec<u8> {
    // As for `get`; then a literal field without indexing.
    let block = [&b"\x82\x86\x01\x01a\x04"[..], &length(path.len()), path.as_bytes(), &literal("x", size)].concat();
    headers(stream, true, &block)
}

/// A field whose value has `size` bytes and is kept by no table (RFC 7541 section 6.2.2).
pub fn literal(name: &str, size: usize) -> Vec<u8> {
    [&[0][..], &length(name.len()), name.as_bytes(), &length(size), &vec![b'v'; size]].concat()
}

/// HEADERS with this block, which may `end` the stream, and CONTINUATION frames as it needs them.
pub fn headers(stream: u32, end: bool, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16 << 10).peekable();
    let (mut kind, mut flags) = (1, u8::from(end));
    let mut frames = Vec::new();
    while let Some(piece) = pieces.next() {
        // The last one has END_HEADERS.
        let last = if pieces.peek().is_none() { 4 } else { 0 };
        frames.extend(frame(kind, flags | last, stream, piece));
        (kind, flags) = (9, 0);
    }
    frames
}

/// The length of a string that is not Huffman coded (RFC 7541 section 5.1).
fn length(n: usize) -> Vec<u8> {
    let Some(mut rest) = n.checked_sub(127) else { return vec![u8::try_from(n).unwrap()] };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// RST_STREAM with CANCEL.
pub fn cancel(stream: u32) -> Vec<u8> {
    [&[0, 0, 4, 3, 0][..], &stream.to_be_bytes(), &[0, 0, 0, 8]].concat()
}

/// What begins the DATA frame that ends an answer.
pub fn end_of(stream: u32) -> Vec<u8> {
    [&[0, 1][..], &stream.to_be_bytes()].concat()
}

/// A frame (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Type and payload of each whole frame.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        frames.push((header[3], payload.to_vec()));
        bytes = rest;
    }
    frames
}

/// Error code and debug data of the GOAWAY among these bytes, whole frames from the first on.
pub fn go_away(bytes: &[u8]) -> Option<(u32, String)> {
    let (_, payload) = frames(bytes).into_iter().find(|(kind, _)| *kind == 7)?;
    let code = u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?);
    Some((code, String::from_utf8_lossy(&payload[8..]).into_owned()))
}
