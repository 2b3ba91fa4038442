//! A node whose pods talk through a running `tollgate`: real TPROXY, in the namespaces of [`crate::netns::inside`].

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use rustix::process::Signal;
use serde_json::Value;
use tollgate::demo::world::World;

use crate::admin::Admin;
use crate::peer::Peer;
use crate::process::Process;
use crate::proxy::binary;
use crate::upstream::Upstream;

/// Steered port that policies of these tests give HTTP rules.
pub const HTTP_PORT: u16 = 5000;
/// Another one, for servers that speak only HTTP/2.
pub const HTTP2_PORT: u16 = 5001;
/// Steered port that policies of these tests give no HTTP rules.
pub const TCP_PORT: u16 = 5002;
/// Where the rules steer to, on the node's loopback addresses.
pub const LISTENER_PORT: u16 = 15001;
/// Identity of the pod `sleep`.
pub const SLEEP: u32 = 32226;
/// Identity of the pod `helloworld`. The third pod, `other`, is the world (2).
pub const HELLOWORLD: u32 = 12001;

/// Identity of the node.
pub const HOST: u32 = 1;

/// Pods, redirect rules, and a proxy between them. Dropping it ends the proxy and removes the rest.
#[derive(Debug)]
pub struct Steered {
    proxy: Option<Process>,
    admin: Admin,
    world: World,
    /// Identity of the pod `sleep`.
    sleep: u32,
    /// The section `identities`, in the place of the usual list.
    identities: Option<String>,
}

