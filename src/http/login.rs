//! HTTP basic authentication, the outermost layer over every route.
//!
//! It wraps each route as the router finds it, not the path as it was written: `/sdapi/v1/s%61mplers` is
//! `/sdapi/v1/samplers` to the router, and a comparison of texts would let it pass.
//!
//! Follows A1111's `--api-auth`, with two differences: the Lora routes, the documents and the
//! `/internal` routes ask for the login too, and the comparison takes the same time whatever is sent.

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, ResponseError, web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::{Choice, ConstantTimeEq};

use super::Server;
use super::client::Caller;
use crate::api::ApiError;

/// The layer over one route: what it guards does not run without a valid login, its extractors neither.
pub(super) async fn require(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let server = request
        .app_data::<web::Data<Server>>()
        .expect("the server's state is registered with its routes");
    match check(&server.config.server.logins, request.headers()) {
        Ok(caller) => {
            if let Some(name) = caller {
                request.extensions_mut().insert(Caller(name));
            }
            next.call(request).await
        }
        Err(refusal) => Ok(request.into_response(refusal.error_response())),
    }
}

/// Checks the request's login and answers its name; without logins everybody may enter.
pub(super) fn check(
    logins: &[(String, String)],
    headers: &HeaderMap,
) -> Result<Option<String>, ApiError> {
    if logins.is_empty() {
        return Ok(None);
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
    for (known_user, known_password) in logins {
        right |= user.as_bytes().ct_eq(known_user.as_bytes())
            & password.as_bytes().ct_eq(known_password.as_bytes());
    }
    if bool::from(right) {
        Ok(Some(user.to_owned()))
    } else {
        Err(ApiError::http(401, "Incorrect username or password"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn answer(authorization: Option<&'static str>) -> String {
        let logins = [("user".to_owned(), "pass".to_owned())];
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
        }
        check(&logins, &headers).map_or_else(|error| error.to_string(), |_| "in".to_owned())
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
        assert!(check(&[], &headers).is_ok());
    }
}
