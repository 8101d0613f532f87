//! What operators ask: whether the process lives, whether it is ready, and its figures.

use std::sync::atomic::{AtomicU64, Ordering};

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Server;
use super::respond::{Answer, detail, json};
use super::state::ram_bytes;
use crate::api::ApiError;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GraphLabel {
    graph: String,
}

/// `GET /healthz`: the process answers.
pub(super) async fn alive() -> HttpResponse {
    json(&serde_json::json!({"status": "alive"}))
}

/// `GET /readyz`: the checkpoint is loaded, and jobs are taken.
pub(super) async fn ready(server: web::Data<Server>) -> HttpResponse {
    if server.jobs.closed() {
        return detail(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down",
        );
    }
    if !server.ready.load(Ordering::Relaxed) {
        return detail(
            StatusCode::SERVICE_UNAVAILABLE,
            "the checkpoint is being loaded",
        );
    }
    json(&serde_json::json!({"status": "ready"}))
}

/// `GET /metrics`: Prometheus' text format.
pub(super) async fn metrics(server: web::Data<Server>) -> Answer {
    let mut registry = Registry::with_prefix("ancestral");
    server.jobs.meter().register(&mut registry);
    gauge(
        &mut registry,
        "queue_length",
        "Jobs that wait",
        server.jobs.waiting() as f64,
    );
    gauge(
        &mut registry,
        "jobs_running",
        "Jobs that run",
        server.jobs.running() as f64,
    );
    if let Some((used, _)) = ram_bytes() {
        registry.register_with_unit(
            "resident_memory",
            "Memory of the process",
            Unit::Bytes,
            ConstGauge::new(used),
        );
    }
    registry.register_with_unit(
        "uptime",
        "Time since the start",
        Unit::Seconds,
        ConstGauge::new(server.started.elapsed().as_secs_f64()),
    );
    let (seconds, counts) = (
        Family::<GraphLabel, Counter<f64, AtomicU64>>::default(),
        Family::<GraphLabel, Counter>::default(),
    );
    for runs in server.engine.graph_runs() {
        let label = GraphLabel { graph: runs.graph };
        seconds.get_or_create(&label).inc_by(runs.seconds);
        counts.get_or_create(&label).inc_by(runs.count);
    }
    registry.register_with_unit(
        "graph_run",
        "Time within graphs; the rest of a job's time is the server's own",
        Unit::Seconds,
        seconds,
    );
    registry.register("graph_runs", "Runs of graphs", counts);
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|error| ApiError::unexpected("RuntimeError", error.to_string()))?;
    Ok(HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(text))
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    registry.register(name, help, ConstGauge::new(value));
}
