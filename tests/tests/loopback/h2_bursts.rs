//! Many streams that come at once: what they take counts before anything has been done for them.

use rustix::process::Signal;
use serde_json::json;
use tollgate::reason::Reason;
use tollgate_tests::http2::{CLIENT_START, big_get, end_of, get};
use tollgate_tests::peer::Peer;
use tollgate_tests::proxy::Proxy;
use tollgate_tests::python::python;
use tollgate_tests::script;
use tollgate_tests::site::Site;
use tollgate_tests::wait::until;

use super::memory::{GREEDY, MIB, connect, held, settle, shown, start};

const CLIENTS: u32 = 60;
/// Requests that each sends at once: as many as may be open.
const STREAMS: u32 = 100;
const CEILING: u64 = 8 * MIB;

/// A client that was served once.
fn served(site: &Site, proxy: &Proxy) -> Peer {
    let mut client = connect(site, proxy, GREEDY);
    client.send(CLIENT_START);
    client.send(get(1));
    client.read_until(&end_of(1));
    client
}

/// Requests that were refused for want of memory.
fn refused(proxy: &Proxy) -> u64 {
    shown(proxy, "greedy", "refusals")[Reason::TenantMemory.code()].as_u64().unwrap_or(0)
}

#[test]
fn a_burst_of_streams_keeps_to_the_ceiling() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let (_upstream, address) = script::serve(python, &site, "h2_upstream.py", &[&site.ip().to_string()]);
    let mut proxy = start(&site, address.parse().unwrap(), "ceilings: { memory: 8MiB }");
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| served(&site, &proxy)).collect();
    let before = settle(&site, &mut proxy);
    let idle = held(&proxy, "greedy");
    assert!(idle < CEILING / 4 * 3, "{idle} of connections alone");
    // All of it is there when the proxy looks next.
    proxy.process().signal(Signal::STOP);
    let burst: Vec<u8> = (0..STREAMS).flat_map(|n| big_get(2 * n + 3, "/allowed/hang", 1)).collect();
    clients.iter_mut().for_each(|client| client.send(&burst));
    proxy.process().signal(Signal::CONT);
    until("most to be refused", || (refused(&proxy) > u64::from(CLIENTS * STREAMS) / 2).then_some(()));
    settle(&site, &mut proxy);
    let served = shown(&proxy, "greedy", "requests_in_flight").as_u64().unwrap();
    let (held_now, peak) = (held(&proxy, "greedy"), proxy.process().memory().1 * 1024 - before);
    println!(
        "{served} are served, {held_now} bytes on the account, {idle} before; the process grew by {peak} at the most"
    );
    // An eighth more is what its connections are reset for.
    assert!(held_now < CEILING / 8 * 9 + MIB / 4, "{held_now} on the account");
    assert!(served > (CEILING - idle) / 20_000, "{served} are served: there is room for more");
    // All of them would take 43 MiB. What waits for its refusal is beyond the ceiling.
    assert!(peak < CEILING + 4 * MIB, "{peak}");
    assert_eq!(shown(&proxy, "endpoint-8", "refusals"), json!({}));
    drop(clients);
    until("nothing to be held", || (held(&proxy, "greedy") == 0).then_some(()));
}
