//! What the header table of a decoder of `h2` keeps (RFC 7541 section 2.3.2), as far as the bytes that go to it tell.
//!
//! Of fields `h2` copies names and values into its table. But paths, authorities, schemes and protocols stay where they were read, so
//! that one of a byte keeps a buffer of many KiB. Header blocks are followed here without being decoded: what they put into the table, how
//! large that is at least, and which buffer it lies in. So an entry is never thought to be gone before it is, and what is counted is
//! what is kept, or somewhat more.

use std::collections::VecDeque;
use std::rc::Rc;

use super::frames::{CONTINUATION, FrameHead, HEADER, HEADERS, Seen};
use crate::tenant::{Charged, Payer};

/// Bytes that a table has room for: what a peer begins with, and we do not ask for another (RFC 9113 section 6.5.2).
const MOST: u32 = 4096;
/// What an entry counts as beside its name and its value (RFC 7541 section 4.1).
const ENTRY: u32 = 32;
/// Flags of HEADERS.
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// Bytes of the fields of PRIORITY: the stream that this one depends on, and a weight.
const PRIORITY_FIELDS: u8 = 5;
/// The least that `h2` reads a frame into.
const READ: usize = 8 * 1024;
/// The least that it decodes a string into.
const DECODED: usize = 4 * 1024;
/// The names that stay where they were read, in the static table: `:authority`, `:path`, `:scheme`; and bytes of the shortest and longest
/// there, and of the longest name with its value.
const KEPT: [u32; 5] = [1, 4, 5, 6, 7];
const STATIC: u32 = 61;
const SHORTEST: u32 = 3;
const LONGEST: u32 = 27;
const LONGEST_FIELD: u32 = 28;
/// What `:` is in the code of RFC 7541 appendix B: seven bits.
const COLON: u8 = 0x5c;

/// One direction of a connection.
#[derive(Debug)]
struct Table {
    read: Buffers,
    decoded: Buffers,
    fragment: Fragment,
    /// Bytes of the present block so far.
    block: usize,
    walk: Walk,
    literal: Literal,
    /// Bytes of the fields of the present block so far, as they are decoded, each with [`ENTRY`].
    list: Bounds,
    /// The newest in front.
    entries: VecDeque<Entry>,
    /// How many there were.
    inserted: u64,
    size: u32,
    most: u32,
    kept: usize,
    /// Whether something was put in is not known, so neither is what a number means.
    is_doubtful: bool,
}

/// The memory that strings are taken out of, one after the other.
#[derive(Debug)]
struct Buffers {
    least: usize,
    /// The present one.
    number: u64,
    size: usize,
    used: usize,
    /// The newest entry that keeps one, and which it keeps.
    newest: Option<(u64, u64)>,
}

/// What of the present frame's payload is a part of a block.
#[derive(Debug, Default)]
struct Fragment {
    stream: u32,
    is_padded: bool,
    /// Bytes of the priority that are still to come.
    priority: u8,
    depends_on: u32,
    left: u32,
}

/// Where in a block the next byte is (RFC 7541 section 6).
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// A field begins.
    Field,
    /// It goes on with an integer, of which this is known.
    Integer { value: u32, shift: u32, of: Of },
    /// A string begins.
    Length(Part),
    /// So much is left of one, all of it at first.
    Text { left: u32, part: Part, is_first: bool },
    /// The block cannot be read, and `h2` ends the connection.
    Broken,
}

/// What an integer is.
#[derive(Clone, Copy, Debug)]
enum Of {
    Indexed,
    Size,
    /// The name of a literal field.
    Name,
    /// The length of a string.
    Length {
        part: Part,
        is_coded: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    Value,
}

/// Bytes that a string has at least, and at most.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    least: u32,
    most: u32,
}

/// A field that is not in a table yet.
#[derive(Clone, Copy, Debug, Default)]
struct Literal {
    /// It is to be put there.
    enters: bool,
    /// It stays where it was read.
    stays: bool,
    name: Bounds,
    value: Bounds,
    /// The string that was read last is Huffman coded.
    is_coded: bool,
}

