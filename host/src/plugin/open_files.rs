//! Files that guests hold open. Each is a descriptor of this process, which
//! needs some for its own connections: so an instance has so many at most, and
//! all of them together half of what the process may have. Who asks for more
//! gets an error from that call, and may go on.

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

/// Of one instance, beside the folders that it was granted.
pub(super) const FILES_MAX: usize = 100;

/// What WASI preview 1 says where a process may open no more.
const ERRNO_MFILE: i32 = 33;

/// What one instance holds.
#[derive(Debug)]
pub(super) struct OpenFiles {
    quota: Arc<PluginQuota>,
    folders: u64,
    /// Of the budget, folders included.
    taken: u64,
    /// Not by the guest's handles: a stream keeps a file open whose handle is
    /// gone.
    opened: Vec<Weak<File>>,
}

impl OpenFiles {
    /// With the folders that are open from its start on.
    pub(super) fn new(quota: &Arc<PluginQuota>, folders: usize) -> Result<Self, String> {
        let folders = folders as u64;
        if !quota.files.acquire(folders) {
            return Err("handlers hold as many files open as this worker allows them".to_owned());
        }
        Ok(Self { quota: quota.clone(), folders, taken: folders, opened: Vec::new() })
    }

    /// Whether there is room for one more beside those that are open.
    fn admit(&mut self, open: usize) -> bool {
        if open >= FILES_MAX {
            return false;
        }
        let wanted = self.folders + open as u64 + 1;
        if wanted > self.taken && !self.quota.files.acquire(wanted - self.taken) {
            return false;
        }
        self.quota.files.release(self.taken.saturating_sub(wanted));
        self.taken = wanted;
        true
    }

    fn count(&mut self) -> usize {
        self.opened.retain(|file| file.strong_count() > 0);
        self.opened.len()
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        self.quota.files.release(self.taken);
    }
}

/// Instead of the crate's own.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker
        .instance("wasi:filesystem/types@0.2.12")?
        .func_wrap_async("[method]descriptor.open-at", |store, params| Box::new(open_at(store, params)))?;
    linker.allow_shadowing(false);
    Ok(())
}

type Place = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
type Opened = Result<Resource<Descriptor>, ErrorCode>;

async fn open_at(
    mut store: StoreContextMut<'_, Guest>,
    (folder, path_flags, path, open_flags, flags): Place,
) -> wasmtime::Result<(Opened,)> {
    let guest = store.data_mut();
    let open = guest.files.count();
    if !guest.files.admit(open) {
        // Of the words that WASI 0.2 has, the nearest.
        return Ok((Err(ErrorCode::Quota),));
    }
    let opened = match guest.filesystem().open_at(folder, path_flags, path, open_flags, flags).await {
        Ok(opened) => opened,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    let file = match guest.ctx().table.get(&opened)? {
        Descriptor::File(file) => Arc::downgrade(&file.file),
        Descriptor::Dir(folder) => Arc::downgrade(&folder.dir),
    };
    guest.files.opened.push(file);
    Ok((Ok(opened),))
}

/// The same for core modules, whose files have no streams.
pub(super) fn add_to_module_linker(linker: &mut wasmtime::Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap_async(WASI_P1, "path_open", |caller, params| Box::new(path_open(caller, params)))?;
    linker.allow_shadowing(false);
    Ok(())
}

type PlaceP1 = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

async fn path_open(mut caller: Caller<'_, Guest>, params: PlaceP1) -> wasmtime::Result<i32> {
    let guest = caller.data_mut();
    let held = guest.ctx().table.iter_mut().filter(|entry| entry.is::<Descriptor>()).count();
    let open = held.saturating_sub(guest.context.manifest.grants.folders());
    if !guest.files.admit(open) {
        return Ok(ERRNO_MFILE);
    }
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        wasmtime::bail!("missing required memory export");
    };
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (memory, guest) = memory.data_and_store_mut(&mut caller);
    guest.wasi.set_hostcall_fuel(fuel);
    let (folder, lookup, path, length, flags, rights, inheriting, of_file, into) = params;
    let mut memory = GuestMemory::Unshared(memory);
    p1::path_open(&mut guest.wasi, &mut memory, folder, lookup, path, length, flags, rights, inheriting, of_file, into)
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
    fn an_instance_has_so_many_and_gets_room_by_closing() {
        let mut files = OpenFiles::new(&quota(u64::MAX), 2).unwrap();
        let mut held: Vec<_> = std::iter::from_fn(|| open(&mut files)).collect();
        assert_eq!(held.len(), FILES_MAX);
        held.pop();
        held.push(open(&mut files).unwrap());
        assert!(open(&mut files).is_none());
    }

    #[test]
    fn all_together_have_half_of_the_process_and_give_it_back() {
        let quota = quota(20);
        let (mut one, mut other) = (OpenFiles::new(&quota, 1).unwrap(), OpenFiles::new(&quota, 0).unwrap());
        let held: Vec<_> = std::iter::from_fn(|| open(&mut one)).collect();
        assert_eq!(held.len(), 9);
        assert!(open(&mut other).is_none() && OpenFiles::new(&quota, 1).is_err());
        drop(held);
        // It is noticed with the next.
        let _file = open(&mut one).unwrap();
        assert!(open(&mut other).is_some());
        drop((one, other));
        assert_eq!(quota.files.used(), 0);
    }
}
