//! The binary as people call it: output, error lines and exit codes.

#![expect(clippy::expect_used, reason = "what these tests stand on must be there")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `tollgate` in the root of the repository, as the examples do.
fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("the binary starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

const EXPLAIN: [&str; 10] = [
    "policy",
    "explain",
    "deploy/examples/policies/helloworld.json",
    "--endpoint",
    "10.244.2.232",
    "--ingress",
    "--from",
    "32226",
    "--port",
    "5000",
];

fn explain(more: &[&str]) -> Output {
    tollgate(&[&EXPLAIN[..], more].concat())
}

#[test]
fn every_help_has_an_example_and_the_exit_codes() {
    let policy = [&["policy", "check"][..], &["policy", "explain"]];
    let others = [&["run"][..], &["status"], &["flows"], &["control-plane"], &["version"]];
    for command in policy.into_iter().chain(others) {
        let output = tollgate(&[command, &["--help"]].concat());
        let text = stdout(&output);
        assert_eq!(code(&output), 0, "{command:?}");
        assert!(text.contains("Exit code"), "{command:?}: {text}");
        let example = format!("Example:\n  tollgate {}", command.join(" "));
        assert!(text.contains(&example), "{command:?}: {text}");
    }
    let output = tollgate(&["--help"]);
    assert!(
        stdout(&output).contains("Exit codes: 0 fine or allowed, 1 findings or denied, 2 bad input, 3 cannot tell.")
    );
}

/// The examples of `run` and `policy` need no running proxy, so they are run as they stand.
#[test]
fn the_examples_of_offline_commands_work() {
    for command in [&["run"][..], &["policy", "check"], &["policy", "explain"], &["version"]] {
        let help = stdout(&tollgate(&[command, &["--help"]].concat()));
        let (_, example) = help.split_once("Example:\n").expect("has an example");
        let (example, _) = example.split_once("\n\n").unwrap_or((example, ""));
        let words: Vec<&str> = example.split_whitespace().filter(|word| *word != "\\").collect();
        let output = tollgate(&words[1..]);
        assert_eq!(code(&output), 0, "{example}: {}", stderr(&output));
    }
}

#[test]
fn wrong_arguments_are_one_error_with_exit_2() {
    for (arguments, expected) in [
        (&[][..], "no command is named; see --help"),
        (&["rum"], "unrecognized subcommand 'rum'; tip: a similar subcommand exists: 'run'; see --help"),
        (&["run"], "the following required arguments were not provided: --config <FILE>; see --help"),
        (
            &["status", "--admin", "9901"],
            "invalid value '9901' for '--admin <ADDRESS>': \"9901\" is not an address; write unix:PATH or IP:PORT, \
             such as unix:run/admin.sock or 127.0.0.1:9901; see --help",
        ),
        (
            &["run", "-c", "x", "--log-format", "xml"],
            "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]; see --help",
        ),
    ] {
        let output = tollgate(arguments);
        assert_eq!(stderr(&output), format!("tollgate: error: {expected}\n"), "{arguments:?}");
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{arguments:?}");
    }
}

#[test]
fn an_argument_that_is_no_text_is_bad_input() {
    use std::os::unix::ffi::OsStrExt as _;
    let header = std::ffi::OsStr::from_bytes(b"x-a: \xe9");
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(EXPLAIN)
        .arg("-H")
        .arg(header)
        .args(["GET", "/hello"])
        .current_dir(root())
        .output()
        .expect("the binary starts");
    assert_eq!(code(&output), 2, "{output:?}");
    let error = stderr(&output);
    assert!(error.contains("error: invalid UTF-8") && !error.contains("panicked"), "{error}");
}

#[test]
fn check_accepts_the_shipped_configurations() {
    // The overlay with a policy directory names one that is on the node only.
    for file in ["deploy/examples/tollgate.yaml", "deploy/kustomize/base/tollgate.yaml"] {
        let output = tollgate(&["run", "--check", "-c", file]);
        assert_eq!(stderr(&output), "");
        assert_eq!(stdout(&output), format!("{file}: the configuration is right\n"));
        assert_eq!(code(&output), 0);
    }
}

#[test]
fn check_lists_every_mistake_and_exits_2() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("tollgate.yaml");
    let name = file.display();
    std::fs::write(&file, "xds: {}\nlisteners:\n  - name: a\n    adress: 127.0.0.1:1\nworkers: 0\n").expect("writes");
    for check in [&["--check"][..], &[]] {
        let output = tollgate(&[&["run", "-c", file.to_str().expect("UTF-8")], check].concat());
        assert_eq!(code(&output), 2);
        assert_eq!(
            stderr(&output),
            format!(
                "tollgate: error: {name}:4:5: listeners[0].adress: unknown key; did you mean \"address\"?\n\
                 tollgate: error: {name}:5:10: workers: not a whole number from 1 to 1024\n"
            )
        );
    }
}

