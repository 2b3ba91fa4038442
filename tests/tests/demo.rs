//! `tollgate demo` as a newcomer runs it: as root or not, to its end, with something missing, and interrupted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tollgate::demo::namespaces::private_command;
use tollgate_tests::process::Process;
use tollgate_tests::wait::until;

const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate-under-test");

/// Whether this machine allows the demo's namespaces; says so when not, and fails in CI.
fn namespaces_are_allowed() -> bool {
    match private_command("true") {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "the demo cannot run: {error}");
            eprintln!("SKIPPED: {error}");
            false
        }
    }
}

fn steps(output: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(output).into_owned();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Each step is there, with the outcome that the issue of the demo names, and came out so.
fn assert_whole_story(output: &Output) {
    let steps = steps(&output.stdout);
    let story = [
        ("policy from Cilium's documentation", "ACK"),
        ("GET /hello", "200"),
        ("GET /hello3", "403 Access denied"),
        ("why GET /hello3 is denied", "request_not_allowed: :path"),
        ("POST /hello", "403 Access denied"),
        ("why POST /hello is denied", "request_not_allowed: :method"),
        ("GET /hello3, same connection", "200"),
        ("GET /hello from sleep, IPv4", "200"),
        ("GET /hello from other, IPv4", "connection reset"),
        ("GET /hello from sleep, IPv6", "200"),
        ("GET /hello from other, IPv6", "connection reset"),
        ("quarantined", "1 element, headers[1]"),
        ("GET /hello, the rule beside it", "200"),
        ("xDS stream", "disconnected"),
        ("GET /hello, new connection", "200"),
        ("flow records", "7 forwarded, 7 denied"),
        ("the account of helloworld", "7 forwarded, 7 refused"),
        ("answers to the control plane", "4 ACK, 0 NACK"),
    ];
    for (name, expected) in story {
        let step =
            steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}: {output:?}"));
        assert_eq!((&step["expected"], &step["got"]), (&expected.into(), &expected.into()), "{name}");
    }
    for step in &steps {
        assert_eq!((&step["ok"], &step["got"]), (&true.into(), &step["expected"]), "{step}");
    }
    let names: BTreeSet<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), steps.len(), "each step has a name of its own");
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{output:?}");
}

#[test]
fn every_step_comes_out_as_expected() {
    if namespaces_are_allowed() {
        assert_whole_story(&Command::new(TOLLGATE).args(["demo", "-o", "json"]).output().unwrap());
    }
}

#[test]
fn it_needs_no_root() {
    if !namespaces_are_allowed() || !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: only root can become somebody else; the other tests ran without root then");
    }
    // A directory that everybody can read, which the target directory need not be.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("tollgate");
    fs::copy(TOLLGATE, &program).unwrap();
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut command = Command::new("setpriv");
    let output = command.args(nobody).arg(&program).args(["demo", "-o", "json"]).current_dir("/").output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("may not create private namespaces") {
        return eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_whole_story(&output);
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(TOLLGATE).arg("demo").env("PATH", empty.path()).output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref(), &*output.stdout),
        (
            Some(3),
            "tollgate: error: private network namespaces need the command `unshare`, which is not installed: apt-get \
             install iproute2 nftables util-linux mount procps\n",
            &b""[..]
        )
    );
}

/// An upstream that knows no page, in the place of the demo's.
const NOTHING_HERE: &str = r#"
import http.server, socket, sys

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(404)
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"what")

Server(("::", 5000), Handler).serve_forever()
"#;

/// Takes the place of `nsenter`, which starts programs in pods.
const NSENTER: &str = r#"#!/bin/sh
here=${0%/*}
PATH=${PATH#"$here":}
case "$*" in
    *demo-helloworld*) exec nsenter "$1" -- python3 "$here/server.py" ;;
    *) exec nsenter "$@" ;;
esac
"#;

#[test]
fn a_step_that_differs_is_shown_with_what_the_programs_said() {
    if !namespaces_are_allowed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let nsenter = directory.path().join("nsenter");
    fs::write(&nsenter, NSENTER).unwrap();
    fs::set_permissions(&nsenter, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(directory.path().join("server.py"), NOTHING_HERE).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());

    let output = Command::new(TOLLGATE).args(["demo", "-o", "json"]).env("PATH", path).output().unwrap();

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let steps = steps(&output.stdout);
    let step = |name: &str| {
        let step = steps.iter().find(|step| step["name"] == name).unwrap();
        (step["got"].as_str().unwrap(), step["ok"].as_bool().unwrap())
    };
    assert_eq!(step("GET /hello"), ("404 what", false));
    assert_eq!(step("GET /hello3"), ("403 Access denied", true));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("helloworld: ") && said.contains("GET /hello HTTP/1.1"), "{said}");
    assert!(said.contains("tollgate: ") && said.contains("policy in force"), "{said}");
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    if !namespaces_are_allowed() {
        return;
    }
    let named =
        || fs::read_dir("/run/netns").into_iter().flatten().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let before = named();
    let directory = tempfile::tempdir().unwrap();
    // A shell that runs the tests in the background has its jobs ignore the signal of Ctrl-C.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", TOLLGATE, "demo", "--keep"]).process_group(0);
    let mut demo = Process::start(directory.path(), "demo", command);
    let log = demo.log();
    demo.until("the hint", || fs::read_to_string(&log).unwrap().contains("Ctrl-C").then_some(()));
    let spaces = process_namespaces_below(demo.id());
    assert_eq!(spaces.len(), 1, "{}", demo.output());
    let programs = processes_in(&spaces);
    assert!(programs >= 4, "the demo and three programs, not {programs}");
    let around = look_around(&demo.output());
    // curl may see the reset before it counts as connected (7) or after (56).
    for expected in ["HTTP/1.1 200 OK", "curl: (", "ready: yes", "\"event\":\"ack\""] {
        assert!(around.contains(expected), "{expected}: {around}");
    }

    kill_process_group(Pid::from_raw(demo.id().cast_signed()).unwrap(), Signal::INT).unwrap();

    assert_eq!(demo.wait().signal(), Some(Signal::INT.as_raw()));
    until("the end of every process", || (processes_in(&spaces) == 0).then_some(()));
    assert_eq!(named(), before);
}

/// What the commands print that the demo suggests, typed as they are; without those that do not end.
fn look_around(output: &str) -> String {
    let suggested = output.lines().map(str::trim).filter(|line| line.starts_with("inside"));
    let commands: Vec<_> = suggested.filter(|line| !line.contains("EDITOR") && !line.contains("--follow")).collect();
    assert_eq!(commands.len(), 5, "{output}");
    let output = Command::new("sh").args(["-c", &format!("{{ {}\n}} 2>&1", commands.join("\n"))]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The process namespaces, other than ours, of all descendants of a process.
fn process_namespaces_below(process: u32) -> BTreeSet<PathBuf> {
    let ours = fs::read_link("/proc/self/ns/pid").unwrap();
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_whitespace().map(|child| child.parse().unwrap()).collect();
    let mut found: BTreeSet<_> = children.iter().copied().flat_map(process_namespaces_below).collect();
    let own = fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    found.extend(own.filter(|own| *own != ours));
    found
}

/// How many processes live in one of these process namespaces.
fn processes_in(spaces: &BTreeSet<PathBuf>) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok());
    let spaces_of = processes.filter_map(|entry| fs::read_link(entry.path().join("ns/pid")).ok());
    spaces_of.filter(|space| spaces.contains(space)).count()
}
