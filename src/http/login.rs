//! HTTP basic authentication, the outermost layer over every route.
//!
//! It wraps each route as the router finds it, not the path as it was written: `/sdapi/v1/s%61mplers` is
//! `/sdapi/v1/samplers` to the router, and a comparison of texts would let it pass.
//!
//! Follows A1111's `--api-auth`, with two differences: the Lora routes, the documents and the
//! `/internal` routes ask for the login too, and the comparison takes the same time whatever is sent.

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap, RETRY_AFTER};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, ResponseError, web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::{Choice, ConstantTimeEq};

use super::Server;
use super::client::Caller;
use crate::api::ApiError;
use crate::config::ServerConfig;

/// The layer over one route: what it guards does not run without a valid login, its extractors neither.
pub(super) async fn require(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let server = request
        .app_data::<web::Data<Server>>()
        .expect("the server's state is registered with its routes");
    let address = request.peer_addr().map(|peer| peer.ip());
    if let Some(seconds) = address.and_then(|address| server.throttle.wait_s(address)) {
        let refusal = ApiError::http(429, "Too many wrong logins");
        let mut answer = refusal.error_response();
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        return Ok(request.into_response(answer));
    }
    match check(&server.config.server, request.headers()) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.call(request).await
        }
        Err(refusal) => {
            // Whoever sends nothing does not guess.
            let guessed = KEY_HEADERS
                .iter()
                .any(|name| request.headers().contains_key(*name));
            if let Some(address) = address.filter(|_| guessed) {
                server.throttle.failed(address);
            }
            Ok(request.into_response(refusal.error_response()))
        }
    }
}

/// The headers that a login or key comes in.
const KEY_HEADERS: [&str; 2] = ["authorization", "x-api-key"];

/// Checks the request's login or key and answers its name; without either everybody may enter.
pub(super) fn check(
    config: &ServerConfig,
    headers: &HeaderMap,
) -> Result<Option<Caller>, ApiError> {
    if !config.asks_for_login() {
        return Ok(None);
    }
    if let Some(key) = api_key(headers).filter(|_| !config.keys.is_empty()) {
        return config
            .find_key(key)
            .map(|known| {
                Some(Caller {
                    name: known.name.clone(),
                    waiting: known.waiting,
                })
            })
            .ok_or_else(|| ApiError::http(401, "Invalid authentication credentials"));
    }

    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let (scheme, content) = given.split_once(' ').unwrap_or((given, ""));
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(ApiError::http(401, "Not authenticated"));
    }
    let undecodable = || ApiError::http(401, "Invalid authentication credentials");
    let bytes = STANDARD.decode(content.trim()).map_err(|_| undecodable())?;
    let text = String::from_utf8(bytes).map_err(|_| undecodable())?;
    let (user, password) = text.split_once(':').ok_or_else(undecodable)?;
    let mut right = Choice::from(0);
    for (known_user, known_password) in &config.logins {
        right |= user.as_bytes().ct_eq(known_user.as_bytes())
            & password.as_bytes().ct_eq(known_password.as_bytes());
    }
    if bool::from(right) {
        Ok(Some(Caller {
            name: user.to_owned(),
            waiting: None,
        }))
    } else {
        Err(ApiError::http(401, "Incorrect username or password"))
    }
}

/// What `X-API-Key` or a bearer token holds.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(key) = text("x-api-key") {
        return Some(key);
    }
    let (scheme, token) = text("authorization")?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use actix_web::http::header::HeaderValue;

    fn config(flags: &[&str]) -> ServerConfig {
        Config::from_arguments(flags).expect("accepted").server
    }

    fn answer(authorization: Option<&'static str>) -> String {
        let config = config(&["--api-auth", "user:pass"]);
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
        }
        check(&config, &headers).map_or_else(|error| error.to_string(), |_| "in".to_owned())
    }

    #[test]
    fn answers_are_a1111s() {
        assert_eq!(answer(None), "Not authenticated");
        assert_eq!(answer(Some("Bearer abc")), "Not authenticated");
        assert_eq!(
            answer(Some("Basic ???")),
            "Invalid authentication credentials"
        );
        assert_eq!(
            answer(Some("Basic dXNlcjpub3Bl")),
            "Incorrect username or password"
        );
        assert_eq!(answer(Some("Basic dXNlcjpwYXNz")), "in");
    }

    #[test]
    fn an_open_server_takes_any_header() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static(""));
        assert!(check(&config(&[]), &headers).is_ok());
    }
}
