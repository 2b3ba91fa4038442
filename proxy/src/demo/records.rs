//! What the demo reads of others: Tollgate's flow records, and the answers that the control plane printed.

use serde_json::Value;

use super::client::Connection;

/// A flow record of Tollgate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record(Value);

impl Record {
    /// A line of `tollgate flows -o json`; `None` if it is not a record.
    pub(super) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str::<Value>(line).ok().filter(|record| record.get("verdict").is_some()).map(Self)
    }

    /// When it began, in a form that sorts.
    pub(super) fn time(&self) -> String {
        self.text("/time")
    }

    /// Whether it was made for this connection.
    pub(super) fn is_of(&self, connection: &Connection) -> bool {
        let local = connection.local();
        self.source() == local.ip().to_string() && self.source_port() == Some(u64::from(local.port()))
    }

    /// The client's address.
    pub(super) fn source(&self) -> String {
        self.text("/IP/source")
    }

    /// The client's port, as Tollgate saw it.
    pub(super) fn source_port(&self) -> Option<u64> {
        self.0.pointer("/l4/TCP/source_port").and_then(Value::as_u64)
    }

    /// Whether it is of a request for this path.
    pub(super) fn path_ends_with(&self, path: &str) -> bool {
        self.text("/l7/http/url").ends_with(path)
    }

    /// `FORWARDED`, `DROPPED` or `ERROR`.
    pub(super) fn verdict(&self) -> String {
        self.text("/verdict")
    }

    /// Why it was refused: the reason's code.
    pub(super) fn reason(&self) -> String {
        self.text("/reason")
    }

    /// The field of the nearest rule that did not match.
    pub(super) fn failed_field(&self) -> String {
        self.text("/policy/nearest_miss/field")
    }

    /// The nearest rule for people: what matched and what did not, and where the rule is in the policy.
    pub(super) fn nearest(&self) -> Vec<String> {
        let Some(miss) = self.0.pointer("/policy/nearest_miss") else {
            return Vec::new();
        };
        let matched = miss["matched"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let matched: String = matched.map(|field| format!("{field} matched, ")).collect();
        let text = |member: &str| miss[member].as_str().unwrap_or_default();
        vec![
            format!("{matched}{} is not {}", text("field"), text("expected")),
            format!("in the nearest rule, {}", text("rule")),
        ]
    }

    /// The record in a line: verdict, request or connection, and the reason of a denial.
    pub(super) fn summary(&self) -> String {
        let what = match self.0.pointer("/l7/http") {
            Some(http) => format!("{} {} {}", self.text("/l7/http/method"), self.text("/l7/http/url"), http["code"]),
            None => format!("TCP connection to {}", self.text("/IP/destination")),
        };
        let line = format!("{:9} {:17} {what} {}", self.verdict(), self.source(), self.reason());
        line.trim_end().to_owned()
    }

    fn text(&self, pointer: &str) -> String {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

/// A push of policies that Tollgate has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Push {
    /// Why it was refused; `None`: acknowledged.
    pub(super) refused: Option<String>,
    /// The version that Tollgate holds after it.
    pub(super) version: String,
    /// From the push to the answer, in microseconds.
    pub(super) latency_us: u64,
}

impl Push {
    /// A line of `tollgate control-plane -o json`; `None` if it is about something else.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |member: &str| event[member].as_str().map(str::to_owned);
        let refused = match event["event"].as_str()? {
            "ack" => None,
            "nack" => Some(text("error").unwrap_or_default()),
            _ => return None,
        };
        (event["type"] == "NetworkPolicy").then(|| Self {
            refused,
            version: text("version").unwrap_or_default(),
            latency_us: event["latency_us"].as_u64().unwrap_or_default(),
        })
    }

    /// `ACK`, or `NACK` with the reason.
    pub(super) fn answer(&self) -> String {
        self.refused.as_ref().map_or_else(|| "ACK".to_owned(), |error| format!("NACK: {error}"))
    }

    /// The version and how long it took.
    pub(super) fn note(&self) -> String {
        let milliseconds = std::time::Duration::from_micros(self.latency_us).as_secs_f64() * 1000.0;
        format!("version {}, in force and acknowledged after {milliseconds:.1} ms", self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::{Push, Record};

    #[test]
    fn a_denial_names_reason_and_nearest_rule() {
        let line = r#"{"verdict":"DROPPED","IP":{"source":"10.0.0.1","destination":"10.0.0.2"},
            "l4":{"TCP":{"source_port":40000}},
            "policy":{"nearest_miss":{"rule":"69 r","field":":path","expected":"\"/hello\"","matched":[":method"]}},
            "reason":"request_not_allowed"}"#;
        let record = Record::parse(line).unwrap();
        assert_eq!(record.nearest(), [":method matched, :path is not \"/hello\"", "in the nearest rule, 69 r"]);
        assert_eq!(record.summary(), "DROPPED   10.0.0.1          TCP connection to 10.0.0.2 request_not_allowed");
        assert_eq!((record.reason().as_str(), record.failed_field().as_str()), ("request_not_allowed", ":path"));
        assert_eq!((record.verdict().as_str(), record.source_port()), ("DROPPED", Some(40000)));
        assert_eq!(Record::parse(r#"{"lost_events":{"num_events_lost":1}}"#), None);
    }

    #[test]
    fn answers_are_told_from_other_events() {
        let ack = r#"{"event":"ack","type":"NetworkPolicy","version":"2","nonce":"2","node":"n","latency_us":1500}"#;
        let push = Push::parse(ack).unwrap();
        assert_eq!((push.answer().as_str(), push.version.as_str()), ("ACK", "2"));
        assert!(push.note().contains("1.5 ms"), "{}", push.note());
        let nack = r#"{"event":"nack","type":"NetworkPolicy","version":"1","latency_us":9,"error":"truncated"}"#;
        assert_eq!(Push::parse(nack).unwrap().answer(), "NACK: truncated");
        for other in
            [r#"{"event":"push","type":"NetworkPolicy"}"#, r#"{"event":"ack","type":"NetworkPolicyHosts"}"#, ""]
        {
            assert_eq!(Push::parse(other), None, "{other}");
        }
    }
}
