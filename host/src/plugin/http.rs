//! Outgoing requests of guests through `wasi:http`. A request is checked in this
//! order: canonical URL, allow-list, limit of concurrent requests, headers of the
//! host, addresses of the name. Then the host connects to a checked address.

mod address;
mod body;
mod client;
pub(super) mod headers;
mod resource_limits;
mod resolve;
mod target;
mod error_message;

use super::component::PluginContext;
use super::guest::Guest;
use crate::run_span::RunSpan;
use body::{RequestBody, ResponseBody};
use client::{Client, HEADERS_BYTES_MAX};
use error_message::{RateLimitedWarning, RequestError};
use http_body_util::BodyExt;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::connect::capture_connection;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use target::Target;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{
    Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

/// Upper bound for a body chunk that a guest writes; two of them are buffered.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// The HTTP client of a plugin version.
pub(super) struct Outbound {
    client: Mutex<Option<Client>>,
    warning: RateLimitedWarning,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self { client: Mutex::new(None), warning: RateLimitedWarning::new() }
    }

    /// Creates the client at the first request.
    async fn client(&self, context: &Arc<PluginContext>) -> Result<Client, RequestError> {
        let mut created = self.client.lock().await;
        if let Some(client) = &*created {
            return Ok(client.clone());
        }
        let context = context.clone();
        // Reading the system's certificates blocks.
        let made = tokio::task::spawn_blocking(move || client::connect(&context.name, &context.manifest)).await;
        let made = made.map_err(|error| error.to_string()).and_then(|made| made.map_err(|error| error.to_string()));
        let client = made.map_err(|error| RequestError::new(Error::ConfigurationError, "client", error))?;
        Ok(created.insert(client).clone())
    }

    /// Closes the idle connections.
    pub(super) fn disconnect(&self) {
        if let Ok(mut client) = self.client.try_lock() {
            *client = None;
        }
    }
}

/// `wasi:http` of one run.
pub(super) struct Http {
    wasi_http: WasiHttpCtx,
    hooks: Hooks,
}

struct Hooks {
    context: Arc<PluginContext>,
    /// `None` for a load check, which has no network.
    span: Option<RunSpan>,
    started: Instant,
    /// Limits concurrent requests; created by the first.
    permits: Option<Arc<Semaphore>>,
}

/// Ends request bodies that are still being sent.
impl Drop for Hooks {
    fn drop(&mut self) {
        if let Some(permits) = &self.permits {
            permits.close();
        }
    }
}

impl Http {
    pub(super) fn new(context: &Arc<PluginContext>, span: Option<RunSpan>) -> Self {
        let mut wasi_http = WasiHttpCtx::new();
        wasi_http.set_field_size_limit(HEADERS_BYTES_MAX);
        Self { wasi_http, hooks: Hooks { context: context.clone(), span, started: Instant::now(), permits: None } }
    }

