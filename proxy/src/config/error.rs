//! What is wrong with a configuration file: every mistake, one line each.

use std::fmt;
use std::path::{Path, PathBuf};

/// One mistake. Displays as `tollgate.yaml:12:5: listeners[0].adress: unknown key; did you mean "address"?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Line and column, counted from 1; `None` when the file could not be read.
    pub place: Option<(u64, u64)>,
    /// Path of the key, such as `listeners[0].address`; empty when the mistake is about the whole file.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}

/// All mistakes of one file, in the order of their places; never empty. Displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn new(errors: Vec<ConfigError>) -> Self {
        Self(errors)
    }

    pub(super) fn one(file: &Path, place: Option<(u64, u64)>, message: String) -> Self {
        Self(vec![ConfigError { file: file.to_owned(), place, field: String::new(), message }])
    }

    /// The mistakes, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}
