//! Real BPF maps, written by a program that shares no code with what reads them (`tests/python/bpf_map.py`), on a BPF file
//! system of their own. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic, in their shared functions too")]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tollgate_net::{Conntrack, ConntrackFlow, Ipcache, MapError, PinState};

/// Set in the child that runs inside the mount namespace.
const INSIDE: &str = "TOLLGATE_NET_TEST_INSIDE";
/// Where the child has its BPF file system.
const ROOT: &str = "/run";

/// Whether the caller has a BPF file system of its own on [`ROOT`]. If not, runs the test `name` where it has, and fails when
/// that fails.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let refused = |why: String| {
        assert!(std::env::var_os("CI").is_none(), "{name} cannot run: {why}");
        eprintln!("SKIPPED: {name}: {why}");
        false
    };
    let mount = format!("mount -t bpf bpf {ROOT}");
    let mut trial = Command::new("unshare");
    let trial = trial.args(["--mount", "sh", "-ec", &mount]).output().expect("util-linux must be installed");
    if !trial.status.success() {
        return refused(String::from_utf8_lossy(&trial.stderr).trim().to_owned());
    }
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec", &format!("{mount}\nexec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{name}, inside: {text}");
    false
}

/// The independent writer.
struct Writer(Child);

impl Writer {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python/bpf_map.py");
        let child = Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Self(child.expect("python3 must be installed"))
    }

    fn tell(&mut self, commands: &str) {
        let mut answers = BufReader::new(self.0.stdout.as_mut().unwrap());
        for command in commands.lines().map(str::trim) {
            writeln!(self.0.stdin.as_mut().unwrap(), "{command}").unwrap();
            let mut answer = String::new();
            answers.read_line(&mut answer).unwrap();
            assert_eq!(answer, "ok\n", "{command}");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn ipcache_finds_the_longest_prefix() {
    if !inside("ipcache_finds_the_longest_prefix") {
        return;
    }
    let path = Path::new("/run/ipcache");
    // What datapaths of three ages have as values.
    for size in [4, 12, 24] {
        let mut writer = Writer::start();
        writer.tell(&format!("create ipcache /run/ipcache {size}"));
        let map = Ipcache::open(path).unwrap();
        assert_eq!(map.lookup(ip("10.0.0.1")).unwrap(), None, "nobody is there");
        writer.tell(
            "put /run/ipcache 10.0.0.0/8 16777217
             put /run/ipcache 10.0.0.1 32226
             put /run/ipcache fd00::/64 12001
             put /run/ipcache fd00::1 305419896
             put /run/ipcache 0.0.0.0/0 9",
        );
        for (address, identity) in [
            ("10.0.0.1", Some(32226)),
            ("10.0.0.2", Some(16_777_217)),
            ("::ffff:10.0.0.1", Some(32226)),
            ("11.0.0.1", Some(9)),
            ("fd00::1", Some(0x1234_5678)),
            ("fd00::2", Some(12001)),
            ("fd01::1", None),
            // The bytes of 10.0.0.1 as the first four of an IPv6 address are another family.
            ("a00:1::", None),
        ] {
            assert_eq!(map.lookup(ip(address)).unwrap(), identity, "{address}, values of {size} bytes");
        }
        writer.tell("put /run/ipcache 10.0.0.1 7\nremove /run/ipcache fd00::1");
        assert_eq!(map.lookup(ip("10.0.0.1")).unwrap(), Some(7));
        assert_eq!(map.lookup(ip("fd00::1")).unwrap(), Some(12001));
    }
}

#[test]
fn conntrack_finds_exactly_the_flow() {
    if !inside("conntrack_finds_exactly_the_flow") {
        return;
    }
    let mut writer = Writer::start();
    writer.tell(
        "create ct4 /run/ct4
         create ct6 /run/ct6
         track /run/ct4 10.0.0.1 40000 10.0.0.2 80 in 32226
         track /run/ct4 10.0.0.1 40001 10.0.0.2 80 in 0
         track /run/ct6 fd00::1 40000 fd00::2 80 out 12001",
    );
    let v4 = Conntrack::open_v4(Path::new("/run/ct4")).unwrap();
    let v6 = Conntrack::open_v6(Path::new("/run/ct6")).unwrap();
    let identity = |map: &Conntrack, source: &str, destination: &str, ingress| {
        let [source, destination] = [source, destination].map(|text| text.parse::<SocketAddr>().unwrap());
        map.source_identity(&ConntrackFlow { source, destination, ingress }).unwrap()
    };
    assert_eq!(identity(&v4, "10.0.0.1:40000", "10.0.0.2:80", true), Some(32226));
    assert_eq!(identity(&v4, "[::ffff:10.0.0.1]:40000", "10.0.0.2:80", true), Some(32226));
    assert_eq!(identity(&v4, "10.0.0.1:40001", "10.0.0.2:80", true), None, "0 is no identity");
    assert_eq!(identity(&v4, "10.0.0.1:40000", "10.0.0.2:80", false), None, "the other direction");
    assert_eq!(identity(&v4, "10.0.0.2:80", "10.0.0.1:40000", true), None, "the way back");
    assert_eq!(identity(&v4, "10.0.0.1:80", "10.0.0.2:40000", true), None, "ports the other way round");
    assert_eq!(identity(&v6, "[fd00::1]:40000", "[fd00::2]:80", false), Some(12001));
    assert_eq!(identity(&v6, "[fd00::1]:40000", "[fd00::2]:80", true), None);
    assert_eq!(identity(&v6, "10.0.0.1:40000", "10.0.0.2:80", true), None, "another family");
    assert_eq!(identity(&v4, "[fd00::1]:40000", "[fd00::2]:80", false), None, "another family");
    writer.tell("untrack /run/ct4 10.0.0.1 40000 10.0.0.2 80 in");
    assert_eq!(identity(&v4, "10.0.0.1:40000", "10.0.0.2:80", true), None);
}

#[test]
fn a_pin_that_is_replaced_or_gone_is_noticed() {
    if !inside("a_pin_that_is_replaced_or_gone_is_noticed") {
        return;
    }
    let path = Path::new("/run/ipcache");
    let mut writer = Writer::start();
    writer.tell("create ipcache /run/ipcache\nput /run/ipcache 10.0.0.1 1");
    let map = Ipcache::open(path).unwrap();
    assert_eq!(map.pin(), PinState::Same);
    writer.tell("create ipcache /run/ipcache\nput /run/ipcache 10.0.0.1 2");
    assert_eq!(map.pin(), PinState::Replaced);
    assert_eq!(map.lookup(ip("10.0.0.1")).unwrap(), Some(1), "the old map is still there for who has it open");
    let newer = Ipcache::open(path).unwrap();
    assert_eq!((newer.pin(), newer.lookup(ip("10.0.0.1")).unwrap()), (PinState::Same, Some(2)));
    assert_ne!(map.id(), newer.id());
    std::fs::remove_file(path).unwrap();
    assert_eq!(newer.pin(), PinState::Missing);
}

#[test]
fn what_is_not_the_map_is_not_opened() {
    if !inside("what_is_not_the_map_is_not_opened") {
        return;
    }
    Writer::start().tell(
        "create ct4 /run/ct4
         create ct6 /run/ct6 48
         create ipcache /run/wide 68
         create-array /run/array",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = |result: Result<(), MapError>| result.unwrap_err().to_string();
    let ipcache = |path: &Path| Ipcache::open(path).map(drop);
    for (error, parts) in [
        (text(ipcache(Path::new("/run/none"))), ["/run/none", "No such file", "agent pins it"]),
        (text(ipcache(file.path())), ["cannot open BPF map", "Permission denied", "BPF file system"]),
        (
            text(ipcache(Path::new("/run/ct4"))),
            ["type 1 (keys of 14", "LPM trie", "keys of 24 bytes, values of 4 to 64"],
        ),
        (text(ipcache(Path::new("/run/wide"))), ["type 11 (keys of 24", "values of 68", "values of 4 to 64"]),
        (text(ipcache(Path::new("/run/array"))), ["/run/array", "type 2", "LPM trie"]),
        (
            text(Conntrack::open_v6(Path::new("/run/ct6")).map(drop)),
            ["values of 48", "IPv6 conntrack", "values of 56 bytes"],
        ),
        (text(Conntrack::open_v6(Path::new("/run/ct4")).map(drop)), ["keys of 14", "IPv6 conntrack", "keys of 38"]),
    ] {
        for part in parts {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
    assert!(Ipcache::open(Path::new("/run/none")).unwrap_err().is_missing());
    assert!(!Ipcache::open(Path::new("/run/ct4")).unwrap_err().is_missing());
}
