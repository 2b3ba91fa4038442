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
