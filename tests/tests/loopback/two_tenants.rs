//! A tenant that has limits beside one that has none: how a test drives the first past them, and sees what that does to either.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tollgate::reason::Reason;
use tollgate_tests::peer::{Message, Peer};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::Site;
use tollgate_tests::upstream::{OK, Upstream};
use tollgate_tests::wait::until;

use super::tenants::{client_address, connect, message, policy, try_connect};

pub(crate) const GET: &str = "GET /allowed HTTP/1.1\r\nHost: a\r\n\r\n";
/// For which [`held_upstream`] does not wait.
pub(crate) const AT_ONCE: &str = "GET /allowed/now HTTP/1.1\r\nHost: a\r\n\r\n";

/// A proxy with a tenant `busy` that has limits, and `endpoint-8`, which has none.
pub(crate) struct Two {
    pub(crate) proxy: Proxy,
    pub(crate) busy: IpAddr,
    pub(crate) calm: IpAddr,
}

impl Two {
    pub(crate) fn start(site: &Site, upstream: &Upstream, settings: &str) -> Self {
        Self::with(site, upstream, settings, "")
    }

    pub(crate) fn with(site: &Site, upstream: &Upstream, settings: &str, top: &str) -> Self {
        Self::to(site, upstream.address(), settings, top)
    }

    pub(crate) fn to(site: &Site, upstream: SocketAddr, settings: &str, top: &str) -> Self {
        let options = Options { top: top.to_owned(), workers: 2, ..Options::default() };
        Self::under(site, upstream, settings, options, |busy| policy(7, busy))
    }

    /// With these `options` besides, and with this policy for `busy`.
    pub(crate) fn under(
        site: &Site,
        upstream: SocketAddr,
        settings: &str,
        options: Options,
        of_busy: impl FnOnce(IpAddr) -> Value,
    ) -> Self {
        let (busy, calm) = (client_address(site, 1), client_address(site, 2));
        let group = format!("{{ name: busy, members: {{ endpoint_ids: [7] }}, {settings} }}");
        let top = format!("tenants: {{ groups: [{group}] }}\n{}", options.top);
        let options = Options { direction: "egress", top, ..options };
        let policies = [message(of_busy(busy)), message(policy(8, calm))];
        Self { proxy: Proxy::with(site, upstream, &options, &policies), busy, calm }
    }

    pub(crate) fn busy(&self) -> Peer {
        connect(self.busy, self.proxy.http())
    }

    /// For who may be sent away, which can be told as a failure to connect.
    pub(crate) fn try_busy(&self) -> std::io::Result<Peer> {
        try_connect(self.busy, self.proxy.http())
    }

    pub(crate) fn calm(&self) -> Peer {
        connect(self.calm, self.proxy.http())
    }

    /// A value of the busy tenant's entry of `/tenants`.
    pub(crate) fn busy_shows(&self, key: &str) -> Value {
        let shown: Value = serde_json::from_str(&self.proxy.get("/tenants").1).unwrap();
        let all = shown["tenants"].as_array().unwrap();
        all.iter().find(|entry| entry["name"] == "busy").unwrap()[key].clone()
    }

    /// An endpoint that has done nothing is served as ever.
    pub(crate) fn neighbour_is_served(&self) {
        assert_eq!(ask(&mut self.calm(), AT_ONCE).status(), 200);
        self.neighbour_is_refused_nothing();
    }

    /// Nor would be, in shadow.
    pub(crate) fn neighbour_is_refused_nothing(&self) {
        let scrape = self.proxy.get("/metrics").1;
        for metric in ["refusals_total", "shadow_refusals_total"] {
            let of_calm = format!("tollgate_tenant_{metric}{{tenant=\"endpoint-8\"");
            assert_eq!(scrape.lines().find(|line| line.starts_with(&of_calm)), None);
        }
    }

    /// The records that tell of a reason.
    pub(crate) fn records(&self, reason: Reason) -> Vec<Value> {
        self.proxy.flows().into_iter().filter(|flow| flow["reason"] == reason.code()).collect()
    }

