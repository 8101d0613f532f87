//! The table of contents: every route of the server, one line each.

use std::future::Future;
use std::sync::Arc;

use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use actix_web::{FromRequest, Handler, Responder};

use super::{
    Server, extras, fallback, generation, health, internal, lists, login, options, page,
    server_control, state, training, v1,
};

/// The routes that exist, for answers to requests that match none.
#[derive(Debug, Default)]
pub struct Known {
    entries: Vec<(Method, &'static str)>,
}

impl Known {
    /// The methods of a path, in the order of the table; empty where no route has it.
    pub(super) fn methods(&self, path: &str) -> Vec<&Method> {
        self.entries
            .iter()
            .filter(|(_, pattern)| covers(pattern, path))
            .map(|(method, _)| method)
            .collect()
    }
}

/// `{name}` stands for one part of a path, `{name:.*}` at the end for all that follows.
fn covers(pattern: &str, path: &str) -> bool {
    if let Some((prefix, _)) = pattern
        .split_once('{')
        .filter(|_| pattern.ends_with(":.*}"))
    {
        return path.starts_with(prefix);
    }
    let (mut parts, mut wanted) = (path.split('/'), pattern.split('/'));
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return true,
            (Some(wanted), Some(part)) if wanted == part => {}
            (Some(wanted), Some(part)) if wanted.starts_with('{') && !part.is_empty() => {}
            _ => return false,
        }
    }
}

struct Routes<'a> {
    config: &'a mut ServiceConfig,
    known: Known,
}

impl Routes<'_> {
    fn add<F, Args>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
        F::Future: Future,
    {
        let route = web::method(method.clone()).to(handler);
        self.config.route(path, route.wrap(from_fn(login::require)));
        self.known.entries.push((method, path));
    }

    /// A route that asks nobody for a login.
    fn open<F, Args>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
        F::Future: Future,
    {
        self.config
            .route(path, web::method(method.clone()).to(handler));
        self.known.entries.push((method, path));
    }

    fn get<F, Args>(&mut self, path: &'static str, handler: F)
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add(Method::GET, path, handler);
    }

    fn head<F, Args>(&mut self, path: &'static str, handler: F)
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add(Method::HEAD, path, handler);
    }

    fn post<F, Args>(&mut self, path: &'static str, handler: F)
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add(Method::POST, path, handler);
    }
}

/// Registers the routes that the server's flags ask for, and the shared state.
pub fn configure(server: &Arc<Server>, config: &mut ServiceConfig) {
    config.app_data(web::Data::from(Arc::clone(server)));
    config.app_data(web::PayloadConfig::new(server.config.limits.body_bytes));
    let mut routes = Routes {
        config,
        known: Known::default(),
    };
    api(&mut routes);
    if server.config.server.server_stop {
        control(&mut routes);
    }
    kept_jobs(&mut routes);
    operations(&mut routes);
    documents(&mut routes);
    if server.config.server.web_routes {
        web_page(&mut routes);
    }
    let known = routes.known;
    config.app_data(web::Data::new(known));
    config.default_service(web::to(fallback::no_route));
}

