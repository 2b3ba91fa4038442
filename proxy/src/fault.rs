//! Defects on demand, for tests of what a panic does to others: in builds for debugging, and in those with the feature `fault-injection`. A
//! release has nothing of it but calls of empty functions. It needs the environment, too: [`PANIC_PATH`] names a path, and whatever
//! asks for it ends in a panic, as does who is to write a body to an HTTP/2 peer that begins as [`PANIC_BODY`] says.

/// The variable that names the path.
#[cfg(any(debug_assertions, feature = "fault-injection"))]
const PANIC_PATH: &str = "TOLLGATE_FAULT_PANIC_PATH";

/// The variable that says how the body begins.
#[cfg(any(debug_assertions, feature = "fault-injection"))]
const PANIC_BODY: &str = "TOLLGATE_FAULT_PANIC_BODY";

/// Panics if that is what a request for this canonical path is to do. In the middle of what it holds, as a defect would.
#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub(crate) fn panic_for(path: &[u8]) {
    assert!(asked().is_none_or(|asked| asked != path), "{PANIC_PATH} asks for a panic here");
}

/// Panics if that is what writing this part of a body is to do: under the lock of `h2`, which writes it.
#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub(crate) fn panic_for_body(body: &[u8]) {
    static BEGINS: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var(PANIC_BODY).ok());
    assert!(
        !BEGINS.as_deref().is_some_and(|begins| body.starts_with(begins.as_bytes())),
        "{PANIC_BODY} asks for a panic here"
    );
}

/// Says at the start that this is no process for others to use.
#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub(crate) fn announce() {
    if let Some(path) = asked() {
        let path = String::from_utf8_lossy(path);
        tracing::warn!(%path, "requests for this path panic: a process for tests ({PANIC_PATH})");
    }
}

#[cfg(any(debug_assertions, feature = "fault-injection"))]
fn asked() -> Option<&'static [u8]> {
    static PATH: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var(PANIC_PATH).ok());
    PATH.as_deref().map(str::as_bytes)
}

/// Nothing.
#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub(crate) const fn panic_for(_path: &[u8]) {}

/// Nothing.
#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub(crate) const fn announce() {}

/// Nothing.
#[cfg(not(any(debug_assertions, feature = "fault-injection")))]
pub(crate) const fn panic_for_body(_body: &[u8]) {}
