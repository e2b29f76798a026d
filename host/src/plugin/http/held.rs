//! What a guest may hold of `wasi:http`: it is in the host's memory, where
//! `limits.memory` does not see it, and it needs no grant. The words of a
//! request have their sizes, and headers, requests and bodies count as many
//! handles.

use crate::plugin::guest::Guest;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTableError};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi_http::p2::bindings::http::types::{
    HeaderError, Host as _, HostFields, HostOutgoingRequest as Request, HostOutgoingResponse as Response, Method,
    OutgoingBody, OutgoingRequest, OutgoingResponse, Scheme,
};
use wasmtime_wasi_http::{FieldMap, WasiHttpView as _};

/// For a method and a scheme of one's own.
const WORD_BYTES_MAX: usize = 64;

/// A name has 253, and a port.
const AUTHORITY_BYTES_MAX: usize = 512;

/// Each may hold 64 KiB of headers, or as much of a path, or two pieces of a body.
const HANDLES_EACH: usize = 64;

/// However few handles there are, a request can be made.
const HELD_MIN: usize = 16;

type Store<'a> = StoreContextMut<'a, Guest>;
type Set = wasmtime::Result<(Result<(), ()>,)>;

/// Instead of the crate's own.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap("[constructor]fields", |mut store: Store<'_>, (): ()| {
        admit(store.data_mut())?;
        Ok((HostFields::new(&mut store.data_mut().http())?,))
    })?;
    types.func_wrap("[static]fields.from-list", fields_from)?;
    types.func_wrap("[method]fields.clone", |mut store: Store<'_>, (fields,): (Resource<FieldMap>,)| {
        admit(store.data_mut())?;
        Ok((HostFields::clone(&mut store.data_mut().http(), fields)?,))
    })?;
    types.func_wrap("[method]outgoing-request.body", |mut store: Store<'_>, (request,): (Resource<_>,)| {
        admit(store.data_mut())?;
        Ok((Request::body(&mut store.data_mut().http(), request)?,))
    })?;
    types.func_wrap("[method]outgoing-response.body", |mut store: Store<'_>, (response,): (Resource<_>,)| {
        admit(store.data_mut())?;
        Ok((Response::body(&mut store.data_mut().http(), response)?,))
    })?;
    types.func_wrap("[method]outgoing-request.set-method", set_method)?;
    types.func_wrap("[method]outgoing-request.set-scheme", set_scheme)?;
    types.func_wrap("[method]outgoing-request.set-authority", set_authority)?;
    Ok(())
}

/// Whether there is room for one more. They are counted where they are: who
/// lets go of one has it back, whatever way that was.
fn admit(guest: &mut Guest) -> wasmtime::Result<()> {
    let max = (guest.facts.manifest.limits.resources as usize / HANDLES_EACH).max(HELD_MIN);
    let held = guest.ctx().table.iter_mut().filter(|entry| {
        entry.is::<FieldMap>()
            || entry.is::<OutgoingRequest>()
            || entry.is::<OutgoingResponse>()
            || entry.is::<OutgoingBody>()
    });
    if held.count() < max { Ok(()) } else { Err(ResourceTableError::Full.into()) }
}

type Fields = Result<Resource<FieldMap>, HeaderError>;

fn fields_from(mut store: Store<'_>, (entries,): (Vec<(String, Vec<u8>)>,)) -> wasmtime::Result<(Fields,)> {
    admit(store.data_mut())?;
    let mut http = store.data_mut().http();
    let made = HostFields::from_list(&mut http, entries);
    Ok((made.map(Ok).or_else(|error| http.convert_header_error(error).map(Err))?,))
}

fn set_method(mut store: Store<'_>, (request, method): (Resource<OutgoingRequest>, Method)) -> Set {
    if matches!(&method, Method::Other(word) if word.len() > WORD_BYTES_MAX) {
        return Ok((Err(()),));
    }
    Ok((Request::set_method(&mut store.data_mut().http(), request, method)?,))
}

fn set_scheme(mut store: Store<'_>, (request, scheme): (Resource<OutgoingRequest>, Option<Scheme>)) -> Set {
    if matches!(&scheme, Some(Scheme::Other(word)) if word.len() > WORD_BYTES_MAX) {
        return Ok((Err(()),));
    }
    Ok((Request::set_scheme(&mut store.data_mut().http(), request, scheme)?,))
}

fn set_authority(mut store: Store<'_>, (request, authority): (Resource<OutgoingRequest>, Option<String>)) -> Set {
    if authority.as_ref().is_some_and(|authority| authority.len() > AUTHORITY_BYTES_MAX) {
        return Ok((Err(()),));
    }
    Ok((Request::set_authority(&mut store.data_mut().http(), request, authority)?,))
}
