//! The binary under the names, and with the arguments, of what it stands in for.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use tollgate_tests::proxy::binary;
use tollgate_tests::site::Site;

const BOOTSTRAP: &str = include_str!("../../../proxy/src/bootstrap/testdata/split.json");

fn run(site: &Site, arguments: &[&str]) -> Output {
    let program = site.path("cilium-envoy-starter");
    let _ = symlink(binary(), &program);
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn the_charts_command_line_is_taken() {
    let site = Site::new();
    let file = site.path("bootstrap-config.json");
    fs::write(&file, BOOTSTRAP).unwrap();
    let config = format!("-c {}", file.display());
    let chart = ["--keep-cap-net-bind-service", "--", &config, "--base-id 0", "--log-level info", "--mode validate"];
    let output = run(&site, &chart);
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"the configuration is right\n"[..]), "{output:?}");

    fs::write(&file, BOOTSTRAP.replace("\"name\": \"xds-grpc-cilium\"", "\"name\": \"xds\"")).unwrap();
    let output = run(&site, &chart);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("tollgate: error: ") && error.contains("no cluster xds-grpc-cilium"), "{error}");
    assert!(error.contains("bootstrap-config.json:"), "{error}");

    let output = run(&site, &["-c", "x", "--no-such-flag"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--no-such-flag is no flag of cilium-envoy"));
}
