//! Takes a request's URI out of what it was read with. `h2` copies the values of fields, but what is in the URI keeps the block that
//! the socket was read into, 8 KiB or a whole large head, for as long as the request is under way, and longer where a table of `h2`
//! keeps it when it is sent on.

use http::uri::{Authority, PathAndQuery};
use http::{Uri, request};

use super::request::size_of_head;

/// Has the URI of a head keep itself only. Returns the bytes of memory that the head takes.
pub(super) fn detach(parts: &mut request::Parts) -> usize {
    if let Some(uri) = copy_of(&parts.uri) {
        parts.uri = uri;
    }
    size_of_head(parts)
}

/// `None` if it cannot be put together again, which nothing that was read as a URI should do.
fn copy_of(uri: &Uri) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    if let Some(path) = &parts.path_and_query {
        parts.path_and_query = Some(PathAndQuery::try_from(path.as_str()).ok()?);
    }
    if let Some(authority) = &parts.authority {
        parts.authority = Some(Authority::try_from(authority.as_str()).ok()?);
    }
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_copy_is_the_same_and_shares_nothing() {
        for text in ["http://a.b:80/c?d", "/c?d", "*", "a.b:80", "http://a.b", "http://a@b/%C3%A9?"] {
            let read = Bytes::from([text.as_bytes(), &[b'x'; 9000]].concat());
            let uri = Uri::from_maybe_shared(read.slice(..text.len())).unwrap();
            let mut parts = http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
            let before = parts.uri.to_string();
            assert_eq!(detach(&mut parts), size_of_head(&parts));
            assert_eq!(parts.uri.to_string(), before);
            assert!(read.is_unique(), "{text}");
        }
    }
}
