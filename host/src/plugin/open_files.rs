//! Accounting of the file handles that guests have open. Each is a descriptor of this
//! process, which needs some for its own connections. So an instance has a limit, and
//! all instances together may use half of the process limit. Beyond it, opening a file
//! returns an error to the guest.

use super::command::WASI_P1;
use super::guest::Guest;
use super::quotas::PluginQuota;
use std::fs::File;
use std::sync::{Arc, Weak};
use wasmtime::component::{Linker, Resource};
use wasmtime::{AsContextMut as _, Caller, Extern, StoreContextMut};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as p1, WasiSnapshotPreview1 as _};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptor as _, OpenFlags, PathFlags,
};
use wiggle::GuestMemory;

/// Per instance, in addition to its preopened directories.
pub(super) const FILES_MAX: usize = 100;

/// `EMFILE` of WASI preview 1.
const ERRNO_MFILE: i32 = 33;

/// The open files of one instance.
#[derive(Debug)]
pub(super) struct OpenFiles {
    quota: Arc<PluginQuota>,
    preopens: u64,
    /// Reserved from the budget, preopens included.
    reserved: u64,
    /// Not counted by handles of the guest: a stream keeps its file open after the
    /// handle was dropped.
    opened: Vec<Weak<File>>,
}

impl OpenFiles {
    /// Reserves the preopened directories.
    pub(super) fn new(quota: &Arc<PluginQuota>, preopens: usize) -> Result<Self, String> {
        let preopens = preopens as u64;
        if !quota.files.acquire(preopens) {
            return Err("too many open files: handlers may open half of the worker's limit (ulimit -n)".to_owned());
        }
        Ok(Self { quota: quota.clone(), preopens, reserved: preopens, opened: Vec::new() })
    }

    /// Whether one more may be opened; reserves it.
    fn admit(&mut self, open: usize) -> bool {
        if open >= FILES_MAX {
            return false;
        }
        let wanted = self.preopens + open as u64 + 1;
        if wanted > self.reserved && !self.quota.files.acquire(wanted - self.reserved) {
            return false;
        }
        self.quota.files.release(self.reserved.saturating_sub(wanted));
        self.reserved = wanted;
        true
    }

    fn count(&mut self) -> usize {
        self.opened.retain(|file| file.strong_count() > 0);
        self.opened.len()
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        self.quota.files.release(self.reserved);
    }
}

/// Replaces `open-at` of `wasmtime_wasi` by a checked one.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker
        .instance("wasi:filesystem/types@0.2.12")?
        .func_wrap_async("[method]descriptor.open-at", |store, params| Box::new(open_at(store, params)))?;
    linker.allow_shadowing(false);
    Ok(())
}

type OpenArguments = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
type Opened = Result<Resource<Descriptor>, ErrorCode>;

async fn open_at(
    mut store: StoreContextMut<'_, Guest>,
    (directory, path_flags, path, open_flags, flags): OpenArguments,
) -> wasmtime::Result<(Opened,)> {
    let guest = store.data_mut();
    let open = guest.files.count();
    if !guest.files.admit(open) {
        // WASI 0.2 has no code for too many open files; this is the closest.
        return Ok((Err(ErrorCode::Quota),));
    }
    let opened = match guest.filesystem().open_at(directory, path_flags, path, open_flags, flags).await {
        Ok(opened) => opened,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    let file = match guest.ctx().table.get(&opened)? {
        Descriptor::File(file) => Arc::downgrade(&file.file),
        Descriptor::Dir(directory) => Arc::downgrade(&directory.dir),
    };
    guest.files.opened.push(file);
    Ok((Ok(opened),))
}

/// Replaces `path_open` for core modules, whose files have no streams.
pub(super) fn add_to_module_linker(linker: &mut wasmtime::Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap_async(WASI_P1, "path_open", |caller, params| Box::new(path_open(caller, params)))?;
    linker.allow_shadowing(false);
    Ok(())
}

type OpenArgumentsP1 = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

async fn path_open(mut caller: Caller<'_, Guest>, params: OpenArgumentsP1) -> wasmtime::Result<i32> {
    let guest = caller.data_mut();
    let descriptors = guest.ctx().table.iter_mut().filter(|entry| entry.is::<Descriptor>()).count();
    let open = descriptors.saturating_sub(guest.context.manifest.grants.folders());
    if !guest.files.admit(open) {
        return Ok(ERRNO_MFILE);
    }
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        wasmtime::bail!("missing required memory export");
    };
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (memory, guest) = memory.data_and_store_mut(&mut caller);
    guest.wasi.set_hostcall_fuel(fuel);
    let (directory, lookup, path, length, flags, rights, inheriting, of_file, into) = params;
    let mut memory = GuestMemory::Unshared(memory);
    p1::path_open(
        &mut guest.wasi,
        &mut memory,
        directory,
        lookup,
        path,
        length,
        flags,
        rights,
        inheriting,
        of_file,
        into,
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::budgets::{FileBudget, MemoryBudget};
    use crate::plugin::quotas::Quotas;

    fn quota(open_files: u64) -> Arc<PluginQuota> {
        let (memory, files) = (MemoryBudget::new(u64::MAX), FileBudget::for_process(open_files));
        Quotas::new(1, Arc::new(memory), Arc::new(files)).of_plugin("a")
    }

    fn open(files: &mut OpenFiles) -> Option<Arc<File>> {
        let open = files.count();
        files.admit(open).then(|| {
            let file = Arc::new(tempfile::tempfile().unwrap());
            files.opened.push(Arc::downgrade(&file));
            file
        })
    }

    #[test]
    fn closing_a_file_allows_to_open_another() {
        let mut files = OpenFiles::new(&quota(u64::MAX), 2).unwrap();
        let mut open_files: Vec<_> = std::iter::from_fn(|| open(&mut files)).collect();
        assert_eq!(open_files.len(), FILES_MAX);
        open_files.pop();
        open_files.push(open(&mut files).unwrap());
        assert!(open(&mut files).is_none());
    }

    #[test]
    fn all_instances_share_half_of_the_process_limit_and_release_it() {
        let quota = quota(20);
        let (mut one, mut other) = (OpenFiles::new(&quota, 1).unwrap(), OpenFiles::new(&quota, 0).unwrap());
        let open_files: Vec<_> = std::iter::from_fn(|| open(&mut one)).collect();
        assert_eq!(open_files.len(), 9);
        assert!(open(&mut other).is_none() && OpenFiles::new(&quota, 1).is_err());
        drop(open_files);
        // Closed files are released at the next open.
        let _file = open(&mut one).unwrap();
        assert!(open(&mut other).is_some());
        drop((one, other));
        assert_eq!(quota.files.used(), 0);
    }
}
