//! The reply to `INFO`: the figures of the loop that is asked, under the names that Redis' monitors know, where they mean the
//! same.

use crate::figures::{Figures, Settings};
use crate::protocol::resp::Sections;
use std::fmt::Write;

/// The version of Redis whose replies are given here. Libraries choose by it what they ask for.
const REDIS_VERSION: &str = "7.0.0";

/// The text. A title for each section, then `name:value`, each line with CR and LF.
pub fn text(figures: &Figures, settings: &Settings, sections: Sections) -> String {
    let mut text = String::new();
    for name in sections.names() {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let title: String = name[..1].to_uppercase() + &name[1..];
        // Writing into a String cannot fail.
        let _ = write!(text, "# {title}\r\n");
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = write!(text, "{name}:{value}\r\n");
        };
        match name {
            "server" => {
                line("server_name", &env!("CARGO_PKG_NAME"));
                line("server_version", &env!("CARGO_PKG_VERSION"));
                line("redis_version", &REDIS_VERSION);
                line("redis_mode", &"standalone");
                line("process_id", &settings.process_id);
                line("tcp_port", &settings.port);
                line("uptime_in_seconds", &(figures.uptime / 1000));
                // Clients wait for this to be 0 before they begin.
                line("loading", &0);
            }
            "clients" => {
                line("connected_clients", &figures.clients);
                line("maxclients", &settings.most_clients);
            }
            "stats" => {
                line("total_connections_received", &figures.connections);
                line("rejected_connections", &figures.rejected);
                line("total_commands_processed", &figures.requests);
                line("keyspace_hits", &figures.hits);
                line("keyspace_misses", &figures.misses);
                line("collapsed_misses", &figures.collapsed);
                line("expired_keys", &figures.expired);
                line("evicted_keys", &figures.evicted);
                line("invalidated_keys", &figures.invalidated);
            }
            "replication" => {
                // As `HELLO` has it.
                line("role", &"master");
                line("connected_slaves", &0);
            }
            _ if figures.entries > 0 => {
                // Everything that is cached expires.
                let keys = figures.entries;
                line(&format!("db{}", settings.database), &format_args!("keys={keys},expires={keys}"));
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_section_has_its_title_and_its_lines() {
        let figures = Figures { uptime: 61_999, clients: 3, entries: 2, ..Figures::default() };
        let settings = Settings { database: 5, most_clients: 7, ..Settings::default() };
        let told =
            |names: &[&str]| text(&figures, &settings, Sections::named(names.iter().map(|name| name.as_bytes())));
        assert_eq!(told(&["Clients"]), "# Clients\r\nconnected_clients:3\r\nmaxclients:7\r\n");
        assert_eq!(told(&["keyspace"]), "# Keyspace\r\ndb5:keys=2,expires=2\r\n");
        assert!(told(&["server"]).contains("\r\nuptime_in_seconds:61\r\n"));
        let two = told(&["keyspace", "replication", "nothing"]);
        assert_eq!(two.matches("# ").count(), 2);
        assert!(two.starts_with("# Replication\r\n") && two.contains("\r\n\r\n# Keyspace\r\n"), "{two}");
        let empty = text(&Figures::default(), &settings, Sections::named([&b"keyspace"[..]].into_iter()));
        assert_eq!(empty, "# Keyspace\r\n");
    }
}
