//! Errors of the HTTP server, as problem details (RFC 9457).

use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Limits how much of an error text of the framework becomes a detail.
const DETAIL_BYTES_MAX: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// The status defines the problem, so the type is the default of the RFC.
    fn body(&self) -> Body {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let status = self.status.as_u16();
        let problem = json!({ "type": "about:blank", "title": title, "status": status, "detail": self.detail });
        Body::from(problem.to_string())
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.body());
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Turns the errors of the framework, which are plain text, into problem details.
/// Other headers, like `Allow`, are preserved.
pub(super) async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let is_plain = content_type.is_none_or(|value| value.as_bytes().starts_with(b"text/plain"));
    if !is_plain || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, DETAIL_BYTES_MAX).await.unwrap_or_default();
    let detail = match String::from_utf8_lossy(&text).trim() {
        "" => status.canonical_reason().unwrap_or("Error").to_owned(),
        text => text.to_owned(),
    };
    parts.headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Problem::new(status, detail).body())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    async fn parsed(response: Response) -> Value {
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        serde_json::from_slice(&to_bytes(response.into_body(), 1 << 20).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_has_the_members_of_the_rfc() {
        let response = Problem::new(StatusCode::UNAUTHORIZED, "no token").into_response();
        assert_eq!(
            (response.status(), &response.headers()[header::WWW_AUTHENTICATE]),
            (StatusCode::UNAUTHORIZED, &HeaderValue::from_static("Bearer"))
        );
        let expected = json!({ "type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "no token" });
        assert_eq!(parsed(response).await, expected);
    }

    #[tokio::test]
    async fn an_error_of_the_framework_becomes_a_problem_and_other_responses_do_not() {
        let error = (StatusCode::PAYLOAD_TOO_LARGE, [(header::ALLOW, "GET")], "length limit exceeded").into_response();
        let response = as_problem(error).await;
        assert_eq!(
            (response.status(), &response.headers()[header::ALLOW]),
            (StatusCode::PAYLOAD_TOO_LARGE, &HeaderValue::from_static("GET"))
        );
        assert_eq!(parsed(response).await["detail"], "length limit exceeded");
        let response = as_problem(StatusCode::NOT_FOUND.into_response()).await;
        assert_eq!(parsed(response).await["detail"], "Not Found");

        for (status, content_type) in
            [(StatusCode::OK, "text/plain"), (StatusCode::SERVICE_UNAVAILABLE, "application/json")]
        {
            let response =
                as_problem((status, [(header::CONTENT_TYPE, content_type)], "as it is").into_response()).await;
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type);
            assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "as it is");
        }
    }
}
