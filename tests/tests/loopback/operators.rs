//! Commands for operators, as they are typed: what they say about a configuration and about a running proxy.

use std::net::IpAddr;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tollgate_tests::site::{HTTP_PORT, Site};
use tollgate_tests::upstream::Upstream;

use super::bandwidth::{Two, ask, get};
use super::tenants::connect;

fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate-under-test")).args(arguments).output().unwrap()
}

/// What a command says about the proxy of this site: exit code and both streams.
fn about(site: &Site, arguments: &[&str]) -> (Option<i32>, String, String) {
    let admin = format!("unix:{}", site.path("admin.sock").display());
    let output = tollgate(&[arguments, &["--admin", &admin]].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_check_warns_of_settings_without_effect() {
    let site = Site::new();
    let file = site.path("tollgate.yaml");
    let tenants = "tenants: { groups: [{ name: a, members: { endpoint_ids: [7] }, ceilings: { cpu: 500m } }] }";
    let policies = format!("policies: {{ directory: \"{}\" }}", site.path("").display());
    std::fs::write(&file, format!("fairness: off\n{policies}\n{tenants}\n")).unwrap();
    let output = tollgate(&["run", "--check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let expected = "no effect: tenants.groups, \"a\": ceilings.cpu: with fairness: off no processor time is measured; set fairness: on\n";
    assert!(said.starts_with("tollgate: warning: ") && said.ends_with(expected), "{said}");
}

#[test]
fn an_explanation_says_whose_limits_count() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "shadow: true, ceilings: { in_flight: 5 }", "");
    let port = HTTP_PORT.to_string();
    let of = |endpoint: IpAddr, format: &str| {
        let endpoint = endpoint.to_string();
        let question =
            ["--endpoint", &endpoint, "--egress", "--to", "2", "--port", &port, "-o", format, "GET", "/allowed"];
        let (code, said, error) = about(&site, &[&["policy", "explain"], &question[..]].concat());
        assert_eq!(code, Some(0), "{error}");
        said
    };
    let limited = "  tenant: busy, limits in shadow, which refuse nothing: ceilings.in_flight: 5\n";
    assert!(of(two.busy, "text").contains(limited), "{}", of(two.busy, "text"));
    assert!(of(two.calm, "text").contains("  tenant: endpoint-8, has no ceilings\n"));
    let shown: Value = serde_json::from_str(&of(two.busy, "json")).unwrap();
    assert_eq!(shown["tenant"], json!({ "name": "busy", "ceilings": ["ceilings.in_flight: 5"], "shadow": true }));
}

#[test]
fn endpoints_are_told_with_their_tenants() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "weight: 2", "");
    let (code, said, error) = about(&site, &["tenants", "--endpoints"]);
    assert_eq!(code, Some(0), "{error}");
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let (busy, calm) = (two.busy.to_string(), two.calm.to_string());
    assert_eq!(
        lines,
        [["ENDPOINT", "TENANT", "ADDRESSES"], ["7", "busy", busy.as_str()], ["8", "endpoint-8", calm.as_str()]]
    );
    let (_, said, _) = about(&site, &["tenants", "--endpoints", "-o", "json"]);
    let shown: Value = serde_json::from_str(&said).unwrap();
    let entry = shown["tenants"].as_array().unwrap().iter().find(|entry| entry["name"] == "busy").unwrap();
    assert_eq!(entry["endpoints"], json!([{ "endpoint_id": 7, "addresses": [busy] }]));
    assert!(!two.proxy.get("/tenants").1.contains("endpoint_id\""), "only who asks pays for it");
    assert_eq!(two.proxy.get("/tenants?endpoint=1").0, 400);
}

#[test]
fn a_tenant_that_nobody_is_called_is_said() {
    let site = Site::new();
    let upstream = Upstream::ok(&site);
    let two = Two::start(&site, &upstream, "weight: 2", "");
    let flows = |tenant: &str| about(&site, &["flows", "--tenant", tenant]);
    assert_eq!(flows("busy"), (Some(0), String::new(), String::new()), "it has done nothing yet");
    let said = "tollgate: error: --tenant: no tenant is called \"bussy\"; did you mean \"busy\"?\n";
    assert_eq!(flows("bussy"), (Some(2), String::new(), said.to_owned()));
    assert_eq!(ask(&mut connect(two.busy, two.proxy.http()), &get("/allowed/0")).status(), 200);
    two.records("busy", 1);
    assert_eq!(flows("busy").1.lines().count(), 1);
}
