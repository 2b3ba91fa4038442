//! The client's socket, while it is noted whether the client reads.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::http::h1::Owed;
use crate::worker::Idle;

/// Writes to `writer`.
#[derive(Debug)]
pub(crate) struct Watched<'a, W> {
    pub(crate) writer: &'a mut W,
    pub(crate) idle: &'a Idle,
    /// Nothing is any more once something may have gone out.
    pub(crate) owed: &'a Owed,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Watched<'_, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.owed.end();
        let written = Pin::new(&mut *self.writer).poll_write(cx, bytes);
        self.idle.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.owed.end();
        let written = Pin::new(&mut *self.writer).poll_write_vectored(cx, slices);
        self.idle.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_shutdown(cx)
    }
}
