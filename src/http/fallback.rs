//! Requests that match no route: a wrong method, a trailing slash, or nothing at all.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, HeaderValue, LOCATION};
use actix_web::{HttpRequest, HttpResponse, web};

use super::Server;
use super::respond::detail;
use super::routes::Known;

/// 405 with the methods of the first route of that path, 307 where the path without its trailing slash
/// exists, else 404. As FastAPI's router.
pub(super) async fn no_route(
    request: HttpRequest,
    known: web::Data<Known>,
    server: web::Data<Server>,
) -> HttpResponse {
    // The path as the router reads it, with what was percent-encoded for no reason decoded.
    let path = request.match_info().as_str();
    if let Some(first) = known.methods(path).first() {
        let mut answer = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        if let Ok(methods) = HeaderValue::from_str(first.as_str()) {
            answer.headers_mut().insert(ALLOW, methods);
        }
        return answer;
    }
    let shorter = path.trim_end_matches('/');
    if shorter.len() < path.len() && !known.methods(shorter).is_empty() {
        return redirect(&request, &server.config.server.subpath, shorter);
    }
    detail(StatusCode::NOT_FOUND, "Not Found")
}

/// `subpath` is cut off by the proxy that shows this server under it, and must be in front again.
fn redirect(request: &HttpRequest, subpath: &str, path: &str) -> HttpResponse {
    let connection = request.connection_info();
    let mut target = format!("{}://{}", connection.scheme(), connection.host());
    if !subpath.is_empty() {
        target.push('/');
        target.push_str(subpath);
    }
    target.push_str(path);
    if !request.query_string().is_empty() {
        target.push('?');
        target.push_str(request.query_string());
    }
    let mut answer = HttpResponse::TemporaryRedirect().finish();
    if let Ok(target) = HeaderValue::from_str(&target) {
        answer.headers_mut().insert(LOCATION, target);
    }
    answer
}