#[test]
fn a_missing_configuration_is_bad_input() {
    let output = tollgate(&["run", "--check", "-c", "/nonexistent.yaml"]);
    assert_eq!(code(&output), 2);
    assert_eq!(
        stderr(&output),
        "tollgate: error: /nonexistent.yaml: cannot read: no such file or directory; name a configuration file\n"
    );
}

#[test]
fn a_wrong_log_filter_is_bad_input() {
    let output = tollgate(&["run", "-c", "deploy/examples/tollgate.yaml", "--log-level", "tollgate=loud"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).starts_with("tollgate: error: --log-level: \"tollgate=loud\" is no log filter"));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn explain_allows_what_the_policy_allows() {
    let output = explain(&["GET", "/hello"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.starts_with(
            "allowed: GET /hello from identity 32226, port 5000, ingress policy of 10.244.2.232\n  by rule: 69 \
             ingress_per_port_policies[0].rules[0].http_rules[0]\n"
        ),
        "{text}"
    );
}

#[test]
fn explain_denies_with_reason_and_nearest_rule() {
    for (request, field) in [(["GET", "/hello3"], ":path"), (["POST", "/hello"], ":method")] {
        let output = explain(&[&request[..], &["-o", "json"]].concat());
        assert_eq!(code(&output), 1);
        let answer = json(&output);
        assert_eq!(answer["verdict"], "denied");
        assert_eq!(answer["reason"], "request_not_allowed");
        assert_eq!(answer["nearest_miss"]["field"], field);
        assert_eq!(answer["nearest_miss"]["rule"], "69 ingress_per_port_policies[0].rules[0].http_rules[0]");
        assert_eq!(answer["policies"][0]["rules"][0]["outcome"], "does not apply");
    }
    let text = stdout(&explain(&["GET", "/hello3"]));
    assert!(text.contains("\n  reason: request_not_allowed\n  nearest rule: :method matched, :path is not "), "{text}");
}

#[test]
fn explain_asks_the_reference_too() {
    for (path, exit) in [("/hello", 0), ("/hello3", 1)] {
        let output = explain(&["--reference", "GET", path]);
        assert_eq!(code(&output), exit, "{}", stderr(&output));
        assert!(stdout(&output).contains("\n  reference: agrees\n"), "{}", stdout(&output));
        assert_eq!(json(&explain(&["--reference", "-o", "json", "GET", path]))["reference"], "agrees");
    }
    assert!(!stdout(&explain(&["GET", "/hello"])).contains("reference"));
}

/// The data path does not look into TLS, and the answer is the data path's.
#[test]
fn explain_does_not_answer_as_if_server_names_were_seen() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    let policy = |rule: &str| {
        format!(
            "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\negress_per_port_policies: [{{ port: 443, rules: [{rule}] }}]\n"
        )
    };
    let ask = |rule: &str, more: &[&str]| {
        std::fs::write(&file, policy(rule)).unwrap();
        let file = file.to_str().unwrap();
        let words = ["policy", "explain", file, "--endpoint", "10.0.0.1", "--egress", "--to", "2", "--port", "443"];
        tollgate(&[&words[..], more].concat())
    };
    let allow = "{ server_names: [a.example] }";
    let named = ["--server-name", "a.example", "--reference"];
    let output = ask(allow, &named);
    assert_eq!(code(&output), 1, "{}", stdout(&output));
    let note = "\n  note: this version does not look into TLS, so the server name \"a.example\" counts for nothing; if it was \
                seen: allowed\n";
    assert!(stdout(&output).starts_with("denied: ") && stdout(&output).contains(note), "{}", stdout(&output));
    let answer = json(&ask(allow, &["--server-name", "b.example", "-o", "json"]));
    let seen = &answer["if_server_name_was_seen"];
    assert_eq!((&answer["verdict"], &seen["verdict"]), (&"denied".into(), &"denied".into()));
    let answer = json(&ask(
        "{ deny: true, server_names: [a.example] }, { server_names: [] }",
        &["--server-name", "b.example", "-o", "json"],
    ));
    let seen = &answer["if_server_name_was_seen"];
    assert_eq!((&answer["verdict"], &seen["verdict"]), (&"denied".into(), &"allowed".into()), "{answer:#}");
    assert!(!stdout(&ask(allow, &[])).contains("counts for nothing"));
}

#[test]
fn explain_denies_other_ports_and_unknown_endpoints() {
    let mut arguments = EXPLAIN.map(str::to_owned);
    arguments[9] = "5001".to_owned();
    let run = |arguments: &[String]| {
        let words: Vec<&str> = arguments.iter().map(String::as_str).chain(["-o", "json", "GET", "/hello"]).collect();
        let output = tollgate(&words);
        (code(&output), json(&output)["reason"].clone())
    };
    assert_eq!(run(&arguments), (1, "port_not_allowed".into()));
    arguments[4] = "10.244.2.1".to_owned();
    assert_eq!(run(&arguments), (1, "no_policy".into()));
}

#[test]
fn explain_judges_the_path_that_is_forwarded() {
    let output = explain(&["-o", "json", "GET", "/x/../hel%6Co"]);
    assert_eq!(code(&output), 0);
    assert_eq!(json(&output)["request"]["canonical_path"], "/hello");

    let output = explain(&["-o", "json", "GET", "/x%2F..%2Fhello"]);
    assert_eq!(code(&output), 0);
    assert_eq!(json(&output)["request"]["redirected"], true);

    let output = explain(&["-o", "json", "GET", "/hello%00"]);
    assert_eq!(code(&output), 1);
    assert_eq!(json(&output)["reason"], "ambiguous_path");
}

/// One statement of what the client gets, and no account of rules that nobody asked.
#[test]
fn explain_says_what_is_answered_before_policy() {
    for (request, reason, status) in [
        (&["GET", "/hello%00"][..], "ambiguous_path, before any policy: the path contains %00", "400"),
        (
            &["GET", "hello"],
            "malformed_request, before any policy: the target is neither a path nor an absolute URI",
            "400",
        ),
        (&["GET", "/a b"], "malformed_request, before any policy: the target or host contains the byte 0x20", "400"),
        (&["TRACE", "/hello"], "method_not_supported, before any policy: TRACE is not supported", "405"),
        (&["--host", "a/b", "GET", "/hello"], "bad_authority, before any policy: Host: ", "400"),
        (&["-H", "Transfer-Encoding: gzip", "POST", "/hello"], "transfer_coding, before any policy: ", "501"),
    ] {
        let output = explain(request);
        let text = stdout(&output);
        assert_eq!(code(&output), 1, "{request:?}: {text}");
        assert!(text.starts_with("denied: "), "{text}");
        assert!(text.contains(&format!("\n  reason: {reason}")), "{request:?}: {text}");
        assert!(text.ends_with(&format!("\n  the client gets: {status}, and the connection is closed\n")), "{text}");
        assert_eq!(json(&explain(&[&["-o", "json"], request].concat()))["policies"], Value::Array(vec![]));
    }
}

#[test]
fn explain_says_where_a_client_is_sent_and_what_comes_of_it() {
    for (path, location, then, exit) in
        [("/x%2F..%2Fhello?a", "/hello?a", "denied", 1), ("/x%2F..%2Fhello", "/hello", "allowed", 0)]
    {
        let output = explain(&["GET", path]);
        let text = stdout(&output);
        assert_eq!(code(&output), exit, "{text}");
        assert!(text.starts_with(&format!("redirected, then {then}: GET {path} from ")), "{text}");
        let line = format!("\n  the client gets: 307 with location {location} (path_redirect), before any policy");
        assert!(text.contains(&line), "{text}");
        let answer = json(&explain(&["-o", "json", "GET", path]));
        assert_eq!((&answer["verdict"], &answer["then"]), (&"redirected".into(), &then.into()));
        let gets = (&answer["client_gets"]["status"], &answer["client_gets"]["location"]);
        assert_eq!(gets, (&307.into(), &location.into()));
    }
}

#[test]
fn explain_says_what_a_client_gets() {
    assert!(stdout(&explain(&["GET", "/hello3"])).contains("\n  the client gets: 403\n"));
    let grpc = explain(&["-H", "Content-Type: application/grpc", "POST", "/hello3"]);
    assert!(stdout(&grpc).contains("\n  the client gets: 200 with grpc-status 7\n"), "{}", stdout(&grpc));
    let mut other_port = EXPLAIN;
    other_port[9] = "5001";
    assert!(stdout(&tollgate(&other_port)).contains("\n  the client gets: a TCP reset\n"));
    assert!(!stdout(&explain(&["GET", "/hello"])).contains("the client gets"));
}

const SECRETS: &str = "\
endpoint_id: 69
endpoint_ips: [10.0.0.1]
ingress_per_port_policies:
- port: 80
  rules:
  - http_rules:
      http_rules:
      - headers: [{ name: ':path', exact_match: /in }]
        header_matches:
        - { name: x-token, value_sds_secret: token, mismatch_action: REPLACE_ON_MISMATCH }
        - { name: x-old, match_action: DELETE_ON_MATCH, mismatch_action: CONTINUE_ON_MISMATCH }
        - { name: x-new, value: v, mismatch_action: ADD_ON_MISMATCH }
";

#[test]
fn explain_takes_secrets_and_prints_what_header_matches_do() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (policy, secret, empty) = (path("policy.yaml"), path("token"), path("empty"));
    std::fs::write(&policy, SECRETS).expect("writes");
    std::fs::write(&secret, "hunter2\n").expect("writes");
    std::fs::write(&empty, "\n").expect("writes");
    let ask = |more: &[&str]| {
        let question = ["--endpoint", "10.0.0.1", "--ingress", "--from", "7", "--port", "80", "-H", "X-Token: abc"];
        let request = ["-H", "X-Old: 1", "GET", "/in"];
        tollgate(&[&["policy", "explain", &policy], &question[..], more, &request].concat())
    };
    let token = format!("token={secret}");
    for reference in [&[][..], &["--reference"]] {
        let output = ask(&[&["--secret", &token], reference].concat());
        let text = stdout(&output);
        assert_eq!(code(&output), 0, "{text}{}", stderr(&output));
        for line in [
            "  forwarded with x-token: \"[redacted]\" in the place of what came\n",
            "  forwarded without x-old\n",
            "  forwarded with x-new: \"v\" added\n",
            "  logged as missing: x-token: [redacted]\n",
            "  logged as missing: x-new: v\n",
            "  logged as rejected: x-token: [redacted]\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("hunter2") && !text.contains("abc"), "{text}");
    }
    let answer = json(&ask(&["--secret", &token, "-o", "json"]));
    let edits = serde_json::json!([
        { "name": "x-token", "action": "replace", "values": ["[redacted]"] },
        { "name": "x-old", "action": "remove", "values": [] },
        { "name": "x-new", "action": "add", "values": ["v"] },
    ]);
    assert_eq!(answer["edits"], edits);
    assert_eq!(answer["missing_headers"][0], serde_json::json!({ "name": "x-token", "value": "[redacted]" }));

    let rule = "69 ingress_per_port_policies[0].rules[0].http_rules[0]";
    let unusable = format!("token={empty}");
    for (secrets, why) in [(&[][..], "is not delivered"), (&["--secret", &unusable], "is empty")] {
        let output = ask(secrets);
        let line = format!("\n  secret \"token\" {why}, so {rule} admits nothing; deliver it");
        assert_eq!(code(&output), 1);
        assert!(stdout(&output).contains(&line), "{}", stdout(&output));
        let answer = json(&ask(&[secrets, &["-o", "json"]].concat()));
        let expected = serde_json::json!([{ "name": "token", "reason": why, "rule": rule }]);
        assert_eq!(answer["unusable_secrets"], expected);
    }
    for (secrets, expected) in [
        (&["--secret", "token=/nonexistent"][..], "--secret: secret \"token\": /nonexistent: there is no such file"),
        (&["--secret", &token, "--secret", &token], "--secret: \"token\" is given twice"),
        (&["--secret", "token"], "invalid value 'token' for '--secret <NAME=FILE>': write NAME=FILE"),
    ] {
        let output = ask(secrets);
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).starts_with(&format!("tollgate: error: {expected}")), "{}", stderr(&output));
    }
}

