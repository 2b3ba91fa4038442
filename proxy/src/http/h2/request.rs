//! Reads the head of one HTTP/2 request: what policy judges and what is forwarded. Pure.

use http::header::{COOKIE, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, request};
use tollgate_policy::{HeaderEdits, Headers, Request};
use tollgate_schedule::{Work, mark};

use crate::config::{ForwardedProto, Normalize, Underscores};
use crate::http::authority;
use crate::http::canonical::{CanonicalPath, canonicalise};
use crate::http::h1::{FORWARDED_PROTO, MAX_FIELDS};
use crate::http::request_id::{self, RequestId};
use crate::reason::Reason;

/// A head that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) detail: &'static str,
}

/// A request head, understood. `parts` is in the form that is forwarded.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) parts: request::Parts,
    /// The client is to be sent to this path instead.
    pub(super) redirect: Option<Vec<u8>>,
    /// `x-forwarded-proto` is ours.
    pub(super) forwarded_proto: bool,
}

impl RequestHead {
    /// Checks the head and brings it into the form that is judged and forwarded: one authority, a canonical path.
    pub(super) fn read(mut parts: request::Parts, normalize: &Normalize) -> Result<Self, Refusal> {
        let _work = mark(Work::Http);
        let refuse = |reason, detail| Err(Refusal { reason, detail });
        if parts.method == Method::CONNECT || parts.method == Method::TRACE {
            return refuse(Reason::MethodNotSupported, "CONNECT and TRACE are not supported");
        }
        if parts.headers.len() > MAX_FIELDS {
            return refuse(Reason::HeadersTooLarge, "more than 100 header fields");
        }
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if parts.headers.values().any(|v| blank(v.as_bytes().first()) || blank(v.as_bytes().last())) {
            // RFC 9113 section 8.2.1 forbids them; a later hop that trims would read another value.
            return refuse(Reason::MalformedRequest, "a field value begins or ends with a blank");
        }
        settle_underscores(&mut parts.headers, normalize.field_underscores)?;
        let authority = read_authority(&mut parts)?;
        let received = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = if received == "*" {
            if parts.method != Method::OPTIONS {
                return refuse(Reason::MalformedRequest, "the path * without OPTIONS");
            }
            None
        } else {
            match canonicalise(received.as_bytes(), normalize) {
                Ok(CanonicalPath::Unchanged) => None,
                Ok(CanonicalPath::Rewritten(path)) => Some(path),
                Ok(CanonicalPath::Redirect(path)) => {
                    return Ok(Self { parts, redirect: Some(path), forwarded_proto: false });
                }
                Err(_) => return refuse(Reason::AmbiguousPath, "the path cannot be made canonical"),
            }
        };
        // Cleartext is `http`, whatever the client calls it: a back end must not be told of a TLS that nobody checked.
        if path.is_some() || authority.is_some() || parts.uri.scheme() != Some(&Scheme::HTTP) {
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = authority.or(uri.authority);
            if let Some(path) = path {
                uri.path_and_query = PathAndQuery::try_from(path).ok();
            }
            let Ok(uri) = Uri::from_parts(uri) else {
                return refuse(Reason::AmbiguousPath, "the canonical path is no URI");
            };
            parts.uri = uri;
        }
        Ok(Self { parts, redirect: None, forwarded_proto: false })
    }

    /// Settles who says `x-forwarded-proto`. What a client may not say is taken out before policy looks.
    pub(super) fn settle_forwarded_proto(&mut self, treatment: ForwardedProto) {
        let headers = &mut self.parts.headers;
        let mut named = headers.get_all(FORWARDED_PROTO).iter();
        let first = named.next();
        let right = first.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"http")) && named.next().is_none();
        self.forwarded_proto = match treatment {
            ForwardedProto::Keep => false,
            ForwardedProto::Add => first.is_none(),
            ForwardedProto::Overwrite => !right,
        };
        if self.forwarded_proto {
            headers.remove(FORWARDED_PROTO);
        }
    }

    /// Whether `x-forwarded-proto` is put in; a rule that puts it in goes first.
    pub(super) fn adds_forwarded_proto(&self, edits: &HeaderEdits) -> bool {
        self.forwarded_proto && edits.of(FORWARDED_PROTO).is_none()
    }

    /// The path that is matched and forwarded.
    pub(super) fn path(&self) -> &str {
        self.parts.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    /// Bytes of the header list, as RFC 9113 section 6.5.2 counts them: 32 more for each field.
    pub(super) fn size(&self) -> usize {
        let field = |name: usize, value: usize| name + value + 32;
        let parts = &self.parts;
        let fields = parts.headers.iter().map(|(name, value)| field(name.as_str().len(), value.len()));
        let pseudo = [(":method", parts.method.as_str()), (":authority", self.authority()), (":path", self.path())];
        fields.chain(pseudo.map(|(name, value)| field(name.len(), value.len()))).sum::<usize>() + field(7, 4)
    }

    pub(super) fn authority(&self) -> &str {
        self.parts.uri.authority().map_or("", Authority::as_str)
    }

    pub(super) fn is_grpc(&self) -> bool {
        let content_type = self.parts.headers.get(http::header::CONTENT_TYPE);
        content_type.is_some_and(|value| crate::http::respond::is_grpc(value.as_bytes()))
    }

    /// The request as policy judges it.
    pub(super) fn policy_view(&self) -> Request<'_> {
        Request {
            method: self.parts.method.as_str().as_bytes(),
            scheme: b"http",
            authority: self.authority().as_bytes(),
            path: self.path().as_bytes(),
            headers: self,
        }
    }
}

