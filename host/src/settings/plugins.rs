//! Where plugins come from, what of them is kept, and how far their files are
//! trusted.

use super::{SecretsSettings, parse, set};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What to do about a file that others may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileCheck {
    /// Load it, and say so.
    Warn,
    Refuse,
    Off,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct TypedPlugins {
    /// Where compiled plugins are kept [default: $CACHE_DIRECTORY, or gateway-worker below the user's cache]
    #[arg(long, env = "GATEWAY_PLUGINS_CACHE", value_name = "DIR")]
    pub plugins_cache: Option<String>,
    /// Files that others could have written: warn, refuse or off [default: warn]
    #[arg(long, env = "GATEWAY_PLUGINS_CHECK_FILES", value_name = "HOW")]
    pub plugins_check_files: Option<String>,
}

/// What says whether a plugin would be loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginSettings {
    pub dir: PathBuf,
    pub cache: Option<PathBuf>,
    pub check_files: FileCheck,
    pub secrets: SecretsSettings,
}

impl PluginSettings {
    /// The worker's own folders: no grant reaches into them.
    pub fn own_folders(&self) -> Vec<PathBuf> {
        own_folders(&self.dir, self.cache.as_deref(), self.secrets.dir.as_deref())
    }
}

/// Versions that were live lie below the cache.
pub(super) fn own_folders(plugins: &Path, cache: Option<&Path>, secrets: Option<&Path>) -> Vec<PathBuf> {
    [Some(plugins), cache, secrets].into_iter().flatten().map(Path::to_owned).collect()
}

/// `plugins = "DIR"`, or a table of that and more.
#[derive(Debug, Default)]
pub(super) struct FilePlugins {
    pub(super) dir: Option<String>,
    cache: Option<String>,
    check_files: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    dir: Option<String>,
    cache: Option<String>,
    check_files: Option<String>,
}

impl<'de> Deserialize<'de> for FilePlugins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DirOrTable;

        impl<'de> Visitor<'de> for DirOrTable {
            type Value = FilePlugins;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a directory, or a table with dir, cache, check_files")
            }

            fn visit_str<E>(self, dir: &str) -> Result<FilePlugins, E> {
                Ok(FilePlugins { dir: Some(dir.to_owned()), ..FilePlugins::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FilePlugins, A::Error> {
                let Table { dir, cache, check_files } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(FilePlugins { dir, cache, check_files })
            }
        }

        deserializer.deserialize_any(DirOrTable)
    }
}

impl TypedPlugins {
    pub(super) fn or_file(self, file: FilePlugins) -> Self {
        Self {
            plugins_cache: set(&self.plugins_cache).or(file.cache),
            plugins_check_files: set(&self.plugins_check_files).or(file.check_files),
        }
    }

    /// The directory of the cache. None where none is named and nothing says
    /// where the user's is: then nothing is kept.
    pub fn cache(&self) -> Option<PathBuf> {
        set(&self.plugins_cache).map(PathBuf::from).or_else(|| default_cache(|name| std::env::var_os(name)))
    }

    pub fn check_files(&self, faults: &mut Vec<String>) -> FileCheck {
        let allowed = "warn, refuse or off";
        parse("plugins.check_files", &self.plugins_check_files, FileCheck::Warn, allowed, faults)
    }
}

impl FromStr for FileCheck {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "warn" => Ok(Self::Warn),
            "refuse" => Ok(Self::Refuse),
            "off" => Ok(Self::Off),
            _ => Err(()),
        }
    }
}

/// What systemd has made for the service, else the user's own.
fn default_cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // As the standards of both have it, a relative path is no path.
    let absolute = |path: &Path| (path.is_absolute() && path.parent().is_some()).then(|| path.to_owned());
    let folder = |name: &str| absolute(Path::new(&variable(name)?));
    // Of a unit that has several, the first.
    let of_systemd = || std::env::split_paths(&variable("CACHE_DIRECTORY")?).find_map(|path| absolute(&path));
    of_systemd()
        .or_else(|| folder("XDG_CACHE_HOME").map(|path| path.join("gateway-worker")))
        .or_else(|| folder("HOME").map(|path| path.join(".cache/gateway-worker")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_systemd_says_else_the_users() {
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
        // A user without a home, as in many a container.
        assert_eq!(with(&[("HOME", "/")]), None);
        assert_eq!(with(&[]), None);
    }
}
