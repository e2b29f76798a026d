//! Opens files of the plugins directory and no others: names are resolved
//! beneath the directory, whatever links they pass through.

use crate::text::size;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const LEADS_OUT: &str = "it is a link out of the plugins directory: links must be relative, and lead to files in it";

/// An open directory: it stays the same one while its files are read, even if
/// its path is replaced.
pub(super) struct ContainedDir {
    path: PathBuf,
    directory: File,
}

impl ContainedDir {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?.into();
        Ok(Self { path: path.to_owned(), directory })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> &File {
        &self.directory
    }

    /// For metadata only: the file is not opened for reading.
    pub(super) fn open_path(&self, name: &str) -> io::Result<File> {
        self.resolve(name, OFlags::PATH)
    }

    /// Reads a regular file. Opening a pipe or a device does not block.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> io::Result<(Vec<u8>, Metadata)> {
        let mut file = self.resolve(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(bytes_max)).unwrap_or(0));
        // The file may have grown since its metadata was read.
        (&mut file).take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("it has more than the allowed {}", size(bytes_max))));
        }
        Ok((bytes, metadata))
    }

    /// Without `openat2` (kernels before 5.6, some containers) by canonical path.
    fn resolve(&self, name: &str, flags: OFlags) -> io::Result<File> {
        match self.resolve_by_kernel(name, flags) {
            Err(error) if is_one_of(&error, &[Errno::NOSYS, Errno::PERM]) => self.resolve_by_path(name, flags),
            found => found,
        }
    }

    fn resolve_by_kernel(&self, name: &str, flags: OFlags) -> io::Result<File> {
        const TRIES: usize = 8;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut tried = 0;
        loop {
            tried += 1;
            match rustix::fs::openat2(&self.directory, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(file) => return Ok(file.into()),
                // A file was renamed while the kernel resolved the name.
                Err(Errno::AGAIN) if tried < TRIES => {}
                Err(Errno::XDEV | Errno::LOOP) => return Err(leads_out()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn resolve_by_path(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let path = self.path.join(name).canonicalize()?;
        if !path.starts_with(self.path.canonicalize()?) {
            return Err(leads_out());
        }
        Ok(rustix::fs::open(path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?.into())
    }
}

fn leads_out() -> io::Error {
    io::Error::new(io::ErrorKind::CrossesDevices, LEADS_OUT)
}

pub(super) fn is_one_of(error: &io::Error, numbers: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|number| numbers.iter().any(|errno| errno.raw_os_error() == number))
}

/// Why other users than this one and root could have written the file.
pub(super) fn open_to_others(metadata: &Metadata) -> Option<String> {
    let us = geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != us && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Some(format!("it belongs to user {owner}, neither to this one ({us}) nor to root: chown it"));
    }
    // In a sticky directory others can't replace files, but they can add some.
    (mode & 0o022 != 0).then(|| format!("its mode is {mode:o}, so that others can write it: chmod go-w it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_within_the_directory_are_followed_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins");
        fs::create_dir_all(path.join("..data-1")).unwrap();
        fs::write(path.join("..data-1/a"), "inside").unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        symlink("..data-1", path.join("..data")).unwrap();
        symlink("..data/a", path.join("a")).unwrap();
        symlink("../secret", path.join("out")).unwrap();
        symlink(directory.path().join("secret"), path.join("absolute")).unwrap();
        symlink("/proc/self/exe", path.join("magic")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        let contained = ContainedDir::open(&path).unwrap();
        for open in [ContainedDir::resolve_by_kernel, ContainedDir::resolve_by_path] {
            let read = |name: &str| {
                let mut text = String::new();
                open(&contained, name, OFlags::RDONLY)?.read_to_string(&mut text)?;
                io::Result::Ok(text)
            };
            assert_eq!(read("a").unwrap(), "inside");
            for name in ["out", "absolute", "magic", "../secret"] {
                assert_eq!(read(name).unwrap_err().to_string(), LEADS_OUT, "{name}");
            }
            assert!(read("loop").is_err());
            assert_eq!(read("dangling").unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn a_file_is_read_up_to_the_size_limit() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "12345").unwrap();
        let contained = ContainedDir::open(directory.path()).unwrap();
        assert_eq!(contained.read("a", 5).unwrap().0, b"12345");
        assert!(contained.read("a", 4).unwrap_err().to_string().contains("more than the allowed 4B"));
        assert!(contained.read(".", 4).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn files_that_others_can_write_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let warning = |mode| {
            fs::set_permissions(directory.path(), PermissionsExt::from_mode(mode)).unwrap();
            open_to_others(&fs::metadata(directory.path()).unwrap())
        };
        assert_eq!((warning(0o700), warning(0o755)), (None, None));
        assert!(warning(0o720).unwrap().contains("mode is 720"));
        assert!(warning(0o1777).unwrap().contains("chmod go-w"));
        // Files of root are trusted.
        assert_eq!(open_to_others(&fs::metadata("/").unwrap()), None);
    }
}
