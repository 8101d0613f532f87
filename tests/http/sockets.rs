//! Over real sockets: clients that are slow on purpose, and requests that two servers could read in two ways.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ancestral::app;
use ancestral::pipeline::ShortHash;

use super::Fixture;

/// A server in its own thread; stopped when dropped.
struct Listening {
    fixture: Fixture,
    port: u16,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listening {
    fn new(flags: &[&str]) -> Self {
        let mut all = vec!["--skip-load-model-at-start"];
        all.extend(flags);
        Self::over(Fixture::new(&all))
    }

    fn over(fixture: Fixture) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let app = fixture.app.clone();
        let thread = std::thread::spawn(move || {
            let ended = actix_web::rt::System::new().block_on(app::run(app, listener, port));
            ended.expect("served");
        });
        Self {
            fixture,
            port,
            thread: Some(thread),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connected");
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).expect("set");
        stream
    }

    /// Everything that comes back until the connection is closed.
    fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("sent");
        read_to_end(&mut stream)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.fixture.app.server().stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

#[test]
fn readiness_waits_for_the_checkpoints_hash_and_jobs_do_not() {
    let (hash, promise) = ShortHash::promised();
    let server = Listening::over(Fixture::with_hash(&[], "", hash));
    let get = |path| {
        let head = "Host: 127.0.0.1\r\nConnection: close";
        server.exchange(&format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n"))
    };
    let body = r#"{"prompt": "a"}"#;
    let drawn = server.exchange(&format!(
        "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(drawn.starts_with("HTTP/1.1 200"), "{drawn}");
    for _ in 0..20 {
        let early = get("/readyz");
        assert!(early.starts_with("HTTP/1.1 503"), "{early}");
    }
    promise.keep("0123456789");
    let begin = Instant::now();
    while !get("/readyz").starts_with("HTTP/1.1 200") {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_slow_head_is_cut_off() {
    let server = Listening::new(&["--head-timeout", "1"]);
    let mut stream = server.connect();
    stream
        .write_all(b"GET /sdapi/v1/samplers HTTP/1.1\r\n")
        .expect("sent");
    let begin = Instant::now();
    let text = read_to_end(&mut stream);
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "the connection was held"
    );
    assert!(
        text.is_empty() || text.starts_with("HTTP/1.1 408"),
        "{text}"
    );
}

#[test]
fn a_slow_body_is_cut_off_with_an_answer() {
    let server = Listening::new(&["--body-timeout", "1"]);
    let mut stream = server.connect();
    let head = "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).expect("sent");
    let mut bytes = [0; 4096];
    let length = stream.read(&mut bytes).expect("an answer");
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    assert!(text.contains("paused for too long"), "{text}");
}

#[test]
fn a_request_that_can_be_read_in_two_ways_is_not_read_at_all() {
    let server = Listening::new(&[]);
    let hidden = "GET /sdapi/v1/samplers HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let framings = [
        "Content-Length: 4\r\nContent-Length: 100",
        "Content-Length: +4",
        "Content-Length: 4, 100",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: 4\r\n continued",
    ];
    for framing in framings {
        let request = format!(
            "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\nnull{hidden}"
        );
        let text = server.exchange(&request);
        assert!(
            answers(&text) <= 1,
            "{framing}: the hidden request was answered\n{text}"
        );
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 4"),
            "{framing}: {text}"
        );
    }
}

#[test]
fn a_line_feed_in_an_answer_header_cannot_come_from_a_request() {
    let server = Listening::new(&[]);
    let body = r#"{"prompt": "a", "force_task_id": "x\r\nSet-Cookie: a=b"}"#;
    let request = format!(
        "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let text = server.exchange(&request);
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let head = text
        .split("\r\n\r\n")
        .next()
        .unwrap_or_default()
        .to_lowercase();
    assert!(!head.contains("set-cookie"), "{head}");
}
