//! A node with its pods, made of network namespaces: what the demo and the end-to-end tests run in.
//!
//! ```text
//!  sleep ──veth──┐
//!  other ──veth──┤ node (the current network namespace; forwards, and runs Tollgate)
//!  helloworld ───┘
//! ```
//! Each pod has one IPv4 and one IPv6 address on `eth0` and reaches everything through the node. Build it only inside
//! [`super::namespaces`]: it changes the routing of the namespace that it is built in.

use std::{
    ffi::OsStr,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::namespaces::{forget_inside, is_inside};

/// The redirect rules as an operator installs them.
const REDIRECT: [(&str, &str); 2] = [
    ("redirect", include_str!("../../../deploy/redirect/redirect")),
    ("tproxy.nft", include_str!("../../../deploy/redirect/tproxy.nft")),
];

/// The node's own addresses.
const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

/// Why the world could not be built or changed.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The caller is not in private namespaces.
    #[error("the demo's network may only be built in private namespaces, and this process is not inside any")]
    NotPrivate,
    /// No pod of this name.
    #[error("there is no pod {name}")]
    NoSuchPod {
        /// The name asked for.
        name: String,
    },
    /// A step failed; the text is what the tools wrote to stderr.
    #[error("cannot {step}: {stderr}")]
    Step {
        /// What was being done.
        step: String,
        /// What the tools said.
        stderr: String,
    },
    /// A file could not be written or a program could not be started.
    #[error("cannot {step}: {error}")]
    Io {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// A pod: a network namespace with an address of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Pod {
    /// A pod that [`World::with_pods`] will create. The name (at most 12 characters: it is part of an interface's name)
    /// is also the name of its network namespace.
    pub fn new(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self { name: name.to_owned(), v4, v6 }
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pod's IPv4 address.
    pub const fn address_v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// The pod's IPv6 address.
    pub const fn address_v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Creates the namespace, the veth pair and the routes, on both sides. IPv6 addresses are usable at once (`nodad`),
    /// and the node is `fe80::1` on each link, because a neighbour answers only for addresses of that very link.
    fn script(&self) -> String {
        let Self { name, v4, v6 } = self;
        format!(
            "ip netns add {name}
            ip link add veth{name} type veth peer name eth0 netns {name}
            ip link set veth{name} up
            ip -6 address add fe80::1/64 dev veth{name} nodad
            ip -n {name} link set lo up
            ip -n {name} link set eth0 up
            ip -n {name} address add {v4}/32 dev eth0
            ip -n {name} -6 address add {v6}/128 dev eth0 nodad
            ip route add {v4}/32 dev veth{name}
            ip -6 route add {v6}/128 dev veth{name}
            ip -n {name} route add {NODE_V4}/32 dev eth0
            ip -n {name} route add default via {NODE_V4}
            ip -n {name} -6 route add default via fe80::1 dev eth0"
        )
    }
}

/// A node and its pods. Dropping it removes the pods and the redirect rules from the current network namespace.
#[derive(Debug)]
pub struct World {
    pods: Vec<Pod>,
    directory: PathBuf,
}

impl World {
    /// Builds the demo's pods: `sleep` and `other` as clients, `helloworld` as the server.
    pub fn new() -> Result<Self, WorldError> {
        let v6 = |subnet, host| Ipv6Addr::new(0xfd00, 0x10, 0x244, subnet, 0, 0, 0, host);
        Self::with_pods(vec![
            Pod::new("sleep", Ipv4Addr::new(10, 244, 1, 17), v6(1, 0x17)),
            Pod::new("other", Ipv4Addr::new(10, 244, 1, 99), v6(1, 0x99)),
            Pod::new("helloworld", Ipv4Addr::new(10, 244, 2, 232), v6(2, 0x232)),
        ])
    }

    /// Builds a node with these pods. Must run inside private namespaces; see [`super::namespaces`].
    pub fn with_pods(pods: Vec<Pod>) -> Result<Self, WorldError> {
        if !is_inside() {
            return Err(WorldError::NotPrivate);
        }
        let world = Self { pods, directory: PathBuf::from("/run/tollgate") };
        world.run_script(
            "set up the node",
            &format!(
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
                ip address replace {NODE_V4}/32 dev lo
                ip -6 address replace {NODE_V6}/128 dev lo nodad"
            ),
        )?;
        for pod in &world.pods {
            world.run_script(&format!("create the pod {}", pod.name), &pod.script())?;
        }
        for (name, content) in REDIRECT {
            let path = world.directory.join(name);
            fs::write(&path, content)
                .map_err(|error| WorldError::Io { step: format!("write {}", path.display()), error })?;
        }
        Ok(world)
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Result<&Pod, WorldError> {
        self.pods.iter().find(|pod| pod.name == name).ok_or_else(|| WorldError::NoSuchPod { name: name.to_owned() })
    }

    /// All pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The node's IPv4 address: what a pod sees as the source of a connection that Tollgate opened in its own name.
    pub const fn node_v4(&self) -> Ipv4Addr {
        NODE_V4
    }

    /// The node's IPv6 address.
    pub const fn node_v6(&self) -> Ipv6Addr {
        NODE_V6
    }

    /// A directory for sockets and files, in memory; it vanishes with the namespaces.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that runs `program` on the node.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        forget_inside(&mut command);
        command
    }

    /// A command that runs `program` in the network namespace of the pod `pod`. Only the network is the
    /// pod's: files and processes are the node's. The process keeps its number, so `Child::id` is the
    /// program's own.
    pub fn command_in(&self, pod: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("nsenter");
        command.arg(format!("--net=/run/netns/{pod}")).arg("--").arg(program);
        command
    }

    /// Runs `work` on a thread of its own in the network namespace of the pod `pod` and returns its result.
    /// Sockets that it opens stay the pod's, wherever they are used afterwards.
    pub fn run_in<T: Send>(&self, pod: &str, work: impl FnOnce() -> T + Send) -> Result<T, WorldError> {
        let path = format!("/run/netns/{pod}");
        let fail = |error| WorldError::Io { step: format!("enter the network namespace of the pod {pod}"), error };
        let namespace = fs::File::open(path).map_err(fail)?;
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                io::Result::Ok(work())
            });
            thread.join()
        });
        // A panic of `work` goes on in the caller, as if it had run there.
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(fail)
    }

    /// Steers TCP connections to `ports`, of any address, into a transparent listener on `listener_port` of the node.
    pub fn redirect_up(&self, ports: &[u16], listener_port: u16) -> Result<(), WorldError> {
        let listener_port = listener_port.to_string();
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let mut arguments = vec!["up", "--listener-port", &listener_port];
        arguments.extend(ports.iter().flat_map(|port| ["--port", port]));
        self.redirect(&arguments).map(drop)
    }

    /// Stops steering.
    pub fn redirect_down(&self) -> Result<(), WorldError> {
        self.redirect(&["down"]).map(drop)
    }

    /// Runs the operator's `redirect` script on the node with these arguments; returns what it printed.
    pub fn redirect(&self, arguments: &[&str]) -> Result<String, WorldError> {
        let mut command = self.command("sh");
        command.arg(self.directory.join("redirect")).args(arguments);
        run(&format!("redirect {}", arguments.join(" ")), &mut command)
    }

    fn run_script(&self, step: &str, script: &str) -> Result<(), WorldError> {
        run(step, self.command("sh").args(["-ec", script])).map(drop)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Best effort: what fails here goes away with the namespace.
        let _ = self.redirect_down();
        for pod in &self.pods {
            let _ = self.run_script("remove a pod", &format!("ip link del veth{0}; ip netns del {0}", pod.name));
        }
    }
}

/// Runs `command` to its end; returns its stdout, or its stderr as the error.
fn run(step: &str, command: &mut Command) -> Result<String, WorldError> {
    let output = command.output().map_err(|error| WorldError::Io { step: step.to_owned(), error })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let stderr = if stderr.is_empty() { format!("{} without a message", output.status) } else { stderr };
    Err(WorldError::Step { step: step.to_owned(), stderr })
}