    pub(super) fn view<'a>(&'a mut self, table: &'a mut wasmtime::component::ResourceTable) -> WasiHttpCtxView<'a> {
        WasiHttpCtxView { hooks: &mut self.hooks, table, ctx: &mut self.wasi_http }
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    // The implementation of the crate does not know the errors of our bodies.
    linker.allow_shadowing(true);
    linker.instance("wasi:http/types@0.2.12")?.func_wrap("http-error-code", error_code)?;
    resource_limits::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn error_code(
    mut store: StoreContextMut<'_, Guest>,
    (error,): (Resource<wasmtime::Error>,),
) -> wasmtime::Result<(Option<ErrorCode>,)> {
    let error = store.data_mut().ctx().table.get(&error)?;
    let code = error.downcast_ref::<ErrorCode>().cloned();
    Ok((code.or_else(|| error.downcast_ref::<Error>().and_then(error_message::body_code)),))
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.run.http.view(self.wasi.ctx().table)
    }
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sending = Box<dyn Future<Output = Result<(Response<WasiBody>, Io), Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        headers::is_forbidden(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(headers::is_forbidden)
    }

    fn send_request(&mut self, request: Request<WasiBody>, options: Option<RequestOptions>, _: Io) -> Sending {
        let context = self.context.clone();
        let (target, admitted) = match Target::parse(request.uri()) {
            Ok(target) => (target.origin.clone(), self.admit(request, target)),
            Err(reason) => (String::new(), Err(RequestError::new(Error::HttpRequestUriInvalid, "url", reason))),
        };
        let span = self.span.clone();
        let timeouts = Timeouts::new(options.unwrap_or_default(), context.manifest.limits.timeout, self.started);
        Box::new(async move {
            let sent = match admitted {
                Ok((request, permit)) => send(&context, request, permit, timeouts).await,
                Err(error) => Err(error),
            };
            sent.map_err(|error| {
                context.http.warning.log(&context.name, span.as_ref(), &target, &error);
                error.code
            })
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }
}

impl Hooks {
    /// Checks the request and completes its headers.
    fn admit(
        &mut self,
        request: Request<WasiBody>,
        target: Target,
    ) -> Result<(Request<WasiBody>, OwnedSemaphorePermit), RequestError> {
        let (limits, grants) = (&self.context.manifest.limits, &self.context.manifest.grants);
        if self.span.is_none() {
            let reason = "not available during the load check";
            return Err(RequestError::new(Error::HttpRequestDenied, "load-check", reason));
        }
        if !grants.http.iter().any(|origin| origin.allows(&target.url)) {
            let hint = format!(
                "{}.toml does not grant it: under [grants], write http = [\"{}\"]",
                self.context.name, target.origin
            );
            return Err(RequestError::new(Error::HttpRequestDenied, "origin", hint));
        }
        // A tunnel bypasses every check; a trace returns the headers of the host.
        if [Method::CONNECT, Method::TRACE].iter().any(|no| no.as_str().eq_ignore_ascii_case(request.method().as_str()))
        {
            let reason = format!("the method {} is not allowed", request.method());
            return Err(RequestError::new(Error::HttpRequestMethodInvalid, "method", reason));
        }
        let permits = self.permits.get_or_insert_with(|| Arc::new(Semaphore::new(limits.http_requests as usize)));
        // Waiting would deadlock a guest that has the other requests open itself.
        let permit = permits.clone().try_acquire_owned().map_err(|_| {
            let reason =
                format!("{} requests are in progress, the maximum by limits.http_requests", limits.http_requests);
            RequestError::new(Error::ConnectionLimitReached, "concurrency", reason)
        })?;

        let (mut head, body) = request.into_parts();
        let announced = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limits.http_body) {
            return Err(RequestError::new(Error::HttpRequestBodySize(Some(limits.http_body)), "", ""));
        }
        headers::add(&mut head.headers, &self.context, &target.url, self.context.capabilities.secrets.as_deref())?;
        let host = HeaderValue::try_from(target.host)
            .map_err(|error| RequestError::new(Error::HttpRequestUriInvalid, "url", error.to_string()))?;
        head.headers.insert(HOST, host);
        head.uri = target.uri;
        let body = RequestBody::new(body, limits.http_body, permits.clone()).boxed_unsync();
        Ok((Request::from_parts(head, body), permit))
    }
}

/// The timeouts that the guest has set, bounded by the time left for the run.
struct Timeouts {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Option<Duration>,
}

impl Timeouts {
    fn new(options: RequestOptions, run: Duration, started: Instant) -> Self {
        let left = run.saturating_sub(started.elapsed());
        Self {
            connect: options.connect_timeout.unwrap_or(left).min(left),
            first_byte: options.first_byte_timeout.unwrap_or(left).min(left),
            between_bytes: options.between_bytes_timeout.map(|pause| pause.min(left)),
        }
    }
}

async fn send(
    context: &Arc<PluginContext>,
    mut request: Request<WasiBody>,
    permit: OwnedSemaphorePermit,
    timeouts: Timeouts,
) -> Result<(Response<WasiBody>, Io), RequestError> {
    let client = context.http.client(context).await?;
    let mut connection = capture_connection(&mut request);
    let mut replying = pin!(client.request(request));
    let connected = async {
        connection.wait_for_connection_metadata().await;
    };
    let early = tokio::select! {
        biased;
        replied = &mut replying => Some(replied),
        connected = timeout(timeouts.connect, connected) => match connected {
            Ok(()) => None,
            Err(_) => return Err(RequestError::new(Error::ConnectionTimeout, "", "")),
        },
    };
    let replied = match early {
        Some(replied) => replied,
        None => timeout(timeouts.first_byte, replying)
            .await
            .map_err(|_| RequestError::new(Error::HttpResponseTimeout, "", ""))?,
    };
    let (head, body) = replied.map_err(|error| RequestError::from_client(&error, &context.name))?.into_parts();
    let body = ResponseBody::new(body, context.manifest.limits.http_body, timeouts.between_bytes, permit)
        .map_err(|code| RequestError::new(code, "", ""))?;
    // The connection pool drives the connection, so the guest has no task for it.
    let io: Io = Box::new(async { Ok(()) });
    Ok((Response::from_parts(head, body.boxed_unsync()), io))
}
