//! Telling others of the end of a job: to origins that the command line names, signed, never redirected.

use std::time::Duration;

use actix_web::web;
use hmac::{Hmac, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use super::view;
use crate::api::ApiError;
use crate::config::WebhookConfig;
use crate::http::Server;
use crate::jobs::{Record, now_ms};

/// The field of a submitted body that names the address.
const FIELD: &str = "webhook_url";
/// Pauses between the attempts.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(2),
];
const TIMEOUT: Duration = Duration::from_secs(10);

/// The address that a body asks to be told at, if its origin is allowed.
pub(super) fn asked_for(config: &WebhookConfig, body: &[u8]) -> Result<Option<String>, ApiError> {
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(body) else {
        return Ok(None);
    };
    let url = match fields.get(FIELD) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(url)) => url,
        Some(_) => return Err(ApiError::http(400, format!("{FIELD} is no text"))),
    };
    let allowed = origin(url).is_some_and(|origin| config.origins.contains(&origin));
    if !allowed {
        let text = format!("{FIELD}: its origin is not among --webhook-origins");
        return Err(ApiError::http(400, text));
    }
    if config.secret.is_empty() {
        let text = format!("{FIELD}: the server has no ANCESTRAL_WEBHOOK_SECRET to sign with");
        return Err(ApiError::http(400, text));
    }
    Ok(Some(url.clone()))
}

/// Scheme, host and port of an address; `None` where it could be read in two ways.
fn origin(url: &str) -> Option<String> {
    let uri: actix_web::http::Uri = url.parse().ok()?;
    let scheme = uri
        .scheme_str()
        .filter(|scheme| ["http", "https"].contains(scheme))?;
    let authority = uri.authority()?.as_str();
    (!authority.contains('@')).then(|| format!("{scheme}://{authority}"))
}

/// Tells the end of a job in the background, if somebody asked for that and was not told yet.
pub(super) fn tell(server: &web::Data<Server>, record: &Record) {
    let Some(hook) = record.webhook.as_ref().filter(|hook| !hook.settled) else {
        return;
    };
    let (url, id) = (hook.url.clone(), record.id.clone());
    let body = view::of_record(server, record, &server.jobs.list()).to_string();
    let shared = server.clone();
    let spawned = std::thread::Builder::new()
        .name("webhook".to_owned())
        .spawn(move || {
            deliver(&url, &body, &shared.config.webhook.secret);
            let settled = shared.kept.store().map(|store| {
                store.update(&id, |record| {
                    if let Some(hook) = &mut record.webhook {
                        hook.settled = true;
                    }
                })
            });
            if let Some(Err(error)) = settled {
                tracing::warn!(job = id, %error, "the webhook may be told twice");
            }
        });
    if let Err(error) = spawned {
        tracing::error!(job = record.id, %error, "the webhook is not told");
    }
}

fn deliver(url: &str, body: &str, secret: &str) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .max_redirects(0)
        .build()
        .into();
    let mut pauses = PAUSES.iter();
    loop {
        let stamp = (now_ms() / 1000).to_string();
        let sent = agent
            .post(url)
            .header("content-type", "application/json")
            .header("x-ancestral-timestamp", &stamp)
            .header("x-ancestral-signature", &signature(secret, &stamp, body))
            .send(body);
        match sent {
            Ok(answer) if answer.status().is_success() => return,
            Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "the webhook refused"),
            Err(error) => tracing::warn!(%error, "the webhook cannot be reached"),
        }
        match pauses.next() {
            Some(pause) => std::thread::sleep(*pause),
            None => return,
        }
    }
}

/// `sha256=` and the hexadecimal HMAC-SHA256 of timestamp, a dot and the body.
fn signature(secret: &str, stamp: &str, body: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(stamp.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    format!("sha256={:x}", mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> WebhookConfig {
        WebhookConfig {
            origins: vec!["https://example.org".to_owned()],
            secret: "key".to_owned(),
        }
    }

    #[test]
    fn only_allowed_origins_are_told() {
        let asked = |url: &str| {
            let body = serde_json::json!({ "webhook_url": url }).to_string();
            asked_for(&config(), body.as_bytes())
        };
        assert_eq!(
            asked("https://example.org/hook")
                .expect("allowed")
                .as_deref(),
            Some("https://example.org/hook")
        );
        for refused in [
            "http://example.org/hook",
            "https://example.org.evil.test/hook",
            "https://example.org@evil.test/hook",
            "https://evil.test/https://example.org",
            "file:///etc/passwd",
            "nonsense",
        ] {
            assert!(asked(refused).is_err(), "{refused}");
        }
        assert_eq!(asked_for(&config(), b"{}").expect("no hook"), None);
    }

    /// RFC 4231's second test case, whose data is split here by the dot that the message has.
    #[test]
    fn the_signature_is_an_hmac() {
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let mut mac = Hmac::<Sha256>::new_from_slice(b"Jefe").expect("any length");
        mac.update(b"what do ya want for nothing?");
        assert_eq!(
            format!("sha256={:x}", mac.finalize().into_bytes()),
            expected
        );
        assert_ne!(signature("Jefe", "1", "a"), signature("Jefe", "2", "a"));
        assert_ne!(signature("Jefe", "1", "a"), signature("Jeff", "1", "a"));
    }
}
