//! Follows the frames of a byte stream (RFC 9113 section 4.1): nine bytes each, whatever a read cuts apart, and the payloads of those that
//! hold header blocks. Others are skipped.

use crate::detect::PREFACE;

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 9;

/// Frame types that matter here (RFC 9113 section 6); all others cost what an unknown one does.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const CONTINUATION: u8 = 9;
/// The flag of DATA and HEADERS that ends a stream.
pub(super) const END_STREAM: u8 = 1;
/// The flag of HEADERS and CONTINUATION that ends a header block.
pub(super) const END_HEADERS: u8 = 4;

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// Bytes of payload.
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0: the connection.
    pub(super) stream: u32,
}

impl FrameHead {
    fn read(bytes: [u8; HEADER]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            // The highest bit is reserved and ignored.
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }
}

/// What comes by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen<'b> {
    /// A frame begins.
    Head(FrameHead),
    /// Its payload goes on, if it is one of HEADERS or CONTINUATION.
    Block(&'b [u8]),
}

/// A place in a peer's byte stream, a client's from its preface on.
#[derive(Debug)]
pub(super) struct Frames {
    /// The beginning of a header that was cut apart.
    partial: [u8; HEADER],
    have: usize,
    /// Bytes until the next header: the rest of the preface, or of a payload.
    skip: usize,
    /// What is skipped is shown.
    is_block: bool,
    /// Another frame goes on with the block.
    goes_on: bool,
    /// No further frame is wanted.
    stopped: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self { partial: [0; HEADER], have: 0, skip: PREFACE.len(), is_block: false, goes_on: false, stopped: false }
    }
}

impl Frames {
    /// Of a server, which begins with a frame.
    pub(super) fn of_server() -> Self {
        Self { skip: 0, ..Self::default() }
    }

    /// Whether the last frame that is wanted has ended.
    pub(super) fn is_over(&self) -> bool {
        self.stopped && self.are_between()
    }

    /// Whether a frame has ended, and no other one has begun.
    pub(super) fn are_between(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// Whether a header block has begun and not ended.
    pub(super) fn is_within_block(&self) -> bool {
        self.goes_on || self.is_block && self.skip > 0
    }

    /// Shows `each` the frames whose headers end in `bytes`, and what of blocks is there. The first frame for which it returns false is the
    /// last; returns how many bytes come before its end.
    pub(super) fn follow(&mut self, bytes: &[u8], mut each: impl FnMut(Seen<'_>) -> bool) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.skip > 0 {
                let n = self.skip.min(rest.len());
                if self.is_block {
                    each(Seen::Block(&rest[..n]));
                }
                (self.skip, at) = (self.skip - n, at + n);
                continue;
            }
            if self.have == 0 {
                if self.stopped {
                    return at;
                }
                if let Some(header) = rest.first_chunk::<HEADER>() {
                    at += HEADER;
                    self.begin(FrameHead::read(*header), &mut each);
                    continue;
                }
            }
            let n = (HEADER - self.have).min(rest.len());
            self.partial[self.have..self.have + n].copy_from_slice(&rest[..n]);
            (self.have, at) = (self.have + n, at + n);
            if self.have == HEADER {
                self.have = 0;
                self.begin(FrameHead::read(self.partial), &mut each);
            }
        }
        at
    }

    fn begin(&mut self, head: FrameHead, each: &mut impl FnMut(Seen<'_>) -> bool) {
        self.skip = head.length as usize;
        self.is_block = matches!(head.kind, HEADERS | CONTINUATION);
        self.goes_on = self.is_block && head.flags & END_HEADERS == 0;
        self.stopped = !each(Seen::Head(head));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        [
            PREFACE,
            b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64",
            b"\0\0\x03\x01\x05\x80\0\0\x01abc",
            b"\0\0\0\x00\x01\0\0\0\x01",
            b"\0\0\x08\x06\0\0\0\0\0pingpong",
        ]
        .concat()
    }

    fn heads() -> [FrameHead; 4] {
        [(6, 4, 0, 0), (3, HEADERS, 5, 1), (0, DATA, END_STREAM, 1), (8, 6, 0, 0)]
            .map(|(length, kind, flags, stream)| FrameHead { length, kind, flags, stream })
    }

    #[test]
    fn any_split_is_the_same() {
        let bytes = stream();
        for size in 1..=bytes.len() {
            let (mut frames, mut seen, mut blocks) = (Frames::default(), Vec::new(), Vec::new());
            for piece in bytes.chunks(size) {
                let followed = frames.follow(piece, |part| {
                    match part {
                        Seen::Head(head) => seen.push(head),
                        Seen::Block(bytes) => blocks.extend_from_slice(bytes),
                    }
                    true
                });
                assert_eq!(followed, piece.len());
            }
            assert_eq!(seen, heads(), "in pieces of {size}");
            assert_eq!(blocks, b"abc", "in pieces of {size}");
            assert!(!frames.is_over());
        }
    }

    #[test]
    fn it_stops_behind_a_whole_frame() {
        let bytes = stream();
        // Up to the end of HEADERS.
        let end = PREFACE.len() + 15 + 12;
        for size in 1..=bytes.len() {
            let mut frames = Frames::default();
            let mut seen = 0;
            let mut taken = 0;
            for piece in bytes.chunks(size) {
                taken += frames.follow(piece, |part| {
                    seen += u32::from(matches!(part, Seen::Head(_)));
                    seen < 2
                });
            }
            assert_eq!((taken, seen), (end, 2), "in pieces of {size}");
            assert!(frames.is_over());
        }
    }
}
