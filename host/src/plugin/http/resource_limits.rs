//! Limits for the resources of `wasi:http`, which need no grant. They use memory of
//! the host that `limits.memory` does not count. So texts of a request have a maximum
//! length, and headers, requests and bodies count as several resources each.

use crate::plugin::guest::Guest;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTableError};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi_http::p2::bindings::http::types::{
    HeaderError, Host as _, HostFields, HostOutgoingRequest as Request, HostOutgoingResponse as Response, Method,
    OutgoingBody, OutgoingRequest, OutgoingResponse, Scheme,
};
use wasmtime_wasi_http::{FieldMap, WasiHttpView as _};

/// A custom method or scheme.
const TOKEN_BYTES_MAX: usize = 64;

/// A host name has at most 253 bytes; a port follows.
const AUTHORITY_BYTES_MAX: usize = 512;

/// How many resources of `limits.resources` one counts as: each may use 64 KiB for
/// headers or a path, or buffer two chunks of a body.
const WEIGHT: usize = 64;

/// Enough for a request, whatever the limit.
const HTTP_RESOURCES_MIN: usize = 16;

type Store<'a> = StoreContextMut<'a, Guest>;
type Set = wasmtime::Result<(Result<(), ()>,)>;

/// Replaces functions of `wasmtime_wasi_http` by checked ones.
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

/// Fails if the guest has as many as it may. They are counted in the resource table,
/// so that each way of dropping one frees it.
fn admit(guest: &mut Guest) -> wasmtime::Result<()> {
    let max = (guest.context.manifest.limits.resources as usize / WEIGHT).max(HTTP_RESOURCES_MIN);
    let used = guest.ctx().table.iter_mut().filter(|entry| {
        entry.is::<FieldMap>()
            || entry.is::<OutgoingRequest>()
            || entry.is::<OutgoingResponse>()
            || entry.is::<OutgoingBody>()
    });
    if used.count() < max { Ok(()) } else { Err(ResourceTableError::Full.into()) }
}

type Fields = Result<Resource<FieldMap>, HeaderError>;

fn fields_from(mut store: Store<'_>, (entries,): (Vec<(String, Vec<u8>)>,)) -> wasmtime::Result<(Fields,)> {
    admit(store.data_mut())?;
    let mut http = store.data_mut().http();
    let made = HostFields::from_list(&mut http, entries);
    Ok((made.map(Ok).or_else(|error| http.convert_header_error(error).map(Err))?,))
}

fn set_method(mut store: Store<'_>, (request, method): (Resource<OutgoingRequest>, Method)) -> Set {
    if matches!(&method, Method::Other(token) if token.len() > TOKEN_BYTES_MAX) {
        return Ok((Err(()),));
    }
    Ok((Request::set_method(&mut store.data_mut().http(), request, method)?,))
}

fn set_scheme(mut store: Store<'_>, (request, scheme): (Resource<OutgoingRequest>, Option<Scheme>)) -> Set {
    if matches!(&scheme, Some(Scheme::Other(token)) if token.len() > TOKEN_BYTES_MAX) {
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
