//! Files of the plugins directory, and no others: what a name leads to is
//! looked up beneath the directory, whatever links say.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const LEADS_OUT: &str = "it is a link out of the plugins directory: links must be relative, and lead to files in it";

/// A directory that is open: it stays the same one while its files are read.
pub(super) struct Beneath {
    path: PathBuf,
    folder: File,
}

impl Beneath {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?.into();
        Ok(Self { path: path.to_owned(), folder })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn folder(&self) -> &File {
        &self.folder
    }

    /// To be looked at, not to be read.
    pub(super) fn look(&self, name: &str) -> io::Result<File> {
        self.resolve(name, OFlags::PATH)
    }

    /// A regular file; a pipe or a device is not even waited for.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> io::Result<(Vec<u8>, Metadata)> {
        let mut file = self.resolve(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(bytes_max)).unwrap_or(0));
        // What it has now, not what it had when it was looked at.
        (&mut file).take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!(
                "it has more than the {} that are taken",
                bytesize::ByteSize(bytes_max)
            )));
        }
        Ok((bytes, metadata))
    }

    /// A kernel before 5.6 does not know how, and some containers forbid it.
    fn resolve(&self, name: &str, flags: OFlags) -> io::Result<File> {
        match self.by_kernel(name, flags) {
            Err(error) if is_one_of(&error, &[Errno::NOSYS, Errno::PERM]) => self.by_path(name, flags),
            found => found,
        }
    }

    fn by_kernel(&self, name: &str, flags: OFlags) -> io::Result<File> {
        const TRIES: usize = 8;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut tried = 0;
        loop {
            tried += 1;
            match rustix::fs::openat2(&self.folder, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(file) => return Ok(file.into()),
                // Something was renamed while it looked.
                Err(Errno::AGAIN) if tried < TRIES => {}
                Err(Errno::XDEV | Errno::LOOP) => return Err(leads_out()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn by_path(&self, name: &str, flags: OFlags) -> io::Result<File> {
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

/// Who besides us and root could have written it, in words.
pub(super) fn open_to_others(metadata: &Metadata) -> Option<String> {
    let us = geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != us && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Some(format!("it belongs to user {owner}, neither to this one ({us}) nor to root: chown it"));
    }
    // A sticky directory lets nobody replace another's files, but add some.
    (mode & 0o022 != 0).then(|| format!("its mode is {mode:o}, so that others can write it: chmod go-w it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_lead_around_within_the_directory_and_not_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins");
        fs::create_dir_all(path.join("..data-1")).unwrap();
        fs::write(path.join("..data-1/a"), "inside").unwrap();
        fs::write(folder.path().join("secret"), "outside").unwrap();
        symlink("..data-1", path.join("..data")).unwrap();
        symlink("..data/a", path.join("a")).unwrap();
        symlink("../secret", path.join("out")).unwrap();
        symlink(folder.path().join("secret"), path.join("absolute")).unwrap();
        symlink("/proc/self/exe", path.join("magic")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        let beneath = Beneath::open(&path).unwrap();
        for open in [Beneath::by_kernel, Beneath::by_path] {
            let read = |name: &str| {
                let mut text = String::new();
                open(&beneath, name, OFlags::RDONLY)?.read_to_string(&mut text)?;
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
    fn as_much_as_is_allowed_is_read_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "12345").unwrap();
        let beneath = Beneath::open(folder.path()).unwrap();
        assert_eq!(beneath.read("a", 5).unwrap().0, b"12345");
        assert!(beneath.read("a", 4).unwrap_err().to_string().contains("more than the 4 B"));
        assert!(beneath.read(".", 4).unwrap_err().to_string().contains("no regular file"));
    }

    #[test]
    fn what_others_can_write_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |mode| {
            fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).unwrap();
            open_to_others(&fs::metadata(folder.path()).unwrap())
        };
        assert_eq!((told(0o700), told(0o755)), (None, None));
        assert!(told(0o720).unwrap().contains("mode is 720"));
        assert!(told(0o1777).unwrap().contains("chmod go-w"));
        // A file of root's is as good as ours.
        assert_eq!(open_to_others(&fs::metadata("/").unwrap()), None);
    }
}
