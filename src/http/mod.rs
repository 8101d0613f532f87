//! Routes, extractors, authentication, CORS and error bodies. May use api, jobs, catalogue and config; the only room that names actix.
