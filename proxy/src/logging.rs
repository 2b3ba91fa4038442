//! The process log: events on standard error, as text for people or JSON lines for collectors.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::ValueEnum;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::visible::visible;

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
    let events = match format {
        LogFormat::Text => fmt::layer().with_writer(OneLineEach(writer)).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().with_writer(writer).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(events)
        .try_init()
        .map_err(|error| LogError::Subscriber(error.to_string()))?;
    Ok(LogLevel(handle))
}

/// Makes writers of whatever comes at once, which is an event, as a single line: names and messages of others are in it.
struct OneLineEach<M>(M);

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for OneLineEach<M> {
    type Writer = OneLine<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }
}

struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = visible(text.strip_suffix('\n').unwrap_or(&text)).into_owned() + "\n";
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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

    /// Whoever names a policy cannot write events of the log.
    #[test]
    fn an_event_is_a_line() {
        let path = tempfile::tempdir().unwrap().keep().join("log");
        let writer = OneLineEach(Mutex::new(std::fs::File::create(&path).unwrap()));
        let subscriber = Registry::default().with(fmt::layer().with_writer(writer).with_ansi(false));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("tenant set aside: resource {}: a reason", "x\n2026-01-01 ERROR all is lost\u{202e}");
            tracing::warn!(name = %"y\nz", "another");
        });
        let log = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(lines[0].ends_with("resource x\\n2026-01-01 ERROR all is lost\\u{202e}: a reason"), "{log}");
        assert!(lines[1].ends_with("another name=y\\nz"), "{log}");
    }

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
