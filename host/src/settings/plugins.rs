//! The directory of the plugins, the compilation cache, and the policy for
//! files that others could have written.

use super::{SecretsSettings, parse, set};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The policy for files of plugins that users other than the worker's may
/// write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePermissionPolicy {
    /// Loads the file with a warning.
    Warn,
    /// Rejects the file.
    Enforce,
    /// Loads the file without a check.
    Ignore,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawPlugins {
    /// Directory of the compilation cache [default: $CACHE_DIRECTORY, or gateway-worker in the user's cache directory]
    #[arg(long, env = "GATEWAY_PLUGINS_CACHE", value_name = "DIR")]
    pub plugins_cache: Option<String>,
    /// Policy for plugin files that other users may write: warn, enforce or ignore [default: warn]
    #[arg(long, env = "GATEWAY_PLUGINS_FILE_PERMISSIONS", value_name = "POLICY")]
    pub plugins_file_permissions: Option<String>,
}

/// The settings that decide whether a plugin is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginSettings {
    pub dir: PathBuf,
    pub cache: Option<PathBuf>,
    pub file_permissions: FilePermissionPolicy,
    pub secrets: SecretsSettings,
}

impl PluginSettings {
    /// The worker's own directories, which no grant may include.
    pub fn protected_dirs(&self) -> Vec<PathBuf> {
        protected_dirs(&self.dir, self.cache.as_deref(), self.secrets.dir.as_deref())
    }
}

/// The cache directory also contains the stored versions of plugins.
pub(super) fn protected_dirs(plugins: &Path, cache: Option<&Path>, secrets: Option<&Path>) -> Vec<PathBuf> {
    [Some(plugins), cache, secrets].into_iter().flatten().map(Path::to_owned).collect()
}

/// `plugins = "DIR"`, or a table with `dir` and the other settings.
#[derive(Debug, Default)]
pub(super) struct FilePlugins {
    pub(super) dir: Option<String>,
    cache: Option<String>,
    file_permissions: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    dir: Option<String>,
    cache: Option<String>,
    file_permissions: Option<String>,
}

impl<'de> Deserialize<'de> for FilePlugins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DirOrTable;

        impl<'de> Visitor<'de> for DirOrTable {
            type Value = FilePlugins;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a directory, or a table with dir, cache, file_permissions")
            }

            fn visit_str<E>(self, dir: &str) -> Result<FilePlugins, E> {
                Ok(FilePlugins { dir: Some(dir.to_owned()), ..FilePlugins::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FilePlugins, A::Error> {
                let Table { dir, cache, file_permissions } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(FilePlugins { dir, cache, file_permissions })
            }
        }

        deserializer.deserialize_any(DirOrTable)
    }
}

impl RawPlugins {
    pub(super) fn or_file(self, file: FilePlugins) -> Self {
        Self {
            plugins_cache: set(&self.plugins_cache).or(file.cache),
            plugins_file_permissions: set(&self.plugins_file_permissions).or(file.file_permissions),
        }
    }

    /// The directory of the cache. None where it is not set and the user has no
    /// cache directory: then compiled plugins are not cached.
    pub fn cache(&self) -> Option<PathBuf> {
        set(&self.plugins_cache).map(PathBuf::from).or_else(|| default_cache(|name| std::env::var_os(name)))
    }

    pub fn file_permissions(&self, errors: &mut Vec<String>) -> FilePermissionPolicy {
        let allowed = "warn, enforce or ignore";
        parse("plugins.file_permissions", &self.plugins_file_permissions, FilePermissionPolicy::Warn, allowed, errors)
    }
}

impl FromStr for FilePermissionPolicy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "warn" => Ok(Self::Warn),
            "enforce" => Ok(Self::Enforce),
            "ignore" => Ok(Self::Ignore),
            _ => Err(()),
        }
    }
}

/// The directory that systemd created for the service, or else the user's.
fn default_cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // systemd and the XDG specification both say that relative paths are invalid.
    let absolute = |path: &Path| (path.is_absolute() && path.parent().is_some()).then(|| path.to_owned());
    let directory = |name: &str| absolute(Path::new(&variable(name)?));
    // A unit may have several cache directories: the first is used.
    let from_systemd = || std::env::split_paths(&variable("CACHE_DIRECTORY")?).find_map(|path| absolute(&path));
    from_systemd()
        .or_else(|| directory("XDG_CACHE_HOME").map(|path| path.join("gateway-worker")))
        .or_else(|| directory("HOME").map(|path| path.join(".cache/gateway-worker")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_in_the_directory_of_systemd_or_else_the_users() {
        let with = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            default_cache(found)
        };
        let path = |text: &str| Some(PathBuf::from(text));
        let (home, xdg) = (("HOME", "/home/a"), ("XDG_CACHE_HOME", "/xdg"));
        assert_eq!(with(&[home]), path("/home/a/.cache/gateway-worker"));
        assert_eq!(with(&[home, xdg]), path("/xdg/gateway-worker"));
        assert_eq!(with(&[home, xdg, ("CACHE_DIRECTORY", "/var/cache/gw:/var/cache/b")]), path("/var/cache/gw"));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "here"), ("CACHE_DIRECTORY", "")]), with(&[home]));
        // A user without a home directory, as in many containers.
        assert_eq!(with(&[("HOME", "/")]), None);
        assert_eq!(with(&[]), None);
    }
}
