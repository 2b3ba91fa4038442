//! `x-request-id`: the name under which logs of several hops know one request, as Envoy gives it.

use std::fmt;

/// The field's name.
pub(crate) const NAME: &str = "x-request-id";

/// An identifier made here: a random UUID (RFC 9562 section 5.4) as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId([u8; 36]);

impl RequestId {
    /// A new one. It is unlikely to come twice, but no secret: the generator is the thread's own and fast.
    pub(crate) fn random() -> Self {
        Self::from_bits(fastrand::u128(..))
    }

    fn from_bits(bits: u128) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut bytes = bits.to_be_bytes();
        // Version 4, variant 0b10.
        bytes[6] = bytes[6] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (index, byte) in bytes.into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                at += 1;
            }
            text[at] = DIGITS[usize::from(byte >> 4)];
            text[at + 1] = DIGITS[usize::from(byte & 15)];
            at += 2;
        }
        Self(text)
    }

    /// The text.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_uuid_of_version_4() {
        let text = |bits| format!("{:?}", RequestId::from_bits(bits));
        assert_eq!(text(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(text(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(text(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff), "00112233-4455-4677-8899-aabbccddeeff");
        assert_ne!(RequestId::random(), RequestId::random());
    }
}
