//! The HTTP endpoints: health, metrics and the admin API. Anyone may read them,
//! so they contain counts and states but no payloads.

mod accept;
mod guard;
mod plugins;
mod problem;
mod slots;
mod server;

pub use guard::WrongTokens;
pub use server::serve;

use crate::metrics::{Metrics, TextFormat};
use crate::plugin::{Refusal, Routes};
use crate::readiness::{Readiness, ReadinessSources, State as ReadinessState};
use crate::reloader::Request;
use crate::settings::AdminSettings;
use crate::text::short_digest;
use crate::topic::Topic;
use crate::worker::{Service, TopicState, Worker};
use accept::{Format, choose};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use guard::Sight;
use jiff::Timestamp;
use problem::Problem;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, watch};

const SERVICE: &str = "gateway-worker";

/// Limit for the body of a request.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The state that the endpoints report.
pub struct Status {
    pub started: Instant,
    pub readiness: ReadinessSources,
    pub routes: watch::Receiver<Arc<Routes>>,
    pub worker: Arc<Worker>,
    pub metrics: Arc<Metrics>,
    pub admin: AdminSettings,
    pub wrong_tokens: WrongTokens,
    /// Changes of plugins, for the reloader.
    pub requests: mpsc::Sender<Request>,
}

pub fn router(status: Arc<Status>) -> Router {
    let api = plugins::router()
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(map_response(with_security_headers));
    Router::new()
        .nest("/api/v1", api)
        .route("/healthz", get(live))
        .route("/livez", get(live))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/metrics/prometheus", get(prometheus))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_response(problem::as_problem))
        .with_state(status)
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such resource")
}

async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the resource does not support this method")
}

/// Responses of the API must be neither cached nor content-sniffed.
async fn with_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Liveness does not depend on Redis, because a restart of the worker does not
/// bring Redis back.
async fn live() -> Json<Value> {
    let timestamp = crate::message::rfc3339(Timestamp::now());
    Json(json!({ "status": "ok", "service": SERVICE, "timestamp": timestamp }))
}

async fn ready(State(status): State<Arc<Status>>, sight: Sight) -> Response {
    let Readiness { state, reasons, degraded } = status.readiness.readiness();
    let is_ready = state == ReadinessState::Ready;
    let consumers = if is_ready { "running" } else { "stopped" };
    let mut body = json!({ "status": state.as_str(), "service": SERVICE, "consumers": consumers });
    if !is_ready {
        body["reasons"] = sight.texts(&reasons);
    }
    if !degraded.is_empty() {
        body["degraded"] = sight.texts(&degraded);
    }
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(body)).into_response()
}

async fn metrics(State(status): State<Arc<Status>>, sight: Sight, headers: HeaderMap) -> Response {
    let response = match choose(&headers, &[Format::Json, Format::OpenMetrics, Format::Text]) {
        Some(Format::Json) => Json(status.overview(sight)).into_response(),
        Some(Format::OpenMetrics) => status.exposition(TextFormat::OpenMetrics),
        Some(Format::Text) => status.exposition(TextFormat::Prometheus),
        None => Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "Accept names no format of the metrics with a weight above 0; there are application/json, \
             text/plain;version=0.0.4 and application/openmetrics-text;version=1.0.0",
        )
        .into_response(),
    };
    varying_by_accept(response)
}

/// The name of the resource asks for text, so an `Accept` without it is
/// disregarded, as RFC 9110 allows.
async fn prometheus(State(status): State<Arc<Status>>, headers: HeaderMap) -> Response {
    let format = match choose(&headers, &[Format::Text, Format::OpenMetrics]) {
        Some(Format::OpenMetrics) => TextFormat::OpenMetrics,
        _ => TextFormat::Prometheus,
    };
    varying_by_accept(status.exposition(format))
}

/// Caches must not answer one client with the format of another.
fn varying_by_accept(mut response: Response) -> Response {
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

impl Status {
    fn exposition(&self, format: TextFormat) -> Response {
        let Readiness { state, degraded, .. } = self.readiness.readiness();
        self.metrics.ready(state == ReadinessState::Ready, degraded.iter().map(|reason| reason.kind));
        match self.metrics.text(format) {
            Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
            Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }

    fn overview(&self, sight: Sight) -> Value {
        let routes = self.routes.borrow().clone();
        let consumed = self.worker.topics();
        let Readiness { state, reasons, degraded } = self.readiness.readiness();
        let topics: BTreeSet<&Topic> = routes.by_topic.keys().chain(consumed.keys()).collect();
        let topics: Vec<&str> = topics.into_iter().map(Topic::as_str).collect();
        let active = consumed.values().filter(|topic| topic.service() == Service::Consumed).count();
        let per_topic = |state: &Arc<TopicState>| {
            json!({
                "topic": state.topic().as_str(),
                "consuming": state.service() == Service::Consumed,
                "paused": state.service() == Service::Paused,
                "in_flight": state.metrics().in_flight.get(),
                "outcomes": state.metrics().counts(),
            })
        };
        let plugin = |plugin: &Arc<crate::plugin::Plugin>| {
            json!({
                "plugin": plugin.name(),
                "digest": short_digest(plugin.digest()),
                "topics": plugin.topics().iter().map(Topic::as_str).collect::<Vec<_>>(),
                "grants": plugin.manifest().grants.by_kind(),
            })
        };
        json!({
            "service": SERVICE,
            "status": if state == ReadinessState::Ready { "running" } else { state.as_str() },
            "reasons": sight.texts(&reasons),
            "degraded": sight.texts(&degraded),
            "uptime": uptime(self.started.elapsed().as_secs()),
            "consumers": { "active": active, "topics": topics },
            "topics": consumed.values().map(per_topic).collect::<Vec<_>>(),
            "plugins": routes.plugins.values().map(plugin).collect::<Vec<_>>(),
            "refused": routes.refused().map(refused).collect::<Vec<_>>(),
        })
    }
}

fn refused((name, refusal, retry_at): (&str, &Refusal, Option<Timestamp>)) -> Value {
    json!({ "plugin": name, "reason": refusal.reason, "retry_at": retry_at.map(crate::message::rfc3339) })
}

/// The uptime in the format of legacy workers: `1h2m5s`.
fn uptime(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn uptime_omits_leading_zeros() {
        let formatted = [0, 59, 60, 3599, 3725, 90_061].map(super::uptime);
        assert_eq!(formatted, ["0s", "59s", "1m0s", "59m59s", "1h2m5s", "25h1m1s"]);
    }
}
