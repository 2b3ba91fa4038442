use super::super::frames::Frames;
use super::*;

/// A literal field that enters the table, with the name of that number.
fn indexed(name: u8, value: &[u8]) -> Vec<u8> {
    [&[0x40 | name, u8::try_from(value.len()).unwrap()], value].concat()
}

/// A field that does not, of about so many bytes.
fn large(bytes: usize) -> Vec<u8> {
    let length = bytes - 127;
    let low = u8::try_from(length & 0x7f).unwrap() | 0x80;
    [&[0, 1, b'x', 0x7f, low, u8::try_from(length >> 7).unwrap()][..], &vec![b'v'; bytes]].concat()
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

fn head(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, 4, 1, block)
}

/// What a table keeps that has seen these frames, in pieces of that size.
fn kept_of(frames: &[Vec<u8>], piece: usize) -> usize {
    let (mut followed, mut table) = (Frames::of_server(), Table::default());
    for piece in frames.concat().chunks(piece) {
        followed.follow(piece, |seen| {
            match seen {
                Seen::Head(head) => table.begin(head),
                Seen::Block(bytes) => table.follow(bytes),
            }
            true
        });
    }
    table.kept()
}

fn kept(frames: &[Vec<u8>]) -> usize {
    let kept = kept_of(frames, usize::MAX);
    for piece in [1, 2, 3, 7, 100, 4095] {
        assert_eq!(kept_of(frames, piece), kept, "in pieces of {piece}");
    }
    kept
}

const PATH: u8 = 4;
const ACCEPT: u8 = 19;

#[test]
fn fields_keep_nothing_and_paths_what_they_were_read_with() {
    assert_eq!(kept(&[head(b"\x82\x86\x84\x41")]), 0, "in the static table");
    assert_eq!(kept(&[head(&indexed(ACCEPT, b"a/b"))]), 0);
    assert_eq!(kept(&[head(&[&[0x40, 1, b'x'][..], &[1, b'y']].concat())]), 0);
    assert_eq!(kept(&[head(&indexed(PATH, b"/a"))]), READ);
    assert_eq!(kept(&[head(&[&[0x40, 7][..], b":scheme", &[1, b'y']].concat())]), READ, "a name as text");
    assert_eq!(kept(&[head(&[0x04, 2, b'/', b'a'])]), 0, "not put into the table");
    assert_eq!(kept(&[head(&[indexed(PATH, b""), large(14_000)].concat())]), HEADER + 2 + 6 + 14_000);
}

#[test]
fn what_was_read_together_is_kept_once() {
    let small = || head(&indexed(PATH, b"/a"));
    assert_eq!(kept(&vec![small(); 30]), READ);
    let other = frame(0, 0, 1, &[0; 8000]);
    assert_eq!(kept(&[vec![small(); 30], vec![other], vec![small(); 10]].concat()), 2 * READ);
}

#[test]
fn what_no_longer_fits_keeps_nothing() {
    let entry = [indexed(PATH, b"/abc"), large(14_000)].concat();
    let size = kept(&[head(&entry)]);
    let most = MOST as usize / (32 + 3 + 4);
    assert_eq!(kept(&vec![head(&entry); 90]), 90 * size);
    assert_eq!(kept(&vec![head(&entry); 150]), most * size);
    let field = head(&indexed(ACCEPT, &[b'a'; 100]));
    let many = vec![field; MOST as usize / 135 + 1];
    assert_eq!(kept(&[vec![head(&entry); 150], many].concat()), 0, "fields take the place of paths");
    assert_eq!(kept(&[head(&entry), head(b"\x20")]), 0, "a table without room");
    assert_eq!(kept(&[head(&entry), head(b"\x20\x3f\xe1\x1f"), head(&entry)]), size, "and with room again");
}

#[test]
fn what_is_decoded_is_kept_as_such() {
    // Each begins with the code of `/`.
    let coded = |bytes: usize| [&[0x44, 0x80 | u8::try_from(bytes).unwrap(), 0x62][..], &vec![0; bytes - 1]].concat();
    assert_eq!(kept(&[head(&coded(10))]), DECODED);
    assert_eq!(kept(&vec![head(&coded(10)); 20]), DECODED);
    assert_eq!(kept(&vec![head(&coded(100)); 30]), 2 * DECODED);
    // :path as text: 7 bits each of `:path` begin with those of the colon.
    assert_eq!(kept(&[head(&[0x40, 0x82, 0xb9, 0x58, 1, b'/'])]), READ);
}

