//! Everything that plays in the demo: the pods, the upstream, a control plane and Tollgate, each a process of its own.

use std::env;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::client::Connection;
use super::program::{self, Program, wait_until};
use super::records::{Push, Record};
use super::world::{World, WorldError};

/// The port of `helloworld`, which is steered into Tollgate.
pub(super) const PORT: u16 = 5000;
/// The identity of `sleep`; every other peer is the world.
pub(super) const SLEEP: u32 = 32226;
const LISTENER_PORT: u16 = 15001;

/// Why the demo cannot be played, or a step has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The network could not be built.
    #[error(transparent)]
    World(#[from] WorldError),
    /// The system refused something.
    #[error("cannot {step}: {error}")]
    Io {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// One of the programs does not do its part.
    #[error("{program}: {problem}")]
    Program {
        /// Which one.
        program: &'static str,
        /// What it did or did not do.
        problem: String,
    },
    /// A connection of a pod broke or was not possible.
    #[error("{0}")]
    Connection(io::Error),
}

impl DemoError {
    fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |error| Self::Io { step, error }
    }

    fn ended(program: &'static str) -> Self {
        Self::Program { program, problem: "has ended".to_owned() }
    }

    fn silent(program: &'static str, what: &str) -> Self {
        let problem = format!("{what} within {} s", program::PATIENCE.as_secs());
        Self::Program { program, problem }
    }
}

/// The running demo. Dropping it ends the programs and removes the pods.
#[derive(Debug)]
pub(super) struct Stage {
    // Dropped in this order: the programs before the network that they use.
    proxy: Program,
    control_plane: Program,
    _upstream: Program,
    program: PathBuf,
    world: World,
}

impl Stage {
    /// Builds the network and starts everything, with this policy; returns when Tollgate is ready.
    pub(super) fn build(world: World, policy: &str) -> Result<Self, DemoError> {
        let program = env::current_exe().map_err(DemoError::io("find this program's file"))?;
        world.redirect_up(&[PORT], LISTENER_PORT)?;
        let directory = world.directory().to_owned();
        fs::create_dir_all(directory.join("policies")).map_err(DemoError::io("create the directory of policies"))?;
        write_policy(&directory, policy)?;

        let upstream = start_upstream(&world, &program)?;
        let control_plane = start_control_plane(&world, &program)?;
        let configuration = directory.join("tollgate.yaml");
        fs::write(&configuration, tollgate_yaml(&world)?).map_err(DemoError::io("write tollgate.yaml"))?;
        let mut command = world.command(&program);
        command.args(["run", "--log-level", "info", "--config"]).arg(configuration);
        let proxy = start("tollgate", &directory, command)?;

        let mut stage = Self { proxy, control_plane, _upstream: upstream, program, world };
        stage.status_when("did not become ready", |status| status["ready"] == true)?;
        Ok(stage)
    }

    /// The network.
    pub(super) const fn world(&self) -> &World {
        &self.world
    }

    /// This program's own file.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Where Tollgate's admin endpoint is, as an argument of its commands.
    pub(super) fn admin(&self) -> String {
        format!("unix:{}", self.world.directory().join("admin.sock").display())
    }

    /// The last lines of every program's standard error.
    pub(super) fn last_words(&self) -> String {
        program::last_words(self.world.directory())
    }

    /// Opens a connection from the pod `from` to an address of `helloworld`.
    pub(super) fn connect(&mut self, from: &str, to: IpAddr) -> Result<Connection, DemoError> {
        if self.proxy.has_ended() {
            return Err(DemoError::ended("tollgate"));
        }
        let connection = self.world.run_in(from, || Connection::open(SocketAddr::new(to, PORT)))?;
        connection.map_err(DemoError::Connection)
    }

    /// Puts this policy in the place of the one before and waits for Tollgate's answer to it.
    pub(super) fn push(&mut self, policy: &str) -> Result<Push, DemoError> {
        let before = self.pushes().len();
        write_policy(self.world.directory(), policy)?;
        self.answer(before)
    }

    /// Tollgate's answer to the push number `index`, counted from 0.
    pub(super) fn answer(&mut self, index: usize) -> Result<Push, DemoError> {
        self.wait("did not answer the push", |stage| stage.pushes().into_iter().nth(index))
    }

    /// Every answer so far, as the control plane printed them.
    pub(super) fn pushes(&self) -> Vec<Push> {
        self.control_plane.lines().iter().filter_map(|line| Push::parse(line)).collect()
    }

    /// Ends the control plane as a crash would.
    pub(super) fn kill_control_plane(&mut self) {
        self.control_plane.kill();
    }

    /// Starts a control plane again, in the place of one that was killed; returns when Tollgate has come back to it.
    pub(super) fn restart_control_plane(&mut self) -> Result<(), DemoError> {
        self.control_plane = start_control_plane(&self.world, &self.program)?;
        self.answer(0).map(drop)
    }

