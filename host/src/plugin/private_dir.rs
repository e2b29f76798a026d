//! Directories that only this user can read or write: the host trusts what it
//! reads from them.

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::process::geteuid;
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Creates the directory if it is missing. An error says why it is unusable:
/// another user owns it, others have access to it, or it can't be written.
pub(super) fn open(path: &Path) -> Result<OwnedFd, String> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|error| format!("it can't be created: {error}"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| format!("it can't be opened: {error}"))?;
    let stat = rustix::fs::fstat(&directory).map_err(|error| error.to_string())?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(format!("it belongs to user {}, not to this one", stat.st_uid));
    }
    let mode = stat.st_mode & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("its mode is {mode:o}, others could write or read it: chmod 700 it"));
    }
    rustix::fs::accessat(&directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| format!("it can't be written: {error}"))?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_and_a_directory_of_another_user_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let (own, link) = (outer.path().join("own"), outer.path().join("link"));
        assert!(open(&own).is_ok());
        symlink(&own, &link).unwrap();
        assert!(open(&link).unwrap_err().contains("can't be opened"));
        // Only root can change the owner.
        if geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(4321), None).unwrap();
            assert!(open(&own).unwrap_err().contains("it belongs to user 4321"));
        }
    }
}
