//! Which pages of other origins may call this server.
//!
//! Follows Starlette's CORSMiddleware as A1111 sets it up: credentials allowed, any method and header,
//! no origin unless a flag names it.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

use crate::config::ServerConfig;

/// The allowed origins.
#[derive(Debug, Clone)]
pub(super) struct Cors {
    origins: Vec<String>,
    pattern: Option<Regex>,
    local: bool,
}

impl Cors {
    pub(super) fn new(config: &ServerConfig) -> Self {
        let pattern = config
            .cors_origin_regex
            .as_ref()
            .and_then(|pattern| Regex::new(&format!("^(?:{pattern})$")).ok());
        Self {
            origins: config.cors_origins.clone(),
            pattern,
            local: config.cors_local,
        }
    }

    fn allows_all(&self) -> bool {
        self.origins.iter().any(|origin| origin == "*")
    }

    fn allows(&self, origin: &str) -> bool {
        self.allows_all()
            || self.origins.iter().any(|allowed| allowed == origin)
            || self
                .pattern
                .as_ref()
                .is_some_and(|pattern| pattern.is_match(origin))
            || (self.local && is_local(origin))
    }

    /// The answer to a preflight.
    pub(super) fn preflight(&self, request: &HeaderMap) -> HttpResponse {
        let origin = text(request, &header::ORIGIN);
        let allowed = self.allows(origin);
        let (status, body) = if allowed {
            (StatusCode::OK, "OK")
        } else {
            (StatusCode::BAD_REQUEST, "Disallowed CORS origin")
        };
        let mut answer = HttpResponse::build(status);
        answer
            .content_type("text/plain; charset=utf-8")
            .insert_header((header::VARY, "Origin"))
            .insert_header((
                header::ACCESS_CONTROL_ALLOW_METHODS,
                "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
            ))
            .insert_header((header::ACCESS_CONTROL_MAX_AGE, "600"))
            .insert_header((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"));
        if allowed {
            answer.insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
        }
        if let Some(asked) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            answer.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone()));
        }
        answer.body(body)
    }

    /// Adds the headers of an answer to a page of another origin.
    pub(super) fn mark(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        let Some(origin) = request.get(header::ORIGIN) else {
            return;
        };
        answer.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
        let text = origin.to_str().unwrap_or("");
        // Starlette names the origin where a request has cookies; with credentials that would open every
        // page's way in.
        if self.allows_all() {
            answer.insert(
                header::ACCESS_CONTROL_ALLOW_ORIGIN,
                HeaderValue::from_static("*"),
            );
        } else if self.allows(text) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            add_vary(answer, "Origin");
        }
    }
}

/// Whether a request is a preflight.
pub(super) fn is_preflight(method: &actix_web::http::Method, headers: &HeaderMap) -> bool {
    method == actix_web::http::Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Extends the `vary` header.
pub(super) fn add_vary(headers: &mut HeaderMap, name: &str) {
    let value = match headers
        .get(header::VARY)
        .and_then(|value| value.to_str().ok())
    {
        Some(before) => format!("{before}, {name}"),
        None => name.to_owned(),
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(header::VARY, value);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
}

/// Pages of this machine, whatever the port, and pages opened as files (`null`).
fn is_local(origin: &str) -> bool {
    if origin == "null" {
        return true;
    }
    let Some(host) = origin
        .strip_prefix("http://")
        .or(origin.strip_prefix("https://"))
    else {
        return false;
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|local| {
        host.strip_prefix(local).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix(':').is_some_and(|port| {
                    !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit())
                })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_pages_are_told_from_lookalikes() {
        assert!(is_local("http://localhost:3000"));
        assert!(is_local("https://127.0.0.1"));
        assert!(is_local("null"));
        assert!(!is_local("http://localhost.example.com"));
        assert!(!is_local("http://127.0.0.1:x"));
    }

    #[test]
    fn a_regular_expression_must_match_the_whole_origin() {
        let cors = Cors {
            origins: Vec::new(),
            pattern: Regex::new("^(?:https://.*\\.example\\.com)$").ok(),
            local: false,
        };
        assert!(cors.allows("https://a.example.com"));
        assert!(!cors.allows("https://a.example.com.evil.net"));
    }
}