#[rustfmt::skip]
fn api(routes: &mut Routes<'_>) {
    routes.post("/sdapi/v1/txt2img", generation::txt2img);
    routes.post("/sdapi/v1/img2img", generation::img2img);
    routes.post("/sdapi/v1/extra-single-image", extras::single);
    routes.post("/sdapi/v1/extra-batch-images", extras::batch);
    routes.post("/sdapi/v1/png-info", extras::png_info);
    routes.get("/sdapi/v1/progress", state::progress);
    routes.post("/sdapi/v1/interrogate", extras::interrogate);
    routes.post("/sdapi/v1/interrupt", state::interrupt);
    routes.post("/sdapi/v1/skip", state::skip);
    routes.get("/sdapi/v1/options", options::get);
    routes.post("/sdapi/v1/options", options::post);
    routes.get("/sdapi/v1/cmd-flags", options::cmd_flags);
    routes.get("/sdapi/v1/samplers", lists::samplers);
    routes.get("/sdapi/v1/schedulers", lists::schedulers);
    routes.get("/sdapi/v1/upscalers", lists::upscalers);
    routes.get("/sdapi/v1/latent-upscale-modes", lists::latent_upscale_modes);
    routes.get("/sdapi/v1/sd-models", lists::checkpoints);
    routes.get("/sdapi/v1/sd-vae", lists::vaes);
    routes.get("/sdapi/v1/hypernetworks", lists::hypernetworks);
    routes.get("/sdapi/v1/face-restorers", lists::face_restorers);
    routes.get("/sdapi/v1/realesrgan-models", lists::realesrgan_models);
    routes.get("/sdapi/v1/prompt-styles", lists::styles);
    routes.get("/sdapi/v1/embeddings", lists::embeddings);
    routes.post("/sdapi/v1/refresh-embeddings", lists::refresh_embeddings);
    routes.post("/sdapi/v1/refresh-checkpoints", lists::refresh_checkpoints);
    routes.post("/sdapi/v1/refresh-vae", lists::refresh_vaes);
    routes.post("/sdapi/v1/create/embedding", training::create_embedding);
    routes.post("/sdapi/v1/create/hypernetwork", training::create_hypernetwork);
    routes.post("/sdapi/v1/train/embedding", training::train_embedding);
    routes.post("/sdapi/v1/train/hypernetwork", training::train_hypernetwork);
    routes.get("/sdapi/v1/memory", state::memory);
    routes.post("/sdapi/v1/unload-checkpoint", state::unload_checkpoint);
    routes.post("/sdapi/v1/reload-checkpoint", state::reload_checkpoint);
    routes.get("/sdapi/v1/scripts", lists::scripts);
    routes.get("/sdapi/v1/script-info", lists::script_info);
    routes.get("/sdapi/v1/extensions", lists::extensions);
    routes.get("/sdapi/v1/loras", lists::loras);
    routes.post("/sdapi/v1/refresh-loras", lists::refresh_loras);
}

#[rustfmt::skip]
fn kept_jobs(routes: &mut Routes<'_>) {
    routes.get("/v1/jobs", v1::list);
    routes.post("/v1/jobs/{kind}", v1::submit);
    routes.get("/v1/jobs/{id}", v1::show);
    routes.add(Method::DELETE, "/v1/jobs/{id}", v1::cancel);
    routes.get("/v1/jobs/{id}/result", v1::result);
    routes.get("/v1/jobs/{id}/events", v1::events);
}

#[rustfmt::skip]
fn operations(routes: &mut Routes<'_>) {
    routes.open(Method::GET, "/healthz", health::alive);
    routes.open(Method::GET, "/readyz", health::ready);
    routes.get("/metrics", health::metrics);
}

#[rustfmt::skip]
fn control(routes: &mut Routes<'_>) {
    routes.post("/sdapi/v1/server-kill", server_control::kill);
    routes.post("/sdapi/v1/server-restart", server_control::restart);
    routes.post("/sdapi/v1/server-stop", server_control::stop);
}

#[rustfmt::skip]
fn documents(routes: &mut Routes<'_>) {
    routes.get("/openapi.json", page::openapi);
    routes.get("/docs", page::docs);
    routes.get("/redoc", page::docs);
}

#[rustfmt::skip]
fn web_page(routes: &mut Routes<'_>) {
    routes.get("/internal/ping", internal::ping);
    routes.post("/internal/progress", internal::progress);
    routes.get("/internal/pending-tasks", internal::pending_tasks);
    routes.get("/internal/quicksettings-hint", internal::quicksettings_hint);
    routes.get("/internal/profile-startup", internal::profile_startup);
    routes.get("/internal/sysinfo", internal::sysinfo);
    routes.get("/internal/sysinfo-download", internal::sysinfo_download);
    routes.get("/sd_extra_networks/thumb", internal::no_file);
    routes.get("/sd_extra_networks/cover-images", internal::no_file);
    routes.get("/sd_extra_networks/metadata", internal::no_metadata);
    routes.get("/sd_extra_networks/get-single-card", internal::no_card);
    routes.get("/", page::index);
    routes.head("/", page::index);
    routes.get("/app_id", page::app_id);
    routes.get("/user", page::user);
    routes.get("/token", page::token);
    routes.get("/login_check", page::login_check);
    routes.get("/queue/status", page::queue_status);
    routes.get("/startup-events", page::startup_events);
    routes.get("/theme.css", page::theme);
    routes.get("/robots.txt", page::robots);
    routes.get("/favicon.ico", page::favicon);
    routes.get("/file={path:.*}", page::file);
}
