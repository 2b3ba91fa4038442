//! What the node's datapath sees of the proxy's packets: nftables counters by socket mark.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use tollgate_net::Mark;

use crate::steered::Steered;

/// Counts what the node sends to and from one server, by mark.
#[derive(Debug)]
pub struct MarkCounters<'s> {
    steered: &'s Steered,
}

impl<'s> MarkCounters<'s> {
    /// Counts packets of connections with `server`: to it with the mark `upstream`, from its address with the mark
    /// `reply`, and those with any other mark. Starts from zero, in the place of counters started before.
    ///
    /// # Panics
    /// When the rules cannot be installed.
    pub fn start(steered: &'s Steered, server: SocketAddr, upstream: Mark, reply: Mark) -> Self {
        let family = if server.is_ipv4() { "ip" } else { "ip6" };
        let (ip, port) = (server.ip(), server.port());
        let rules = format!(
            "table inet marks\ndelete table inet marks\n\
             table inet marks {{\n\
               counter upstream {{}}\ncounter upstream_other {{}}\ncounter reply {{}}\ncounter reply_other {{}}\n\
               chain output {{\n\
                 type filter hook output priority 0;\n\
                 {family} daddr {ip} tcp dport {port} meta mark {upstream:?} counter name upstream accept\n\
                 {family} daddr {ip} tcp dport {port} counter name upstream_other\n\
                 {family} saddr {ip} tcp sport {port} meta mark {reply:?} counter name reply accept\n\
                 {family} saddr {ip} tcp sport {port} counter name reply_other\n\
               }}\n\
             }}\n"
        );
        let file = steered.path("marks.nft");
        fs::write(&file, rules).unwrap();
        steered.run_on_node("nft", &["-f", file.to_str().unwrap()]);
        Self { steered }
    }

    /// Packets so far that this counter (`upstream`, `upstream_other`, `reply`, `reply_other`) took.
    ///
    /// # Panics
    /// When there is no such counter.
    pub fn packets(&self, name: &str) -> u64 {
        let text = self.steered.run_on_node("nft", &["-j", "list", "counter", "inet", "marks", name]);
        let listing: Value = serde_json::from_str(&text).unwrap();
        let counter = listing["nftables"].as_array().unwrap().iter().find(|item| item["counter"].is_object());
        counter.unwrap()["counter"]["packets"].as_u64().unwrap()
    }

    /// Asserts that there were packets both ways, all with the right mark.
    ///
    /// # Panics
    /// When there were not.
    pub fn expect_only_marked(&self) {
        let [upstream, upstream_other, reply, reply_other] =
            ["upstream", "upstream_other", "reply", "reply_other"].map(|name| self.packets(name));
        assert!(upstream >= 4 && reply >= 3, "to the server {upstream}, to the client {reply}");
        assert_eq!((upstream_other, reply_other), (0, 0), "packets with another mark");
    }
}
