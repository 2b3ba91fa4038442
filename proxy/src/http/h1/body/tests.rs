use std::cell::Cell;
use std::rc::Rc;
use std::task::Context;

use tokio::io::AsyncReadExt as _;

use super::*;
use crate::http::h1::buffer::BufferPool;

async fn relay(cursor: Cursor, input: &[u8], announced: &[&[u8]]) -> (Result<(), BodyError>, Vec<u8>, Vec<u8>) {
    let passes = |name: &[u8]| announced.contains(&name);
    let (trailers, turn) = (Some(&passes as Passes<'_>), Turn::default());
    let mut relay = Relay { cursor, trailers, meter: Meter::Off, needs_sender: true, pace: None, turn };
    let mut buffer = Buffer::for_test(&Rc::new(BufferPool::default()));
    let (mut reader, mut out) = (input, Vec::new());
    let result = relay.run(&mut reader, &mut buffer, &mut out).await;
    let rest = [buffer.filled(), reader].concat();
    (result, out, rest)
}

fn chunked() -> Cursor {
    Cursor::Chunked(ChunkScanner::request())
}

#[tokio::test]
async fn bodies_end_where_they_end() {
    let (result, out, rest) = relay(Cursor::Length(3), b"abcGET", &[]).await;
    assert!(result.is_ok());
    assert_eq!((&out[..], &rest[..]), (&b"abc"[..], &b"GET"[..]));

    let (result, out, rest) = relay(chunked(), b"3\r\nabc\r\n0\r\n\r\nGET", &[]).await;
    assert!(result.is_ok());
    assert_eq!((&out[..], &rest[..]), (&b"3\r\nabc\r\n0\r\n\r\n"[..], &b"GET"[..]));

    let (result, out, _) = relay(Cursor::UntilClose, b"all", &[]).await;
    assert!(result.is_ok());
    assert_eq!(out, b"all");
}

/// A receiver that does not read may be waited for while policy changes.
#[tokio::test]
async fn trailers_are_judged_when_they_are_taken() {
    const BODY: &[u8] = b"1\r\na\r\n0\r\n";
    let barred = Cell::new("");
    let passes = |name: &[u8]| name != barred.get().as_bytes();
    let (meter, turn) = (Meter::Off, Turn::default());
    let trailers = Some(&passes as Passes<'_>);
    let mut relay = Relay { cursor: chunked(), trailers, meter, needs_sender: true, pace: None, turn };
    let mut buffer = Buffer::for_test(&Rc::new(BufferPool::default()));
    let (mut writer, mut peer) = tokio::io::duplex(BODY.len());
    let input = [BODY, b"Role: admin\r\nSum: 1\r\n\r\n"].concat();
    let expected = [BODY, b"Sum: 1\r\n\r\n"].concat();
    let reading = async {
        // What comes behind the body waits for room by now.
        barred.set("Role");
        let mut out = vec![0; expected.len()];
        peer.read_exact(&mut out).await.unwrap();
        out
    };
    let mut reader = &input[..];
    let (result, out) = tokio::join!(relay.run(&mut reader, &mut buffer, &mut writer), reading);
    assert!(result.is_ok());
    assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[tokio::test]
async fn a_trailer_that_was_begun_is_judged_again() {
    const BEGIN: &[u8] = b"0\r\nRol";
    let barred = Cell::new(false);
    let passes = |_: &[u8]| !barred.get();
    let (meter, turn) = (Meter::Off, Turn::default());
    let trailers = Some(&passes as Passes<'_>);
    let mut relay = Relay { cursor: chunked(), trailers, meter, needs_sender: true, pace: None, turn };
    let mut buffer = Buffer::for_test(&Rc::new(BufferPool::default()));
    let (mut writer, mut peer) = tokio::io::duplex(BEGIN.len());
    let mut reader = &b"0\r\nRole: admin\r\n\r\n"[..];
    let reading = async {
        // The socket is full by now.
        barred.set(true);
        let mut out = vec![0; BEGIN.len()];
        peer.read_exact(&mut out).await.unwrap();
        out
    };
    let (result, out) = tokio::join!(relay.run(&mut reader, &mut buffer, &mut writer), reading);
    assert_eq!(out.escape_ascii().to_string(), BEGIN.escape_ascii().to_string());
    assert!(matches!(result, Err(BodyError::Barred)), "{result:?}");
    drop(writer);
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0, "nothing more of it");
}

#[tokio::test]
async fn trailers_are_filtered() {
    let body = b"1\r\na\r\n0\r\nSum: 1\r\nHost: evil\r\n\r\nGET";
    let (result, out, rest) = relay(chunked(), body, &[b"Sum"]).await;
    assert!(result.is_ok());
    assert_eq!((&out[..], &rest[..]), (&b"1\r\na\r\n0\r\nSum: 1\r\n\r\n"[..], &b"GET"[..]));
}

/// Takes all of each write, and notes it.
#[derive(Default)]
struct Writes(Vec<Vec<u8>>);

impl AsyncWrite for Writes {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.push(bytes.to_vec());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn trailers_go_in_one_write_as_they_came() {
    const BODY: &[u8] = b"1\r\na\r\n0\r\n";
    const TRAILERS: &[u8] = b"Sum:1\r\nSize: 2 \r\nRole:  b\r\n\r\n";
    for passes in [Some(&(|_: &[u8]| true) as Passes<'_>), None] {
        let turn = Turn::default();
        let mut relay = Relay {
            cursor: chunked(),
            trailers: passes,
            meter: Meter::Off,
            needs_sender: passes.is_some(),
            pace: None,
            turn,
        };
        let mut buffer = Buffer::for_test(&Rc::new(BufferPool::default()));
        let (input, mut writer) = ([BODY, TRAILERS].concat(), Writes::default());
        relay.run(&mut &input[..], &mut buffer, &mut writer).await.unwrap();
        assert_eq!(writer.0, [BODY, TRAILERS]);
    }
}

#[tokio::test]
async fn broken_bodies_never_end_well() {
    assert!(matches!(relay(Cursor::Length(4), b"abc", &[]).await.0, Err(BodyError::Truncated)));
    assert!(matches!(relay(chunked(), b"3\r\nab", &[]).await.0, Err(BodyError::Truncated)));
    assert!(matches!(relay(chunked(), b"x\r\n", &[]).await.0, Err(BodyError::Chunk(_))));
    assert!(matches!(relay(chunked(), b"0\r\nbad name: 1\r\n\r\n", &[]).await.0, Err(BodyError::Trailers(_))));
    let long = [b"0\r\nX: ".as_slice(), &vec![b'a'; MAX_TRAILERS]].concat();
    assert!(matches!(relay(chunked(), &long, &[]).await.0, Err(BodyError::Trailers(_))));
}
