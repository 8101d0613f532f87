//! Who sends a request: the name that the queue shares turns out by, and that kept jobs belong to.

use actix_web::{HttpMessage as _, HttpRequest};

/// The login or API key that a request came with; set by the login layer.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub name: String,
    /// How many of its requests may wait, where its key says so.
    pub waiting: Option<usize>,
}

/// The name of the login or key, else the address of the peer.
pub(super) fn client_of(request: &HttpRequest) -> String {
    if let Some(caller) = request.extensions().get::<Caller>() {
        return format!("user:{}", caller.name);
    }
    let address = request.peer_addr().map(|address| address.ip().to_string());
    format!("address:{}", address.unwrap_or_default())
}

/// How many requests of this client may wait, where its key says so.
pub(super) fn waiting_limit_of(request: &HttpRequest) -> Option<usize> {
    request.extensions().get::<Caller>()?.waiting
}
