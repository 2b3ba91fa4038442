//! Takes a large head out of what it was read into. As it comes from `h2` it keeps all of that, often several times its size, for as
//! long as its request is under way.

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, request};

use super::request::size_of_head;

/// Bytes from which a head is copied. A smaller one costs more to copy than it keeps.
const LARGE: usize = 2 * 1024;

/// Copies a head if it is large: the same fields in the same order. Returns the bytes of memory that it takes.
pub(super) fn detach(parts: &mut request::Parts) -> usize {
    let size = size_of_head(parts);
    if size < LARGE {
        return size;
    }
    parts.headers = copy_of_fields(std::mem::take(&mut parts.headers));
    if let Some(uri) = copy_of_uri(&parts.uri) {
        parts.uri = uri;
    }
    size_of_head(parts)
}

/// All values in one allocation.
fn copy_of_fields(from: HeaderMap) -> HeaderMap {
    let mut text = BytesMut::with_capacity(from.values().map(HeaderValue::len).sum());
    from.values().for_each(|value| text.extend_from_slice(value.as_bytes()));
    let mut text = text.freeze();
    let mut fields = HeaderMap::with_capacity(from.keys_len());
    for (name, value) in &from {
        let copy = copy_of_value(text.split_to(value.len()), value);
        fields.append(HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone()), copy);
    }
    fields
}

fn copy_of_value(text: Bytes, of: &HeaderValue) -> HeaderValue {
    let mut value = HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| of.clone());
    value.set_sensitive(of.is_sensitive());
    value
}

/// `None` if it cannot be put together again, which nothing that was read as a URI should do.
fn copy_of_uri(uri: &Uri) -> Option<Uri> {
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
    use super::*;

    fn parts(uri: &str, fields: &[(&'static str, &str)]) -> request::Parts {
        let mut parts = http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        for (name, value) in fields {
            parts.headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        parts
    }

    /// All fields as they would be sent.
    fn shown(parts: &request::Parts) -> Vec<(String, Vec<u8>, bool)> {
        let field = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.as_bytes().to_vec(), value.is_sensitive())
        };
        parts.headers.iter().map(field).collect()
    }

    /// A value that is a part of something larger, as `h2` reads it.
    fn read(size: usize) -> (Bytes, HeaderValue) {
        let all = Bytes::from(vec![b'x'; 9000]);
        let value = HeaderValue::from_maybe_shared(all.slice(..size)).unwrap();
        (all, value)
    }

    #[test]
    fn the_copy_of_a_large_head_is_the_same_and_shares_nothing() {
        let fields = [("x-a", "1"), ("cookie", "a=1"), ("x-b", ""), ("cookie", "b=2"), ("accept", "*/*"), ("x-a", "2")];
        for uri in ["http://a.b:80/c?d", "/", "*"] {
            let mut parts = parts(uri, &fields);
            let mut secret = HeaderValue::from_static("secret");
            secret.set_sensitive(true);
            parts.headers.append("authorization", secret);
            let (all, value) = read(LARGE);
            parts.headers.append("x-read", value);
            let before = (parts.uri.to_string(), shown(&parts));
            let size = detach(&mut parts);
            assert_eq!((parts.uri.to_string(), shown(&parts)), before);
            assert!(all.is_unique(), "{uri}");
            assert_eq!(size, size_of_head(&parts));
        }
    }

    #[test]
    fn a_small_head_is_left_alone() {
        let mut parts = parts("/", &[]);
        let (all, value) = read(100);
        parts.headers.append("x-read", value);
        assert_eq!(detach(&mut parts), size_of_head(&parts));
        assert!(!all.is_unique());
    }
}