#[derive(Debug)]
struct Entry {
    size: u32,
    /// It may be so large.
    most: u32,
    name: Bounds,
    stays: bool,
    /// Bytes that go with it: nothing newer keeps the same buffer.
    keeps: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            read: Buffers::new(READ),
            decoded: Buffers::new(DECODED),
            fragment: Fragment::default(),
            block: 0,
            walk: Walk::Field,
            literal: Literal::default(),
            list: Bounds::default(),
            entries: VecDeque::new(),
            inserted: 0,
            size: 0,
            most: MOST,
            kept: 0,
            is_doubtful: false,
        }
    }
}

/// The table of a connection, and what it keeps on the account of whoever pays.
#[derive(Debug)]
pub(super) struct ChargedTable {
    table: Table,
    charge: Charged,
}

impl ChargedTable {
    pub(super) fn new(payer: &Rc<Payer>) -> Self {
        Self { table: Table::default(), charge: payer.hold_for_a_while(0) }
    }

    /// The most that the fields of the present block take so far when they are decoded (RFC 9113 section 6.5.2).
    pub(super) fn list_size(&self) -> u32 {
        self.table.list.most
    }

    /// What goes to the decoder.
    pub(super) fn see(&mut self, seen: Seen<'_>) {
        match seen {
            Seen::Head(head) => self.table.begin(head),
            Seen::Block(bytes) => {
                let before = self.table.kept();
                self.table.follow(bytes);
                if self.table.kept() != before {
                    self.charge.set(self.table.kept());
                }
            }
        }
    }
}

impl Table {
    /// Bytes of the buffers that it keeps.
    fn kept(&self) -> usize {
        self.kept
    }

    /// A frame begins.
    fn begin(&mut self, head: FrameHead) {
        let length = head.length as usize;
        self.read.take(HEADER + length);
        match head.kind {
            HEADERS => {
                self.fragment = Fragment::of(head);
                (self.walk, self.block, self.list) = (Walk::Field, length, Bounds::default());
            }
            CONTINUATION => {
                self.fragment = Fragment { left: head.length, ..Fragment::default() };
                self.block += length;
                // What could not be decoded before is put together with this, and decoded again.
                self.read.renew(2 * self.block);
                self.decoded.renew(0);
            }
            _ => {}
        }
    }

    /// Goes on with the payload of the frame that began last, which is one of HEADERS or CONTINUATION.
    fn follow(&mut self, bytes: &[u8]) {
        let bytes = self.fragment.cut(bytes);
        self.walk(bytes);
    }

