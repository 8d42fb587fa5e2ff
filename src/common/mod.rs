//! What several modules need and none of them owns. It depends on no other module.

pub mod address;
pub mod backoff;
pub mod clock;
pub mod descriptors;
pub mod file;
pub mod findings;
pub mod http;
pub mod kind;
pub mod limit;
pub mod secret;
pub mod server;
pub mod suggest;
pub mod text;
pub mod tls;
pub mod units;
pub mod validation;
pub mod visible;
pub mod watch;
pub(crate) mod words;
