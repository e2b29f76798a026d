//! Directories of the host that a guest may read or write: WASI preopens. The guest
//! can't leave them, not even through symbolic links.

use super::load_error::LoadError;
use crate::manifest::Grants;
use std::fs;
use std::path::{Path, PathBuf};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

/// Checks that the granted directories exist and can be read.
pub(super) fn check(grants: &Grants, name: &str) -> Result<(), LoadError> {
    for (key, directories) in [("read", &grants.read), ("write", &grants.write)] {
        for (guest, host) in directories {
            let fault = |problem: &str| {
                format!(
                    "grants.{key}: {} (for {}) {problem}; create the directory, or remove it from {name}.toml",
                    host.display(),
                    guest.display()
                )
            };
            match fs::metadata(host) {
                Ok(found) if found.is_dir() => {
                    // A mount may be absent for a while, or appear after the worker has started.
                    fs::read_dir(host)
                        .map(drop)
                        .map_err(|error| LoadError::from_io(&fault(&error.to_string()), &error))?
                }
                Ok(_) => return Err(LoadError::permanent(&fault("is not a directory"))),
                Err(error) => return Err(LoadError::from_io(&fault(&format!("can't be found: {error}")), &error)),
            }
        }
    }
    match grants.read.keys().find(|guest| grants.write.contains_key(*guest)) {
        Some(guest) => Err(LoadError::permanent(&format!(
            "{} is in grants.read and in grants.write: write access includes read access, so leave it only in grants.write of {name}.toml",
            guest.display()
        ))),
        None => Ok(()),
    }
}

/// Fails if a grant overlaps with a directory of the worker. A handler that writes
/// there could escape its sandbox, and one that reads there could see secrets that it
/// was not granted.
pub(super) fn check_separate(grants: &Grants, protected: &[PathBuf], name: &str) -> Result<(), String> {
    let protected: Vec<PathBuf> = protected.iter().filter_map(|directory| directory.canonicalize().ok()).collect();
    for (key, directories) in [("read", &grants.read), ("write", &grants.write)] {
        for host in directories.values() {
            let Ok(granted) = host.canonicalize() else { continue };
            if let Some(protected) = protected.iter().find(|own| own.starts_with(&granted) || granted.starts_with(own))
            {
                return Err(format!(
                    "grants.{key}: {} reaches into {}, which belongs to the worker; grant another directory in {name}.toml",
                    host.display(),
                    protected.display()
                ));
            }
        }
    }
    Ok(())
}

/// Opens the directories for one instance.
pub(super) fn open(wasi: &mut WasiCtxBuilder, grants: &Grants) -> Result<(), String> {
    for (directories, perms) in [(&grants.read, FsPerms::ReadOnly), (&grants.write, FsPerms::ReadWrite)] {
        for (guest, host) in directories {
            preopen(wasi, guest, host, perms)
                .map_err(|error| format!("the directory {} can't be opened: {error:#}", host.display()))?;
        }
    }
    Ok(())
}

fn preopen(wasi: &mut WasiCtxBuilder, guest: &Path, host: &Path, perms: FsPerms) -> wasmtime::Result<()> {
    wasi.preopened_dir(host, guest.to_string_lossy(), perms).map(drop)
}
