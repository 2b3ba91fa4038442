//! The command lines of `cilium-envoy-starter` and `cilium-envoy`, so that an image of ours can stand in for theirs
//! (`spec/cilium-agent.md` section 2.2).
//!
//! Their charts write a flag and its value as one argument (`-c /etc/x.json`), flags of the starter before a `--`, and
//! values as `@FILE`. A flag that Envoy knows never fails: those without effect are named in the log.

mod flags;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Exit, Failure, print, run};
use crate::config::{self, Config};
use crate::logging::{self, LogFormat};
use flags::{FLAGS, Flag, Meaning};

/// Names that make this binary take such a command line.
const NAMES: [&str; 3] = ["cilium-envoy-starter", "cilium-envoy", "envoy"];

const HELP: &str = "\
Run the proxy with the arguments of cilium-envoy-starter, cilium-envoy or Envoy

Usage: tollgate as-envoy [STARTER FLAGS --] -c FILE [FLAGS]

FILE is the bootstrap that Cilium's chart writes, or a Tollgate configuration. Honoured are -c, --config-yaml, -l,
--log-level, --log-format (JSON or not), --log-path, --concurrency, --drain-time-s, --mode, --service-cluster and
--service-node; the other flags of Envoy have no effect, and the log says so. --reported-version TEXT is what /server_info
tells an agent that asks for a certain version. A binary of the name cilium-envoy-starter,
cilium-envoy or envoy takes these arguments directly.

Example:
  tollgate as-envoy -- '-c bootstrap-config.json' '--base-id 0' '--log-level info' '--mode validate'

Exit codes: as for tollgate run.
";

/// Run the proxy with the arguments of cilium-envoy-starter, cilium-envoy or Envoy
///
/// See `tollgate as-envoy --help`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Args {
    /// Their arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    _arguments: Vec<String>,
}

/// The arguments to be read as Envoy's, if this process was started as it or told to be it. Bytes that are no UTF-8 are
/// replaced: a path with such bytes is then named in the error about it.
pub(super) fn arguments() -> Option<Vec<String>> {
    let mut all = std::env::args_os();
    let program = all.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut rest: Vec<String> = all.map(|argument| argument.to_string_lossy().into_owned()).collect();
    if NAMES.contains(&name) {
        return Some(rest);
    }
    (rest.first().map(String::as_str) == Some("as-envoy")).then(|| rest.split_off(1))
}

/// Runs the proxy as `arguments` say.
pub(super) fn main(arguments: Vec<String>) -> Result<Exit, Failure> {
    match read(arguments, &|path| std::fs::read_to_string(path)).map_err(Failure::bad_input)? {
        Asked::Help => print(HELP).map(|_| Exit::Fine),
        Asked::Version => print(&format!("tollgate {}\n", env!("CARGO_PKG_VERSION"))).map(|_| Exit::Fine),
        Asked::Run(asked) => start(&asked),
    }
}

fn start(asked: &Run) -> Result<Exit, Failure> {
    let mut config = match &asked.config {
        Source::File(path) => config::load(path),
        Source::Text(text) => config::parse(text, Path::new("--config-yaml")),
    }
    .map_err(Failure::bad_input)?;
    asked.adjust(&mut config);
    if asked.check {
        print("the configuration is right\n")?;
        return Ok(Exit::Fine);
    }
    let level = logging::start(&asked.log_level, asked.log_format, asked.log_path.as_deref())
        .map_err(|error| Failure::bad_input(format_args!("--log-level or --log-path: {error}")))?;
    if !asked.ignored.is_empty() {
        tracing::info!(flags = asked.ignored.join(", "), "flags of Envoy without effect");
    }
    run::serve(config, level)
}

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Help,
    Version,
    Run(Box<Run>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    config: Source,
    check: bool,
    log_level: String,
    log_format: LogFormat,
    log_path: Option<PathBuf>,
    workers: Option<usize>,
    drain: Option<Duration>,
    cluster: Option<String>,
    node: Option<String>,
    reported_version: Option<String>,
    /// Flags without effect.
    ignored: Vec<String>,
}

impl Run {
    fn adjust(&self, config: &mut Config) {
        config.workers = self.workers.unwrap_or(config.workers);
        if self.reported_version.is_some() {
            config.reported_version.clone_from(&self.reported_version);
        }
        config.drain_timeout = self.drain.unwrap_or(config.drain_timeout);
        if let Some(cluster) = &self.cluster {
            config.node.cluster.clone_from(cluster);
        }
        if let Some(node) = &self.node {
            config.node.id.clone_from(node);
        }
    }
}

