//! A kernel that gives no more threads, since the pod has as many tasks as it may: what changes is in force all the same.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use serde_json::json;
use tollgate_proto::cilium::NetworkPolicy;
use tollgate_proto::json::network_policy_to_json;
use tollgate_tests::cgroup::ControlGroup;
use tollgate_tests::policy::{http_port, http_rule, ingress, usual};
use tollgate_tests::proxy::{Options, Proxy};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;
use tollgate_tests::wait::until;

/// Rules that make a policy large: it is compiled beside updates, and its file is read beside others.
const MANY: u32 = 2000;

/// Whether a request is allowed. A direction whose policy is not compiled refuses connections.
fn is_allowed(proxy: &Proxy, path: &str) -> bool {
    let mut connection = TcpStream::connect(proxy.http()).unwrap();
    let mut answer = [0; 12];
    let asked = connection.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    match asked.and_then(|()| connection.read_exact(&mut answer)) {
        Ok(()) => answer == *b"HTTP/1.1 200",
        Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
        Err(error) => panic!("{path}: {error}"),
    }
}

fn until_allowed(proxy: &mut Proxy, path: &str, allowed: bool) {
    until(&format!("{path} to be allowed: {allowed}"), || {
        assert_eq!(proxy.process().ended(), None, "it has to go on: {}", proxy.process().output());
        (is_allowed(proxy, path) == allowed).then_some(())
    });
}

/// Allows `path` and a lot that nobody asks for.
fn large(site: &Site, path: &str) -> NetworkPolicy {
    let mut rules: Vec<_> = (0..MANY).map(|n| http_rule("GET", &format!("{path}/of-many/{n}/[a-z]+"))).collect();
    rules.push(http_rule("GET", path));
    ingress(site, json!([http_port(HTTP_PORT, &rules)]))
}

fn small(site: &Site, path: &str) -> NetworkPolicy {
    ingress(site, json!([http_port(HTTP_PORT, &[http_rule("GET", path)])]))
}

fn write(directory: &Path, policy: &NetworkPolicy) {
    let text = network_policy_to_json(policy).unwrap().to_string();
    fs::write(directory.join(".new"), text).unwrap();
    fs::rename(directory.join(".new"), directory.join("7.json")).unwrap();
}

#[test]
fn policies_of_files_are_in_force_without_other_threads() {
    let Some(group) = ControlGroup::of_threads("files") else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let directory = site.path("policies");
    fs::create_dir(&directory).unwrap();
    write(&directory, &usual(&site));
    // Its policy may be compiled for no time at all beside updates.
    let top =
        "tenants: { groups: [{ name: poor, members: { endpoint_ids: [7] }, policy: { compile_per_second: 1ms } }] }";
    for (top, is_poor) in [("", false), (top, true)] {
        let options = Options { top: top.into(), ..Options::default() };
        let mut proxy = Proxy::watching(&site, upstream.address(), &options, &directory);
        until_allowed(&mut proxy, "/allowed", true);
        group.take_in(proxy.process().id());
        group.may_have_threads(false).unwrap();
        write(&directory, &small(&site, "/other"));
        until_allowed(&mut proxy, "/allowed", false);
        until_allowed(&mut proxy, "/other", true);
        write(&directory, &large(&site, "/third"));
        until_allowed(&mut proxy, "/other", false);
        if is_poor {
            // Nobody touches the file again.
            until("the error", || {
                proxy.process().output().contains("endpoints whose policies are not compiled").then_some(())
            });
            assert!(!is_allowed(&proxy, "/third"));
            group.may_have_threads(true).unwrap();
        }
        until_allowed(&mut proxy, "/third", true);
        assert!(proxy.process().output().contains("no thread to compile on"), "{}", proxy.process().output());
        group.may_have_threads(true).unwrap();
        write(&directory, &usual(&site));
    }
}

#[test]
fn updates_of_a_control_plane_are_accepted_without_other_threads() {
    let Some(group) = ControlGroup::of_threads("updates") else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let mut proxy = Proxy::start(&site, upstream.address());
    group.take_in(proxy.process().id());
    group.may_have_threads(false).unwrap();
    for (path, before) in [("/other", "/allowed"), ("/third", "/other")] {
        // So large together that they are compared beside the streams.
        let others = [8, 9].map(|endpoint_id| {
            let endpoint_ips = vec![format!("192.0.2.{endpoint_id}")];
            NetworkPolicy { endpoint_id, endpoint_ips, ..large(&site, path) }
        });
        let policies = [&[large(&site, path)][..], &others].concat();
        assert!(policies.iter().map(Message::encoded_len).sum::<usize>() > 300 << 10);
        proxy.push(&policies);
        assert!(is_allowed(&proxy, path) && !is_allowed(&proxy, before));
    }
    assert!(proxy.process().output().contains("no thread to compile on"), "{}", proxy.process().output());
}

/// A watch needs a thread of its own.
#[test]
fn a_directory_that_goes_and_comes_back_ends_nothing_without_other_threads() {
    let Some(group) = ControlGroup::of_threads("watch") else { return };
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let directory = site.path("policies");
    fs::create_dir(&directory).unwrap();
    write(&directory, &usual(&site));
    let mut proxy = Proxy::watching(&site, upstream.address(), &Options::default(), &directory);
    until_allowed(&mut proxy, "/allowed", true);
    group.take_in(proxy.process().id());
    group.may_have_threads(false).unwrap();
    fs::rename(&directory, site.path("away")).unwrap();
    until("its loss to be noticed", || proxy.process().output().contains("cannot read the directory").then_some(()));
    fs::rename(site.path("away"), &directory).unwrap();
    // Some attempts.
    std::thread::sleep(Duration::from_secs(3));
    until_allowed(&mut proxy, "/allowed", true);
    group.may_have_threads(true).unwrap();
    write(&directory, &small(&site, "/other"));
    until_allowed(&mut proxy, "/other", true);
}
