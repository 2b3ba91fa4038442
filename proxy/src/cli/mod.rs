//! The command line: one file per command. Commands that need no running proxy decide on values and print; the others
//! ask the admin endpoint of one.
//!
//! Exit codes are the same everywhere: see [`Exit`]. An error is one line on standard error that begins with
//! `tollgate: error: ` and names what is wrong, where, and what to do.

mod admin_client;
mod as_envoy;
mod check;
mod demo;
mod explain;
mod flows;
mod run;
mod status;
mod tenants;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};

use crate::control::directory::Directory;

/// What a command comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing to object to; allowed.
    Fine = 0,
    /// Findings; denied.
    Findings = 1,
    /// The input is wrong: arguments, configuration, policy.
    BadInput = 2,
    /// No answer could be had, such as from a proxy that does not run.
    CannotTell = 3,
}

/// Why a command failed: how it exits, and one line per reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// Exits 2.
    pub fn bad_input(reason: impl std::fmt::Display) -> Self {
        Self { exit: Exit::BadInput, message: reason.to_string() }
    }

    /// Exits 3.
    pub fn cannot_tell(reason: impl std::fmt::Display) -> Self {
        Self { exit: Exit::CannotTell, message: reason.to_string() }
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Where the admin endpoint of a running proxy is.
#[derive(Debug, clap::Args)]
struct AdminAddress {
    /// Admin endpoint of the proxy: unix:PATH or IP:PORT
    #[arg(long, value_name = "ADDRESS", default_value_t = crate::config::default_admin())]
    admin: crate::config::ListenAddress,
}

const EXIT_CODES: &str = "Exit codes: 0 fine or allowed, 1 findings or denied, 2 bad input, 3 cannot tell.";

/// A node-local L7 policy proxy: enforces Cilium network policies on redirected connections, and says why.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    AsEnvoy(as_envoy::Args),
    #[command(subcommand)]
    Policy(Policy),
    Status(status::Args),
    Flows(flows::Args),
    Tenants(tenants::Args),
    ControlPlane(crate::control_plane::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    DemoHelloworld(demo::HelloworldArgs),
    /// Print the version
    ///
    /// Exit code: 0.
    #[command(after_help = "Example:\n  tollgate version")]
    Version,
}

/// Check and ask policies before they are deployed
#[derive(Debug, Subcommand)]
enum Policy {
    Check(check::Args),
    Explain(explain::Args),
}

/// Runs the command that the process arguments name.
pub fn main() -> ExitCode {
    if let Some(arguments) = as_envoy::arguments() {
        return finish(as_envoy::main(arguments));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = match cli.command {
        Command::Run(args) => run::run(args),
        // `as_envoy::arguments` has taken it.
        Command::AsEnvoy(_) => as_envoy::main(Vec::new()),
        Command::Policy(Policy::Check(args)) => check::run(&args),
        Command::Policy(Policy::Explain(args)) => explain::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Tenants(args) => tenants::run(&args),
        Command::ControlPlane(args) => serve_policies(args),
        Command::Demo(args) => demo::run(&args),
        Command::DemoHelloworld(args) => demo::serve_helloworld(&args),
        Command::Version => print(&format!("tollgate {}\n", env!("CARGO_PKG_VERSION"))).map(|_| Exit::Fine),
    };
    finish(outcome)
}

/// Says why a command failed, if it did.
fn finish(outcome: Result<Exit, Failure>) -> ExitCode {
    let exit = outcome.unwrap_or_else(|failure| {
        for line in failure.message.lines() {
            complain(line);
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}

fn serve_policies(args: crate::control_plane::Args) -> Result<Exit, Failure> {
    let served = asynchronously(async {
        let directory =
            Directory::open(&args.policies).map_err(|error| Failure::bad_input(format_args!("--policies: {error}")))?;
        Ok(crate::control_plane::run(directory, args).await)
    })??;
    served.map_err(|error| Failure::cannot_tell(format_args!("{error:#}")))?;
    Ok(Exit::Fine)
}

/// Help and version go to standard output and are fine; anything else is an error in our own form.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that closed the pipe has seen enough.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain("no command is named; see --help");
    } else {
        complain(&one_line(&error.render().to_string()));
    }
    ExitCode::from(Exit::BadInput as u8)
}

/// Clap's message and its tips on one line, without the usage that `--help` shows.
fn one_line(rendered: &str) -> String {
    let lines = rendered.trim_start_matches("error: ").lines().map(str::trim);
    let said: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with("Usage: ") && !line.starts_with("For more information"))
        .collect();
    format!("{}; see --help", said.join(" ").replace(" tip: ", "; tip: "))
}

fn complain(message: &str) {
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "tollgate: error: {message}");
}

/// Writes to standard output; `false` when the reader closed the pipe, who has seen enough.
fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::cannot_tell(format_args!("cannot write to standard output: {error}"))),
    }
}

/// A JSON document with a final newline.
fn print_json(value: &serde_json::Value) -> Result<bool, Failure> {
    print(&format!("{value:#}\n"))
}

/// Waits for a future on a runtime of its own, for commands that are one exchange with a proxy.
fn asynchronously<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::cannot_tell(format_args!("cannot start a runtime: {error}")))?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
