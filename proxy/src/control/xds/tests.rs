//! NPHDS states: the `HostMapTest` cases of Cilium's filter (`tests/conformance/README.md`), by name, and our own.

use super::*;
use crate::config::IdentitySettings;
use crate::control::WorldStore;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// Identities and their addresses.
type State = &'static [(u64, &'static [&'static str])];

/// Resources by name; one name may come again.
fn resources(state: &[(u64, &[&str])]) -> Vec<Resource<cilium::NetworkPolicyHosts>> {
    let hosts = state.iter().enumerate().map(|(index, (policy, addresses))| Resource {
        name: format!("{policy}/{index}"),
        message: cilium::NetworkPolicyHosts {
            policy: *policy,
            host_addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
        },
        partly_read: None,
    });
    hosts.collect()
}

fn table(state: &[(u64, &[&str])]) -> Result<IdentityTable, String> {
    HostsState::default().table_after(&resources(state), &[]).map(|(table, _)| table)
}

#[test]
fn host_map() {
    let name = "HostMapTest.HostMapValid";
    let table = table(&[
        (173, &["192.168.0.1", "f00d::1"]),
        (1, &["127.0.0.1/32", "::1/128"]),
        (11, &["127.0.0.0/8", "beef::/63"]),
        (12, &["0.0.0.0/0", "::/0"]),
    ])
    .unwrap();
    for (identity, addresses) in [
        (173, &["192.168.0.1", "f00d::1"][..]),
        (1, &["127.0.0.1", "::1"]),
        (11, &["127.0.0.2", "beef::1.2.3.4", "beef:0:0:1::", "beef:0:0:1::42"]),
        (12, &["192.168.0.0", "192.168.0.2", "126.0.0.2", "128.0.0.0", "::", "f00d::", "beef:0:0:2::"]),
    ] {
        for address in addresses {
            assert_eq!(table.lookup(address.parse().unwrap()), Some(SecurityId(identity)), "{name}: {address}");
        }
    }
}

#[test]
fn refused_host_maps() {
    const BITS: &str = "bits are set beyond the prefix";
    const LONG: &str = "the prefix is longer than the address";
    const PLAIN: &str = "the prefix length is not a plain number";
    const ADDRESS: &str = "not an IP address";
    // Each at the end of addresses that are fine.
    let cases: &[(&str, &[&str], &str)] = &[
        ("HostMapTest.HostMapInvalidNonCIDRBits", &["127.0.0.1/31", "::1/63"], BITS),
        ("HostMapTest.HostMapInvalidPrefixLengths", &["127.0.0.1/33", "::3/129"], LONG),
        ("HostMapTest.HostMapInvalidPrefixLengths2", &["127.0.0.1/32a", "::3/", "127.0.0.1/"], PLAIN),
        ("HostMapTest.HostMapInvalidPrefixLengths3", &["127.0.0.1/ 32", "::3/128 "], PLAIN),
        ("HostMapTest.HostMapInvalidAddress", &["255.256.0.0", "fOOd::1"], ADDRESS),
        ("HostMapTest.HostMapInvalidAddress2", &["255.255.0.0 ", "f00d:: 1"], ADDRESS),
        ("HostMapTest.HostMapInvalidDefaults", &["128.0.0.0/0", "8000::/0"], BITS),
        ("a leading zero", &["127.0.0.0/08"], PLAIN),
    ];
    for (name, addresses, reason) in cases {
        for address in *addresses {
            let error = table(&[(11, &["127.0.0.1/32", "::1/128", "f00f::/65", address])]).unwrap_err();
            assert_eq!(error, format!("NetworkPolicyHosts 11: host_addresses {address:?}: {reason}"), "{name}");
        }
    }
    assert_eq!(table(&[(1 << 32, &[])]).unwrap_err(), "NetworkPolicyHosts 4294967296: the identity is over 32 bits");
}

#[test]
fn host_maps_with_duplicates() {
    // The filter refuses this one; it says nothing that is not clear.
    let name = "HostMapTest.HostMapDuplicateEntry";
    let within: [(State, &str); 2] = [
        (&[(11, &["127.0.0.0/16", "127.0.0.1/32", "127.0.0.1"])], "127.0.0.1"),
        (&[(11, &["::1/128", "f00f::/65", "::1"])], "::1"),
    ];
    for (state, address) in within {
        assert_eq!(table(state).unwrap().lookup(address.parse().unwrap()), Some(SecurityId(11)), "{name}");
    }
    let name = "HostMapTest.HostMapDuplicateEntry2";
    let across: [(State, &str); 2] = [
        (&[(11, &["127.0.0.0/16", "127.0.0.1/32"]), (12, &["127.0.0.0/8", "127.0.0.1"])], "127.0.0.1/32"),
        (&[(11, &["::1/128", "f00f::/65"]), (12, &["f00f::/16", "::1"])], "::1/128"),
    ];
    for (state, prefix) in across {
        let expected = format!("NetworkPolicyHosts: {prefix} belongs to identity 11 and to identity 12");
        assert_eq!(table(state).unwrap_err(), expected, "{name}");
    }
}

/// A new stream may be another agent's, with maps of its own.
#[tokio::test]
async fn the_first_update_of_a_stream_opens_the_maps_anew() {
    let settings = IdentitySettings::new(Identities::Ipcache("/none/ipcache".into()));
    let store = Arc::new(WorldStore::new(crate::control::identities::sources(&settings).unwrap()));
    let policy = Readiness::default().pending("policy");
    let control = Arc::new(Control::new(Arc::clone(&store), Metrics::new(1).0.control(), policy));
    let mut handler = PolicyHandler { control };
    let opening = || store.load().identities.maps().unwrap().serial();
    let mut last = opening();
    for first_on_stream in [true, false, true] {
        let update = Update { version: String::new(), changed: Vec::new(), removed: Vec::new(), first_on_stream };
        handler.apply(update).await.unwrap();
        assert_eq!(opening() != last, first_on_stream);
        last = opening();
    }
}

/// What is accepted of an update is all that later ones build on.
#[tokio::test]
async fn hosts_change_by_what_an_update_says() {
    let sources = crate::control::identities::sources(&IdentitySettings::new(Identities::Nphds)).unwrap();
    let store = Arc::new(WorldStore::new(sources));
    let policy = Readiness::default().pending("policy");
    let control = Arc::new(Control::new(Arc::clone(&store), Metrics::new(1).0.control(), policy));
    let mut handler = HostsHandler { control, state: HostsState::default() };
    let update = |changed: &[(u64, &[&str])], removed: &[&str]| {
        let mut changed = resources(changed);
        changed.iter_mut().for_each(|resource| resource.name = resource.message.policy.to_string());
        let removed = removed.iter().map(|&name| name.to_owned()).collect();
        Update { version: String::new(), changed, removed, first_on_stream: false }
    };
    let of = |address: &str| store.load().identities.address(address.parse().unwrap()).unwrap().map(|id| id.0);
    let both = |store: &str| (of(store), of("10.0.0.2"));

    handler.apply(update(&[(1, &["10.0.0.1", "10.0.0.1/32"]), (2, &["10.0.0.2"])], &[])).await.unwrap();
    assert_eq!(both("10.0.0.1"), (Some(1), Some(2)));
    // An address changes hands in one update, whoever comes first.
    handler.apply(update(&[(2, &["10.0.0.1"]), (1, &["10.0.0.2"])], &[])).await.unwrap();
    assert_eq!(both("10.0.0.1"), (Some(2), Some(1)));
    let refused = handler.apply(update(&[(3, &["10.0.0.1", "10.0.0.3"])], &["1"])).await.unwrap_err();
    assert_eq!(refused.to_string(), "NetworkPolicyHosts: 10.0.0.1/32 belongs to identity 2 and to identity 3");
    assert_eq!((both("10.0.0.1"), of("10.0.0.3")), ((Some(2), Some(1)), None));
    handler.apply(update(&[(3, &["10.0.0.1", "10.0.0.3"])], &["2"])).await.unwrap();
    assert_eq!((both("10.0.0.1"), of("10.0.0.3")), ((Some(3), Some(1)), Some(3)));
    // The same name comes and goes at once: it comes.
    handler.apply(update(&[(1, &["10.0.0.9"])], &["1", "3", "unknown"])).await.unwrap();
    assert_eq!((both("10.0.0.1"), of("10.0.0.9")), ((None, None), Some(1)));
}
