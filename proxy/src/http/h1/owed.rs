//! What a client is told when the task of its connection panics while a request waits for its answer: 500, as long as nothing of an
//! answer went out. Without it the connection would end without a word, as if the network had failed.

use std::cell::Cell;

use socket2::SockRef;
use tokio::net::tcp::WriteHalf;

/// Not more than the socket's buffer has room for: nobody can wait here.
const ANSWER: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Whether a request is there as a whole of which nothing was answered yet.
#[derive(Debug, Default)]
pub(crate) struct Owed(Cell<bool>);

impl Owed {
    /// A request came.
    pub(crate) fn begin(&self) {
        self.0.set(true);
    }

    /// Some of an answer goes out.
    pub(crate) fn end(&self) {
        self.0.set(false);
    }
}

/// The way to a client, which says so when a panic ends it.
#[derive(Debug)]
pub(super) struct Answering<'w, 'c> {
    pub(super) writer: WriteHalf<'w>,
    pub(super) owed: &'c Owed,
}

impl Drop for Answering<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.owed.0.get() {
            // Not by way of the event loop, which has not seen yet that the socket takes bytes if it has just come to this thread.
            let _ = SockRef::from(self.writer.as_ref()).send(ANSWER);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream as Peer};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tokio::net::TcpStream;

    use super::*;

    /// What a client sees of a connection that ends after this, by a panic or without.
    async fn seen(panics: bool, before: impl FnOnce(&Owed)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Peer::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        // As one that another thread has just handed over: the event loop knows nothing of it.
        let mut stream = TcpStream::from_std(stream).unwrap();
        let owed = Owed::default();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let _answering = Answering { writer: stream.split().1, owed: &owed };
            before(&owed);
            assert!(!panics, "a defect");
        }));
        assert_eq!(ended.is_err(), panics);
        drop(stream);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_is_told() {
        let told = seen(true, Owed::begin).await;
        assert!(told.starts_with("HTTP/1.1 500 ") && told.ends_with("connection: close\r\n\r\n"), "{told}");
        assert_eq!(seen(false, Owed::begin).await, "", "without a panic");
        assert_eq!(seen(true, |_| {}).await, "", "without a request");
        let begun = |owed: &Owed| {
            owed.begin();
            owed.end();
        };
        assert_eq!(seen(true, begun).await, "", "in the middle of an answer");
    }
}
