//! The built binary as a child process on a free port, over a fresh copy of the golden data folder.
//!
//! A process of its own, because some cases stop the server, because A1111's state is one per
//! process, and because this is the program that users start.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::http_client;

/// A running server; dropped, it is killed and its folder removed.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    data: tempfile::TempDir,
}

impl Server {
    /// Starts the server with `flags` over a data folder that `fill` writes, and waits until it answers.
    /// `{data}` in a flag stands for that folder.
    ///
    /// # Panics
    /// When it does not come up within a minute; the end of its log is in the message.
    pub(crate) fn start(flags: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        fill(data.path());
        let port = free_port();
        let log = File::create(data.path().join("server.log")).expect("a log file");
        let mut command = Command::new(binary());
        command
            .arg("--data-dir")
            .arg(data.path())
            .args(["--port", &port.to_string()])
            .args(
                flags
                    .iter()
                    .map(|flag| flag.replace("{data}", &data.path().to_string_lossy())),
            )
            .env_remove("RUST_LOG")
            // What is recorded is compared with arithmetic that every machine has.
            .env("ANCESTRAL_NO_MATRIX_UNIT", "1")
            .current_dir(data.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        if let Some(library) = library() {
            command.env("ORT_DYLIB_PATH", library);
        }
        let child = command.spawn().expect("the built binary starts");
        let mut server = Self { child, port, data };
        server.wait_until_it_answers();
        server
    }

    /// The data folder in use.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// The last lines that the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How the process ended, if it does within `timeout`.
    pub(crate) fn exit_within(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while http_client::get(self.port, "/openapi.json").is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!(
                    "the server ended at once ({status}); its log says:\n{}",
                    self.log_tail()
                );
            }
            assert!(
                Instant::now() < deadline,
                "the server does not answer; its log says:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary of this build, or the one that `GOLDEN_SERVER` names, such as a release build.
fn binary() -> PathBuf {
    let named = std::env::var_os("GOLDEN_SERVER").map(PathBuf::from);
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_ancestral").into())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The ONNX Runtime that `scripts/fetch_runtime` put beside `src`, unless the environment names one.
fn library() -> Option<PathBuf> {
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        return None;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime");
    [
        "libonnxruntime.so",
        "libonnxruntime.dylib",
        "onnxruntime.dll",
    ]
    .map(|name| folder.join(name))
    .into_iter()
    .find(|path| path.exists())
}
