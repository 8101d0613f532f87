//! HTTPS with a self-signed certificate, over a real socket. `tests/tls` holds the certificate of
//! `localhost` and its key, made for this test:
//! `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost
//! -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE`

#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/toy_models.rs"]
mod toy_models;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use ancestral::app::{StartError, run};
use in_process::InProcess;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/localhost.key");
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/localhost.pem");

/// A client that trusts the test's certificate alone.
fn client() -> Arc<ClientConfig> {
    let pem = std::fs::read(CERTIFICATE).expect("the certificate is there");
    let mut roots = RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut pem.as_slice()) {
        roots.add(certificate.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn get_over_tls(port: u16, path: &str) -> String {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(client(), name).expect("a client");
    let socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    let mut stream = StreamOwned::new(connection, socket);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = Vec::new();
    // A server may close without TLS's farewell.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[actix_web::test]
async fn the_api_is_served_over_https() {
    let server = InProcess::new(&["--tls-keyfile", KEY, "--tls-certfile", CERTIFICATE]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let running = actix_web::rt::spawn(run(server.app.clone(), listener, port));
    let answer = actix_web::web::block(move || get_over_tls(port, "/sdapi/v1/samplers"))
        .await
        .expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("DPM++ 2M"), "{answer}");
    // Without TLS the port answers nothing.
    let plain = actix_web::web::block(move || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let _ = socket.write_all(b"GET /sdapi/v1/samplers HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert!(!plain.await.expect("closed").contains("200 OK"));
    server.app.server().stop.notify_one();
    running.await.expect("no panic").expect("ends well");
}

#[actix_web::test]
async fn certificates_that_cannot_be_used_are_one_sentence() {
    let missing = "/nowhere/key.pem";
    for (key, certificate, says) in [
        (missing, CERTIFICATE, "/nowhere/key.pem"),
        (CERTIFICATE, CERTIFICATE, "it holds no private key"),
    ] {
        let server = InProcess::new(&["--tls-keyfile", key, "--tls-certfile", certificate]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let error = run(server.app.clone(), listener, 0).await.unwrap_err();
        assert!(matches!(error, StartError::Tls { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
