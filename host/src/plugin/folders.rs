//! Folders of the host that a guest may read or write. Nothing else of the
//! file system is there for it, and a link cannot lead it out of them.

use super::load_error::LoadError;
use crate::manifest::Grants;
use std::fs;
use std::path::{Path, PathBuf};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

/// What is wrong with the folders of a manifest, and how to mend it.
pub(super) fn check(grants: &Grants, name: &str) -> Result<(), LoadError> {
    for (key, folders) in [("read", &grants.read), ("write", &grants.write)] {
        for (guest, host) in folders {
            let told = |what: &str| {
                format!(
                    "grants.{key}: {} (for {}) {what}; make that folder, or take it out of {name}.toml",
                    host.display(),
                    guest.display()
                )
            };
            match fs::metadata(host) {
                Ok(found) if found.is_dir() => {
                    // What is mounted may be away for a while, or come later than we.
                    fs::read_dir(host)
                        .map(drop)
                        .map_err(|error| LoadError::from_io(&told(&error.to_string()), &error))?
                }
                Ok(_) => return Err(LoadError::permanent(&told("is no folder"))),
                Err(error) => return Err(LoadError::from_io(&told(&format!("is not there: {error}")), &error)),
            }
        }
    }
    match grants.read.keys().find(|guest| grants.write.contains_key(*guest)) {
        Some(twice) => Err(LoadError::permanent(&format!(
            "{} stands in grants.read and in grants.write: what may be written may be read, so leave it only in grants.write of {name}.toml",
            twice.display()
        ))),
        None => Ok(()),
    }
}

/// Fails where a handler would reach into what the host itself lives on: who may
/// write there is no longer in a sandbox, and who may read there sees secrets
/// that it was not granted.
pub(super) fn check_apart(grants: &Grants, own: &[PathBuf], name: &str) -> Result<(), String> {
    let own: Vec<PathBuf> = own.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
    for (key, folders) in [("read", &grants.read), ("write", &grants.write)] {
        for host in folders.values() {
            let Ok(granted) = host.canonicalize() else { continue };
            if let Some(own) = own.iter().find(|own| own.starts_with(&granted) || granted.starts_with(own)) {
                return Err(format!(
                    "grants.{key}: {} reaches into {}, which is the worker's own; name another folder in {name}.toml",
                    host.display(),
                    own.display()
                ));
            }
        }
    }
    Ok(())
}

/// Opens them for one run. They were there when the plugin was loaded.
pub(super) fn open(wasi: &mut WasiCtxBuilder, grants: &Grants) -> Result<(), String> {
    for (folders, perms) in [(&grants.read, FsPerms::ReadOnly), (&grants.write, FsPerms::ReadWrite)] {
        for (guest, host) in folders {
            preopen(wasi, guest, host, perms)
                .map_err(|error| format!("the folder {} can't be opened: {error:#}", host.display()))?;
        }
    }
    Ok(())
}

fn preopen(wasi: &mut WasiCtxBuilder, guest: &Path, host: &Path, perms: FsPerms) -> wasmtime::Result<()> {
    wasi.preopened_dir(host, guest.to_string_lossy(), perms).map(drop)
}
