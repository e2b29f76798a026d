//! The limits that the machine sets to this process: memory and open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::path::Path;

/// Below this limit, handlers that open many files could use up the descriptors
/// that connections need.
const OPEN_FILES_MIN: u64 = 65_536;

/// The limit that is asked for where the system sets none.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Half of the memory that this process may use is for its handlers.
pub(super) fn memory_for_handlers() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let ram = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let of_groups = limit(&groups, |path| read(path));
    ram.into_iter().chain(of_groups).min().map_or(u64::MAX, |bytes| bytes / 2)
}

/// The total of `/proc/meminfo`, in bytes.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The lowest limit of this process' control groups and of those above them.
fn limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let paths = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        Some((Path::new(root).join(path.trim_start_matches('/')), root, file))
    });
    let limits = paths.flat_map(|(path, root, file)| {
        let above = path.ancestors().take_while(|folder| folder.starts_with(root));
        above.filter_map(|folder| read(&folder.join(file))?.trim().parse().ok()).collect::<Vec<u64>>()
    });
    limits.min()
}

/// Raises the limit of open files to what is allowed, so that handlers leave
/// enough for connections. Returns the limit.
pub(super) fn allow_open_files() -> u64 {
    let allowed = getrlimit(Resource::Nofile).maximum;
    let wanted = allowed.unwrap_or(OPEN_FILES_MAX);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: allowed }) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    if wanted < OPEN_FILES_MIN {
        tracing::warn!(
            open_files = wanted,
            "the limit of open files is low, and handlers could use up what connections need: allow {OPEN_FILES_MIN} or more \
             (LimitNOFILE=, ulimit -Hn)"
        );
    }
    getrlimit(Resource::Nofile).current.unwrap_or(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_in_bytes() {
        assert_eq!(total("MemTotal:        2048 kB\nMemFree:  1 kB\n"), Some(2 << 20));
        assert_eq!(total("MemFree: 1 kB"), None);
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let files = [
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "4096\n"),
            ("/sys/fs/cgroup/system.slice/gw.service/memory.max", "8192\n"),
            ("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "1024\n"),
        ];
        let read =
            |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned());
        assert_eq!(limit("0::/system.slice/gw.service\n", read), Some(4096));
        assert_eq!(limit("0::/\n", read), None);
        assert_eq!(limit("5:cpu:/\n4:memory:/docker\n0::/\n", read), Some(1024));
        assert_eq!(limit("", read), None);
    }
}