#[test]
fn explain_uses_host_and_headers_and_both_directions() {
    let orders = |more: &[&str]| {
        let file = "deploy/examples/policies/orders.yaml";
        let output = tollgate(&[&["policy", "explain", file, "-o", "json"], more].concat());
        (code(&output), json(&output))
    };
    let endpoint = ["--endpoint", "fd00:10:244:2::233", "--ingress", "--from", "32226", "--port"];
    let post = |more: &[&str]| orders(&[&endpoint[..], &["8080", "POST", "/orders"], more].concat());
    let (code, answer) = post(&["-H", "Content-Type: application/json; charset=utf-8", "--host", "orders"]);
    assert_eq!((code, &answer["request"]["authority"]), (0, &"orders".into()));
    let (code, answer) = post(&["-H", "Content-Type: text/plain"]);
    assert_eq!((code, &answer["nearest_miss"]["field"]), (1, &"content-type".into()));

    // Passed as TCP: whatever the path is, nobody looks at it.
    let (code, answer) = orders(&[&endpoint[..], &["9090", "GET", "/%00"]].concat());
    assert_eq!((code, &answer["layer"]), (0, &"connection".into()));

    let egress = ["--endpoint", "10.244.2.233", "--egress", "--port", "5432"];
    assert_eq!(orders(&[&egress[..], &["--to", "4711"]].concat()).0, 0);
    let (code, answer) = orders(&[&egress[..], &["--to", "2"]].concat());
    assert_eq!((code, &answer["reason"]), (1, &"peer_not_allowed".into()));
}

