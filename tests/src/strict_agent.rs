//! A control plane that behaves like a Cilium agent, and misbehaves on demand: `tests/python/strict_agent.py`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::python::{ControlPlane, python};

/// A running agent. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    script: ControlPlane,
    socket: PathBuf,
    /// Answers that no command has waited for.
    answers: Vec<Value>,
}

impl Agent {
    /// An agent that serves nothing yet. `None`, after saying why, where there is no Python.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(socket: &Path) -> Option<Self> {
        let script = ControlPlane::script(python()?, "strict_agent.py").unwrap();
        Some(Self { script, socket: socket.to_owned(), answers: Vec::new() })
    }

    /// Gives a command and waits until it is done. Returns what happened so far.
    ///
    /// # Panics
    /// When the proxy has violated the protocol, or the command fails.
    pub fn run(&mut self, command: &Value) -> Value {
        self.script.tell(command).unwrap();
        loop {
            let event = self.script.event().unwrap();
            if event["event"] == "done" {
                return event["counts"].clone();
            }
            self.note(event);
        }
    }

    fn note(&mut self, event: Value) {
        assert_ne!(event["event"], "violation", "{event}");
        assert!(event["event"] != "ack" || event["bad"] == false, "something bad was accepted: {event}");
        self.answers.push(event);
    }

    /// How often something happened so far.
    pub fn count(&mut self, what: &str) -> u64 {
        self.run(&json!({"do": "count"}))[what].as_u64().unwrap_or_default()
    }

    /// Serves `mode` and nothing else.
    pub fn listen(&mut self, mode: &str) {
        let path = self.socket.clone();
        self.run(&json!({"do": "listen", "path": path, "mode": mode}));
    }

    /// Is bound to its socket, and says nothing.
    pub fn bind(&mut self) {
        let path = self.socket.clone();
        self.run(&json!({"do": "bind", "path": path}));
    }

    /// Closes the socket and every connection.
    pub fn stop(&mut self) {
        self.run(&json!({"do": "stop"}));
    }

    /// Runs a command that changes something of the command's type, and returns once the proxy has it in force.
    ///
    /// # Panics
    /// When it does not acknowledge.
    pub fn change(&mut self, command: &Value) {
        self.answers.clear();
        self.run(command);
        self.wait_for_ack(command["type"].as_str().unwrap_or("NetworkPolicy"));
    }

    /// Waits for an acknowledgement that nobody has waited for.
    ///
    /// # Panics
    /// When none comes, or something is refused that should not be.
    pub fn wait_for_ack(&mut self, kind: &str) {
        let ack = self.answer(|answer| answer["type"] == kind && answer["bad"] == false);
        assert_eq!(ack["event"], "ack", "{ack}");
    }

    /// Sends something bad to the stream of policies, and returns why it was refused.
    ///
    /// # Panics
    /// When it is not refused.
    pub fn refused(&mut self, bad: &str) -> String {
        self.answers.clear();
        self.run(&json!({"do": "send", "bad": bad}));
        let nack = self.answer(|answer| answer["bad"] == true);
        assert_eq!(nack["event"], "nack", "{bad}: {nack}");
        nack["message"].as_str().unwrap().to_owned()
    }

    /// Forgets answers that nobody has waited for.
    pub fn forget(&mut self) {
        self.run(&json!({"do": "count"}));
        self.answers.clear();
    }

    fn answer(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(found) = self.answers.iter().position(&wanted) {
                return self.answers.remove(found);
            }
            let event = self.script.event().unwrap();
            self.note(event);
        }
    }
}
