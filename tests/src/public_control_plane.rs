//! xDS servers that others have published, run as the control plane: `tests/interop`.

use std::collections::{HashMap, HashSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use prost::{Message, Name};
use serde_json::{Value, json};

use crate::python::ControlPlane;

/// The program that holds the servers, or `None` after saying why there is none. `TOLLGATE_PUBLIC_CONTROL_PLANE` names another
/// one that is driven in the same way.
///
/// # Panics
/// There is none although this is CI, where a skipped test would be a hole.
pub fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = PROGRAM.get_or_init(|| {
        if let Some(other) = env::var_os("TOLLGATE_PUBLIC_CONTROL_PLANE") {
            return Ok(PathBuf::from(other));
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/build");
        let output = Command::new(&script).output().map_err(|error| format!("{}: {error}", script.display()))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    });
    match built {
        Ok(path) => Some(path),
        Err(why) => {
            assert!(env::var("CI").as_deref() != Ok("true"), "no public control plane: {why}");
            println!("SKIPPED: no public control plane: {why}");
            None
        }
    }
}

/// The client's answer to what was set, as the server got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is in force.
    Ack,
    /// It was refused, with these words.
    Nack(String),
}

/// One of the servers, running. Killed when dropped.
#[derive(Debug)]
pub struct PublicControlPlane {
    control: ControlPlane,
    incremental: bool,
    version: u32,
    /// The last version of each type, and the last one that the client has acknowledged.
    set: HashMap<String, String>,
    acknowledged: HashMap<String, String>,
    /// Types and nonces of responses that the client has answered.
    answered: HashSet<(String, String)>,
    /// What the server said since something was set.
    said: Vec<String>,
    methods: HashSet<String>,
}

impl PublicControlPlane {
    /// Starts the server `name`: `rust-control-plane`, or `quilkin-xds`, which is incremental.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: &Path, name: &str) -> Self {
        let mut command = Command::new(program);
        command.arg(name);
        Self {
            control: ControlPlane::run(command).unwrap(),
            incremental: name == "quilkin-xds",
            version: 0,
            set: HashMap::new(),
            acknowledged: HashMap::new(),
            answered: HashSet::new(),
            said: Vec::new(),
            methods: HashSet::new(),
        }
    }

    /// Serves on a Unix socket.
    ///
    /// # Panics
    /// When it cannot.
    pub fn listen(&mut self, socket: &Path) {
        self.control.tell(&json!({"do": "listen", "path": socket})).unwrap();
        self.control.wait_for("listening").unwrap();
    }

    /// Makes these, each under its name, all resources of their type.
    ///
    /// # Panics
    /// When the server has ended.
    pub fn set<M: Message + Name>(&mut self, resources: &[(&str, &M)]) {
        let resources: Vec<_> = resources.iter().map(|(name, message)| (*name, message.encode_to_vec())).collect();
        self.set_bytes(&type_url::<M>(), &resources);
    }

    /// The same with bytes that need not be resources of that type.
    ///
    /// # Panics
    /// When the server has ended.
    pub fn set_bytes(&mut self, type_url: &str, resources: &[(&str, Vec<u8>)]) {
        self.version += 1;
        self.set.insert(type_url.to_owned(), self.version.to_string());
        self.said.clear();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let resources: Vec<_> =
            resources.iter().map(|(name, bytes)| json!({"name": name, "hex": hex(bytes)})).collect();
        let version = self.version.to_string();
        let command = json!({"do": "set", "type_url": type_url, "version": version, "resources": resources});
        self.control.tell(&command).unwrap();
    }

    /// The next answer to a response of type `M`. An acknowledgement is one of what was set last.
    ///
    /// # Panics
    /// When there is none.
    pub fn answer<M: Name>(&mut self) -> Answer {
        loop {
            let event = self.next();
            let nonce = event["nonce"].as_str().unwrap_or_default();
            let of_type = event["type_url"] == type_url::<M>() && !nonce.is_empty();
            if !of_type || !self.answered.insert((type_url::<M>(), nonce.to_owned())) {
                continue;
            }
            if let Some(error) = event["error"].as_str() {
                return Answer::Nack(error.to_owned());
            }
            if self.is_acknowledged(&type_url::<M>()) {
                return Answer::Ack;
            }
        }
    }

    /// Waits until everything that was set is acknowledged, and the server says so, too.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn settle(&mut self) {
        let types: Vec<_> = self.set.keys().cloned().collect();
        let understood = self.understood();
        let count = |said: &[String]| said.iter().filter(|line| line.contains(understood)).count();
        while !types.iter().all(|type_url| self.is_acknowledged(type_url)) || count(&self.said) < types.len() {
            self.next();
        }
    }

    /// Sets, and waits for the acknowledgement, past what is refused until then, and for the server to have understood it.
    ///
    /// # Panics
    /// When there is none.
    pub fn push<M: Message + Name>(&mut self, resources: &[(&str, &M)]) {
        self.set(resources);
        while self.answer::<M>() != Answer::Ack {}
        self.says(self.understood());
    }

    /// What the server says of an acknowledgement.
    fn understood(&self) -> &'static str {
        if self.incremental { "ACK nonce=" } else { "set watch: latest version" }
    }

    /// An incremental acknowledgement has no version.
    fn is_acknowledged(&self, type_url: &str) -> bool {
        let version = self.acknowledged.get(type_url);
        version.is_some_and(|version| self.incremental || Some(version) == self.set.get(type_url))
    }

    /// Waits until the server itself logs something that contains `words`.
    ///
    /// # Panics
    /// When it does not.
    pub fn says(&mut self, words: &str) {
        while !self.said.iter().any(|line| line.contains(words)) {
            self.next();
        }
    }

    /// Paths of the methods that were called so far.
    pub fn methods(&self) -> &HashSet<String> {
        &self.methods
    }

    fn next(&mut self) -> Value {
        let event = self.control.event().unwrap();
        if event["event"] == "said" {
            self.said.push(event["words"].as_str().unwrap_or_default().to_owned());
            return event;
        }
        self.methods.extend(event["method"].as_str().map(str::to_owned));
        let [type_url, version, nonce] = ["type_url", "version", "nonce"].map(|key| event[key].as_str().unwrap_or(""));
        if nonce.is_empty() {
            // Nonces are the stream's, and this may be another one.
            self.answered.retain(|(of_type, _)| of_type != type_url);
        } else if event["error"].is_null() {
            self.acknowledged.insert(type_url.to_owned(), version.to_owned());
        }
        event
    }
}

fn type_url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}
