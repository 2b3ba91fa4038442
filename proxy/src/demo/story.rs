//! The steps of the demo, in order: what is done, what must come of it, and what came.

use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;

use serde_json::Value;

use super::client::Connection;
use super::records::{Push, Record};
use super::report::{Report, Seen};
use super::stage::{DemoError, POLICY, PORT, SLEEP, Stage};

/// The policy of Cilium's own documentation, in the spelling of its time.
pub(super) const FIRST: &str = include_str!("policies/1-get-hello.json");
const ALLOW_HELLO3: &str = include_str!("policies/2-allow-hello3.json");
const ONLY_SLEEP: &str = include_str!("policies/3-only-sleep.json");
const BROKEN_REGEX: &str = include_str!("policies/4-broken-regex.json");

const DENIED: &str = "403 Access denied";
const RESET: &str = "connection reset";

/// One playing of the demo.
pub(super) struct Story<'a, W> {
    stage: &'a mut Stage,
    report: &'a mut Report<W>,
    /// Requests that got through, and those that were refused, as their clients saw it.
    forwarded: usize,
    denied: usize,
    /// What the control plane printed, kept when it is killed.
    pushes: Vec<Push>,
}

impl<'a, W: Write> Story<'a, W> {
    pub(super) const fn new(stage: &'a mut Stage, report: &'a mut Report<W>) -> Self {
        Self { stage, report, forwarded: 0, denied: 0, pushes: Vec::new() }
    }

    pub(super) fn tell(mut self) -> io::Result<()> {
        self.introduce()?;
        let mut sleep = self.connect("sleep", 4);
        self.one_path_is_allowed(&mut sleep)?;
        self.a_push_reaches_open_connections(&mut sleep)?;
        self.a_push_names_the_peer(&mut sleep)?;
        self.a_broken_rule_is_quarantined(&mut sleep)?;
        self.the_control_plane_dies(&mut sleep)?;
        self.everything_was_recorded()?;
        self.somebody_pays()
    }

    fn introduce(&mut self) -> io::Result<()> {
        let world = self.stage.world();
        let mut text = "Pods and a node in network namespaces of their own: nothing outside is touched.\n\n".to_owned();
        for (name, role) in [
            ("sleep", format!("client with the identity {SLEEP}")),
            ("other", "client without an identity".to_owned()),
            ("helloworld", format!("HTTP server on port {PORT}, reached only through Tollgate")),
        ] {
            let (v4, v6) = match world.pod(name) {
                Ok(pod) => (pod.address_v4().to_string(), pod.address_v6().to_string()),
                Err(error) => (error.to_string(), String::new()),
            };
            text += &format!("  pod   {name:10}  {v4:12}  {v6:18}  {role}\n");
        }
        let (v4, v6) = (world.node_v4().to_string(), world.node_v6().to_string());
        text += &format!("  node  {:10}  {v4:12}  {v6:18}  tollgate run; tollgate control-plane\n", "");
        self.report.say(&text)?;
        self.report.columns()
    }

    fn one_path_is_allowed(&mut self, sleep: &mut Peer) -> io::Result<()> {
        self.report.chapter("1. The control plane pushes a policy: only GET /hello")?;
        let first = self.stage.answer(0);
        self.push("policy from Cilium's documentation", first)?;
        self.get(sleep, "GET /hello", "/hello", "200")?;
        self.get(sleep, "GET /hello3", "/hello3", DENIED)?;
        self.why(sleep, "why GET /hello3 is denied", "request_not_allowed: :path")?;
        self.request(sleep, "POST /hello", ("POST", "/hello"), DENIED)?;
        self.why(sleep, "why POST /hello is denied", "request_not_allowed: :method")
    }

    fn a_push_reaches_open_connections(&mut self, sleep: &mut Peer) -> io::Result<()> {
        self.report.chapter("2. A live push allows GET /hello3 too")?;
        let answer = self.stage.push(ALLOW_HELLO3);
        self.push("policy that allows /hello3", answer)?;
        self.get(sleep, "GET /hello3, same connection", "/hello3", "200")?;
        let first = self.client_port("DROPPED", "/hello3").unwrap_or_else(|error| error.to_string());
        let now = self.client_port("FORWARDED", "/hello3").map(Seen::from);
        self.report.step("the socket that was denied before", &first, now)
    }

    /// The client's port in Tollgate's record of such a request.
    fn client_port(&mut self, verdict: &str, path: &str) -> Result<String, DemoError> {
        let record = self.stage.record_where(|record| record.verdict() == verdict && record.path_ends_with(path))?;
        Ok(format!("client port {}", record.source_port().unwrap_or_default()))
    }

