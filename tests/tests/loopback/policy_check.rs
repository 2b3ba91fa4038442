//! `tollgate policy check -o junit`, read by a consumer that others wrote.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tollgate_tests::python::{SCRIPTS, python};

/// Names that need escaping in XML, with a control character, which XML cannot hold at all.
const POLICY: &str = r#"endpoint_id: 1
endpoint_ips: ["<&\"\eé]]>", "<&\"\eé]]>"]
ingress_per_port_policies:
- port: 80
  rules: [{ name: all }, { remote_policies: [7] }]
"#;

#[test]
fn junit_is_read_by_junitparser() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = file("bad & <worse>.yaml", POLICY);
    let fine = file("fine.yaml", "endpoint_id: 2\nendpoint_ips: [10.0.0.2]\n");
    let broken = file("broken.json", "{");
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate-under-test"))
        .args(["policy", "check", "-o", "junit", &bad, &fine, &broken])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let report = directory.path().join("report.xml");
    std::fs::write(&report, output.stdout).unwrap();

    let script = Path::new(SCRIPTS).join("read_junit.py");
    let read = Command::new(python).arg(script).arg(&report).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let suites: Value = serde_json::from_slice(&read.stdout).unwrap();
    let suite = |name: &str, failures: u32, errors: u32, results: Value| {
        json!({ "name": name, "tests": results.as_array().unwrap().len(), "failures": failures, "errors": errors,
                "results": results })
    };
    assert_eq!(
        suites,
        json!([
            suite(&bad, 1, 0, json!([["Failure", "<&\"\u{fffd}\u{e9}]]> is listed twice"], ["passed", null]])),
            suite(&fine, 0, 0, json!([["passed", null]])),
            suite(&broken, 0, 1, json!([["Error", suites[2]["results"][0][1]]])),
        ])
    );
}