#[test]
fn explain_takes_directories_and_lists_every_mistake() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().to_str().expect("UTF-8").to_owned();
    let ask = |sources: &[&str]| {
        let question = ["--endpoint", "10.0.0.1", "--ingress", "--from", "7", "--port", "80"];
        tollgate(&[&["policy", "explain"], sources, &question[..]].concat())
    };
    let refused = |sources: &[&str], expected: &[String]| {
        let output = ask(sources);
        let lines: Vec<String> = stderr(&output).lines().map(str::to_owned).collect();
        assert_eq!((code(&output), lines.len()), (2, expected.len()), "{lines:?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(&format!("tollgate: error: {root}{expected}")), "{line}");
        }
    };
    refused(&[&root], &[": the directory holds no policy file; name one with files".to_owned()]);
    std::fs::write(directory.path().join("a.yaml"), "endpoint_id: 1\nendpoint_ips: [10.0.0.1]\n").expect("writes");
    std::fs::write(directory.path().join("b.json"), "{\"endpointId\": 2,\n\"endpointIps\": [\"10.0.0.1\"]}")
        .expect("writes");
    std::fs::write(directory.path().join("notes.txt"), "nothing to read").expect("writes");
    let output = ask(&[&root]);
    let text = stdout(&output);
    assert!(text.contains("note: 2 policies claim 10.0.0.1"), "{text}{}", stderr(&output));
    assert!(text.contains(&format!("\npolicy 2 ({root}/b.json:1):\n")), "{text}");

    std::fs::write(directory.path().join("b.json"), "[{\"endpointId\": -1,\n\"endpointIp\": 7}, {}]").expect("writes");
    std::fs::write(directory.path().join("c.yaml"), b"endpoint_id: 1\nname: \xff\n").expect("writes");
    std::fs::write(directory.path().join("d.yaml"), "a: [\n").expect("writes");
    std::fs::File::create(directory.path().join("e.yaml")).and_then(|f| f.set_len(3 << 30)).expect("is sparse");
    let mistakes = [
        "/b.json:2: [0]: endpointIp: cilium.NetworkPolicy has no such field; did you mean `endpointIps`?",
        "/b.json:1: [0]: endpointId: ",
        "/c.yaml:2: is not UTF-8 text",
        "/d.yaml:1: not valid YAML: ",
        "/e.yaml: is larger than 64 MiB",
    ];
    // The proxy goes on without the bad files, and so does the answer; named by themselves they are refused.
    let output = ask(&[&root]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(stdout(&output).contains(&format!("\npolicy 1 ({root}/a.yaml:1):\n")), "{output:?}");
    let lines: Vec<String> = stderr(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), mistakes.len(), "{lines:?}");
    for (line, expected) in lines.iter().zip(mistakes) {
        assert!(line.starts_with(&format!("tollgate: warning: {root}{expected}")), "{line}");
    }
    std::fs::remove_file(directory.path().join("a.yaml")).expect("was there");
    refused(&[&root], &mistakes.map(str::to_owned));
}

