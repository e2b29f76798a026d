//! Bodies of requests and responses, with a size limit. A body above its limit ends
//! with an error for both sides, so it never looks complete.

use super::Http;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::{Error, WasiBody};

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// The body that a guest sends.
pub(super) struct RequestBody {
    body: WasiBody,
    budget: Budget,
    /// Closed when the run has ended.
    run: Arc<Semaphore>,
}

/// The body that a server sends.
pub(super) struct ResponseBody {
    body: Incoming,
    budget: Budget,
    /// The timeout for the next frame.
    frame_timeout: Option<(Duration, Pin<Box<Sleep>>)>,
    /// The request counts as in progress until its response body is dropped.
    _permit: OwnedSemaphorePermit,
}

impl Http {
    /// Whether the run has left something open: a request without its response, or a
    /// body that was not sent or read to its end.
    pub(in crate::plugin) fn has_open_requests(&self) -> bool {
        self.hooks.permits.as_ref().is_some_and(|permits| Arc::strong_count(permits) > 1)
    }
}

struct Budget {
    max: u64,
    left: u64,
}

impl Budget {
    fn new(max: u64) -> Self {
        Self { max, left: max }
    }

    /// Counts the frame, and returns whether it is within the limit.
    fn spend(&mut self, frame: &Frame<Bytes>) -> bool {
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let is_within = length <= self.left;
        self.left = self.left.saturating_sub(length);
        is_within
    }
}

impl RequestBody {
    pub(super) fn new(body: WasiBody, max: u64, run: Arc<Semaphore>) -> Self {
        Self { body, budget: Budget::new(max), run }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) if !self.budget.spend(&frame) => {
                Poll::Ready(Some(Err(Error::HttpRequestBodySize(Some(self.budget.max)))))
            }
            // The guest ended before it had finished the body.
            Poll::Ready(None) if self.run.is_closed() => Poll::Ready(Some(Err(Error::ConnectionTerminated))),
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl ResponseBody {
    /// Fails if the announced length is above the limit.
    pub(super) fn new(
        body: Incoming,
        max: u64,
        frame_timeout: Option<Duration>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Error> {
        if body.size_hint().lower() > max {
            return Err(Error::HttpResponseBodySize(Some(max)));
        }
        let frame_timeout = frame_timeout.map(|timeout| (timeout, Box::pin(sleep(timeout))));
        Ok(Self { body, budget: Budget::new(max), frame_timeout, _permit: permit })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if !self.budget.spend(&frame) {
                    return Poll::Ready(Some(Err(Error::HttpResponseBodySize(Some(self.budget.max)))));
                }
                if let Some((timeout, sleep)) = &mut self.frame_timeout {
                    sleep.as_mut().reset(Instant::now() + *timeout);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Error::HttpResponseIncomplete))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match &mut self.frame_timeout {
                Some((_, sleep)) => sleep.as_mut().poll(context).map(|()| Some(Err(Error::ConnectionReadTimeout))),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
