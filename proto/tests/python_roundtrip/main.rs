//! The wire form, checked against an independent implementation: Python's protobuf with Envoy's own
//! modules encodes every field of every message, this crate decodes and encodes it again, and back.

#![allow(clippy::expect_used, reason = "a failed expectation fails the test")]

mod built;
mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, thread};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::r#type::{matcher::v3 as matcher, v3 as range};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use prost::{DecodeError, Message, Name};
use serde_json::{Value, json};
use tollgate_proto::cilium;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// The environment's python, or `None` after saying why not. In CI its absence is a failure.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| {
        let script = Path::new(CRATE).join("../tests/python/venv");
        let output = Command::new(&script).output().map_err(|error| format!("{}: {error}", script.display()))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    });
    match found {
        Ok(path) => Some(path),
        Err(why) => {
            assert!(env::var("CI").as_deref() != Ok("true"), "no Python environment: {why}");
            println!("SKIPPED: no Python environment: {why}");
            None
        }
    }
}

/// Runs `interop.py` with one JSON object per line in and out; fails the test if it fails.
fn interop(python: &Path, command: &str, lines: &[Value]) -> Vec<Value> {
    let mut child = Command::new(python)
        .current_dir(CRATE)
        .args(["tests/python/interop.py", command, "proto", "stubs"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut stdin = child.stdin.take().expect("piped");
    let mut input = String::new();
    for line in lines {
        writeln!(input, "{line}").expect("writes to a string");
    }
    // A thread of its own, so that neither side waits on a full pipe.
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("python ends");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "interop.py {command}: {stderr}\n{stdout}");
    writer.join().expect("writer").expect("input taken");
    stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

type Again = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

fn entry<M: Message + Name + Default>() -> (String, Again) {
    (M::full_name(), |bytes| M::decode(bytes).map(|message| message.encode_to_vec()))
}

/// Decodes as the named type and encodes again.
fn types() -> BTreeMap<String, Again> {
    BTreeMap::from([
        entry::<cilium::BpfMetadata>(),
        entry::<cilium::DownstreamTlsWrapperContext>(),
        entry::<cilium::HeaderMatch>(),
        entry::<cilium::HealthCheckEventPipeSink>(),
        entry::<cilium::HttpLogEntry>(),
        entry::<cilium::HttpNetworkPolicyRule>(),
        entry::<cilium::HttpNetworkPolicyRules>(),
        entry::<cilium::KafkaLogEntry>(),
        entry::<cilium::KafkaNetworkPolicyRule>(),
        entry::<cilium::KafkaNetworkPolicyRules>(),
        entry::<cilium::KeyValue>(),
        entry::<cilium::L7LogEntry>(),
        entry::<cilium::L7NetworkPolicyRule>(),
        entry::<cilium::L7NetworkPolicyRules>(),
        entry::<cilium::L7Policy>(),
        entry::<cilium::LogEntry>(),
        entry::<cilium::NetworkFilter>(),
        entry::<cilium::NetworkPoliciesConfigDump>(),
        entry::<cilium::NetworkPolicy>(),
        entry::<cilium::NetworkPolicyHosts>(),
        entry::<cilium::PortNetworkPolicy>(),
        entry::<cilium::PortNetworkPolicyRule>(),
        entry::<cilium::TlsContext>(),
        entry::<cilium::UpstreamTlsWrapperContext>(),
        entry::<cilium::WebSocketClient>(),
        entry::<cilium::WebSocketServer>(),
        entry::<core::ConfigSource>(),
        entry::<core::SocketAddress>(),
        entry::<HeaderMatcher>(),
        entry::<discovery::DeltaDiscoveryRequest>(),
        entry::<discovery::DeltaDiscoveryResponse>(),
        entry::<discovery::DiscoveryRequest>(),
        entry::<discovery::DiscoveryResponse>(),
        entry::<matcher::DoubleMatcher>(),
        entry::<matcher::ListMatcher>(),
        entry::<matcher::MetadataMatcher>(),
        entry::<matcher::metadata_matcher::PathSegment>(),
        entry::<matcher::OrMatcher>(),
        entry::<matcher::RegexMatcher>(),
        entry::<matcher::regex_matcher::GoogleRe2>(),
        entry::<matcher::StringMatcher>(),
        entry::<matcher::ValueMatcher>(),
        entry::<matcher::value_matcher::NullMatch>(),
        entry::<range::DoubleRange>(),
        entry::<range::Int32Range>(),
        entry::<range::Int64Range>(),
        entry::<TypedExtensionConfig>(),
    ])
}

/// Message and field names.
type Fields = BTreeMap<String, BTreeSet<String>>;

/// The fields that were set in at least one of the messages that Python reports.
fn fields_set(lines: &[Value]) -> Fields {
    let mut set = Fields::new();
    for line in lines {
        let fields =
            line["set"].as_array().expect("a list").iter().map(|name| name.as_str().expect("a name").to_owned());
        set.entry(name_of(line).to_owned()).or_default().extend(fields);
    }
    set
}

fn name_of(line: &Value) -> &str {
    line["message"].as_str().expect("a message name")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

/// The fields of `cilium.*` that the specification knows.
fn specified() -> Fields {
    let names = |fields: &[facts::Field]| fields.iter().map(|(name, _, _)| (*name).to_owned()).collect();
    facts::MESSAGES.iter().map(|(message, fields)| (format!("cilium.{message}"), names(fields))).collect()
}

#[test]
fn every_field_from_python_comes_back_the_same() {
    let Some(python) = python() else { return };
    let samples = interop(python, "samples", &[]);
    let types = types();

    let mut all = Fields::new();
    let mut returned = Vec::new();
    for sample in &samples {
        let name = name_of(sample);
        let again = types.get(name).unwrap_or_else(|| panic!("{name} is missing from the table of types"));
        let sent = sample["bytes"].as_str().expect("bytes");
        let bytes = again(&unhex(sent)).unwrap_or_else(|error| panic!("{name}: {error}"));
        returned.push(json!({"message": name, "sent": sent, "returned": hex(&bytes)}));
        let fields = sample["fields"].as_array().expect("a list");
        all.insert(name.to_owned(), fields.iter().map(|field| field.as_str().expect("a name").to_owned()).collect());
    }
    assert_eq!(interop(python, "compare", &returned), Vec::<Value>::new());

    // Nothing was left out: every type was sent, with every field.
    assert_eq!(all.keys().collect::<Vec<_>>(), types.keys().collect::<Vec<_>>());
    assert_eq!(fields_set(&samples), all);

    // And what Python compiled out of our files is what the specification has.
    all.retain(|name, _| name.starts_with("cilium."));
    assert_eq!(all, specified());
}

#[test]
fn python_reads_what_is_built_here() {
    let Some(python) = python() else { return };
    let built = built::messages();
    let lines: Vec<Value> =
        built.iter().map(|built| json!({"message": built.message, "bytes": hex(&built.bytes)})).collect();
    let decoded = interop(python, "decode", &lines);
    assert_eq!(decoded.len(), built.len());
    for (built, decoded) in built.iter().zip(&decoded) {
        assert_eq!(decoded["value"], built.expected, "{}", built.message);
    }
    assert_eq!(fields_set(&decoded), specified(), "some field is never set here");
}

#[test]
fn envoy_messages_are_restated_faithfully() {
    let Some(python) = python() else { return };
    let compared = interop(python, "definitions", &[]);
    assert!(compared.len() >= 20, "only {} messages compared", compared.len());
    for line in compared {
        assert_eq!((&line["wrong"], &line["missing"]), (&json!([]), &json!([])), "{}", name_of(&line));
    }
}