#[test]
fn names_by_number_are_those_of_the_entries() {
    let path = head(&[indexed(PATH, b"/a"), indexed(ACCEPT, b"b")].concat());
    let next = |number: u8| [path.clone(), frame(0, 0, 1, &[0; 9000]), head(&indexed(number, b"c"))];
    // 62 is the newest.
    assert_eq!(kept(&next(62)), READ);
    assert_eq!(kept(&[path.clone(), frame(0, 0, 1, &[0; 9000]), head(&[0x7f, 0, 1, b'c'])]), 2 * READ, "63");
    // Whether it was put in, with more than 4096 bytes, is not known: so nothing else is.
    let coded = [&[0x40 | ACCEPT, 0xff, 0xb9, 0x17][..], &[0; 3000]].concat();
    assert_eq!(kept(&[head(&coded), frame(0, 0, 1, &[0; 9000]), head(&indexed(62, b"c"))]), READ);
}

#[test]
fn padding_and_priority_are_no_part_of_a_block() {
    let entry = indexed(PATH, b"/a");
    let padded = [&[3][..], &entry, b"\x44\0\0"].concat();
    assert_eq!(kept(&[frame(HEADERS, 4 | PADDED, 1, &padded)]), READ);
    let both = |depends_on: u8| [&[3, 0x80, 0, 0, depends_on, 7][..], &entry, b"\x44\0\0"].concat();
    assert_eq!(kept(&[frame(HEADERS, 4 | PADDED | PRIORITY, 1, &both(3))]), READ);
    assert_eq!(kept(&[frame(HEADERS, 4 | PADDED | PRIORITY, 1, &both(1))]), 0, "which `h2` does not decode");
}

#[test]
fn a_block_goes_on() {
    let block = [large(16_000), large(16_000), indexed(PATH, b"/a")].concat();
    let mut frames: Vec<Vec<u8>> = block.chunks(16_000).map(|piece| frame(CONTINUATION, 0, 1, piece)).collect();
    frames[0][3] = HEADERS;
    assert_eq!(kept(&frames), 2 * block.len(), "in what was put together for it");
}

/// The least and the most that the last block takes when it is decoded.
fn list_of(frames: &[Vec<u8>]) -> (u32, u32) {
    let (mut followed, mut table) = (Frames::of_server(), Table::default());
    followed.follow(&frames.concat(), |seen| {
        match seen {
            Seen::Head(head) => table.begin(head),
            Seen::Block(bytes) => table.follow(bytes),
        }
        true
    });
    (table.list.least, table.list.most)
}

#[test]
fn fields_count_as_they_are_decoded() {
    let text = |name: usize, value: usize| u32::try_from(name + value).unwrap() + ENTRY;
    let same = |size| (size, size);
    assert_eq!(list_of(&[head(&large(14_000))]), same(text(1, 14_000)));
    let planted = head(&[&[0x40, 1, b'x'][..], &[4], b"abcd"].concat());
    assert_eq!(list_of(&[planted.clone(), head(&[0xbe; 500])]), same(500 * text(1, 4)), "by its number in the table");
    assert_eq!(list_of(&[planted.clone(), head(&[0xbf; 500])]), same(0), "there is none");
    assert_eq!(list_of(&[head(&large(14_000)), planted]), same(text(1, 4)), "each block for itself");
    // `age`, and `accept-encoding: gzip, deflate`.
    for (field, size) in [(b"\x95", text(3, 0)), (b"\x90", text(15, 13))] {
        let (least, most) = list_of(&[head(field)]);
        assert!((least..=most).contains(&size), "{size} is not from {least} to {most}");
    }
    // 100 letters of 5 bits, and as many bytes of 8.
    let coded = [&[0x04, 0x80 | 63][..], &[0; 63]].concat();
    let (least, most) = list_of(&[head(&coded)]);
    assert!(least <= text(5, 16) && most >= text(5, 100), "{least} {most}");
    let parts = [frame(HEADERS, 0, 1, &large(14_000)), frame(CONTINUATION, 4, 1, &large(14_000))];
    assert_eq!(list_of(&parts), same(2 * text(1, 14_000)), "the block goes on");
}