#[test]
fn help_is_a_command_too() {
    for (words, expected) in [
        (&["help"][..], "Usage: tollgate <COMMAND>"),
        (&["help", "policy"], "Usage: tollgate policy <COMMAND>"),
        (&["help", "policy", "explain"], "Usage: tollgate policy explain "),
        (&["policy", "help", "check"], "Usage: tollgate policy check "),
    ] {
        let output = tollgate(words);
        assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "{words:?}");
        assert!(stdout(&output).contains(expected), "{words:?}: {}", stdout(&output));
    }
}

#[test]
fn explain_refuses_bad_input_with_exit_2() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("typo.json");
    std::fs::write(&file, r#"{"endpointId": 1, "endpointIps": ["10.0.0.1"], "ingresPerPortPolicies": []}"#)
        .expect("writes");
    let file = file.to_str().expect("UTF-8");
    let unnumbered = directory.path().join("unnumbered.yaml");
    std::fs::write(&unnumbered, "endpoint_ips: [10.0.0.1]\n").expect("writes");
    let unnumbered = unnumbered.to_str().expect("UTF-8");
    let rest = &EXPLAIN[3..];
    for (arguments, expected) in [
        ([&["policy", "explain", file], rest].concat(), format!("{file}:1: ingresPerPortPolicies: ")),
        ([&["policy", "explain", unnumbered], rest].concat(), format!("{unnumbered}:1: endpoint_id: ")),
        ([&["policy", "explain", "/nonexistent.json"], rest].concat(), "/nonexistent.json: cannot read: ".to_owned()),
        ([&EXPLAIN[..], &["--host", "a", "-H", "Host: b", "GET", "/"]].concat(), "the host is given twice".to_owned()),
        ([&EXPLAIN[..], &["-H", "nonsense", "GET", "/"]].concat(), "invalid value 'nonsense' for '--header".to_owned()),
        ([&EXPLAIN[..], &["--egress"]].concat(), "the argument '--ingress' cannot be used with '--egress'".to_owned()),
    ] {
        let output = tollgate(&arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        let line = stderr(&output);
        assert!(line.starts_with(&format!("tollgate: error: {expected}")), "{arguments:?}: {line}");
    }
}

#[test]
fn without_a_proxy_nothing_can_be_told() {
    for command in ["status", "flows"] {
        let output = tollgate(&[command, "--admin", "unix:/nonexistent/admin.sock"]);
        assert_eq!(code(&output), 3);
        assert_eq!(
            stderr(&output),
            "tollgate: error: admin unix:/nonexistent/admin.sock: cannot connect: No such file or directory (os error \
             2); is the proxy running, and is this its admin.address?\n"
        );
    }
}

/// Answers one connection with `response` and returns the request line that came.
fn answer_once(response: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("is bound").to_string();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut request = Vec::new();
        let mut chunk = [0; 1024];
        while !request.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut chunk).expect("reads");
            assert_ne!(count, 0, "the request ends early");
            request.extend_from_slice(&chunk[..count]);
        }
        stream.write_all(response.as_bytes()).expect("writes");
        String::from_utf8(request).expect("UTF-8").lines().next().expect("a line").to_owned()
    });
    (address, peer)
}

