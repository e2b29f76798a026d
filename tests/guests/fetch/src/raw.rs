//! Requests as no SDK makes them.

#![expect(clippy::expect_used, reason = "a guest that fails tells it by a trap")]

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Headers, OutgoingBody, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

/// Sends a body whose length is not said before, and either ends it or waits
/// for the reply to begin and stays in the midst of it for ever.
pub(crate) fn upload(authority: &str, path: &str, bytes: usize, is_ended: bool) -> String {
    let request = OutgoingRequest::new(Headers::new());
    let is_taken = request.set_method(&wasip2::http::types::Method::Post).is_ok()
        && request.set_scheme(Some(&Scheme::Http)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    assert!(is_taken);
    let body = request.body().expect("its body");
    let pending = outgoing_handler::handle(request, None).expect("it is sent");
    let stream = body.write().expect("its stream");
    for piece in vec![b'x'; bytes].chunks(4096) {
        if matches!(stream.blocking_write_and_flush(piece), Err(StreamError::Closed)) {
            break;
        }
    }
    if is_ended {
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
        pending.subscribe().block();
        return format!("{:?}", pending.get().expect("a reply").expect("once").map(|reply| reply.status()));
    }
    pending.subscribe().block();
    let _reply = pending.get();
    panic!("in the midst of it");
}

/// Waits for a reply to begin, and neither reads nor drops it.
pub(crate) fn leave(authority: &str, path: &str) -> String {
    let request = OutgoingRequest::new(Headers::new());
    let is_taken = request.set_scheme(Some(&Scheme::Http)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    assert!(is_taken);
    let pending = outgoing_handler::handle(request, None).expect("it is sent");
    pending.subscribe().block();
    let reply = pending.get().expect("a reply").expect("once");
    let told = format!("{:?}", reply.as_ref().map(|reply| reply.status()));
    if let Ok(reply) = reply {
        std::mem::forget(reply.consume().expect("its body"));
        std::mem::forget(reply);
    }
    told
}
