//! Sets of code points, and the byte sequences that RE2 accepts for them.

use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir};
use regex_syntax::utf8::Utf8Sequences;

const KELVIN: char = '\u{212a}';
const LONG_S: char = '\u{17f}';
const FIRST_BEYOND_ASCII: char = '\u{80}';

/// A set of code points.
#[derive(Clone, Debug)]
pub(super) struct CharSet(ClassUnicode);

impl CharSet {
    pub(super) fn empty() -> Self {
        Self(ClassUnicode::empty())
    }

    pub(super) fn of(ranges: &[(char, char)]) -> Self {
        Self(ClassUnicode::new(ranges.iter().map(|(first, last)| ClassUnicodeRange::new(*first, *last))))
    }

    /// What any of these holds. Sorted once: adding one after the other would take the square of their number.
    pub(super) fn union(sets: &[Self]) -> Self {
        Self(ClassUnicode::new(sets.iter().flat_map(|set| set.0.ranges().iter().copied())))
    }

    pub(super) fn negate(mut self) -> Self {
        self.0.negate();
        self
    }

    /// Adds what differs from a member only by case.
    ///
    /// # Errors
    /// When members beyond ASCII have cases that only Unicode's tables know.
    pub(super) fn fold(mut self) -> Result<Self, String> {
        let has = |set: &ClassUnicode, c: char| set.ranges().iter().any(|r| (r.start()..=r.end()).contains(&c));
        let mut beyond = self.0.clone();
        beyond.intersect(&ClassUnicode::new([ClassUnicodeRange::new(FIRST_BEYOND_ASCII, char::MAX)]));
        let whole = beyond.ranges() == [ClassUnicodeRange::new(FIRST_BEYOND_ASCII, char::MAX)];
        let known = beyond.ranges().iter().all(|r| r.start() == r.end() && [KELVIN, LONG_S].contains(&r.start()));
        if !whole && !known {
            return Err("(?i) on letters beyond ASCII is not supported; list both cases".into());
        }
        let mut extra = Vec::new();
        for lower in 'a'..='z' {
            let other = match lower {
                'k' => KELVIN,
                's' => LONG_S,
                _ => lower,
            };
            let cases = [lower, lower.to_ascii_uppercase(), other];
            if cases.iter().any(|c| has(&self.0, *c)) {
                extra.extend(cases.map(|c| ClassUnicodeRange::new(c, c)));
            }
        }
        self.0.union(&ClassUnicode::new(extra));
        Ok(self)
    }

    /// The byte sequences of the members. Like RE2, a set that holds everything beyond ASCII also accepts overlong
    /// sequences and those of surrogates, and a range across the surrogates accepts theirs.
    pub(super) fn to_hir(&self) -> Hir {
        let mut ascii = ClassBytes::empty();
        let mut sequences = Vec::new();
        for range in self.0.ranges() {
            let (first, last) = (range.start(), range.end());
            if first < FIRST_BEYOND_ASCII {
                ascii.push(ClassBytesRange::new(first as u8, last.min('\x7f') as u8));
            }
            if last < FIRST_BEYOND_ASCII {
                continue;
            }
            let first = first.max(FIRST_BEYOND_ASCII);
            if (first, last) == (FIRST_BEYOND_ASCII, char::MAX) {
                sequences.push(sequence([(0xc2, 0xdf), (0x80, 0xbf)]));
                sequences.push(sequence([(0xe0, 0xef), (0x80, 0xbf), (0x80, 0xbf)]));
                sequences.push(sequence([(0xf0, 0xf4), (0x80, 0xbf), (0x80, 0xbf), (0x80, 0xbf)]));
                continue;
            }
            for parts in Utf8Sequences::new(first, last) {
                sequences.push(sequence(parts.as_slice().iter().map(|part| (part.start, part.end))));
            }
            if first <= '\u{d7ff}' && last >= '\u{e000}' {
                sequences.push(sequence([(0xed, 0xed), (0xa0, 0xbf), (0x80, 0xbf)]));
            }
        }
        sequences.insert(0, Hir::class(Class::Bytes(ascii)));
        Hir::alternation(sequences)
    }
}

fn sequence(bytes: impl IntoIterator<Item = (u8, u8)>) -> Hir {
    let byte = |(first, last)| Hir::class(Class::Bytes(ClassBytes::new([ClassBytesRange::new(first, last)])));
    Hir::concat(bytes.into_iter().map(byte).collect())
}

/// The set of `\d`, `\s` or `\w`; all ASCII, and `\s` without `\v`.
pub(super) fn perl(letter: char) -> Option<CharSet> {
    Some(CharSet::of(match letter {
        'd' => &[('0', '9')],
        's' => &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')],
        'w' => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        _ => return None,
    }))
}

/// The set of `[:name:]`.
pub(super) fn posix(name: &str) -> Option<CharSet> {
    Some(CharSet::of(match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\x7f')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => &[('0', '9')],
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    }))
}
