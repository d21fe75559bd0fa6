//! Stand-in for the TLS of clients in a build without the feature `tls`. No value of these types
//! exists.

use crate::config::Config;
use crate::connection::TlsConfig;
use crate::metrics::TlsStatus;
use std::sync::Arc;

/// Server that does not exist.
pub enum TlsServer {}

#[allow(missing_docs, reason = "as in mod.rs")]
impl TlsServer {
    pub fn from_config(_: &Config) -> Option<Result<TlsServer, String>> {
        None
    }

    pub fn status(&self) -> Arc<TlsStatus> {
        match *self {}
    }

    pub fn validity_warning(&self) -> Option<String> {
        match *self {}
    }

    pub fn reload(&self) -> Result<bool, String> {
        match *self {}
    }

    pub fn config(&self) -> Arc<TlsConfig> {
        match *self {}
    }

    pub fn is_required(&self) -> bool {
        match *self {}
    }

    pub fn hint(_: &str) -> &'static str {
        ""
    }
}