    fn a_push_names_the_peer(&mut self, sleep: &mut Peer) -> io::Result<()> {
        self.report.chapter("3. A push admits only the identity of sleep, on both addresses of helloworld")?;
        let answer = self.stage.push(ONLY_SLEEP);
        self.push("policy that names sleep", answer)?;
        self.get(sleep, "GET /hello from sleep, IPv4", "/hello", "200")?;
        let mut other = self.connect("other", 4);
        self.get(&mut other, "GET /hello from other, IPv4", "/hello", RESET)?;
        self.why_reset("other")?;
        let mut sleep_v6 = self.connect("sleep", 6);
        self.get(&mut sleep_v6, "GET /hello from sleep, IPv6", "/hello", "200")?;
        let mut other_v6 = self.connect("other", 6);
        self.get(&mut other_v6, "GET /hello from other, IPv6", "/hello", RESET)
    }

    fn a_broken_rule_is_quarantined(&mut self, sleep: &mut Peer) -> io::Result<()> {
        self.report.chapter("4. A push with one regular expression that does not compile")?;
        let answer = self.stage.push(BROKEN_REGEX);
        self.push("policy with a broken rule", answer)?;
        let status = self
            .stage
            .status_when("put nothing in quarantine", |status| status["policy"]["quarantined"][0].is_object());
        let seen = status.map(|status| {
            let quarantined = &status["policy"]["quarantined"];
            let text = |member: &str| quarantined[0][member].as_str().unwrap_or_default();
            let count = quarantined.as_array().map_or(0, Vec::len);
            Seen {
                text: format!("{count} element, {}", text("element")),
                notes: vec![format!("{}: {}", text("rule"), text("reason"))],
            }
        });
        self.report.step("quarantined", "1 element, headers[1]", seen)?;
        self.get(sleep, "GET /hello, the rule beside it", "/hello", "200")?;
        self.get(sleep, "GET /hello3, the broken rule", "/hello3", DENIED)?;
        self.why(sleep, "why GET /hello3 is denied now", "quarantined: :path")
    }

    fn the_control_plane_dies(&mut self, sleep: &mut Peer) -> io::Result<()> {
        self.report.chapter("5. The control plane is killed: what it said last stays in force")?;
        self.pushes = self.stage.pushes();
        self.stage.kill_control_plane();
        let status = self.stage.status_when("is still connected", |status| status["xds"][0]["connected"] == false);
        self.report.step("xDS stream", "disconnected", status.map(|_| Seen::from("disconnected")))?;
        self.get(sleep, "GET /hello, open connection", "/hello", "200")?;
        let mut new = self.connect("sleep", 4);
        self.get(&mut new, "GET /hello, new connection", "/hello", "200")?;
        self.get(&mut new, "GET /hello3, new connection", "/hello3", DENIED)?;
        let mut other = self.connect("other", 4);
        self.get(&mut other, "GET /hello from other again", "/hello", RESET)
    }

    fn everything_was_recorded(&mut self) -> io::Result<()> {
        self.report.chapter("6. Tollgate recorded all of it, and told the control plane")?;
        let records = self.stage.records_when(self.forwarded + self.denied);
        let count = |verdict: &str| records.iter().filter(|record| record.verdict() == verdict).count();
        let expected = format!("{} forwarded, {} denied", self.forwarded, self.denied);
        let seen = Seen {
            text: format!("{} forwarded, {} denied", count("FORWARDED"), count("DROPPED")),
            notes: records.iter().map(Record::summary).collect(),
        };
        self.report.step::<DemoError>("flow records", &expected, Ok(seen))?;
        let refused = self.pushes.iter().filter(|push| push.refused.is_some()).count();
        let seen = Seen {
            text: format!("{} ACK, {refused} NACK", self.pushes.len() - refused),
            notes: self.pushes.iter().map(|push| format!("{}: {}", push.answer(), push.note())).collect(),
        };
        self.report.step::<DemoError>("answers to the control plane", "4 ACK, 0 NACK", Ok(seen))
    }

    fn somebody_pays(&mut self) -> io::Result<()> {
        self.report.chapter(
            "7. The owner of the policy pays for all of it: helloworld, its own tenant without configuration",
        )?;
        let account = |tenants: &Value| {
            let all = tenants["tenants"].as_array().map_or(&[][..], Vec::as_slice);
            let own = all.iter().find(|tenant| tenant["kind"] == "endpoint")?;
            let refused = own["refusals"].as_object()?.values().filter_map(Value::as_u64).sum::<u64>();
            Some(format!("{} forwarded, {refused} refused", own["requests"]["forwarded"]))
        };
        let expected = format!("{} forwarded, {} refused", self.forwarded, self.denied);
        let tenants = self.stage.tenants_when(|tenants| account(tenants).as_ref() == Some(&expected));
        let seen = tenants.map(|(tenants, table)| Seen {
            text: account(&tenants).unwrap_or_default(),
            notes: table.lines().map(str::to_owned).collect(),
        });
        self.report.step("the account of helloworld", &expected, seen)
    }

