//! `tollgate run`: the proxy.

use std::io::{self, Write as _};
use std::path::PathBuf;

use super::{Exit, Failure, print};
use crate::config::Config;
use crate::logging::{self, LogFormat, LogLevel};
use crate::{app, config};

/// Run the proxy
///
/// Reads the configuration, opens the listeners and serves until SIGTERM or SIGINT, then drains.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate run --check -c deploy/examples/tollgate.yaml

Exit codes: 0 ended after a drain, or the configuration is right (--check); 2 bad input; 3 the proxy cannot start or \
failed while running.")]
pub(super) struct Args {
    /// Configuration file: Tollgate YAML, or the Envoy bootstrap that Cilium's chart writes (JSON or YAML); relative paths in it are relative to the working directory
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration: list every mistake in it, and warn of settings that have no effect beside others
    #[arg(long)]
    check: bool,
    /// What to log: off, error, warn, info, debug, trace, or a filter such as info,tollgate::http=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: String,
    /// Version that /server_info reports instead of this program's, for an agent that asks for a certain one
    #[arg(long, value_name = "TEXT")]
    reported_version: Option<String>,
    /// Form of the log on standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,
}

pub(super) fn run(args: Args) -> Result<Exit, Failure> {
    let bad_level = |error| Failure::bad_input(format_args!("--log-level: {error}"));
    logging::check(&args.log_level).map_err(bad_level)?;
    let mut config = config::load(&args.config).map_err(Failure::bad_input)?;
    config.reported_version = args.reported_version.or(config.reported_version);
    if args.check {
        for setting in config.without_effect() {
            // A standard error that is closed keeps nobody from the answer.
            let _ = writeln!(io::stderr(), "tollgate: warning: {}: no effect: {setting}", args.config.display());
        }
        print(&format!("{}: the configuration is right\n", args.config.display()))?;
        return Ok(Exit::Fine);
    }
    let log_level = logging::start(&args.log_level, args.log_format, None).map_err(bad_level)?;
    serve(config, log_level)
}

/// Runs the proxy until it is told to end.
pub(super) fn serve(config: Config, log_level: LogLevel) -> Result<Exit, Failure> {
    let set_log_level = Box::new(move |level: &str| log_level.set(level).map_err(|error| error.to_string()));
    app::run(config, set_log_level).map_err(|error| Failure::cannot_tell(format_args!("{error:#}")))?;
    Ok(Exit::Fine)
}
