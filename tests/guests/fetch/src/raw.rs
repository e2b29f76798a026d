//! Requests that the SDK does not make.

#![expect(clippy::expect_used, reason = "a guest reports a failure by a trap")]

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Headers, OutgoingBody, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

/// Sends a body without a content length. It either finishes the body and
/// returns the status, or waits for the reply and then traps with the body open.
pub(crate) fn upload(authority: &str, path: &str, bytes: usize, is_finished: bool) -> String {
    let request = OutgoingRequest::new(Headers::new());
    let is_valid = request.set_method(&wasip2::http::types::Method::Post).is_ok()
        && request.set_scheme(Some(&Scheme::Http)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    assert!(is_valid);
    let body = request.body().expect("the body");
    let pending = outgoing_handler::handle(request, None).expect("the request is sent");
    let stream = body.write().expect("the stream");
    for chunk in vec![b'x'; bytes].chunks(4096) {
        if matches!(stream.blocking_write_and_flush(chunk), Err(StreamError::Closed)) {
            break;
        }
    }
    if is_finished {
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
        pending.subscribe().block();
        return format!("{:?}", pending.get().expect("a reply").expect("once").map(|reply| reply.status()));
    }
    pending.subscribe().block();
    let _reply = pending.get();
    panic!("the body is unfinished");
}

/// Waits for a reply to begin, and neither reads nor drops its body.
pub(crate) fn leave(authority: &str, path: &str) -> String {
    let request = OutgoingRequest::new(Headers::new());
    let is_valid = request.set_scheme(Some(&Scheme::Http)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    assert!(is_valid);
    let pending = outgoing_handler::handle(request, None).expect("the request is sent");
    pending.subscribe().block();
    let reply = pending.get().expect("a reply").expect("once");
    let status = format!("{:?}", reply.as_ref().map(|reply| reply.status()));
    if let Ok(reply) = reply {
        std::mem::forget(reply.consume().expect("the body"));
        std::mem::forget(reply);
    }
    status
}
