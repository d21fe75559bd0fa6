//! Text of `--help`.

use super::variables::{Group, VARIABLES, Variable};
use std::fmt::Write;

/// Returns the text of `--help`.
pub fn help() -> String {
    let mut text = format!(
        "segment-redis-proxy {}: a read-through cache in front of Redis\n\n\
         Usage: segment-redis-proxy [check | healthcheck | --help | --version]\n\n\
         Serves GET /key/{{key}} (JSON) and GET /raw/{{key}} (bytes) over HTTP, and GET, MGET and other read commands over RESP\n\
         on the same port. Hits come from memory, misses from Redis.\n\n\
         \x20 check         reads the configuration, connects to Redis, reads a key, and reports; starts no proxy.\n\
         \x20               Exit code 0: the proxy can work. 2: invalid configuration. 1: anything else.\n\
         \x20 healthcheck   probes the proxy that runs with the same variables. Exit code 0: it is healthy.\n\n\
         Environment variables, with defaults and allowed values:\n",
        env!("CARGO_PKG_VERSION")
    );
    let name_width = VARIABLES.iter().map(|variable| variable.name.len()).max().unwrap_or_default();
    for group in Group::ALL {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "\n{}:", group.title());
        for Variable { name, default, kind, description, .. } in VARIABLES.iter().filter(|one| one.group == group) {
            let _ = writeln!(text, "  {name:<name_width$} {default:<9} {description}");
            let _ = writeln!(text, "  {:name_width$} {:9} ({})", "", "", kind.allowed());
        }
    }
    text
}
