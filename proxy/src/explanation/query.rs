//! A question as the query of `/policy/explain`.

use std::fmt::Write as _;

use tollgate_policy::{Direction, SecurityId};

use super::{Asked, header, method};

impl Asked {
    /// The query that asks the same of a running proxy.
    pub(crate) fn to_query(&self) -> String {
        let mut query = String::new();
        let mut add = |name: &str, value: &str| {
            let separator = if query.is_empty() { "" } else { "&" };
            // Writing to a string cannot fail.
            let _ = write!(query, "{separator}{name}={}", encode(value));
        };
        add("endpoint", &self.endpoint.to_string());
        add("direction", self.direction.as_str());
        add("from", &self.remote.to_string());
        add("port", &self.port.to_string());
        if let Some(proxy_id) = self.proxy_id {
            add("proxy_id", &proxy_id.to_string());
        }
        if let Some(name) = &self.server_name {
            add("server_name", name);
        }
        if let Some(host) = &self.host {
            add("host", host);
        }
        for (name, value) in &self.headers {
            add("header", &format!("{name}: {value}"));
        }
        if let Some((method, path)) = &self.request {
            add("method", method);
            add("path", path);
        }
        query
    }

    /// Reads the parameters of a query, whose values are percent-encoded.
    ///
    /// # Errors
    /// A parameter is missing, unknown, given twice, or does not take its value; says which.
    pub(crate) fn from_query(parameters: &[(&str, &str)]) -> Result<Self, String> {
        const KNOWN: [&str; 10] =
            ["endpoint", "direction", "from", "port", "proxy_id", "server_name", "host", "header", "method", "path"];
        let mut decoded: Vec<(&str, String)> = Vec::with_capacity(parameters.len());
        for (name, value) in parameters {
            if !KNOWN.contains(name) {
                return Err(format!("unknown parameter {name}; there are: {}", KNOWN.join(", ")));
            }
            if *name != "header" && decoded.iter().any(|(other, _)| other == name) {
                return Err(format!("{name} is given twice; give it once"));
            }
            let value = percent_decode(value).ok_or_else(|| format!("{name} is not percent-encoded UTF-8"))?;
            decoded.push((name, value));
        }
        let text = |name: &str| decoded.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        let headers = decoded.iter().filter(|(name, _)| *name == "header").map(|(_, value)| header(value));
        Ok(Self {
            endpoint: required("endpoint", "an address", text("endpoint"))?,
            direction: match text("direction").as_deref() {
                Some("ingress") => Direction::Ingress,
                Some("egress") => Direction::Egress,
                _ => return Err("direction is ingress or egress".to_owned()),
            },
            remote: SecurityId(required("from", "the number of an identity", text("from"))?),
            port: required("port", "a port", text("port"))?,
            proxy_id: text("proxy_id").map(|id| required("proxy_id", "a number up to 65535", Some(id))).transpose()?,
            server_name: text("server_name"),
            host: text("host"),
            headers: headers.collect::<Result<_, _>>()?,
            request: match (text("method"), text("path")) {
                (Some(name), Some(path)) => Some((method(&name)?, path)),
                (None, None) => None,
                _ => return Err("method and path go together; give both or neither".to_owned()),
            },
        })
    }
}

fn required<T: std::str::FromStr>(name: &str, what: &str, value: Option<String>) -> Result<T, String> {
    let value = value.ok_or_else(|| format!("{name} is missing; give {what}"))?;
    value.parse().map_err(|_| format!("{name} is not {what}"))
}

/// Everything but what needs no encoding anywhere in a URI (RFC 3986 section 2.3) as `%XX`.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            byte => {
                // Writing to a string cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// What percent-encoded text stands for; `None` when it is not UTF-8 or not encoded well.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_its_query() {
        let asked = Asked {
            endpoint: "fd00::1".parse().unwrap(),
            direction: Direction::Egress,
            remote: SecurityId(7),
            port: 80,
            proxy_id: Some(3),
            server_name: Some("a.b".to_owned()),
            host: Some("a:80".to_owned()),
            headers: vec![("x-a".to_owned(), "1 & 2=%".to_owned()), ("x-a".to_owned(), "\u{e9}".to_owned())],
            request: Some(("GET".to_owned(), "/a%20b?c=d&e#".to_owned())),
        };
        let bare = Asked { proxy_id: None, server_name: None, host: None, headers: vec![], request: None, ..asked };
        for asked in [asked, bare] {
            let query = asked.to_query();
            let parameters: Vec<_> = query.split('&').map(|part| part.split_once('=').unwrap()).collect();
            assert_eq!(Asked::from_query(&parameters), Ok(asked), "{query}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let good = [("endpoint", "10.0.0.1"), ("direction", "ingress"), ("from", "7"), ("port", "80")];
        assert!(Asked::from_query(&good).is_ok());
        for (index, expected) in
            ["endpoint is missing", "direction is", "from is missing", "port is"].iter().enumerate()
        {
            let mut without = good.to_vec();
            without.remove(index);
            let error = Asked::from_query(&without).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        for (parameter, expected) in [
            (("prot", "1"), "unknown parameter prot"),
            (("port", "81"), "port is given twice"),
            (("path", "/"), "method and path go together"),
            (("header", "nonsense"), "\"nonsense\" is no header field"),
            (("host", "%F"), "host is not percent-encoded"),
            (("host", "%ff"), "host is not percent-encoded"),
            (("proxy_id", "65536"), "proxy_id is not a number up to 65535"),
        ] {
            let error = Asked::from_query(&[&good[..], &[parameter]].concat()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
