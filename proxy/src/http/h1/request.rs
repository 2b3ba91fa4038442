//! Reads one HTTP/1 request head and decides what exactly would be forwarded. Pure: bytes in, value out.
//!
//! What two readers could take differently is refused here, before policy: framing (RFC 9112 section 6.3), the authority
//! (section 3.2), line ends and blanks. What belongs to this hop only is taken out before policy looks, so that what is
//! judged and what is forwarded are the same fields.

mod rewrite;

use std::mem::MaybeUninit;

use httparse::Header;
use tollgate_policy::Headers;

pub(crate) use self::rewrite::Rewritten;
use super::head::MAX_FIELDS;
use super::websocket::WebSocketKey;
use crate::config::{ForwardedProto, Normalize, Underscores};
use crate::http::authority;
use crate::http::canonical::{CanonicalPath, canonicalise};
use crate::reason::Reason;

/// Says how the client reached the first proxy.
pub(crate) const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Storage for the fields of one head, on the stack of the caller.
pub(crate) type FieldStorage<'b> = [MaybeUninit<Header<'b>>; MAX_FIELDS];

/// A head that is refused: the reason code and what exactly is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
}

impl Refusal {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Reason::MalformedRequest, detail)
    }
}

/// How the end of a request's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestBody {
    None,
    Length(u64),
    Chunked,
}

/// HTTP/1 minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    Http11,
}

/// A request head, understood.
#[derive(Debug)]
pub(crate) struct RequestHead<'h, 'b> {
    pub(crate) method: &'b [u8],
    pub(crate) version: Version,
    /// Host of the request: from an absolute target if there is one, else from `Host`; empty for HTTP/1.0 without one.
    pub(crate) authority: &'b [u8],
    /// The path received, query included.
    pub(crate) received_path: &'b [u8],
    /// Its canonical form.
    pub(crate) path: CanonicalPath,
    pub(crate) body: RequestBody,
    /// The client asked to end the connection after this exchange, or speaks HTTP/1.0 without keep-alive.
    pub(crate) close: bool,
    /// The key of a WebSocket's handshake.
    pub(crate) websocket: Option<WebSocketKey>,
    /// The request has a body, and its method none that every back end would read. To one that does not, that body is the next
    /// request: nothing may follow on its upstream connection.
    pub(crate) last: bool,
    /// The client waits for `100 Continue` before it sends its body.
    pub(crate) expects_continue: bool,
    fields: &'h [Header<'b>],
    /// Bit i: field i belongs to this hop only and is not forwarded.
    removed: u128,
    rewrite: Rewrite<'b>,
}

