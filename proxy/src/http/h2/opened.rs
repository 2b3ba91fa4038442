//! Follows what an upstream's socket takes. `h2` keeps a stream back without a word while the upstream's SETTINGS_MAX_CONCURRENT_STREAMS is used
//! up, and its head leaves in the end even if the stream was reset before: only what was written tells whether it has.

use super::frames::{CONTINUATION, END_HEADERS, Frames, HEADERS, Seen};

/// How far the streams have come that a client opens. `h2` opens them in the order of their numbers (RFC 9113 section 5.1.1).
#[derive(Debug, Default)]
pub(super) struct Opened {
    frames: Frames,
    /// The last one whose head has begun.
    begun: u32,
    /// The block that begins last, or goes on, has its end in this frame.
    ends: bool,
    /// The last one whose head has passed as a whole.
    whole: u32,
}

impl Opened {
    /// Follows what was written, from the preface on. Returns the last stream whose head has passed as a whole, 0 if none has.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> u32 {
        let Self { frames, begun, ends, whole } = self;
        frames.follow(bytes, |seen| {
            if let Seen::Head(head) = seen {
                if head.kind != CONTINUATION {
                    // Nothing comes between the frames of a block.
                    *whole = *begun;
                }
                if head.kind == HEADERS {
                    // Trailers are of a stream that was opened before.
                    *begun = head.stream.max(*begun);
                }
                if matches!(head.kind, HEADERS | CONTINUATION) {
                    *ends = head.flags & END_HEADERS != 0;
                }
            }
            true
        });
        if *ends && frames.are_between() {
            *whole = *begun;
        }
        *whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::PREFACE;

    /// After how many bytes how many streams were opened, where these are cut into pieces of this size.
    fn opened(bytes: &[u8], size: usize) -> Vec<(usize, u32)> {
        let (mut opened, mut at, mut changes) = (Opened::default(), 0, vec![(0, 0)]);
        for piece in bytes.chunks(size) {
            at += piece.len();
            let now = opened.follow(piece);
            if changes.last().is_some_and(|(_, before)| *before != now) {
                changes.push((at, now));
            }
        }
        changes
    }

    #[test]
    fn a_stream_is_opened_by_the_end_of_its_head() {
        let frames: [(&[u8], u32); 7] = [
            (b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", 0),
            (b"\0\0\x03\x01\x05\0\0\0\x01abc", 1),
            (b"\0\0\x03\x01\x00\0\0\0\x03abc", 1),
            (b"\0\0\x00\x09\x04\0\0\0\x03", 3),
            (b"\0\0\x01\x00\x01\0\0\0\x03x", 3),
            // Trailers, and a head that is not there as a whole.
            (b"\0\0\x01\x01\x05\0\0\0\x01x", 3),
            (b"\0\0\x09\x01\x04\0\0\0\x07x", 3),
        ];
        let (mut bytes, mut expected) = (PREFACE.to_vec(), vec![(0, 0)]);
        for (frame, opened) in frames {
            bytes.extend_from_slice(frame);
            if expected.last().is_some_and(|(_, before)| *before != opened) {
                expected.push((bytes.len(), opened));
            }
        }
        assert_eq!(opened(&bytes, 1), expected);
        for size in 2..=bytes.len() {
            assert_eq!(opened(&bytes, size).last().map(|(_, last)| *last), Some(3), "in pieces of {size}");
        }
    }
}