#[test]
fn status_exits_by_what_it_finds() {
    for (body, expected, line) in [
        ("{\"ready\":true,\"quarantined\":[]}", 0, "ready: yes\n"),
        ("{\"ready\":false,\"waiting_for\":[\"first policy\"]}", 1, "! not ready: waits for first policy\n"),
        ("[]", 3, ""),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (address, peer) = answer_once(response.leak());
        let output = tollgate(&["status", "--admin", &address]);
        assert_eq!(peer.join().expect("answers"), "GET /status HTTP/1.1");
        assert_eq!(code(&output), expected, "{body}");
        assert!(stdout(&output).contains(line), "{}", stdout(&output));
    }
}

#[test]
fn flows_asks_for_what_was_wanted_and_keeps_json_as_it_is() {
    let record = "{\"verdict\":\"DROPPED\",\"reason\":\"no_policy\"}\n";
    let response = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{record}");
    let (address, peer) = answer_once(response.leak());
    let output = tollgate(&["flows", "--denied", "-n", "5", "-o", "json", "--admin", &address]);
    assert_eq!(peer.join().expect("answers"), "GET /flows?denied=1&limit=5 HTTP/1.1");
    assert_eq!((code(&output), stdout(&output).as_str()), (0, record));
}

#[test]
fn following_flows_ends_with_3_when_the_proxy_goes_away() {
    let (address, peer) = answer_once("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
    let output = tollgate(&["flows", "-f", "--admin", &address]);
    assert_eq!(peer.join().expect("answers"), "GET /flows?follow=1 HTTP/1.1");
    assert_eq!(code(&output), 3);
    assert_eq!(stderr(&output), format!("tollgate: error: admin {address}: the proxy went away\n"));
}

#[test]
fn a_refusal_of_the_admin_endpoint_is_passed_on() {
    let (address, peer) =
        answer_once("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 18\r\n\r\ntoo many followers");
    let output = tollgate(&["flows", "-f", "--admin", &address]);
    peer.join().expect("answers");
    assert_eq!(code(&output), 3);
    assert_eq!(
        stderr(&output),
        format!(
            "tollgate: error: admin {address}: /flows?follow=1 answered 503 Service Unavailable: too many followers\n"
        )
    );
}

/// A running proxy; killed when a test ends early.
struct Proxy {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts it and waits until it says that it serves.
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["run", "--log-format", "json", "-c"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = BufReader::new(child.stderr.take().expect("is piped"));
        let mut proxy = Self { child, log };
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(proxy.log.read_line(&mut line).expect("reads"), 0, "ended before it served: {seen}");
            let event: Value = serde_json::from_str(&line).expect("each log line is JSON");
            if event["message"] == "serving" {
                return proxy;
            }
            seen += &line;
        }
    }

    /// SIGTERM, and the exit code that follows.
    fn terminate(self) -> Option<i32> {
        self.terminate_and_read().0
    }

    /// The same, with what it logged since it served.
    fn terminate_and_read(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("is running");
        let mut log = String::new();
        self.log.read_to_string(&mut log).expect("reads");
        (self.child.wait().expect("ends").code(), log)
    }
}

#[test]
fn a_running_proxy_answers_and_ends_on_sigterm() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().display();
    let file = directory.path().join("tollgate.yaml");
    let text = format!(
        "admin: {{ address: 'unix:{root}/admin.sock' }}\nxds: {{ address: 'unix:{root}/xds.sock' }}\nworkers: \
         1\nmax_connections: 7\nlisteners: [{{ name: load, address: '127.0.0.1:0', transparent: false, upstream: \
         '127.0.0.1:9' }}]\n"
    );
    std::fs::write(&file, text).expect("writes");
    let proxy = Proxy::start(&file);
    let admin = format!("unix:{root}/admin.sock");

    // Nobody serves policy, which is a finding.
    let output = tollgate(&["status", "-o", "json", "--admin", &admin]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let status = json(&output);
    assert_eq!((&status["ready"], &status["policy"]["received"]), (&false.into(), &false.into()));
    assert_eq!(status["listeners"][0]["name"], "load");
    assert_eq!(status["limits"]["connections"], 7);
    let text = stdout(&tollgate(&["status", "--admin", &admin]));
    assert!(
        text.contains("\n! not ready: waits for first policy, identities: no NetworkPolicyHosts has come"),
        "{text}"
    );

    let output = tollgate(&["flows", "--admin", &admin]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, ""));

    assert_eq!(proxy.terminate(), Some(0));
}

