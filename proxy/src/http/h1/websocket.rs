//! The two halves of a WebSocket handshake (RFC 6455 section 4). What follows one is inspected by nobody, so a tunnel opens
//! only where both ends have proven that they mean it: any server can be made to answer 101 by some path of its own.

use std::mem::MaybeUninit;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use httparse::Header;
use sha1::{Digest, Sha1};

use super::head::MAX_FIELDS;

/// RFC 6455 section 1.3: what a server appends to the key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Characters of a key: 16 bytes in base64, of which the last two characters are padding.
const KEY_LENGTH: usize = 24;

/// The key of a well-formed request, which the response has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WebSocketKey([u8; KEY_LENGTH]);

impl WebSocketKey {
    /// The key of a request with these fields: one key of the right form, of the only version there is. `None` where a server
    /// that knows WebSockets would not accept them.
    pub(crate) fn of_request<'f>(fields: impl Iterator<Item = &'f Header<'f>> + Clone) -> Option<Self> {
        if only(fields.clone(), "sec-websocket-version")? != b"13" {
            return None;
        }
        let key: [u8; KEY_LENGTH] = only(fields, "sec-websocket-key")?.try_into().ok()?;
        let (digits, padding) = key.split_at(KEY_LENGTH - 2);
        let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        (padding == b"==" && digits.iter().all(digit)).then_some(Self(key))
    }

    /// Whether `head`, a complete response head with status 101, accepts the handshake of this key.
    pub(crate) fn is_accepted_by(&self, head: &[u8]) -> bool {
        let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        if config.parse_response_with_uninit_headers(&mut parsed, head, &mut storage).is_err() {
            return false;
        }
        let fields = parsed.headers.iter();
        let upgrading = fields.clone().filter(|field| field.name.eq_ignore_ascii_case("connection")).any(|field| {
            field.value.split(|&b| b == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        });
        parsed.version == Some(1)
            && upgrading
            && only(fields.clone(), "upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
            && only(fields, "sec-websocket-accept") == Some(self.answer().as_bytes())
    }

    /// What `Sec-WebSocket-Accept` has to say.
    fn answer(&self) -> String {
        BASE64_STANDARD.encode(Sha1::new().chain_update(self.0).chain_update(GUID).finalize())
    }
}

/// The value of the field of that name, if there is exactly one.
fn only<'f>(fields: impl Iterator<Item = &'f Header<'f>>, name: &str) -> Option<&'f [u8]> {
    let mut named = fields.filter(|field| field.name.eq_ignore_ascii_case(name));
    let value = named.next()?.value.trim_ascii();
    named.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455 section 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ANSWER: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn key(fields: &[(&str, &str)]) -> Option<WebSocketKey> {
        let fields: Vec<_> = fields.iter().map(|&(name, value)| Header { name, value: value.as_bytes() }).collect();
        WebSocketKey::of_request(fields.iter())
    }

    #[test]
    fn requests() {
        let (name, version) = ("sec-websocket-key", ("Sec-WebSocket-Version", "13"));
        assert!(key(&[(name, KEY), version]).is_some());
        assert_eq!(key(&[(name, KEY)]), None);
        assert_eq!(key(&[version]), None);
        assert_eq!(key(&[(name, KEY), (name, KEY), version]), None);
        assert_eq!(key(&[(name, KEY), version, version]), None);
        assert_eq!(key(&[(name, KEY), ("Sec-WebSocket-Version", "8")]), None);
        for wrong in ["", "dGhl", "dGhlIHNhbXBsZSBub25jZWE=", "dGhlIHNhbXBsZSBub25jZW==x", "dGhlIHNhbXBsZSBub25j-_=="] {
            assert_eq!(key(&[(name, wrong), version]), None, "{wrong}");
        }
    }

    #[test]
    fn responses() {
        let key = key(&[("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Version", "13")]).unwrap();
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Accept: {ANSWER}\r\n\r\n"
        );
        assert!(key.is_accepted_by(head.as_bytes()));
        for (part, other) in [
            ("HTTP/1.1", "HTTP/1.0"),
            ("upgrade: WebSocket\r\n", ""),
            ("upgrade: WebSocket", "upgrade: h2c"),
            ("upgrade: WebSocket", "upgrade: h2c\r\nupgrade: WebSocket"),
            ("keep-alive, Upgrade", "keep-alive"),
            (ANSWER, "s3pPLMBiTxaQ9kYGzzhZRbK+xOO="),
            (ANSWER, ""),
            ("Sec-WebSocket-Accept", "X-Accept"),
        ] {
            assert!(head.contains(part));
            assert!(!key.is_accepted_by(head.replacen(part, other, 1).as_bytes()), "{part} → {other}");
        }
        let twice = format!("\r\nSec-WebSocket-Accept: {ANSWER}\r\n\r\n");
        assert!(!key.is_accepted_by(head.replace("\r\n\r\n", &twice).as_bytes()));
    }
}
