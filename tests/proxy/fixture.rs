//! A proxy before a server that records its requests.

use std::sync::{Arc, Mutex};

use crate::http_stub::{HttpMessage, StubServer, TestProxy};
use crate::support::{STEADY_MACHINE, TestDaemon};

/// What the server answers.
pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// For tests that expect the settled account in each reply: it may take longer than a reply waits by default.
pub const LONG_PATIENCE: [&str; 2] = ["--patience", "10000"];

/// The programs, and what the server received.
pub struct ProxyFixture {
    _daemon: TestDaemon,
    _stub: StubServer,
    pub received: Arc<Mutex<Vec<HttpMessage>>>,
    pub proxy: TestProxy,
}

/// Starts them; the server answers each request with 200.
pub fn fixture() -> ProxyFixture {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let received = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&received);
    let stub = StubServer::new(move |mut connection| {
        while let Some(request) = connection.read_request() {
            listener.lock().unwrap().push(request);
            connection.send(OK);
        }
    });
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    ProxyFixture { _daemon: daemon, _stub: stub, received, proxy }
}