/// Files of a policy directory that are in trouble, as `status` and the log show them.
#[test]
fn trouble_in_a_policy_directory_is_named_with_file_and_line() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().display().to_string();
    let write = |name: &str, text: &str| {
        let hidden = directory.path().join("policies/.new");
        std::fs::write(&hidden, text).expect("writes");
        std::fs::rename(&hidden, directory.path().join("policies").join(name)).expect("renames");
    };
    std::fs::create_dir(directory.path().join("policies")).expect("creates");
    let regex = "ingressPerPortPolicies: [{ port: 80, rules: [{ httpRules: { httpRules: [{ headers: [{ name: ':path', \
                 safeRegexMatch: { regex: '(' } }] }] } }] }]";
    write("a.yaml", &format!("# a\n- endpointId: 1\n  endpointIps: [10.0.0.1]\n  {regex}\n"));
    write(
        "b.json",
        "[\n{\"endpointId\": 2, \"endpointIps\": [\"10.0.0.1\"]},\n{\"endpointId\": 2, \"endpointIps\": []}]",
    );
    write("c.yaml", "endpointId: 3\nendpointIp: [c]\nport: 80\n");
    let big = std::fs::File::create(directory.path().join("policies/d.json")).expect("creates");
    big.set_len(3 << 30).expect("is sparse");
    drop(big);
    let file = directory.path().join("tollgate.yaml");
    let listeners = "[{ name: load, address: '127.0.0.1:0', transparent: false, upstream: '127.0.0.1:9' }]";
    let text = format!(
        "admin: {{ address: 'unix:{root}/admin.sock' }}\npolicies: {{ directory: '{root}/policies' }}\nworkers: \
         1\nlisteners: {listeners}\n"
    );
    std::fs::write(&file, text).expect("writes");
    let proxy = Proxy::start(&file);
    let admin = format!("unix:{root}/admin.sock");
    let status = || json(&tollgate(&["status", "-o", "json", "--admin", &admin]))["policy"].clone();
    let mut policy = status();
    while policy["received"] == false || policy["refused"].as_array().is_none_or(|list| list.len() < 4) {
        policy = status();
    }
    let refused: Vec<&str> =
        policy["refused"].as_array().expect("a list").iter().map(|r| r["reason"].as_str().expect("text")).collect();
    for (reason, expected) in refused.iter().zip([
        "/policies/b.json:3: endpoint_ips: is empty (endpoint_id 2); list the endpoint's addresses",
        "/policies/c.yaml:2: endpointIp: cilium.NetworkPolicy has no such field; did you mean `endpointIps`?",
        "/policies/c.yaml:3: port: cilium.NetworkPolicy has no such field; remove it or use one of: endpointIps, ",
        "/policies/d.json: is larger than 64 MiB, the limit for a policy file; split it",
    ]) {
        assert!(reason.starts_with(&format!("{root}{expected}")), "{reason}");
    }
    assert_eq!(policy["quarantined"][0]["file"], format!("{root}/policies/a.yaml:2"));
    assert_eq!(policy["conflicts"][0]["endpoint"], "10.0.0.1");
    let claimants = [format!("{root}/policies/a.yaml:2"), format!("{root}/policies/b.json:2")];
    assert_eq!(policy["conflicts"][0]["files"], serde_json::json!(claimants));
    let question = ["--endpoint", "10.0.0.1", "--ingress", "--from", "7", "--port", "80", "GET", "/"];
    let text = stdout(&tollgate(&[&["policy", "explain", "--admin", &admin], &question[..]].concat()));
    assert!(text.contains("note: 2 policies claim 10.0.0.1, and each of them has to allow\n"), "{text}");
    assert!(text.contains(&format!("\npolicy 2 ({}):\n", claimants[1])), "{text}");

    // What the next update repeats is no news.
    let before = policy["generation"].clone();
    write("c.yaml", "endpointId: 3\nendpointIps: [c]\n");
    while status()["generation"] == before {}
    let (code, log) = proxy.terminate_and_read();
    assert_eq!(code, Some(0));
    let count = |what: &str| log.matches(what).count();
    let said = ["not enforced as written: ", "has no effect: ", "endpoint 10.0.0.1 is claimed by ", "64 MiB"];
    assert_eq!(said.map(count), [1, 1, 1, 1], "{log}");
    assert!(count("policy in force") >= 2, "{log}");
    assert!(!directory.path().join("admin.sock").exists(), "the socket's file goes with the proxy");
}

/// What the system says is said once.
#[test]
fn an_address_or_directory_that_cannot_be_had_is_named_once() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("is bound").to_string();
    let directory = tempfile::tempdir().expect("temporary directory");
    let here = directory.path().to_str().expect("UTF-8");
    let missing = format!("{here}/nosuch");
    let config = |key: &str| {
        let file = directory.path().join(format!("{key}.yaml"));
        let admin = if key == "admin" { String::new() } else { "admin: { address: none }\n".to_owned() };
        let listener = "{ name: load, address: '127.0.0.1:0', transparent: false, upstream: '127.0.0.1:9' }";
        let text = format!("{admin}{key}: {{ address: '{address}' }}\nxds: {{}}\nlisteners: [{listener}]\n");
        std::fs::write(&file, text).expect("writes");
        file.to_str().expect("UTF-8").to_owned()
    };
    let files = ["admin", "metrics", "health"].map(config);
    let run = |file| vec!["run", "--log-level", "error", "-c", file];
    let cases = [
        (vec!["control-plane", "--policies", here, "--listen", &address], 3, "Address already in use"),
        (vec!["control-plane", "--policies", &missing, "--listen", "127.0.0.1:0"], 2, "No such file or directory"),
        (run(&files[0]), 3, "Address already in use"),
        (run(&files[1]), 3, "Address already in use"),
        (run(&files[2]), 3, "Address already in use"),
    ];
    for (arguments, expected, said) in cases {
        let output = tollgate(&arguments);
        let line = stderr(&output);
        assert_eq!((code(&output), line.matches(said).count(), line.lines().count()), (expected, 1, 1), "{line}");
    }
}

