//! The process log: events on standard error, as text for people or JSON lines for collectors.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::ValueEnum;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

/// Why the log cannot start or change.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter.
    #[error(
        "\"{filter}\" is no log filter ({reason}); write off, error, warn, info, debug, trace, or such as \
         info,tollgate::http=debug"
    )]
    Filter {
        /// As given.
        filter: String,
        /// What the parser objects to.
        reason: String,
    },
    /// The file cannot be opened.
    #[error("cannot open {} for appending: {error}; check that its directory exists and is writable", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// What the system said. Part of the text, so not a source, which would be printed again.
        error: io::Error,
    },
    /// The process logs already, or no more.
    #[error("the log cannot be set: {0}")]
    Subscriber(String),
}

/// Form of a log event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Changes the level of the running process.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Sets a level (`info`) or a filter (`info,tollgate::http=debug`).
    ///
    /// # Errors
    /// The filter is not understood; the message says what is.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.0.reload(parse(filter)?).map_err(|error| LogError::Subscriber(error.to_string()))
    }
}

/// Begins to log events that pass `filter` to standard error, or appends them to `file`; once per process.
///
/// # Errors
/// The filter is not understood, the file cannot be opened, or the process logs already.
pub fn start(filter: &str, format: LogFormat, file: Option<&Path>) -> Result<LogLevel, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let writer = match file {
        None => BoxMakeWriter::new(io::stderr),
        Some(path) => {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            let opened = opened.map_err(|error| LogError::File { path: path.to_owned(), error })?;
            BoxMakeWriter::new(Mutex::new(opened))
        }
    };
    let events = fmt::layer().with_writer(writer);
    let events = match format {
        LogFormat::Text => events.with_ansi(false).boxed(),
        LogFormat::Json => events.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(events)
        .try_init()
        .map_err(|error| LogError::Subscriber(error.to_string()))?;
    Ok(LogLevel(handle))
}

/// Whether `filter` is understood.
///
/// # Errors
/// It is not.
pub fn check(filter: &str) -> Result<(), LogError> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    // The parser takes any word for the name of a module, and would silence everything else.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| word.trim().eq_ignore_ascii_case(level));
    let is_typo = |part: &&str| match part.rsplit_once('=') {
        Some((_, level)) if !part.contains('[') => !is_level(level),
        _ => !part.contains(['=', ':', '[']) && !is_level(part),
    };
    if let Some(word) = filter.split(',').find(is_typo) {
        return Err(LogError::Filter { filter: filter.to_owned(), reason: format!("\"{word}\" is no level") });
    }
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LogError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused() {
        for filter in ["verbose", "inf", "info,debgu", "foo=bar=baz", "tollgate=", "tollgate=loud"] {
            assert!(parse(filter).is_err(), "{filter}");
        }
        for filter in ["info", "OFF", "info,tollgate::http=debug", "tollgate::http", "warn,[flow]=trace"] {
            assert!(parse(filter).is_ok(), "{filter}");
        }
    }
}