    /// So many were refused, by the metrics and by the records.
    pub(crate) fn expect_refused(&self, reason: Reason, times: u64) {
        let records = until("the records", || {
            let records = self.records(reason);
            (records.len() as u64 >= times).then_some(records)
        });
        assert_eq!(records.len() as u64, times);
        assert!(
            records.iter().all(|record| record["tenant"] == "busy" && record["verdict"] == "DROPPED"),
            "{records:?}"
        );
        assert!(records.iter().all(|record| record["detail"].is_string()), "which limit? {records:?}");
        assert_eq!(self.counted("refusals_total", reason), times);
        assert_eq!(
            self.proxy.metric(&format!("tollgate_refusals_total{{reason=\"{}\"}}", reason.code())),
            times as f64
        );
    }

    /// By the metric, which is there once something was refused.
    pub(crate) fn counted(&self, metric: &str, reason: Reason) -> u64 {
        let series = format!("tollgate_tenant_{metric}{{tenant=\"busy\",reason=\"{}\"}} ", reason.code());
        let scrape = self.proxy.get("/metrics").1;
        scrape.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    pub(crate) fn expect_shadowed(&self, reason: Reason, times: u64) {
        assert_eq!(self.counted("shadow_refusals_total", reason), times);
        assert!(self.proxy.flows().iter().all(|flow| flow["reason"] != reason.code()));
    }
}

pub(crate) fn ask(client: &mut Peer, request: &str) -> Message {
    client.send(request);
    client.read_message()
}

/// The answer to a client that may be sent away before it asks.
pub(crate) fn answer_if_let_in(client: &mut Peer) -> Option<Message> {
    client.try_send(GET).ok()?;
    client.wait_for_bytes().then(|| client.read_message())
}

/// An answer to an HTTP/1 client for one of the reasons that mean overload.
pub(crate) fn expect_overload(answer: &Message, reason: Reason) {
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.field("retry-after"), Some("1"));
    assert_eq!(answer.field("x-envoy-overloaded"), Some("true"));
    assert_eq!(answer.field("x-tollgate-reason"), Some(reason.code()));
    assert_eq!(answer.field("connection"), None, "the connection goes on");
}

/// The fields of an answer that a script in Python got.
pub(crate) fn fields_of(answer: &Value) -> HashMap<String, String> {
    serde_json::from_value(answer["headers"].clone())
        .map(|fields: Vec<(String, String)>| fields.into_iter().collect())
        .unwrap()
}

/// What a limit that means overload says to a client of gRPC.
pub(crate) fn expect_told_grpc(answer: &Value, reason: Reason) {
    assert_eq!((&answer["status"], &answer["end"]), (&json!(200), &json!("end")), "{answer}");
    let fields = fields_of(answer);
    let field = |name: &str| fields.get(name).map(String::as_str);
    assert_eq!((field("grpc-status"), field("grpc-message")), (Some("14"), Some(reason.code())));
    assert_eq!((field("retry-after"), field("x-envoy-overloaded")), (Some("1"), Some("true")));
}

/// An upstream that answers when it is told to, but for [`AT_ONCE`].
pub(crate) fn held_upstream(site: &Site) -> (Upstream, Sender<()>) {
    let (go_on, wait) = channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let upstream = Upstream::scripted(site, move |peer, _| {
        while peer.wait_for_bytes() {
            if !peer.read_head().contains("/now") {
                let _ = wait.lock().unwrap().recv();
            }
            peer.send(OK);
        }
    });
    (upstream, go_on)
}

/// So many more requests that wait for the upstream, each on a connection of its own; no others come meanwhile.
pub(crate) fn waiting(upstream: &Upstream, requests: usize, connect: impl Fn() -> Peer) -> Vec<Peer> {
    let before = upstream.connections();
    let begin = |number| {
        let mut client = connect();
        client.send(GET);
        until("the request", || (upstream.connections() == before + number).then_some(()));
        client
    };
    (1..=requests).map(begin).collect()
}
