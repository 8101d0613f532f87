//! A blocking HTTP/1.1 client of one request a connection, so that a case may send any method, header
//! and body byte for byte, and sees the answer's headers as they were sent.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use flate2::read::GzDecoder;

/// One request; nothing but `Host`, `Connection` and `Content-Length` is added to it.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// Path and query.
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<Vec<u8>>,
}

/// What came back, the body decoded from its transfer and content encodings.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// A `GET` without further headers.
pub(crate) fn get(port: u16, path: &str) -> io::Result<Answer> {
    let request = Request {
        method: "GET",
        path,
        headers: Vec::new(),
        body: None,
    };
    send(port, &request, Duration::from_mins(1))
}

/// A `POST` of JSON.
pub(crate) fn post_json(port: u16, path: &str, body: &serde_json::Value) -> io::Result<Answer> {
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    let body = Some(body.to_string().into_bytes());
    send(
        port,
        &Request {
            method: "POST",
            path,
            headers,
            body,
        },
        Duration::from_mins(10),
    )
}

/// Sends `request` to the server on `port` of this machine and reads the whole answer.
pub(crate) fn send(port: u16, request: &Request<'_>, timeout: Duration) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    if !request
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        let _ = write!(head, "Host: 127.0.0.1:{port}\r\n");
    }
    for (name, value) in &request.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if request.body.is_some() || request.method != "GET" {
        let length = request.body.as_ref().map_or(0, Vec::len);
        let _ = write!(head, "Content-Length: {length}\r\n");
    }
    head += "Connection: close\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    if let Some(body) = &request.body {
        stream.write_all(body)?;
    }
    let mut raw = Vec::new();
    if let Err(error) = stream.read_to_end(&mut raw) {
        // A server that refuses a body unread may reset the connection behind its whole answer.
        if raw.is_empty() {
            return Err(error);
        }
    }
    parse(&raw, request.method == "HEAD")
}

fn parse(raw: &[u8], head_only: bool) -> io::Result<Answer> {
    let split = raw
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(|| malformed("an answer without a head"))?;
    let head = String::from_utf8_lossy(&raw[..split]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| malformed("an answer without a status"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: raw[split + 4..].to_vec(),
    };
    if head_only {
        answer.body.clear();
        return Ok(answer);
    }
    if answer
        .header("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        answer.body = unchunk(&answer.body)?;
    } else if let Some(length) = answer
        .header("content-length")
        .and_then(|value| value.parse::<usize>().ok())
    {
        if answer.body.len() < length {
            return Err(malformed("an answer shorter than its Content-Length"));
        }
        answer.body.truncate(length);
    }
    if answer.header("content-encoding") == Some("gzip") {
        let mut plain = Vec::new();
        GzDecoder::new(answer.body.as_slice()).read_to_end(&mut plain)?;
        answer.body = plain;
    }
    Ok(answer)
}

fn unchunk(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|two| two == b"\r\n")
            .ok_or_else(|| malformed("a chunk without a size"))?;
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        let size = size.ok_or_else(|| malformed("a chunk without a size"))?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(
            rest.get(..size)
                .ok_or_else(|| malformed("a chunk cut short"))?,
        );
        rest = rest
            .get(size + 2..)
            .ok_or_else(|| malformed("a chunk cut short"))?;
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
