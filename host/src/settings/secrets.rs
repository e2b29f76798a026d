//! Where the secrets of handlers are.

use super::set;
use crate::capability::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) const VARIABLE: &str = "GATEWAY_SECRET_";

#[derive(Debug, Clone, PartialEq, Default)]
pub struct SecretsSettings {
    /// One file for each secret.
    pub dir: Option<PathBuf>,
    /// `GATEWAY_SECRET_<NAME>` of the environment, by their whole names.
    pub variables: BTreeMap<String, Secret>,
}

impl SecretsSettings {
    /// The variable that holds a secret. A shell's variables have no dashes,
    /// and mostly no small letters.
    pub fn variable(name: &str) -> String {
        format!("{VARIABLE}{}", name.replace('-', "_").to_ascii_uppercase())
    }
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct TypedSecrets {
    /// The folder with the secrets of handlers
    #[arg(
        long,
        env = "GATEWAY_SECRETS_DIR",
        value_name = "DIR",
        help = "The folder with the secrets of handlers, one file each; variables GATEWAY_SECRET_<NAME> are others"
    )]
    pub secrets_dir: Option<String>,
}

/// The table `[secrets]` of the file. It says where they are, never what.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileSecrets {
    dir: Option<String>,
}

impl TypedSecrets {
    pub(super) fn or_file(self, file: FileSecrets) -> Self {
        Self { secrets_dir: set(&self.secrets_dir).or(file.dir) }
    }

    pub fn check(&self, faults: &mut Vec<String>) -> SecretsSettings {
        let dir = set(&self.secrets_dir).map(PathBuf::from);
        if let Some(dir) = dir.as_deref().filter(|dir| !dir.is_dir()) {
            faults.push(format!("secrets.dir: {} is no folder", dir.display()));
        }
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables = std::env::vars_os().filter_map(text);
        let is_secret = |(name, value): &(String, String)| name.starts_with(VARIABLE) && !value.is_empty();
        let variables = variables.filter(is_secret).map(|(name, value)| (name, Secret::new(value))).collect();
        SecretsSettings { dir, variables }
    }
}
