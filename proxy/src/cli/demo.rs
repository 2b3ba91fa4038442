//! `tollgate demo`: the whole story on this machine.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;

use super::{Exit, Failure, Output};
use crate::demo::namespaces::{Entered, enter_private_namespaces, exit_code};
use crate::demo::{Form, Options, helloworld, play};

/// Show the main job on this machine, with nothing to prepare
///
/// Builds pods and a node out of network namespaces, starts an HTTP server, a control plane and the proxy in them, and
/// plays policies through: each step with what was expected and what came. Needs root, or a kernel that gives
/// unprivileged users namespaces. Nothing outside is touched, and nothing stays behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tollgate demo
  tollgate demo --keep

Exit codes: 0 everything came as expected; 1 something did not; 3 the demo cannot be played here, and why.")]
pub(super) struct Args {
    /// How to print it: a table, or one JSON object per step
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
    /// Leave everything running after the last step until Ctrl-C, and tell how to look around
    #[arg(long)]
    keep: bool,
}

/// The demo's HTTP server; the demo starts it.
#[derive(Debug, clap::Args)]
pub(super) struct HelloworldArgs {
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    match enter_private_namespaces().map_err(Failure::cannot_tell)? {
        Entered::Ended(status) => outcome(exit_code(status)),
        Entered::Inside => {
            let options = Options { form: form(args.output), keep: args.keep };
            match play(io::stdout().lock(), options).map_err(Failure::cannot_tell)? {
                true => Ok(Exit::Fine),
                false => Ok(Exit::Findings),
            }
        }
    }
}

pub(super) fn serve_helloworld(args: &HelloworldArgs) -> Result<Exit, Failure> {
    helloworld::serve(args.listen).map_err(|error| Failure::cannot_tell(format_args!("{error:#}")))?;
    Ok(Exit::Fine)
}

/// The inner process has printed everything; its exit code becomes ours.
fn outcome(code: u8) -> Result<Exit, Failure> {
    let exits = [Exit::Fine, Exit::Findings, Exit::BadInput, Exit::CannotTell];
    exits
        .into_iter()
        .find(|exit| *exit as u8 == code)
        .ok_or_else(|| Failure::cannot_tell(format_args!("the demo ended early with status {code}")))
}

fn form(output: Output) -> Form {
    match output {
        Output::Json => Form::Json,
        Output::Text => Form::Text {
            colour: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()),
        },
    }
}
