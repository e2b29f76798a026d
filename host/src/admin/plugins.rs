//! `/api/v1/plugins`: the state of the plugins, and changes to them.

use super::Status;
use super::guard::Operator;
use super::problem::Problem;
use crate::plugin::{BlockReason, Change, RefusalKind, Routes, VersionError};
use crate::reloader::Request;
use crate::text::sanitize;
use crate::topic::Topic;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A reload that takes longer is answered with 202 and goes on.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn router() -> Router<Arc<Status>> {
    Router::new()
        .route("/plugins", get(list))
        .route("/plugins/reload", post(reload))
        .route("/plugins/{name}/rollback", post(roll_back))
        .route("/plugins/{name}/unblock", post(unblock))
}

async fn list(State(status): State<Arc<Status>>) -> Json<Value> {
    let routes = status.routes.borrow().clone();
    Json(json!({ "plugins": routes.status.keys().map(|name| describe(name, &routes)).collect::<Vec<_>>() }))
}

async fn reload(State(status): State<Arc<Status>>, operator: Operator) -> Result<(StatusCode, Json<Value>), Problem> {
    let reloaded = status.reload().await;
    operator.log("reload", None, &reloaded);
    reloaded
}

async fn roll_back(
    State(status): State<Arc<Status>>,
    Path(name): Path<String>,
    operator: Operator,
) -> Result<Json<Value>, Problem> {
    let rolled_back = status.roll_back(name.clone()).await;
    operator.log("rollback", Some(&sanitize(&name)), &rolled_back);
    rolled_back
}

async fn unblock(
    State(status): State<Arc<Status>>,
    Path(name): Path<String>,
    operator: Operator,
) -> Result<Json<Value>, Problem> {
    let unblocked = status.unblock(name.clone()).await;
    operator.log("unblock", Some(&sanitize(&name)), &unblocked);
    unblocked
}

fn stopping() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the worker is shutting down")
}

impl Status {
    async fn ask(&self, request: Request) -> Result<(), Problem> {
        self.requests.send(request).await.map_err(|_| stopping())
    }

    async fn reload(&self) -> Result<(StatusCode, Json<Value>), Problem> {
        let (asker, answer) = oneshot::channel();
        self.ask(Request::Scan(Some(asker))).await?;
        match tokio::time::timeout(RELOAD_TIMEOUT, answer).await {
            Ok(Ok(Ok(changes))) => {
                let changes: Vec<Value> = changes.iter().map(describe_change).collect();
                Ok((StatusCode::OK, Json(json!({ "changes": changes }))))
            }
            Ok(Ok(Err(reason))) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Ok((StatusCode::ACCEPTED, Json(json!({ "changes": null, "message": "still loading" })))),
        }
    }

    async fn roll_back(&self, name: String) -> Result<Json<Value>, Problem> {
        let (asker, answer) = oneshot::channel();
        self.ask(Request::RollBack(name, asker)).await?;
        Ok(Json(describe_change(&answer.await.map_err(|_| stopping())??)))
    }

    async fn unblock(&self, name: String) -> Result<Json<Value>, Problem> {
        let (asker, answer) = oneshot::channel();
        self.ask(Request::Unblock(name.clone(), asker)).await?;
        answer.await.map_err(|_| stopping())??;
        Ok(Json(json!({ "plugin": name, "result": "unblocked" })))
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

/// The state of one plugin.
fn describe(name: &str, routes: &Routes) -> Value {
    let (Some(status), live) = (routes.status.get(name), routes.plugins.get(name)) else { return Value::Null };
    let state = match (&status.live, &status.refusal) {
        (Some(_), _) => "live",
        (None, Some(_)) => "refused",
        (None, None) => "loading",
    };
    let topics = live.map(|plugin| match plugin.topics() {
        [] => vec!["*"],
        topics => topics.iter().map(Topic::as_str).collect(),
    });
    let refusal = status.refusal.as_ref().map(|refusal| {
        let kind = match refusal.kind {
            RefusalKind::Invalid => "invalid",
            RefusalKind::Transient => "transient",
            RefusalKind::Conflict => "conflict",
            RefusalKind::Blocked => "blocked",
        };
        json!({ "kind": kind, "reason": refusal.reason })
    });
    let probation = routes.probation(name);
    json!({
        "name": name,
        "state": state,
        // The live version is not the newest one, which was refused.
        "degraded": status.live.is_some() && status.refusal.is_some(),
        "kind": live.map(|plugin| plugin.kind()),
        "is_loading": status.is_loading,
        "digest": status.live,
        "topics": topics.unwrap_or_default(),
        "grants": live.map(|plugin| plugin.manifest().grants.by_kind()).unwrap_or_default(),
        "waiting": live.map(|plugin| plugin.waiting()),
        "refusal": refusal,
        "retry_at": status.retry_at.map(crate::message::rfc3339),
        "previous": status.previous,
        "blocked": status.blocked.iter().map(|(digest, why)| json!({ "digest": digest, "reason": block_reason(*why) })).collect::<Vec<_>>(),
        "probation": probation.map(|standing| json!({ "calls": standing.calls, "crashes": standing.crashes })),
        "history": status.history.iter().map(|past| json!({ "digest": past.digest, "since": crate::message::rfc3339(past.since) })).collect::<Vec<_>>(),
    })
}

fn block_reason(reason: BlockReason) -> &'static str {
    match reason {
        BlockReason::Quarantined => "quarantined",
        BlockReason::RolledBack => "rolled-back",
    }
}

fn describe_change(change: &Change) -> Value {
    let plugin = change.name();
    match change {
        Change::Loaded { digest, replaced, .. } => {
            json!({ "plugin": plugin, "result": "loaded", "digest": digest, "replaced": replaced })
        }
        Change::Refused { reason, active_digest, retry_in, .. } => {
            json!({
                "plugin": plugin,
                "result": "refused",
                "reason": reason,
                "active_digest": active_digest,
                "retry_in_seconds": retry_in.map(|wait| wait.as_secs()),
            })
        }
        Change::Removed { .. } => json!({ "plugin": plugin, "result": "removed" }),
        Change::Withdrawn { digest, restored, why, .. } => {
            json!({ "plugin": plugin, "result": block_reason(*why), "withdrawn": digest, "restored": restored })
        }
        Change::Restored { digest, .. } => json!({ "plugin": plugin, "result": "restored", "digest": digest }),
        Change::NotRestored { reason, .. } => json!({ "plugin": plugin, "result": "not-restored", "reason": reason }),
    }
}
