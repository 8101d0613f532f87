//! Stopping and restarting the process, with `--api-server-stop` only.

use actix_web::{HttpResponse, web};

use super::Server;

/// `POST /sdapi/v1/server-kill`: the process ends at once and the connection drops.
pub(super) async fn kill(server: web::Data<Server>) -> HttpResponse {
    tracing::warn!("killed by a request");
    (server.exit)(0);
}

/// `POST /sdapi/v1/server-restart`: where a launcher waits for it, else an empty 501.
pub(super) async fn restart(server: web::Data<Server>) -> HttpResponse {
    if !server.config.server.restartable {
        return HttpResponse::NotImplemented().finish();
    }
    let folder = server.config.folders.data.join("tmp");
    let written =
        fs_err::create_dir_all(&folder).and_then(|()| fs_err::write(folder.join("restart"), b""));
    if let Err(error) = written {
        tracing::error!(%error, "the launcher cannot be told to restart");
    }
    server.stop.notify_one();
    HttpResponse::Ok().body("Restarting.")
}

/// `POST /sdapi/v1/server-stop`: what runs is finished, what waits is refused.
pub(super) async fn stop(server: web::Data<Server>) -> HttpResponse {
    server.stop.notify_one();
    HttpResponse::Ok().body("Stopping.")
}