    fn connect(&mut self, pod: &str, family: u8) -> Peer {
        let to = self.stage.world().pod("helloworld").map(|pod| match family {
            4 => IpAddr::from(pod.address_v4()),
            _ => pod.address_v6().into(),
        });
        Peer { connection: to.map_err(DemoError::from).and_then(|to| self.stage.connect(pod, to)) }
    }

    /// A push and the answer to it.
    fn push(&mut self, name: &str, answer: Result<Push, DemoError>) -> io::Result<()> {
        let seen = answer.map(|push| Seen { text: push.answer(), notes: vec![push.note()] });
        self.report.step(name, "ACK", seen)
    }

    fn get(&mut self, peer: &mut Peer, name: &str, path: &str, expected: &str) -> io::Result<()> {
        self.request(peer, name, ("GET", path), expected)
    }

    /// A request from a pod, as its client sees it.
    fn request(&mut self, peer: &mut Peer, name: &str, request: (&str, &str), expected: &str) -> io::Result<()> {
        let seen = peer.send(request);
        match seen.as_deref() {
            Ok("200") => self.forwarded += 1,
            _ => self.denied += 1,
        }
        self.report.step(name, expected, seen.map(Seen::from))
    }

    /// Why the peer's last request was denied, from Tollgate's flow record of it.
    fn why(&mut self, peer: &Peer, name: &str, expected: &str) -> io::Result<()> {
        let seen = peer.record(self.stage).map(|record| Seen {
            text: match record.failed_field() {
                field if field.is_empty() => record.reason(),
                field => format!("{}: {field}", record.reason()),
            },
            notes: record.nearest(),
        });
        self.report.step(name, expected, seen)
    }

    /// Why a pod's connection was reset. By the pod's address: a connection that was never open has no port to go by.
    fn why_reset(&mut self, pod: &str) -> io::Result<()> {
        let address = self.stage.world().pod(pod).map(|pod| pod.address_v4().to_string()).map_err(DemoError::from);
        let seen = address.and_then(|address| {
            self.stage.record_where(|record| record.verdict() == "DROPPED" && record.source() == address)
        });
        let seen = seen.map(|record| Seen { text: record.reason(), notes: record.nearest() });
        self.report.step(&format!("why {pod} is reset"), "peer_not_allowed", seen)
    }
}

/// A pod's side of one connection, or why there is none.
struct Peer {
    connection: Result<Connection, DemoError>,
}

impl Peer {
    /// What came back, in the words of the expectations.
    fn send(&mut self, (method, path): (&str, &str)) -> Result<String, String> {
        let sent;
        let error = match &mut self.connection {
            Ok(connection) => match connection.send(method, path) {
                Ok(answer) if answer.status == 200 => return Ok("200".to_owned()),
                Ok(answer) => return Ok(format!("{} {}", answer.status, answer.body)),
                Err(error) => {
                    sent = DemoError::Connection(error);
                    &sent
                }
            },
            // The reset may come before the connection counts as open.
            Err(error) => error,
        };
        match error {
            DemoError::Connection(error) if error.kind() == ErrorKind::ConnectionReset => Ok(RESET.to_owned()),
            error => Err(error.to_string()),
        }
    }

    /// Tollgate's record of the last request.
    fn record(&self, stage: &mut Stage) -> Result<Record, String> {
        match &self.connection {
            Ok(connection) => stage.record_of(connection).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What a person types to look at a demo that is left running.
pub(super) fn how_to_look_around(stage: &Stage) -> String {
    let (world, admin) = (stage.world(), stage.admin());
    let program = stage.program().display();
    let address = world.pod("helloworld").map(|pod| pod.address_v4().to_string()).unwrap_or_default();
    let directory = world.directory().display();
    let inside = super::namespaces::enter_command().unwrap_or_default();
    format!(
        "
Everything goes on until Ctrl-C, and the control plane is back. From another terminal, as the same user:

  inside() {{ {inside} \"$@\"; }}
  inside nsenter --net=/run/netns/sleep curl -sSi http://{address}:{PORT}/hello
  inside nsenter --net=/run/netns/other curl -sSi http://{address}:{PORT}/hello
  inside {program} status --admin {admin}
  inside {program} flows --follow --admin {admin}
  inside ${{EDITOR:-vi}} {directory}/{POLICY}     # a change is pushed when it is saved
  inside cat {directory}/control-plane.out {directory}/tollgate.log
"
    )
}