    fn walk(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.walk {
                // Most fields are in a table already.
                Walk::Field if byte & 0x80 != 0 && byte != 0xff => {
                    bytes = rest;
                    self.indexed(u32::from(byte & 0x7f));
                }
                Walk::Field => {
                    bytes = rest;
                    self.field(byte);
                }
                Walk::Integer { value, shift, of } => {
                    bytes = rest;
                    let value = value.saturating_add(u32::from(byte & 0x7f) << shift);
                    match byte & 0x80 {
                        0 => self.know(value, of),
                        // `h2` reads no more of it.
                        _ if shift >= 21 => self.walk = Walk::Broken,
                        _ => self.walk = Walk::Integer { value, shift: shift + 7, of },
                    }
                }
                Walk::Length(part) => {
                    bytes = rest;
                    self.integer(byte, 0x7f, Of::Length { part, is_coded: byte & 0x80 != 0 });
                }
                Walk::Text { left, part, is_first } => {
                    if is_first && part == Part::Name {
                        self.literal.stays = if self.literal.is_coded { byte >> 1 == COLON } else { byte == b':' };
                    }
                    let n = bytes.len().min(left as usize);
                    bytes = &bytes[n..];
                    #[expect(clippy::cast_possible_truncation, reason = "no more than is left")]
                    let left = left - n as u32;
                    match left {
                        0 => self.end(part),
                        _ => self.walk = Walk::Text { left, part, is_first: false },
                    }
                }
                Walk::Broken => return,
            }
        }
    }

    /// A field that is not just a number of one byte begins with this.
    fn field(&mut self, byte: u8) {
        match byte {
            0x80.. => self.integer(byte, 0x7f, Of::Indexed),
            0x20..=0x3f => self.integer(byte, 0x1f, Of::Size),
            _ => {
                let enters = byte & 0x40 != 0;
                self.literal = Literal { enters, ..Literal::default() };
                self.integer(byte, if enters { 0x3f } else { 0x0f }, Of::Name);
            }
        }
    }

    /// An integer begins in the bits of `mask` (RFC 7541 section 5.1).
    fn integer(&mut self, byte: u8, mask: u8, of: Of) {
        let value = u32::from(byte & mask);
        match byte & mask == mask {
            true => self.walk = Walk::Integer { value, shift: 0, of },
            false => self.know(value, of),
        }
    }

    /// An integer has come.
    fn know(&mut self, value: u32, of: Of) {
        self.walk = match of {
            Of::Indexed => {
                self.indexed(value);
                Walk::Field
            }
            Of::Size if value > MOST => Walk::Broken,
            Of::Size => {
                self.most = value;
                self.make_room(0);
                Walk::Field
            }
            Of::Name if value == 0 => Walk::Length(Part::Name),
            Of::Name => {
                (self.literal.name, self.literal.stays) = self.name(value);
                Walk::Length(Part::Value)
            }
            Of::Length { part, is_coded } => return self.string(value, part, is_coded),
        }
    }

    /// A field of a table comes again.
    fn indexed(&mut self, number: u32) {
        let of = |entry: &Entry| Bounds { least: entry.size, most: entry.most };
        let field = match number.checked_sub(STATIC + 1) {
            None => Bounds { least: ENTRY + SHORTEST, most: ENTRY + LONGEST_FIELD },
            Some(_) if self.is_doubtful => Bounds { least: ENTRY, most: MOST },
            Some(place) => self.entries.get(place as usize).map_or_else(Bounds::default, of),
        };
        self.list.add(field);
    }

    /// What is known of a name in a table.
    fn name(&self, number: u32) -> (Bounds, bool) {
        if number <= STATIC {
            return (Bounds { least: SHORTEST, most: LONGEST }, KEPT.contains(&number));
        }
        let of = |entry: &Entry| (entry.name, entry.stays);
        let unknown = (Bounds { least: 1, most: MOST }, true);
        let entry = self.entries.get((number - STATIC - 1) as usize).filter(|_| !self.is_doubtful);
        entry.map_or(unknown, of)
    }

    /// A string of so many bytes begins.
    fn string(&mut self, length: u32, part: Part, is_coded: bool) {
        let bounds = match is_coded {
            // From 5 to 30 bits each, and up to 7 bits that fill the last byte.
            true => {
                let bits = length.saturating_mul(8);
                let most = bits / 5;
                self.decoded.take(most as usize + 1);
                Bounds { least: bits.saturating_sub(7) / 30, most }
            }
            false => Bounds { least: length, most: length },
        };
        self.literal.is_coded = is_coded;
        match part {
            Part::Name => self.literal.name = bounds,
            Part::Value => self.literal.value = bounds,
        }
        match length {
            0 => self.end(part),
            left => self.walk = Walk::Text { left, part, is_first: true },
        }
    }

    fn end(&mut self, part: Part) {
        self.walk = match part {
            Part::Name => Walk::Length(Part::Value),
            Part::Value => {
                self.list.add(self.literal.size());
                if self.literal.enters {
                    self.insert();
                }
                Walk::Field
            }
        }
    }

    fn insert(&mut self) {
        let Literal { stays, name, is_coded, .. } = self.literal;
        let Bounds { least, most } = self.literal.size();
        self.make_room(least);
        if least > self.most {
            return;
        }
        self.is_doubtful |= most > self.most;
        let keeps = if stays { self.keep(is_coded) } else { 0 };
        self.entries.push_front(Entry { size: least, most, name, stays, keeps });
        (self.inserted, self.size) = (self.inserted + 1, self.size + least);
        self.kept += keeps as usize;
    }

    /// The next entry lies in the present buffer, whose bytes go with the newest of those that do. Returns how many.
    fn keep(&mut self, is_coded: bool) -> u32 {
        let buffers = if is_coded { &mut self.decoded } else { &mut self.read };
        let before = buffers.newest.replace((self.inserted, buffers.number));
        if let Some((entry, number)) = before
            && number == buffers.number
            && let Some(entry) = self.entries.get_mut((self.inserted - 1 - entry) as usize)
        {
            self.kept -= std::mem::take(&mut entry.keeps) as usize;
        }
        u32::try_from(buffers.size).unwrap_or(u32::MAX)
    }

    /// Makes room for an entry of so many bytes, of all if it has to (RFC 7541 section 4.4).
    fn make_room(&mut self, size: u32) {
        while self.size.saturating_add(size) > self.most
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size;
            self.kept -= entry.keeps as usize;
        }
        if self.entries.is_empty() {
            // Nor has `h2` any.
            self.is_doubtful = false;
        }
    }
}

