use tollgate_proto::cilium::port_network_policy_rule::L7;

use super::*;
use crate::config::{HttpSettings, RouteLimits};

/// Takes connections and says nothing.
fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    address
}

/// A control plane may have a route for gRPC, with limits of its own.
#[tokio::test]
async fn requests_of_grpc_have_the_limits_of_their_route() {
    let rules = cilium::HttpNetworkPolicyRules { http_rules: vec![cilium::HttpNetworkPolicyRule::default()] };
    let rule = cilium::PortNetworkPolicyRule { l7: Some(L7::HttpRules(rules)), ..Default::default() };
    let world = world_with(LONG, cilium::PortNetworkPolicy { rules: vec![rule], ..Default::default() });
    let soon = RouteLimits { timeout: Some(Duration::from_millis(100)), ..RouteLimits::default() };
    let ask = |listener: &config::Listener, fields: &str| {
        let mut client = connect(listener.address);
        client.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap();
        client
    };
    const GRPC: &str = "Content-Type: application/grpc\r\n";
    let answer = |client: &mut TcpStream| {
        let mut text = [0; 512];
        let length = client.read(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let own = HttpSettings { grpc_limits: Some(soon), ..HttpSettings::default() };
    let others = HttpSettings { limits: soon, grpc_limits: Some(RouteLimits::default()), ..HttpSettings::default() };
    for (http, first, second, expected) in [(own, "", GRPC, "grpc-status: 4"), (others, GRPC, "", "HTTP/1.1 504 ")] {
        let listener = config::Listener { http, ..listener("l", silent()) };
        assert_eq!(world.listeners.serve(std::slice::from_ref(&listener)).await, []);
        // The one without a limit was first, and is still without an answer when the other has one.
        let mut waits = ask(&listener, first);
        let answered = answer(&mut ask(&listener, second));
        assert!(answered.contains(expected), "{answered}");
        waits.set_nonblocking(true).unwrap();
        assert_eq!(waits.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
