//! Errors of reading the configuration. Each names the file, the key and the remedy.

use std::path::{Path, PathBuf};

use super::trusted_path::UntrustedPathError;

/// An error in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {}: {cause}", file.display())]
    Unreadable {
        /// The path as given, or the default one.
        file: PathBuf,
        /// The error of the system.
        cause: std::io::Error,
    },
    /// A file that another user could change, for a privileged process.
    #[error("cannot use {}: {cause}", file.display())]
    Untrusted {
        /// The path as given; `cause` names the component.
        file: PathBuf,
        /// The component of the path that is not accepted, and why.
        cause: UntrustedPathError,
    },
    /// A file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("in the configuration {}: {cause}", file.display())]
    Malformed {
        /// The path as given, or the default one.
        file: PathBuf,
        /// Line, column, key, and what was expected.
        cause: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("in {location}: {key} = {value}: {remedy}")]
    InvalidValue {
        /// The files, or "the flags".
        location: String,
        /// With its table: "sampling.rate_hz".
        key: String,
        /// As text, for the message.
        value: String,
        /// Which values are accepted.
        remedy: String,
    },
}

impl ConfigError {
    pub(super) fn from_path_error(file: &Path, cause: UntrustedPathError) -> Self {
        let file = file.to_owned();
        match cause {
            UntrustedPathError::Io(cause) => ConfigError::Unreadable { file, cause },
            cause => ConfigError::Untrusted { file, cause },
        }
    }

    /// Whether both errors reject the same value of the same key.
    pub(super) fn is_same_value(&self, other: &Self) -> bool {
        match (self, other) {
            (
                ConfigError::InvalidValue { key, value, .. },
                ConfigError::InvalidValue { key: other_key, value: other_value, .. },
            ) => (key, value) == (other_key, other_value),
            _ => false,
        }
    }
}