impl Literal {
    /// What it counts as in a table, and in a list of fields.
    fn size(&self) -> Bounds {
        let sum = |name: u32, value: u32| ENTRY.saturating_add(name).saturating_add(value);
        Bounds { least: sum(self.name.least, self.value.least), most: sum(self.name.most, self.value.most) }
    }
}

impl Bounds {
    fn add(&mut self, other: Self) {
        self.least = self.least.saturating_add(other.least);
        self.most = self.most.saturating_add(other.most);
    }
}

impl Buffers {
    fn new(least: usize) -> Self {
        Self { least, number: 0, size: least, used: 0, newest: None }
    }

    /// So many bytes more are taken out, of another one if the present has not as many.
    fn take(&mut self, bytes: usize) {
        if self.used + bytes > self.size {
            self.renew(bytes);
            self.used = 0;
        }
        self.used += bytes;
    }

    /// Begins another of so many bytes, which is full then.
    fn renew(&mut self, bytes: usize) {
        (self.number, self.size) = (self.number + 1, bytes.max(self.least));
        self.used = self.size;
    }
}

impl Fragment {
    /// Of HEADERS (RFC 9113 section 6.2).
    fn of(head: FrameHead) -> Self {
        let (is_padded, has_priority) = (head.flags & PADDED != 0, head.flags & PRIORITY != 0);
        let priority = if has_priority { PRIORITY_FIELDS } else { 0 };
        let left = head.length.saturating_sub(u32::from(is_padded)).saturating_sub(priority.into());
        Self { stream: head.stream, is_padded, priority, depends_on: 0, left }
    }

    /// What of the next bytes is a part of the block.
    fn cut<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [u8] {
        while (self.is_padded || self.priority > 0)
            && let Some((&byte, rest)) = bytes.split_first()
        {
            bytes = rest;
            if std::mem::take(&mut self.is_padded) {
                self.left = self.left.saturating_sub(byte.into());
                continue;
            }
            self.priority -= 1;
            if self.priority > 0 {
                self.depends_on = self.depends_on << 8 | u32::from(byte);
            } else if self.depends_on & 0x7fff_ffff == self.stream {
                // `h2` reads no block of a stream that depends on itself.
                self.left = 0;
            }
        }
        let n = bytes.len().min(self.left as usize);
        #[expect(clippy::cast_possible_truncation, reason = "no more than is left")]
        let left = self.left - n as u32;
        self.left = left;
        &bytes[..n]
    }
}

#[cfg(test)]
mod tests;
