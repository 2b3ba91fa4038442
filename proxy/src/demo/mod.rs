//! `tollgate demo`: the whole story on this machine, in namespaces of its own.
//!
//! Real parts only: pods as network namespaces, the operator's redirect rules, an HTTP server, `tollgate control-plane`
//! and `tollgate run` as processes. The story drives them from outside, as users do.

mod client;
pub mod helloworld;
pub mod namespaces;
mod program;
mod records;
mod report;
mod stage;
mod story;
pub mod world;

use std::io::{self, Write};

pub use report::Form;
pub use stage::DemoError;

use report::Report;
use stage::Stage;
use story::Story;
use world::World;

/// How the demo is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How steps are printed.
    pub form: Form,
    /// Leave everything running after the last step, until the process is ended.
    pub keep: bool,
}

/// Plays the demo and prints each step to `out`; returns whether all went as expected. Call it inside
/// [`namespaces::enter_private_namespaces`].
///
/// # Errors
/// The demo cannot be played at all, or `out` cannot be written. What its programs said is on standard error then.
pub fn play(out: impl Write, options: Options) -> Result<bool, DemoError> {
    let mut report = Report::new(out, options.form);
    let world = World::new()?;
    let directory = world.directory().to_owned();
    let mut stage = Stage::build(world, story::FIRST).inspect_err(|_| complain(&program::last_words(&directory)))?;
    let fine = tell(&mut stage, &mut report, options.keep)
        .map_err(|error| DemoError::Io { step: "print".to_owned(), error })?;
    if !fine {
        complain(&stage.last_words());
    }
    if options.keep {
        stage.restart_control_plane()?;
        complain(&story::how_to_look_around(&stage));
        loop {
            // The outer process takes this one with it when it is interrupted.
            std::thread::park();
        }
    }
    Ok(fine)
}

fn tell(stage: &mut Stage, report: &mut Report<impl Write>, keep: bool) -> io::Result<bool> {
    Story::new(stage, report).tell()?;
    let fine = report.end()?;
    if !keep {
        report.say("To leave it running and look around in it: tollgate demo --keep\n")?;
    }
    Ok(fine)
}

fn complain(text: &str) {
    // Nobody is left to be told when standard error is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}