    /// What `tollgate status` says, once `condition` holds for it; `problem` says that it never did.
    pub(super) fn status_when(
        &mut self,
        problem: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value, DemoError> {
        self.wait(problem, |stage| {
            stage.ask("status").and_then(|text| serde_json::from_str(&text).ok()).filter(&condition)
        })
    }

    /// Tollgate's record of the last request on this connection.
    pub(super) fn record_of(&mut self, connection: &Connection) -> Result<Record, DemoError> {
        let last = connection.requests().saturating_sub(1);
        self.wait("has no flow record of the request", |stage| {
            stage.records().into_iter().filter(|record| record.is_of(connection)).nth(last)
        })
    }

    /// The newest flow record that `condition` holds for, once there is one.
    pub(super) fn record_where(&mut self, condition: impl Fn(&Record) -> bool) -> Result<Record, DemoError> {
        self.wait("has no such flow record", |stage| stage.records().into_iter().rfind(&condition))
    }

    /// Every flow record, oldest first, once there are `count`; those that there are when there never are so many.
    pub(super) fn records_when(&mut self, count: usize) -> Vec<Record> {
        let enough = |stage: &Self| Some(stage.records()).filter(|records| records.len() >= count);
        self.wait("has not that many flow records", enough).unwrap_or_else(|_| self.records())
    }

    /// By time: the log has them in the order in which the workers handed them over.
    fn records(&self) -> Vec<Record> {
        let text = self.ask("flows").unwrap_or_default();
        let mut records: Vec<Record> = text.lines().filter_map(Record::parse).collect();
        records.sort_by_key(Record::time);
        records
    }

    /// What Tollgate's tenants have used, once `condition` holds for it, and the table that shows it to people.
    pub(super) fn tenants_when(&mut self, condition: impl Fn(&Value) -> bool) -> Result<(Value, String), DemoError> {
        let tenants = self.wait("has not charged everything", |stage| {
            stage.ask("tenants").and_then(|text| serde_json::from_str(&text).ok()).filter(&condition)
        })?;
        Ok((tenants, self.ask_for("tenants", "text").unwrap_or_default()))
    }

    /// Asks the running Tollgate as an operator would, with the command `status`, `flows` or `tenants`.
    fn ask(&self, command: &str) -> Option<String> {
        self.ask_for(command, "json")
    }

    fn ask_for(&self, command: &str, form: &str) -> Option<String> {
        let output = self.world.command(&self.program).args([command, "-o", form, "--admin", &self.admin()]).output();
        output.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits for something that Tollgate does, but not for a Tollgate that is gone.
    fn wait<T>(&mut self, problem: &str, look: impl Fn(&Self) -> Option<T>) -> Result<T, DemoError> {
        let found = wait_until(|| match look(self) {
            Some(found) => Some(Ok(found)),
            None => self.proxy.has_ended().then(|| Err(DemoError::ended("tollgate"))),
        });
        found.unwrap_or_else(|| Err(DemoError::silent("tollgate", problem)))
    }
}

fn start(name: &'static str, directory: &Path, command: Command) -> Result<Program, DemoError> {
    Program::start(name, directory, command).map_err(DemoError::io(format!("start {name}")))
}

/// Returns when proxies can connect.
fn start_control_plane(world: &World, program: &Path) -> Result<Program, DemoError> {
    let directory = world.directory();
    let mut command = world.command(program);
    command.arg("control-plane").arg("--policies").arg(directory.join("policies"));
    command.arg("--listen").arg(format!("unix:{}", directory.join("xds.sock").display())).args(["-o", "json"]);
    let mut control_plane = start("control-plane", directory, command)?;
    wait_to_listen(&mut control_plane, "control-plane", |program| {
        program.lines().iter().any(|line| line.contains("\"listening\""))
    })?;
    Ok(control_plane)
}

/// A connection from the node is not steered: it says that the server listens.
fn start_upstream(world: &World, program: &Path) -> Result<Program, DemoError> {
    let mut command = world.command_in("helloworld", program);
    command.args(["demo-helloworld", "--listen", &format!("[::]:{PORT}")]);
    let mut upstream = start("helloworld", world.directory(), command)?;
    let address = SocketAddr::new(world.pod("helloworld")?.address_v4().into(), PORT);
    wait_to_listen(&mut upstream, "helloworld", |_| TcpStream::connect_timeout(&address, program::PATIENCE).is_ok())?;
    Ok(upstream)
}

/// Waits until `listens`, but not for a program that is gone.
fn wait_to_listen(
    program: &mut Program,
    name: &'static str,
    listens: impl Fn(&Program) -> bool,
) -> Result<(), DemoError> {
    let found = wait_until(|| match listens(program) {
        true => Some(Ok(())),
        false => program.has_ended().then(|| Err(DemoError::ended(name))),
    });
    found.unwrap_or_else(|| Err(DemoError::silent(name, "does not listen")))
}

/// Under another name first, so that nobody reads half a policy.
fn write_policy(directory: &Path, policy: &str) -> Result<(), DemoError> {
    let (new, path) = (directory.join("policies/.helloworld.new"), directory.join(POLICY));
    let written = fs::write(&new, policy).and_then(|()| fs::rename(&new, &path));
    written.map_err(DemoError::io(format!("write {}", path.display())))
}

/// The one policy file, in the world's directory.
pub(super) const POLICY: &str = "policies/helloworld.json";

fn tollgate_yaml(world: &World) -> Result<String, DemoError> {
    let directory = world.directory().display();
    let sleep = world.pod("sleep")?;
    Ok(format!(
        "admin: {{ address: \"unix:{directory}/admin.sock\" }}
xds: {{ address: \"unix:{directory}/xds.sock\", mode: split }}
identities:
  - {{ identity: {SLEEP}, addresses: [{}, \"{}\"] }}
listeners:
  - name: ingress
    direction: ingress
    address: 127.0.0.1:{LISTENER_PORT}
    additional_addresses: [\"[::1]:{LISTENER_PORT}\"]
    transparent: true
",
        sleep.address_v4(),
        sleep.address_v6()
    ))
}
