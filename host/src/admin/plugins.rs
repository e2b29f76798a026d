//! `/api/v1/plugins`: what runs and why, and changing it.

use super::Status;
use super::guard::Operator;
use super::problem::Problem;
use crate::plugin::{BlockReason, Change, RefusalKind, Routes, VersionError};
use crate::reloader::Request;
use crate::topic::Topic;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Whoever asks for a reload is told that it goes on after this.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn router() -> Router<Arc<Status>> {
    Router::new()
        .route("/plugins", get(list))
        .route("/plugins/reload", post(reload))
        .route("/plugins/{name}/rollback", post(roll_back))
        .route("/plugins/{name}/release", post(release))
}

async fn list(State(status): State<Arc<Status>>) -> Json<Value> {
    let routes = status.routes.borrow().clone();
    Json(json!({ "plugins": routes.status.keys().map(|name| shown(name, &routes)).collect::<Vec<_>>() }))
}

async fn reload(State(status): State<Arc<Status>>, _: Operator) -> Result<(StatusCode, Json<Value>), Problem> {
    let (asker, answer) = oneshot::channel();
    status.ask(Request::Scan(Some(asker))).await?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Ok(changes))) => {
            let changes: Vec<Value> = changes.iter().map(changed).collect();
            Ok((StatusCode::OK, Json(json!({ "changes": changes }))))
        }
        Ok(Ok(Err(reason))) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
        Ok(Err(_)) => Err(stopping()),
        Err(_) => Ok((StatusCode::ACCEPTED, Json(json!({ "changes": null, "told": "it is still being loaded" })))),
    }
}

async fn roll_back(
    State(status): State<Arc<Status>>,
    Path(name): Path<String>,
    _: Operator,
) -> Result<Json<Value>, Problem> {
    let (asker, answer) = oneshot::channel();
    status.ask(Request::RollBack(name, asker)).await?;
    Ok(Json(changed(&answer.await.map_err(|_| stopping())??)))
}

async fn release(
    State(status): State<Arc<Status>>,
    Path(name): Path<String>,
    _: Operator,
) -> Result<Json<Value>, Problem> {
    let (asker, answer) = oneshot::channel();
    status.ask(Request::Unblock(name.clone(), asker)).await?;
    answer.await.map_err(|_| stopping())??;
    Ok(Json(json!({ "plugin": name, "result": "released" })))
}

fn stopping() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the worker is stopping")
}

impl Status {
    async fn ask(&self, request: Request) -> Result<(), Problem> {
        self.requests.send(request).await.map_err(|_| stopping())
    }
}

impl From<VersionError> for Problem {
    fn from(denied: VersionError) -> Self {
        let status = match &denied {
            VersionError::Unknown(_) => StatusCode::NOT_FOUND,
            VersionError::Impossible(_) => StatusCode::CONFLICT,
        };
        Self::new(status, denied.to_string())
    }
}

/// All that is known of one plugin.
fn shown(name: &str, routes: &Routes) -> Value {
    let (Some(status), live) = (routes.status.get(name), routes.plugins.get(name)) else { return Value::Null };
    let state = match (&status.live, &status.refusal) {
        (Some(_), None) => "live",
        (Some(_), Some(_)) => "last-good",
        (None, Some(_)) => "refused",
        (None, None) => "loading",
    };
    let topics = live.map(|plugin| match plugin.topics() {
        [] => vec!["*"],
        topics => topics.iter().map(Topic::as_str).collect(),
    });
    let refusal = status.refusal.as_ref().map(|refusal| {
        let kind = match refusal.kind {
            RefusalKind::Invalid => "faulty",
            RefusalKind::Transient => "passing",
            RefusalKind::Conflict => "conflict",
            RefusalKind::Blocked => "held",
        };
        json!({ "kind": kind, "reason": refusal.reason })
    });
    let probation = routes.probation(name);
    json!({
        "name": name,
        "state": state,
        "kind": live.map(|plugin| plugin.kind()),
        "is_loading": status.is_loading,
        "digest": status.live,
        "topics": topics.unwrap_or_default(),
        "grants": live.map(|plugin| plugin.manifest().grants.by_kind()).unwrap_or_default(),
        "waiting": live.map(|plugin| plugin.waiting()),
        "refusal": refusal,
        "again_at": status.retry_at.map(crate::message::rfc3339),
        "previous": status.previous,
        "held": status.blocked.iter().map(|(digest, why)| json!({ "digest": digest, "because": because(*why) })).collect::<Vec<_>>(),
        "probation": probation.map(|standing| json!({ "calls": standing.calls, "crashes": standing.crashes })),
        "history": status.history.iter().map(|past| json!({ "digest": past.digest, "since": crate::message::rfc3339(past.since) })).collect::<Vec<_>>(),
    })
}

fn because(why: BlockReason) -> &'static str {
    match why {
        BlockReason::Quarantined => "quarantined",
        BlockReason::RolledBack => "rolled-back",
    }
}

/// What became of a plugin.
fn changed(change: &Change) -> Value {
    let plugin = change.name();
    match change {
        Change::Loaded { digest, replaced, .. } => {
            json!({ "plugin": plugin, "result": "loaded", "digest": digest, "replaced": replaced })
        }
        Change::Refused { reason, active_digest, retry_in, .. } => {
            let again_in = retry_in.map(|wait| wait.as_secs());
            json!({ "plugin": plugin, "result": "refused", "reason": reason, "keeps": active_digest, "again_in_seconds": again_in })
        }
        Change::Removed { .. } => json!({ "plugin": plugin, "result": "removed" }),
        Change::Withdrawn { digest, restored, why, .. } => {
            json!({ "plugin": plugin, "result": because(*why), "withdrawn": digest, "restored": restored })
        }
        Change::Restored { digest, .. } => json!({ "plugin": plugin, "result": "restored", "digest": digest }),
        Change::NotRestored { reason, .. } => json!({ "plugin": plugin, "result": "not-restored", "reason": reason }),
    }
}
