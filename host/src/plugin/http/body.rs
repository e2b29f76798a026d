//! Bodies that pass by, counted. One that is larger than allowed ends with an
//! error, on both sides: it never looks whole.

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

/// What a guest sends.
pub(super) struct RequestBody {
    body: WasiBody,
    budget: Budget,
    /// Closed when the run is over.
    run: Arc<Semaphore>,
}

/// What a server replies with.
pub(super) struct ResponseBody {
    body: Incoming,
    budget: Budget,
    /// How long the next piece may take.
    pause: Option<(Duration, Pin<Box<Sleep>>)>,
    /// Its place among those that are under way.
    _permit: OwnedSemaphorePermit,
}

impl Http {
    /// Whether something of its requests is still about: one that waits for its
    /// reply, a body that was not sent or read to its end.
    pub(in crate::plugin) fn is_under_way(&self) -> bool {
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

    /// Whether the frame is still within it.
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
            // A guest that was killed in the midst of it has not finished it.
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
    /// Fails where the reply itself says that it is larger than allowed.
    pub(super) fn new(
        body: Incoming,
        max: u64,
        pause: Option<Duration>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Error> {
        if body.size_hint().lower() > max {
            return Err(Error::HttpResponseBodySize(Some(max)));
        }
        let pause = pause.map(|pause| (pause, Box::pin(sleep(pause))));
        Ok(Self { body, budget: Budget::new(max), pause, _permit: permit })
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
                if let Some((pause, sleep)) = &mut self.pause {
                    sleep.as_mut().reset(Instant::now() + *pause);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Error::HttpResponseIncomplete))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match &mut self.pause {
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
