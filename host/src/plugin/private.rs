//! Folders that are ours alone: what is read from them is trusted.

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::process::geteuid;
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes the folder where it is missing. One that is another's, or that others
/// can enter, is not used, nor one that we can't write; an error says why.
pub(super) fn open(path: &Path) -> Result<OwnedFd, String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| format!("it can't be made: {error}"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| format!("it can't be opened: {error}"))?;
    let told = rustix::fs::fstat(&folder).map_err(|error| error.to_string())?;
    if told.st_uid != geteuid().as_raw() {
        return Err(format!("it belongs to user {}, not to this one", told.st_uid));
    }
    let mode = told.st_mode & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("its mode is {mode:o}, others could write or read it: chmod 700 it"));
    }
    rustix::fs::accessat(&folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| format!("it can't be written: {error}"))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn neither_a_link_nor_a_folder_of_somebody_elses_is_ours() {
        let outer = tempfile::tempdir().unwrap();
        let (own, link) = (outer.path().join("own"), outer.path().join("link"));
        assert!(open(&own).is_ok());
        symlink(&own, &link).unwrap();
        assert!(open(&link).unwrap_err().contains("can't be opened"));
        // Only root can give it away.
        if geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(4321), None).unwrap();
            assert!(open(&own).unwrap_err().contains("it belongs to user 4321"));
        }
    }
}
