//! HTTP/1.0 and HTTP/1.1: pure readers of heads and bodies, and the connection that moves the bytes.

mod buffer;
mod chunked;
mod head;
mod request;
pub(crate) use request::write_field;
mod response;
mod trailers;
