//! The datapath's BPF maps: real ones, on a BPF file system of the test's own, written by `tests/python/bpf_map.py`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tollgate::demo::namespaces::is_inside;

use crate::python::SCRIPTS;

/// As [`crate::netns::inside`], for tests that make BPF maps: those need root outside of any user namespace.
///
/// # Panics
/// As there; also in CI where maps cannot be made.
pub fn inside(name: &str) -> bool {
    if is_inside() {
        return true;
    }
    let trial = format!("mount -t bpf bpf /run && echo create ipcache /run/x | python3 {SCRIPTS}/bpf_map.py");
    let output = Command::new("unshare").args(["--mount", "sh", "-ec", &trial]).output();
    let why = match output {
        Ok(output) if output.stdout == b"ok\n" => return crate::netns::inside(name),
        Ok(output) => [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat(),
        Err(error) => format!("unshare: {error}"),
    };
    assert!(std::env::var_os("CI").is_none(), "{name} cannot run: {why}");
    eprintln!("SKIPPED: {name}: {}", why.trim());
    false
}

/// A BPF file system, and who writes to the maps in it.
#[derive(Debug)]
pub struct Maps {
    root: PathBuf,
    writer: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Maps {
    /// Mounts one on the directory `root`, which is made.
    ///
    /// # Panics
    /// Outside of [`inside`].
    pub fn mount(root: PathBuf) -> Self {
        assert!(is_inside(), "nothing is mounted outside of private namespaces");
        std::fs::create_dir_all(&root).unwrap();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&root).status().unwrap();
        assert!(mounted.success(), "mount on {}", root.display());
        std::fs::create_dir_all(root.join("tc/globals")).unwrap();
        let mut writer = Command::new("python3")
            .arg(Path::new(SCRIPTS).join("bpf_map.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = writer.stdin.take().unwrap();
        let answers = BufReader::new(writer.stdout.take().unwrap());
        Self { root, writer, commands, answers }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of the ipcache.
    pub fn ipcache(&self) -> PathBuf {
        self.root.join("tc/globals/cilium_ipcache_v2")
    }

    /// The pin of the conntrack map of a family.
    pub fn conntrack(&self, v4: bool) -> PathBuf {
        self.root.join(if v4 { "tc/globals/cilium_ct4_global" } else { "tc/globals/cilium_ct6_global" })
    }

    /// Pins a new, empty ipcache, in the place of the old one if there is one.
    pub fn create_ipcache(&mut self) {
        let path = self.ipcache();
        self.tell(&format!("create ipcache {}", path.display()));
    }

    /// Pins a map in the place of the ipcache that is none.
    pub fn replace_ipcache_by_an_array(&mut self) {
        let path = self.ipcache();
        self.tell(&format!("create-array {}", path.display()));
    }

    /// Pins a new, empty conntrack map for IPv4.
    pub fn create_conntrack(&mut self) {
        let path = self.conntrack(true);
        self.tell(&format!("create ct4 {}", path.display()));
    }

    /// The same for IPv6.
    pub fn create_conntrack_v6(&mut self) {
        let path = self.conntrack(false);
        self.tell(&format!("create ct6 {}", path.display()));
    }

    /// Gives `address` to `identity`.
    pub fn put(&mut self, address: IpAddr, identity: u32) {
        let path = self.ipcache();
        self.tell(&format!("put {} {address} {identity}", path.display()));
    }

    /// Takes the entry of `address` away.
    pub fn remove(&mut self, address: IpAddr) {
        let path = self.ipcache();
        self.tell(&format!("remove {} {address}", path.display()));
    }

    /// Tracks an ingress connection whose first packet carried `identity`.
    pub fn track(&mut self, source: SocketAddr, destination: SocketAddr, identity: u32) {
        let path = self.conntrack(source.is_ipv4());
        let [from, to] = [source, destination].map(|end| format!("{} {}", end.ip(), end.port()));
        self.tell(&format!("track {} {from} {to} in {identity}", path.display()));
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "ok\n", "{command}");
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        let _ = self.writer.kill();
        let _ = self.writer.wait();
        // The directory of the test could not be removed otherwise.
        let _ = Command::new("umount").arg(&self.root).status();
    }
}