#[test]
fn explain_says_the_same_of_files_and_of_a_proxy_that_enforces_them() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().display();
    let (config, policies) = (directory.path().join("tollgate.yaml"), directory.path().join("policies"));
    std::fs::create_dir(&policies).expect("creates");
    let policy = policies.join("helloworld.json");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/policies/helloworld.json");
    std::fs::copy(example, &policy).expect("copies");
    let text = format!(
        "admin: {{ address: 'unix:{root}/admin.sock' }}\npolicies: {{ directory: '{root}/policies' }}\nworkers: \
         1\nlisteners: [{{ name: load, address: '127.0.0.1:0', transparent: false, upstream: '127.0.0.1:9' }}]\n"
    );
    std::fs::write(&config, text).expect("writes");
    let proxy = Proxy::start(&config);
    let admin = format!("unix:{root}/admin.sock");
    let ask = |source: &[&str], rest: &[&str]| {
        let output = tollgate(&[&["policy", "explain"], source, &EXPLAIN[3..], rest].concat());
        (code(&output), stdout(&output), stderr(&output))
    };
    let file = policy.to_str().expect("UTF-8");
    // Readiness comes after the first policies are in force.
    while code(&tollgate(&["status", "--admin", &admin])) != 0 {}
    let questions: [(&[&str], i32); 6] = [
        (&["GET", "/hello"], 0),
        (&["GET", "/hello?a=b&c=%20"], 1),
        (&["-o", "json", "POST", "/x/../hel%6Co"], 1),
        (&["-o", "json", "-H", "x-a: 1 & 2", "-H", "x-a: \u{e9}", "GET", "/%2e%2Fhello"], 0),
        (&["-o", "json"], 0),
        (&["--host", "a", "-H", "Host: b", "GET", "/"], 2),
    ];
    for (question, expected) in questions {
        let offline = ask(&[file], question);
        assert_eq!(offline.0, expected, "{offline:?}");
        let (code, said, trouble) = ask(&["--admin", &admin], question);
        // Only the proxy knows who pays.
        let (said, payer) = match serde_json::from_str::<Value>(&said) {
            Ok(mut object) => {
                let payer = object.as_object_mut().and_then(|fields| fields.remove("tenant"));
                (object, payer.map_or(Value::Null, |payer| payer["name"].clone()))
            }
            Err(_) => {
                let payer = "  tenant: endpoint-69, has no ceilings\n";
                (said.replacen(payer, "", 1).into(), said.contains(payer).then_some("endpoint-69").into())
            }
        };
        let expected_payer = if expected == 2 { Value::Null } else { "endpoint-69".into() };
        assert_eq!(payer, expected_payer, "{question:?}: {said}");
        let without = serde_json::from_str(&offline.1).unwrap_or_else(|_| Value::from(offline.1));
        assert_eq!((code, said, trouble), (offline.0, without, offline.2), "{question:?}");
    }
    for (source, words, expected) in [
        (vec!["--admin", &admin], vec![file, "GET", "/hello"], "no FILE is named"),
        (vec!["--admin", &admin], vec!["GET"], "stands alone"),
        (vec![file], vec!["GET"], "stands alone"),
        (vec![], vec![], "name a policy FILE"),
        (vec!["--admin", &admin, "--reference"], vec![], "cannot be used with"),
    ] {
        let answer = ask(&source, &words);
        assert_eq!((answer.0, answer.2.contains(expected)), (2, true), "{answer:?}");
    }
    assert_eq!(proxy.terminate(), Some(0));
    assert_eq!(ask(&["--admin", &admin], &["GET", "/hello"]).0, 3);
}

#[test]
fn a_proxy_that_cannot_start_exits_3_and_names_what_it_lacks() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("is bound");
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("tollgate.yaml");
    let text = format!(
        "admin: {{ address: none }}\nxds: {{}}\nlisteners: [{{ name: load, address: '{address}', transparent: false, \
         upstream: '127.0.0.1:9' }}]\n"
    );
    std::fs::write(&file, text).expect("writes");
    let output = tollgate(&["run", "--log-level", "error", "-c", file.to_str().expect("UTF-8")]);
    assert_eq!(code(&output), 3);
    let line = stderr(&output);
    assert!(line.starts_with("tollgate: error: listener load: ") && line.contains(&address.to_string()), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}
