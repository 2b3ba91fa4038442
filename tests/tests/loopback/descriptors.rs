//! The kernel's table of descriptors.

use tollgate_tests::policy::usual;
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::Site;
use tollgate_tests::upstream::Upstream;

/// When the kernel has to make it larger, the worker waits for it, and everybody for the worker.
#[test]
fn the_table_of_descriptors_has_room_for_all_connections_from_the_start() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let options = Options { top: "max_connections: 700".into(), ..Options::default() };
    let mut proxy = Proxy::with(&site, upstream.address(), &options, &[usual(&site)]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.process().id())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
    assert!(size.trim().parse::<u64>().unwrap() >= 1400, "{size}");
}
