//! The progress of a job as server-sent events.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use serde_json::{Value, json};

use super::{unknown, view};
use crate::api::{ApiError, preview_url, query_bool};
use crate::http::Server;
use crate::http::respond::Answer;
use crate::http::state::preview_options;

/// How often the state is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Proxies close connections on which nothing is sent.
const QUIET_POLLS: u32 = 75;

/// `GET /v1/jobs/{id}/events`: `state` when the job moves, `progress` while it runs, `end` with the last
/// view; then the stream ends. `?preview=true` adds pictures of what is being drawn as data URLs.
pub(in crate::http) async fn events(
    server: web::Data<Server>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Answer {
    let with_preview = query_bool_named(&request)?;
    if view::of_id(&server, &request, &id)?.is_none() {
        return Err(unknown(&id));
    }
    let watcher = Watcher {
        server,
        request,
        id: id.into_inner(),
        with_preview,
        preview_id: -1,
        last: Value::Null,
        quiet_polls: 0,
        ended: false,
    };
    let frames = stream::unfold(watcher, |mut watcher| async move {
        if watcher.ended {
            return None;
        }
        let frame = watcher.next_frame().await;
        Some((Ok::<_, actix_web::Error>(web::Bytes::from(frame)), watcher))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("cache-control", "no-cache"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(frames))
}

fn query_bool_named(request: &HttpRequest) -> Result<bool, ApiError> {
    query_bool(request.query_string(), "preview")
}

struct Watcher {
    server: web::Data<Server>,
    request: HttpRequest,
    id: String,
    with_preview: bool,
    preview_id: i64,
    last: Value,
    quiet_polls: u32,
    ended: bool,
}

impl Watcher {
    async fn next_frame(&mut self) -> String {
        loop {
            if let Some(frame) = self.poll() {
                self.quiet_polls = 0;
                return frame;
            }
            self.quiet_polls += 1;
            if self.quiet_polls >= QUIET_POLLS {
                self.quiet_polls = 0;
                return ": still there\n\n".to_owned();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What changed since the last look.
    fn poll(&mut self) -> Option<String> {
        let found = view::of_id(&self.server, &self.request, &self.id);
        // A request of A1111's routes is forgotten when it is answered.
        let Ok(Some(view)) = found else {
            self.ended = true;
            return Some(frame("end", &json!({"id": self.id, "state": null})));
        };
        if view["ended_at"].is_string() {
            self.ended = true;
            return Some(frame("end", &view));
        }
        let preview = self.new_preview();
        let moved = ["state", "position"]
            .iter()
            .any(|key| view[*key] != self.last[*key]);
        let went_on = view["progress"] != self.last["progress"] || preview.is_some();
        self.last = view;
        if moved {
            return Some(frame("state", &self.last));
        }
        went_on.then(|| {
            let mut data = json!({"progress": self.last["progress"], "eta": self.last["eta"]});
            if let Some(preview) = preview {
                data["preview"] = json!(preview);
            }
            frame("progress", &data)
        })
    }

    fn new_preview(&mut self) -> Option<String> {
        if !self.with_preview {
            return None;
        }
        let options = self.server.settings.snapshot();
        let progress = self.server.jobs.task_progress(
            Some(&self.id),
            preview_options(&options),
            self.preview_id,
            true,
        );
        let picture = progress.preview?;
        self.preview_id = progress.preview_id;
        preview_url(&picture, options.text("live_previews_image_format")).ok()
    }
}

fn frame(event: &str, data: &Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}
