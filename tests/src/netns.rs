//! Runs a test inside private namespaces.

use std::env;

use tollgate::demo::namespaces::{NamespaceError, is_inside, private_command};

/// Whether the caller is inside private namespaces. If not, runs the test function `name` of this binary inside, as a
/// process of its own, and returns false when it has passed:
///
/// ```no_run
/// # use tollgate_tests::netns::inside;
/// #[test]
/// fn steers() {
///     if !inside("steers") {
///         return;
///     }
///     // build a `World` here
/// }
/// ```
///
/// # Panics
/// If the test fails inside. If this machine forbids namespaces: in CI (variable `CI` set); elsewhere it prints
/// `SKIPPED: why`.
pub fn inside(name: &str) -> bool {
    if is_inside() {
        return true;
    }
    let program = env::current_exe();
    let command = program
        .map_err(|error| NamespaceError::Run { program: "this test".to_owned(), error })
        .and_then(private_command);
    let mut command = match command {
        Ok(command) => command,
        Err(error) => {
            assert!(env::var_os("CI").is_none(), "{name} cannot run: {error}");
            eprintln!("SKIPPED: {name}: {error}");
            return false;
        }
    };
    let output = command.args(["--exact", name, "--nocapture"]).output();
    #[expect(clippy::expect_used, reason = "the tool was found a moment ago; a test fails by panicking")]
    let output = output.expect("setpriv runs");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    // A name that matches no test passes too, so success alone says nothing.
    assert!(output.status.success() && text.contains("1 passed"), "{name}, inside its namespaces: {text}");
    eprint!("{text}");
    false
}