/// Changes to the received bytes, besides removed fields and the path.
#[derive(Debug, Default)]
struct Rewrite<'b> {
    /// The target was in absolute form: origin form and this host are forwarded.
    host: Option<&'b [u8]>,
    /// `Content-Length` with leading zeros.
    content_length: Option<u64>,
    /// `x-forwarded-proto` is ours.
    forwarded_proto: bool,
    /// `Connection` without the fields it named, and with `close` where nothing may follow.
    connection: Option<Vec<u8>>,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Parses `head`, which must be complete (see `HeadScanner`).
    pub(crate) fn parse(
        head: &'b [u8],
        storage: &'h mut FieldStorage<'b>,
        normalize: &Normalize,
    ) -> Result<Self, Refusal> {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, storage) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => {
                return Err(Refusal::malformed("the head does not end where its lines say"));
            }
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Refusal::new(Reason::HeadersTooLarge, format!("more than {MAX_FIELDS} header fields")));
            }
            Err(error) => {
                return Err(Refusal::malformed(format!("the head does not parse: {error}")));
            }
        }
        let fields: &'h [Header<'b>] = parsed.headers;
        let version = match parsed.version {
            Some(0) => Version::Http10,
            Some(1) => Version::Http11,
            _ => return Err(Refusal::malformed("unknown HTTP version")),
        };
        let method = parsed.method.unwrap_or_default().as_bytes();
        let target = parsed.path.unwrap_or_default().as_bytes();

        let mut request = RequestHead {
            method,
            version,
            authority: b"",
            received_path: target,
            path: CanonicalPath::Unchanged,
            body: RequestBody::None,
            close: false,
            websocket: None,
            last: false,
            expects_continue: false,
            fields,
            removed: 0,
            rewrite: Rewrite::default(),
        };
        request.read_framing()?;
        request.read_target(target, normalize)?;
        request.read_connection()?;
        request.read_expectation()?;
        request.settle_underscores(normalize.field_underscores)?;
        Ok(request)
    }

    /// Values of all received fields of that name.
    fn named(&self, name: &'static str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b> {
        let fields = self.fields;
        fields.iter().filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value)
    }

    /// RFC 9112 section 6.3, with every case of two framings refused.
    fn read_framing(&mut self) -> Result<(), Refusal> {
        let mut codings = self.named("transfer-encoding");
        let coding = codings.next();
        let second_coding = codings.next().is_some();
        let mut lengths = self.named("content-length");
        let length = lengths.next();
        let second_length = lengths.next().is_some();

        if let Some(value) = coding {
            if self.version == Version::Http10 {
                return Err(Refusal::malformed("Transfer-Encoding in an HTTP/1.0 request"));
            }
            if length.is_some() {
                return Err(Refusal::malformed("both Content-Length and Transfer-Encoding"));
            }
            if second_coding {
                return Err(Refusal::malformed("more than one Transfer-Encoding"));
            }
            if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(other_coding(value));
            }
            self.body = RequestBody::Chunked;
        } else if let Some(value) = length {
            if second_length {
                return Err(Refusal::malformed("more than one Content-Length"));
            }
            let length = parse_length(value).ok_or_else(|| Refusal::malformed("Content-Length is not a number"))?;
            if value.len() > 1 && value[0] == b'0' {
                self.rewrite.content_length = Some(length);
            }
            self.body = if length == 0 { RequestBody::None } else { RequestBody::Length(length) };
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: target forms and `Host`.
    fn read_target(&mut self, target: &'b [u8], normalize: &Normalize) -> Result<(), Refusal> {
        if self.method == b"CONNECT" || self.method == b"TRACE" {
            let method = String::from_utf8_lossy(self.method);
            return Err(Refusal::new(Reason::MethodNotSupported, format!("{method} is not supported")));
        }
        let mut hosts = self.named("host");
        let host = hosts.next();
        let second_host = hosts.next().is_some();
        if second_host {
            return Err(Refusal::new(Reason::BadAuthority, "more than one Host"));
        }
        match host {
            Some(value) => {
                authority::check(value).map_err(|e| Refusal::new(Reason::BadAuthority, format!("Host: {e}")))?;
                self.authority = value;
            }
            None if self.version == Version::Http11 => {
                return Err(Refusal::new(Reason::BadAuthority, "no Host"));
            }
            None => {}
        }

        let mut path = target;
        if !target.starts_with(b"/") && target != b"*" {
            let (authority, rest) = split_absolute(target)?;
            authority::check(authority).map_err(|e| Refusal::new(Reason::BadAuthority, format!("target: {e}")))?;
            self.authority = authority;
            self.rewrite.host = Some(authority);
            path = if rest.is_empty() { b"/" } else { rest };
        }
        self.received_path = path;
        if path == b"*" {
            // Asterisk form belongs to OPTIONS; a policy allows it by a rule whose path matches `*`.
            return if self.method == b"OPTIONS" {
                Ok(())
            } else {
                Err(Refusal::malformed("the target * without OPTIONS"))
            };
        }
        self.path = canonicalise(path, normalize).map_err(|e| Refusal::new(Reason::AmbiguousPath, e.to_string()))?;
        Ok(())
    }

    /// RFC 9110 section 7.6.1: `Connection` and the fields it names.
    fn read_connection(&mut self) -> Result<(), Refusal> {
        let mut kept: Vec<&[u8]> = Vec::new();
        let mut changed = false;
        let mut keep_alive = self.version == Version::Http11;
        let mut upgrade_option = false;
        let fields = self.fields;
        let mut count = 0;
        for field in fields.iter().filter(|f| f.name.eq_ignore_ascii_case("connection")) {
            for option in field.value.split(|&b| b == b',').map(|o| o.trim_ascii()).filter(|o| !o.is_empty()) {
                // Each is looked for among all fields: 60 KiB of options would cost milliseconds.
                count += 1;
                if count > MAX_FIELDS {
                    return Err(Refusal::malformed(format!("more than {MAX_FIELDS} connection options")));
                }
                if option.eq_ignore_ascii_case(b"close") {
                    self.close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    keep_alive = true;
                } else if option.eq_ignore_ascii_case(b"upgrade") {
                    upgrade_option = true;
                } else {
                    self.remove_nominated(option);
                    changed = true;
                    continue;
                }
                kept.push(option);
            }
        }
        self.close |= !keep_alive;

        self.websocket = self.read_upgrade(upgrade_option);
        if upgrade_option && self.websocket.is_none() {
            kept.retain(|option| !option.eq_ignore_ascii_case(b"upgrade"));
            changed = true;
        }
        // RFC 9110 section 9.3 gives a body a meaning in these; in others it is up to the back end.
        self.last = self.body != RequestBody::None && !matches!(self.method, b"POST" | b"PUT" | b"PATCH");
        if self.last && !kept.iter().any(|option| option.eq_ignore_ascii_case(b"close")) {
            kept.retain(|option| !option.eq_ignore_ascii_case(b"keep-alive"));
            kept.push(b"close");
            changed = true;
        }
        if changed {
            self.rewrite.connection = Some(kept.join(&b", "[..]));
        }
        Ok(())
    }

    /// A field that `Connection` names ends here, except those that framing and routing rest on.
    fn remove_nominated(&mut self, name: &[u8]) {
        const KEPT: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];
        for (index, field) in self.fields.iter().enumerate() {
            if field.name.as_bytes().eq_ignore_ascii_case(name)
                && !KEPT.iter().any(|kept| field.name.eq_ignore_ascii_case(kept))
            {
                self.removed |= 1 << index;
            }
        }
    }

    /// Keeps the handshake of a WebSocket (RFC 6455 section 4.1); any other `Upgrade` ends here, `h2c` above all, which
    /// would let later requests pass unseen. A handshake that is not well formed is one of those: an ordinary request goes
    /// on, and whoever answers 101 to that is refused.
    fn read_upgrade(&mut self, upgrade_option: bool) -> Option<WebSocketKey> {
        let mut websocket = 0;
        let mut others = 0;
        let fields = self.fields;
        for (index, field) in fields.iter().enumerate() {
            if field.name.eq_ignore_ascii_case("upgrade") {
                if field.value.trim_ascii().eq_ignore_ascii_case(b"websocket") {
                    websocket += 1;
                } else {
                    others += 1;
                }
                self.removed |= 1 << index;
            } else if field.name.eq_ignore_ascii_case("http2-settings") {
                self.removed |= 1 << index;
            }
        }
        let asked = websocket == 1
            && others == 0
            && upgrade_option
            && self.method == b"GET"
            && self.version == Version::Http11
            && self.body == RequestBody::None;
        if !asked {
            return None;
        }
        let key = WebSocketKey::of_request(self.forwarded().map(|(_, field)| field))?;
        for (index, _) in fields.iter().enumerate().filter(|(_, f)| f.name.eq_ignore_ascii_case("upgrade")) {
            self.removed &= !(1 << index);
        }
        Some(key)
    }

    /// RFC 9110 section 10.1.1.
    fn read_expectation(&mut self) -> Result<(), Refusal> {
        let mut expectations = self.named("expect");
        let first = expectations.next();
        let second = expectations.next().is_some();
        match first {
            None => Ok(()),
            Some(value) if !second && value.trim_ascii().eq_ignore_ascii_case(b"100-continue") => {
                self.expects_continue = self.body != RequestBody::None;
                Ok(())
            }
            Some(_) => Err(Refusal::new(Reason::Expectation, "an expectation other than 100-continue")),
        }
    }

    /// What may not pass is taken out before policy looks.
    fn settle_underscores(&mut self, treatment: Underscores) -> Result<(), Refusal> {
        if treatment == Underscores::Keep {
            return Ok(());
        }
        for (index, field) in self.fields.iter().enumerate().filter(|(_, f)| treatment.bar(f.name.as_bytes())) {
            if treatment == Underscores::Reject {
                return Err(Refusal::malformed(format!("the name of field {} has an underscore", field.name)));
            }
            self.removed |= 1 << index;
        }
        Ok(())
    }

    /// Settles who says `x-forwarded-proto`. What a client may not say is taken out before policy looks.
    pub(crate) fn settle_forwarded_proto(&mut self, treatment: ForwardedProto) {
        if treatment == ForwardedProto::Keep {
            return;
        }
        let named = |field: &Header<'_>| field.name.eq_ignore_ascii_case(FORWARDED_PROTO);
        let said: Vec<&[u8]> =
            self.forwarded().filter(|(_, field)| named(field)).map(|(_, field)| field.value).collect();
        let right = matches!(said[..], [value] if value.eq_ignore_ascii_case(b"http"));
        self.rewrite.forwarded_proto = match treatment {
            ForwardedProto::Keep => false,
            ForwardedProto::Add => said.is_empty(),
            ForwardedProto::Overwrite => !right,
        };
        if self.rewrite.forwarded_proto {
            for (index, field) in self.fields.iter().enumerate() {
                if named(field) {
                    self.removed |= 1 << index;
                }
            }
        }
    }

    /// The path that is matched and forwarded.
    pub(crate) fn canonical_path(&self) -> &[u8] {
        match &self.path {
            CanonicalPath::Unchanged => self.received_path,
            CanonicalPath::Rewritten(path) | CanonicalPath::Redirect(path) => path,
        }
    }

    /// The client's own deadline.
    pub(crate) fn grpc_timeout(&self) -> Option<&'b [u8]> {
        self.named("grpc-timeout").next()
    }

    /// Whether the fields say that this is a gRPC request.
    pub(crate) fn is_grpc(&self) -> bool {
        self.named("content-type").next().is_some_and(crate::http::respond::is_grpc)
    }

    /// Trailer fields that the client announced; so many at most that comparing each with each costs little.
    pub(crate) fn announced_trailers(&self) -> Vec<Vec<u8>> {
        self.named("trailer")
            .flat_map(|value| value.split(|&b| b == b','))
            .map(|name| name.trim_ascii().to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .take(MAX_FIELDS)
            .collect()
    }
}

