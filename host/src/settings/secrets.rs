//! The sources of the secrets that handlers may read.

use super::password::without_line_end;
use super::set;
use crate::capability::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) const VARIABLE: &str = "GATEWAY_SECRET_";

#[derive(Debug, Clone, PartialEq, Default)]
pub struct SecretsSettings {
    /// The directory with one file per secret.
    pub dir: Option<PathBuf>,
    /// The variables `GATEWAY_SECRET_<NAME>`, by their full names.
    pub variables: BTreeMap<String, Secret>,
}

impl SecretsSettings {
    /// The name of the variable for a secret, in upper case and without dashes,
    /// which shells don't allow.
    pub fn variable(name: &str) -> String {
        format!("{VARIABLE}{}", name.replace('-', "_").to_ascii_uppercase())
    }
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawSecrets {
    /// Directory with the secrets of handlers
    #[arg(
        long,
        env = "GATEWAY_SECRETS_DIR",
        value_name = "DIR",
        help = "Directory with the secrets of handlers, one file per secret; GATEWAY_SECRET_<NAME> variables add to it"
    )]
    pub secrets_dir: Option<String>,
}

/// The table `[secrets]` of the settings file. It never contains values.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileSecrets {
    dir: Option<String>,
}

impl RawSecrets {
    pub(super) fn or_file(self, file: FileSecrets) -> Self {
        Self { secrets_dir: set(&self.secrets_dir).or(file.dir) }
    }

    pub fn check(&self, errors: &mut Vec<String>) -> SecretsSettings {
        let dir = set(&self.secrets_dir).map(PathBuf::from);
        if let Some(dir) = dir.as_deref().filter(|dir| !dir.is_dir()) {
            errors.push(format!("secrets.dir: {} is not a directory", dir.display()));
        }
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables = std::env::vars_os().filter_map(text);
        let is_secret =
            |(name, value): &(String, String)| name.starts_with(VARIABLE) && !without_line_end(value).is_empty();
        let variables = variables
            .filter(is_secret)
            .map(|(name, value)| (name, Secret::new(without_line_end(&value).to_owned())))
            .collect();
        SecretsSettings { dir, variables }
    }
}
