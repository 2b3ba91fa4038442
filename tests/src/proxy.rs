//! A running `tollgate`, the real binary, on loopback.

use std::fs;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::Signal;
use tollgate_proto::cilium::NetworkPolicy;

use crate::admin::Admin;
use crate::control_plane::ControlPlane;
use crate::process::Process;
use crate::site::{HTTP_PORT, Site, TCP_PORT};
use crate::wait::until;

/// Parts of the configuration that tests differ in, as YAML in flow style.
#[derive(Clone, Debug)]
pub struct Options {
    /// More keys of both listeners, such as `policy_wait: 200ms, reason_header: true`.
    pub listener: String,
    /// More lines at the top, such as `max_connections: 2`.
    pub top: String,
    /// Of both listeners: `ingress`, where the site's address is the endpoint, or `egress`, where the client's is.
    pub direction: &'static str,
    /// The section `identities`.
    pub identities: String,
    /// Worker threads.
    pub workers: usize,
    /// The xDS mode.
    pub mode: &'static str,
    /// Variables of the environment besides.
    pub environment: &'static [(&'static str, &'static str)],
    /// The limit of open files, soft and hard; `None` for that of the tests.
    pub open_files: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listener: "reason_header: true".into(),
            top: String::new(),
            direction: "ingress",
            identities: "[]".into(),
            workers: 1,
            mode: "split",
            environment: &[],
            open_files: None,
        }
    }
}

/// A proxy between [`Proxy::http`] / [`Proxy::tcp`] and one upstream, with its control plane. Dropping it kills it.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    admin: Admin,
    control_socket: PathBuf,
    control: Option<ControlPlane>,
    http: SocketAddr,
    tcp: SocketAddr,
}

impl Proxy {
    /// Starts a proxy that has a policy: [`crate::policy::usual`].
    pub fn start(site: &Site, upstream: SocketAddr) -> Self {
        Self::with(site, upstream, &Options::default(), &[crate::policy::usual(site)])
    }

    /// Starts a proxy with `options`, pushes `policies`, and waits until it is ready.
    ///
    /// # Panics
    /// When it is not ready in time.
    pub fn with(site: &Site, upstream: SocketAddr, options: &Options, policies: &[NetworkPolicy]) -> Self {
        let mut proxy = Self::without_policy(site, upstream, options);
        proxy.control().push(policies);
        proxy.wait_until_ready();
        proxy
    }

    /// Waits until it says that it is ready.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_ready(&mut self) {
        self.admin.until_ready(&mut self.process);
    }

    /// Starts a proxy whose control plane says nothing yet, and waits until it listens.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn without_policy(site: &Site, upstream: SocketAddr, options: &Options) -> Self {
        let socket = site.path("xds.sock");
        let control = ControlPlane::start(socket.clone());
        let mut proxy = Self::attached(site, upstream, options, &socket);
        proxy.control = Some(control);
        proxy
    }

    /// Starts a proxy that asks whatever control plane listens on `control`, and waits until it listens itself.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn attached(site: &Site, upstream: SocketAddr, options: &Options, control: &Path) -> Self {
        let source = format!("xds: {{ address: \"unix:{}\", mode: {} }}", control.display(), options.mode);
        Self::with_source(site, upstream, options, &source, control)
    }

    /// Starts a proxy that watches `directory`, and waits until it listens.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn watching(site: &Site, upstream: SocketAddr, options: &Options, directory: &Path) -> Self {
        let source = format!("policies: {{ directory: \"{}\" }}", directory.display());
        Self::with_source(site, upstream, options, &source, directory)
    }

    fn with_source(site: &Site, upstream: SocketAddr, options: &Options, source: &str, control: &Path) -> Self {
        let admin = site.path("admin.sock");
        let (http, tcp) = (site.at(HTTP_PORT), site.at(TCP_PORT));
        let Options { listener, top, direction, identities, workers, .. } = options;
        let common = format!("direction: {direction}, transparent: false, upstream: \"{upstream}\", {listener}");
        let configuration = format!(
            "workers: {workers}\n\
             admin: {{ address: \"unix:{admin}\" }}\n\
             {source}\n\
             identities: {identities}\n\
             listeners:\n\
             - {{ name: http, address: \"{http}\", {common} }}\n\
             - {{ name: tcp, address: \"{tcp}\", {common} }}\n\
             {top}\n",
            admin = admin.display(),
        );
        Self::launch(site, &configuration, control, options)
    }

    /// Starts a proxy that takes its listeners from whatever control plane listens on `control`, and identities from nowhere.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn with_listeners_of(site: &Site, mode: &str, control: &Path) -> Self {
        let configuration = format!(
            "workers: 2\n\
             admin: {{ address: \"unix:{admin}\" }}\n\
             xds: {{ address: \"unix:{control}\", mode: {mode} }}\n\
             identities: []\n\
             listeners: xds\n",
            admin = site.path("admin.sock").display(),
            control = control.display(),
        );
        Self::launch(site, &configuration, control, &Options::default())
    }

    fn launch(site: &Site, configuration: &str, control: &Path, options: &Options) -> Self {
        let (admin, http, tcp) = (site.path("admin.sock"), site.at(HTTP_PORT), site.at(TCP_PORT));
        let file = site.path("tollgate.yaml");
        fs::write(&file, configuration).unwrap();
        let mut command = match options.open_files {
            None => Command::new(binary()),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]).arg(binary());
                shell
            }
        };
        command.args(["run", "-c"]).arg(&file).args(["--log-level", "info"]).envs(options.environment.iter().copied());
        let mut process = Process::start(&site.path(""), "tollgate", command);
        process.until("its admin socket", || UnixStream::connect(&admin).ok().map(drop));
        Self { process, admin: Admin::at(admin), control_socket: control.to_owned(), control: None, http, tcp }
    }

    /// The address of the listener whose usual policy has HTTP rules.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address of the listener whose usual policy has none.
    pub fn tcp(&self) -> SocketAddr {
        self.tcp
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The control plane.
    ///
    /// # Panics
    /// After [`Proxy::kill_control_plane`], or with a control plane of somebody else.
    pub fn control(&self) -> &ControlPlane {
        self.control.as_ref().expect("the control plane runs")
    }

    /// Pushes exactly these policies, and returns once they are in force.
    pub fn push(&self, policies: &[NetworkPolicy]) {
        self.control().push(policies);
    }

    /// Ends the control plane, and returns once the proxy has noticed.
    pub fn kill_control_plane(&mut self) {
        self.control = None;
        until("the loss of the control plane in /status", || {
            let text = self.get("/status").1;
            (!text.contains("\"connected\": true") && !text.contains("\"connected\":true")).then_some(())
        });
    }

    /// Starts a control plane anew, in the place of the one that was killed.
    pub fn restart_control_plane(&mut self) {
        self.control = Some(ControlPlane::start(self.control_socket.clone()));
    }

    /// Tells it to end, as an orchestrator does.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }
}

impl Deref for Proxy {
    type Target = Admin;

    fn deref(&self) -> &Admin {
        &self.admin
    }
}

/// The binary that cargo built with these suites.
///
/// # Panics
/// When this is no test binary of cargo's.
pub fn binary() -> PathBuf {
    // Test binaries are in `deps` next to it.
    let this = std::env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().join("tollgate-under-test")
}
