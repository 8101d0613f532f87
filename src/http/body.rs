//! How long a client may take to send a body.

use std::io;
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures_util::{StreamExt as _, stream};

/// Ends the body where the client pauses for longer than `pause`.
pub(super) fn limit_pauses(request: &mut ServiceRequest, pause: Duration) {
    let payload = request.take_payload();
    if matches!(payload, Payload::None) {
        return;
    }
    let timed = stream::unfold(Some(payload), move |payload| async move {
        let mut payload = payload?;
        match tokio::time::timeout(pause, payload.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok::<Bytes, PayloadError>(chunk), Some(payload))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Err(_) => {
                let error =
                    io::Error::new(io::ErrorKind::TimedOut, "the client paused for too long");
                Some((Err(PayloadError::Incomplete(Some(error))), None))
            }
        }
    });
    request.set_payload(Payload::Stream {
        payload: Box::pin(timed),
    });
}