/// The fields that are forwarded, for policy to judge.
impl Headers for RequestHead<'_, '_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        if let (Some(options), "connection") = (&self.rewrite.connection, name) {
            if !options.is_empty() {
                visit(options);
            }
            return;
        }
        for (index, field) in self.fields.iter().enumerate() {
            if self.removed >> index & 1 == 0 && field.name.eq_ignore_ascii_case(name) {
                match (&self.rewrite, name) {
                    (Rewrite { host: Some(host), .. }, "host") => visit(host),
                    _ => visit(field.value),
                }
            }
        }
    }
}

/// Reads a complete HTTP/1 request head as the data path does, and returns the path that would be judged and forwarded.
/// For tools and benches.
///
/// # Errors
/// The reason for which the data path would refuse the head.
pub fn canonical_path_of(head: &[u8], normalize: &Normalize) -> Result<Vec<u8>, Reason> {
    let mut storage: FieldStorage<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let request = RequestHead::parse(head, &mut storage, normalize).map_err(|refusal| refusal.reason)?;
    Ok(request.canonical_path().to_vec())
}

/// Appends one field line.
pub(crate) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// `Content-Length`: digits only, within the 63 bits that readers with signed numbers have.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|length| i64::try_from(*length).is_ok())
}

/// Why a `Transfer-Encoding` other than plain `chunked` is refused. Where `chunked` is named but not last, or nothing is
/// named, no reader can find the body's end (RFC 9112 section 6.3); otherwise it could be found, but not by us.
fn other_coding(value: &[u8]) -> Refusal {
    let mut codings = value.split(|&b| b == b',').map(|coding| coding.trim_ascii()).filter(|coding| !coding.is_empty());
    let last = codings.next_back();
    if last.is_none() {
        return Refusal::malformed("an empty Transfer-Encoding");
    }
    if codings.any(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
        return Refusal::malformed("chunked is not the last transfer coding, or not the only one of its name");
    }
    Refusal::new(Reason::TransferCoding, "a transfer coding other than chunked")
}

/// Splits an absolute-form target into authority and the rest.
fn split_absolute(target: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let scheme_end = memchr::memmem::find(target, b"://")
        .ok_or_else(|| Refusal::malformed("the target is neither a path nor an absolute URI"))?;
    let (scheme, rest) = (&target[..scheme_end], &target[scheme_end + 3..]);
    if !scheme.eq_ignore_ascii_case(b"http") {
        return Err(Refusal::malformed("the target's scheme is not http"));
    }
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if path.first().is_some_and(|&b| b != b'/') {
        return Err(Refusal::malformed("an absolute target without a path"));
    }
    Ok((authority, path))
}

#[cfg(test)]
mod tests;