/// What may not pass is taken out before policy looks.
fn settle_underscores(headers: &mut HeaderMap, treatment: Underscores) -> Result<(), Refusal> {
    if treatment == Underscores::Keep {
        return Ok(());
    }
    let barred: Vec<HeaderName> =
        headers.keys().filter(|name| treatment.bar(name.as_str().as_bytes())).cloned().collect();
    if treatment == Underscores::Reject && !barred.is_empty() {
        return Err(Refusal { reason: Reason::MalformedRequest, detail: "the name of a field has an underscore" });
    }
    barred.into_iter().for_each(|name| drop(headers.remove(name)));
    Ok(())
}

/// Fields that there is room for in the map of any head.
const FEW: usize = 6;
/// Bytes of that map for each field that there is room for beyond that.
const PLACE: usize = 108;

/// Bytes of memory that a request's head takes. They are kept for as long as the request is under way.
pub(super) fn size_of_head(parts: &request::Parts) -> usize {
    size_of_fields(&parts.headers) + parts.uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// Bytes of memory that fields take: their text, counted as in RFC 9113 section 6.5.2 with 32 for each, and their places in the map.
pub(super) fn size_of_fields(fields: &HeaderMap) -> usize {
    let text: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    text + fields.capacity().saturating_sub(FEW) * PLACE
}

/// Makes the edits of an admitted request.
///
/// # Errors
/// A name or value that no field can have.
pub(super) fn apply_edits(headers: &mut HeaderMap, edits: &HeaderEdits) -> Result<(), http::Error> {
    for edit in edits.iter() {
        let name = HeaderName::from_bytes(edit.name.as_bytes())?;
        let mut replaces = !edit.keep;
        if replaces && edit.append.is_empty() {
            headers.remove(&name);
        }
        for value in &edit.append {
            let mut field = HeaderValue::from_bytes(value.as_bytes())?;
            // Not for HPACK's table.
            field.set_sensitive(value.is_secret());
            if std::mem::take(&mut replaces) {
                headers.insert(&name, field);
            } else {
                headers.append(&name, field);
            }
        }
    }
    Ok(())
}

/// Shows the head that is forwarded with `edits` and `request_id`, pseudo-headers first; nothing of an injected secret.
pub(super) fn show(
    head: &RequestHead,
    edits: &HeaderEdits,
    request_id: Option<&RequestId>,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) {
    visit(b":method", head.parts.method.as_str().as_bytes());
    visit(b":authority", head.authority().as_bytes());
    visit(b":path", head.path().as_bytes());
    visit(b":scheme", b"http");
    for (name, value) in &head.parts.headers {
        if edits.of(name.as_str()).is_none_or(|edit| edit.keep) {
            visit(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    for edit in edits.iter() {
        edit.append.iter().for_each(|value| visit(edit.name.as_bytes(), value.shown()));
    }
    if head.adds_forwarded_proto(edits) {
        visit(FORWARDED_PROTO.as_bytes(), b"http");
    }
    if let Some(id) = request_id {
        visit(request_id::NAME.as_bytes(), id.as_bytes());
    }
}

/// A new `x-request-id`, where one is `wanted` and neither the client nor `edits` give one. Policy never sees it: no rule
/// admits what the proxy itself put in.
pub(super) fn new_request_id(headers: &HeaderMap, edits: &HeaderEdits, wanted: bool) -> Option<RequestId> {
    let given = || headers.contains_key(request_id::NAME) || edits.of(request_id::NAME).is_some();
    (wanted && !given()).then(RequestId::random)
}

/// Settles on one authority: `:authority` if there is one, else a single `host`; a `host` next to it is dropped, so that
/// what is judged is what the back end reads (RFC 9113 section 8.3.1). Returns an authority that the URI lacks.
fn read_authority(parts: &mut request::Parts) -> Result<Option<Authority>, Refusal> {
    let refuse = |detail| Err(Refusal { reason: Reason::BadAuthority, detail });
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next().cloned(), hosts.next().is_some());
    if second {
        return refuse("more than one host");
    }
    if let Some(authority) = parts.uri.authority() {
        if authority::check(authority.as_str().as_bytes()).is_err() {
            return refuse(":authority is not a host with an optional port");
        }
        parts.headers.remove(HOST);
        return Ok(None);
    }
    let Some(host) = host else { return refuse("neither :authority nor host") };
    if authority::check(host.as_bytes()).is_err() {
        return refuse("host is not a host with an optional port");
    }
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return refuse("host is not an authority");
    };
    parts.headers.remove(HOST);
    Ok(Some(authority))
}

/// Cookies that HTTP/2 split are one value (RFC 9113 section 8.2.3), as HTTP/1 would show them to policy.
impl Headers for RequestHead {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let headers: &HeaderMap = &self.parts.headers;
        if name == "host" {
            return visit(self.authority().as_bytes());
        }
        let values = headers.get_all(name);
        if name == COOKIE.as_str() && values.iter().nth(1).is_some() {
            let all: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
            return visit(&all.join(&b"; "[..]));
        }
        values.iter().for_each(|value| visit(value.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EscapedSlashes;

    const CILIUM: Normalize = Normalize {
        path: true,
        merge_slashes: true,
        escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
        field_underscores: Underscores::Keep,
    };

    fn read(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<RequestHead, Refusal> {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        RequestHead::read(builder.body(()).unwrap().into_parts().0, &CILIUM)
    }

    fn reason(method: &str, uri: &str, fields: &[(&str, &str)]) -> Option<Reason> {
        read(method, uri, fields).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn one_authority() {
        let head = read("GET", "http://a/x", &[("host", "b")]).unwrap();
        assert_eq!(head.authority(), "a");
        assert!(head.parts.headers.get(HOST).is_none());
        let head = read("GET", "/x", &[("host", "b:1")]).unwrap();
        assert_eq!(head.parts.uri.to_string(), "http://b:1/x");
        for (uri, fields) in [
            ("/x", &[][..]),
            ("/x", &[("host", "a"), ("host", "a")]),
            ("http://a/x", &[("host", "a"), ("host", "b")]),
            ("http://u@a/x", &[]),
            ("/x", &[("host", "a/b")]),
        ] {
            assert_eq!(reason("GET", uri, fields), Some(Reason::BadAuthority), "{uri} {fields:?}");
        }
    }

    #[test]
    fn paths_and_methods() {
        assert_eq!(read("GET", "https://a/x/../y?z", &[]).unwrap().parts.uri.to_string(), "http://a/y?z");
        assert_eq!(read("GET", "http://a/x%2fy", &[]).unwrap().redirect, Some(b"/x/y".to_vec()));
        assert_eq!(reason("GET", "http://a/%00", &[]), Some(Reason::AmbiguousPath));
        assert_eq!(read("OPTIONS", "*", &[("host", "a")]).unwrap().authority(), "a");
        assert_eq!(read("OPTIONS", "*", &[("host", "a")]).unwrap().path(), "*");
        assert_eq!(reason("GET", "*", &[("host", "a")]), Some(Reason::MalformedRequest));
        assert_eq!(reason("TRACE", "http://a/", &[]), Some(Reason::MethodNotSupported));
        assert_eq!(reason("CONNECT", "a:80", &[]), Some(Reason::MethodNotSupported));
        assert_eq!(reason("GET", "http://a/", &[("x", " y")]), Some(Reason::MalformedRequest));
    }

    #[test]
    fn cookies_are_one_value() {
        let head = read("GET", "http://a/", &[("cookie", "a=1"), ("x", "1"), ("cookie", "b=2"), ("x", "2")]).unwrap();
        let values = |name: &str| {
            let mut values = Vec::new();
            head.each(name, &mut |value| values.push(String::from_utf8(value.to_vec()).unwrap()));
            values
        };
        assert_eq!(values("cookie"), ["a=1; b=2"]);
        assert_eq!(values("x"), ["1", "2"]);
        assert_eq!(values("host"), ["a"]);
    }
}
