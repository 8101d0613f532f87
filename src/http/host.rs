//! Which names a server on the loopback interface answers to.
//!
//! A page on the Internet can have its own name point at 127.0.0.1 after it was loaded (DNS rebinding) and
//! would then talk to this server as if it were the page's own. The browser still sends the page's name.

use std::net::IpAddr;

use actix_web::dev::ServiceRequest;
use actix_web::http::header::HOST;

/// Whether the request's host is one that this server answers to. `names` are further ones, `*` is any.
pub(super) fn is_ours(request: &ServiceRequest, bound_host: &str, names: &[String]) -> bool {
    if !is_loopback(bound_host) || names.iter().any(|name| name == "*") {
        return true;
    }
    let header = request.headers().get(HOST);
    let asked = match header {
        Some(value) => value.to_str().ok(),
        None => request
            .uri()
            .authority()
            .map(actix_web::http::uri::Authority::as_str),
    };
    // HTTP/1.0 has no host, and no browser speaks it.
    let Some(asked) = asked else {
        return header.is_none();
    };
    let name = without_port(asked);
    is_loopback(name) || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn answers(bound: &str, host: &str, names: &[&str]) -> bool {
        let request = TestRequest::default()
            .insert_header((HOST, host))
            .to_srv_request();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        is_ours(&request, bound, &names)
    }

    #[test]
    fn a_loopback_server_answers_to_loopback_names() {
        for host in [
            "localhost:7860",
            "127.0.0.1",
            "127.0.0.1:7860",
            "[::1]:7860",
            "LOCALHOST",
        ] {
            assert!(answers("127.0.0.1", host, &[]), "{host}");
        }
        for host in [
            "evil.test",
            "evil.test:7860",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "10.0.0.1",
            "",
        ] {
            assert!(!answers("127.0.0.1", host, &[]), "{host}");
        }
    }

    #[test]
    fn further_names_are_the_operators_choice() {
        assert!(answers(
            "127.0.0.1",
            "draw.example.org",
            &["draw.example.org"]
        ));
        assert!(answers("127.0.0.1", "anything", &["*"]));
        assert!(answers("0.0.0.0", "anything", &[]));
    }
}
