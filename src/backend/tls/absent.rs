//! Stand-in for `tls/mod.rs` in a build without the feature `tls`. The configuration refuses TLS
//! there, so no connector exists.

use super::stream::{DeadlineSocket, Stream};
use crate::upstream::{UpstreamAddress, UpstreamTls};
use std::io;
use std::time::Instant;

/// Client side of TLS, which cannot be created.
pub enum TlsConnector {}

impl TlsConnector {
    pub(super) fn load(_: &UpstreamTls, _: &[UpstreamAddress]) -> Result<TlsConnector, String> {
        Err("REDIS_TLS=on needs a build with the cargo feature `tls`".into())
    }

    pub(super) fn reload(&self) -> Result<(), String> {
        match *self {}
    }

    pub(super) fn connect(&self, _: DeadlineSocket, _: &UpstreamAddress, _: Instant) -> io::Result<Stream> {
        match *self {}
    }
}