/// Reads a command line; `file` reads a file that it names with `@`.
fn read(arguments: Vec<String>, file: &dyn Fn(&Path) -> std::io::Result<String>) -> Result<Asked, String> {
    let mut run = Run {
        config: Source::Text(String::new()),
        check: false,
        log_level: "info".to_owned(),
        log_format: LogFormat::Text,
        log_path: None,
        workers: None,
        drain: None,
        cluster: None,
        node: None,
        reported_version: None,
        ignored: Vec::new(),
    };
    let (starter, arguments) = match arguments.iter().position(|argument| argument == "--") {
        Some(end) => (arguments[..end].to_vec(), arguments[end + 1..].to_vec()),
        None => (Vec::new(), arguments),
    };
    // They are about capabilities, which whoever starts a container gives or not.
    run.ignored.extend(starter);
    let mut config = None;
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let argument = expand(argument, file)?;
        if argument.trim().is_empty() {
            continue;
        }
        let (name, value) = split(&argument);
        let flag = find(name)?;
        if flag.meaning == Meaning::Alone {
            match name {
                "--help" | "-h" => return Ok(Asked::Help),
                "--version" => return Ok(Asked::Version),
                _ => {}
            }
            run.ignored.push(name.to_owned());
            continue;
        }
        let value = match value {
            Some(value) => value.to_owned(),
            None => rest.next().ok_or_else(|| format!("{name} has no value; write {name} VALUE"))?,
        };
        let value = expand(value, file)?;
        match flag.meaning {
            Meaning::Ignored => run.ignored.push(format!("{name} {value}")),
            Meaning::Config if config.is_some() => {
                return Err(format!(
                    "{name} {value}: a configuration is named already; write -c or --config-yaml once"
                ));
            }
            Meaning::Config if name == "--config-yaml" => config = Some(Source::Text(value)),
            Meaning::Config => config = Some(Source::File(PathBuf::from(value))),
            _ => run.set(name, &value)?,
        }
    }
    run.config = config.ok_or("no configuration is named; write -c FILE")?;
    Ok(Asked::Run(Box::new(run)))
}

impl Run {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |most: u64| {
            let number = value.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
            number.ok_or_else(|| format!("{name} {value}: not a whole number from 1 to {most}"))
        };
        match name {
            "-l" | "--log-level" => self.log_level = level(value)?.to_owned(),
            // spdlog's patterns are not ours, but who wants JSON shall have it.
            "--log-format" if value.trim_start().starts_with('{') => self.log_format = LogFormat::Json,
            "--log-format" => self.ignored.push(name.to_owned()),
            "--log-path" => self.log_path = Some(PathBuf::from(value)),
            "--concurrency" => self.workers = Some(usize::try_from(number(1024)?).unwrap_or(1)),
            "--drain-time-s" => self.drain = Some(Duration::from_secs(number(24 * 3600)?)),
            "--reported-version" => self.reported_version = Some(value.to_owned()),
            "--service-cluster" => self.cluster = Some(value.to_owned()),
            "--service-node" => {
                config::check_node_id(value).map_err(|error| format!("{name}: {error}"))?;
                self.node = Some(value.to_owned());
            }
            "--mode" => match value {
                "serve" => {}
                "validate" | "init_only" => self.check = true,
                _ => return Err(format!("--mode {value}: write serve, validate or init_only")),
            },
            _ => self.ignored.push(format!("{name} {value}")),
        }
        Ok(())
    }
}

/// Envoy's levels in our words.
fn level(value: &str) -> Result<&'static str, String> {
    Ok(match value {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "err" | "critical" => "error",
        "off" => "off",
        _ => return Err(format!("--log-level {value}: write trace, debug, info, warning, error, critical or off")),
    })
}

/// `@FILE` is what the file holds, and `@@x` is `@x`.
fn expand(argument: String, file: &dyn Fn(&Path) -> std::io::Result<String>) -> Result<String, String> {
    match argument.strip_prefix('@') {
        None => Ok(argument),
        Some(escaped) if escaped.starts_with('@') => Ok(escaped.to_owned()),
        Some(path) => match file(Path::new(path)) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(format!(
                "{argument}: cannot read {path}: {}; name a file, or write @@ for a value that begins with @",
                config::io_reason(&error)
            )),
        },
    }
}

/// A flag and its value, where both are one argument.
fn split(argument: &str) -> (&str, Option<&str>) {
    let end = argument.find(|c: char| c.is_whitespace() || c == '=');
    match end {
        Some(end) if argument.starts_with('-') => (&argument[..end], Some(argument[end + 1..].trim())),
        _ => (argument, None),
    }
}

fn find(name: &str) -> Result<&'static Flag, String> {
    FLAGS.iter().find(|flag| flag.names.contains(&name)).ok_or_else(|| match name.starts_with('-') {
        true => format!("{name} is no flag of cilium-envoy; remove it, or see tollgate as-envoy --help"),
        false => format!("\"{name}\" is no flag; write -c FILE for a configuration, or see tollgate as-envoy --help"),
    })
}