impl Steered {
    /// Builds the pods and steers their connections; there is no proxy yet, so that nothing gets through.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn without_proxy() -> Self {
        let world = World::new().unwrap_or_else(|error| panic!("{error}"));
        world.redirect_up(&[HTTP_PORT, HTTP2_PORT, TCP_PORT], LISTENER_PORT).unwrap();
        fs::create_dir_all(world.directory().join("policies")).unwrap();
        Self {
            proxy: None,
            admin: Admin::at(world.directory().join("admin.sock")),
            world,
            sleep: SLEEP,
            identities: None,
        }
    }

    /// Builds everything, with these policies and one listener that has `keys`; returns when the proxy is ready.
    pub fn new(policies: impl Fn(&Self) -> Vec<Value>, keys: &str) -> Self {
        let mut steered = Self::without_proxy();
        steered.write_policies(&policies(&steered));
        steered.start_proxy(&steered.directory_source(), &listener(keys));
        steered
    }

    /// Has the policy directory hold exactly these policies (protobuf JSON, without `@type`).
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn write_policies(&self, policies: &[Value]) {
        for (index, policy) in policies.iter().enumerate() {
            let mut policy = policy.clone();
            policy["@type"] = "type.googleapis.com/cilium.NetworkPolicy".into();
            fs::write(self.path(&format!("policies/{index}.json")), policy.to_string()).unwrap();
        }
    }

    /// The policy directory as a part of the configuration.
    pub fn directory_source(&self) -> String {
        format!("policies: {{ directory: \"{}\" }}", self.path("policies").display())
    }

    /// Writes a configuration with this source of policy and these listeners, and returns the command that runs it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, source: &str, listeners: &str) -> Command {
        let identity = |[v4, v6]: [IpAddr; 2], identity: u32| {
            format!("- {{ identity: {identity}, addresses: [\"{v4}\", \"{v6}\"] }}")
        };
        let usual = || {
            let sleep = identity(self.addresses("sleep"), self.sleep);
            let helloworld = identity(self.addresses("helloworld"), HELLOWORLD);
            format!("\n{sleep}\n{helloworld}\n{}", identity(self.node_addresses(), HOST))
        };
        let identities = self.identities.clone().unwrap_or_else(usual);
        let configuration = format!(
            "workers: 2\n\
             admin: {{ address: \"unix:{admin}\" }}\n\
             {source}\n\
             identities: {identities}\n\
             listeners:\n{listeners}\n",
            admin = self.path("admin.sock").display(),
        );
        let file = self.path("tollgate.yaml");
        fs::write(&file, configuration).unwrap();
        let mut command = self.world.command(binary());
        command.args(["run", "--log-level", "info", "-c"]).arg(file);
        command
    }

    /// Gives the pod `sleep` another identity than [`SLEEP`], for proxies to come.
    pub fn set_sleep(&mut self, identity: u32) {
        self.sleep = identity;
    }

    /// Has proxies to come look identities up as this section says, in flow style.
    pub fn set_identities(&mut self, section: String) {
        self.identities = Some(section);
    }

    /// Starts the proxy, and returns when it is ready.
    pub fn start_proxy(&mut self, source: &str, listeners: &str) {
        self.launch_proxy(source, listeners);
        self.until_ready();
    }

    /// Starts the proxy without waiting for anything.
    pub fn launch_proxy(&mut self, source: &str, listeners: &str) {
        let command = self.configure(source, listeners);
        self.proxy = Some(Process::start(self.world.directory(), "tollgate", command));
    }

    /// Waits until the proxy is ready.
    ///
    /// # Panics
    /// When it was not started, has ended, or does not become ready.
    pub fn until_ready(&mut self) {
        self.admin.until_ready(self.proxy.as_mut().expect("the proxy was started"));
    }

    /// Kills the proxy, and returns when it is gone.
    ///
    /// # Panics
    /// When it was not started or has ended.
    pub fn kill_proxy(&mut self) {
        let mut proxy = self.proxy.take().expect("the proxy runs");
        proxy.signal(Signal::KILL);
        proxy.wait();
    }

    /// The proxy's admin endpoint.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The pods and the node.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A file or directory of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// IPv4 and IPv6 address of a pod.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn addresses(&self, pod: &str) -> [IpAddr; 2] {
        let pod = self.world.pod(pod).unwrap();
        [pod.address_v4().into(), pod.address_v6().into()]
    }

    /// The pod's addresses with `port`.
    pub fn sockets(&self, pod: &str, port: u16) -> [SocketAddr; 2] {
        self.addresses(pod).map(|ip| SocketAddr::new(ip, port))
    }

    /// The node's addresses.
    pub fn node_addresses(&self) -> [IpAddr; 2] {
        [self.world.node_v4().into(), self.world.node_v6().into()]
    }

    /// A server in the pod that runs `script` for each connection.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn serve(
        &self,
        pod: &str,
        address: SocketAddr,
        script: impl Fn(&mut Peer, usize) + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::on(self.world.run_in(pod, || TcpListener::bind(address)).unwrap().unwrap(), script)
    }

    /// Connects from the pod.
    pub fn connect(&self, pod: &str, to: SocketAddr) -> Peer {
        self.world.run_in(pod, || Peer::connect(to)).unwrap()
    }

    /// Connects from the pod, sends `bytes`, and asserts that nothing but a reset comes.
    pub fn expect_reset(&self, pod: &str, to: SocketAddr, bytes: &str) {
        self.world.run_in(pod, || Peer::expect_reset_at(to, bytes)).unwrap();
    }

    /// Starts a program in the pod.
    pub fn start_in<A: AsRef<OsStr>>(&self, pod: &str, program: impl AsRef<OsStr>, arguments: &[A]) -> Process {
        let mut command = self.world.command_in(pod, program);
        command.args(arguments);
        Process::start(self.world.directory(), pod, command)
    }

    /// Runs a program in the pod to its end; returns its status and what it wrote.
    pub fn run_in<A: AsRef<OsStr>>(
        &self,
        pod: &str,
        program: impl AsRef<OsStr>,
        arguments: &[A],
    ) -> (ExitStatus, String) {
        let mut process = self.start_in(pod, program, arguments);
        let status = process.wait();
        (status, process.output())
    }

    /// Runs a command on the node; returns what it wrote to standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run_on_node(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.world.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A listener where the rules steer to, in both families, with these further keys.
pub fn listener(keys: &str) -> String {
    format!(
        "- {{ name: steered, address: \"127.0.0.1:{LISTENER_PORT}\", \
         additional_addresses: [\"[::1]:{LISTENER_PORT}\"], transparent: true, {keys} }}"
    )
}
