//! HTTP/1.0 and HTTP/1.1: pure readers of heads and bodies, and the connection that moves the bytes.

mod answer;
mod body;
mod buffer;
mod chunked;
mod connection;
mod decide;
mod exchange;
mod head;
mod owed;
mod request;
mod response;
mod retry;
mod trailers;
mod tunnel;
mod waiting;
mod websocket;

pub(crate) use buffer::{Buffer, BufferPool};
pub(crate) use connection::{resume, serve};
pub(crate) use decide::{policy_view, read};
pub(crate) use exchange::Paired;
pub(crate) use head::{MAX_FIELDS, MAX_HEAD};
pub(crate) use owed::Owed;
pub(crate) use request::FORWARDED_PROTO;
pub use request::canonical_path_of;
pub(crate) use request::{FieldStorage, Refusal, RequestHead, write_field};
pub(crate) use response::MAX_INTERIM;
pub(crate) use trailers::FORBIDDEN as FORBIDDEN_TRAILERS;
