//! The reply to `INFO`: the proxy's own figures under the names that Redis' monitors know, where they mean the same.

use crate::request::Figures;
use std::fmt::Write;

/// Which sections are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections(u8);

/// Their names, in the order in which they are told.
const SECTIONS: [&str; 5] = ["server", "clients", "stats", "replication", "keyspace"];

/// The version of Redis whose replies are given here. Libraries choose by it what they ask for.
const REDIS_VERSION: &str = "7.0.0";

impl Sections {
    /// Those that are named, in whatever case; all, where none is. A name that is not known stands for nothing.
    pub fn named<'a>(names: impl Iterator<Item = &'a [u8]>) -> Sections {
        const ALL: u8 = (1 << SECTIONS.len()) - 1;
        let mut named = None;
        for name in names {
            let all = ["all", "default", "everything"].iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
            let place = SECTIONS.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name));
            *named.get_or_insert(0) |= if all { ALL } else { place.map_or(0, |place| 1 << place) };
        }
        Sections(named.unwrap_or(ALL))
    }

    fn contain(self, section: usize) -> bool {
        self.0 & (1 << section) != 0
    }
}

/// The text. A title for each section, then `name:value`, each line with CR and LF.
pub fn text(figures: &Figures, sections: Sections) -> String {
    let mut text = String::new();
    for (_, name) in SECTIONS.iter().enumerate().filter(|&(number, _)| sections.contain(number)) {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let title: String = name[..1].to_uppercase() + &name[1..];
        // Writing into a String cannot fail.
        let _ = write!(text, "# {title}\r\n");
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = write!(text, "{name}:{value}\r\n");
        };
        match *name {
            "server" => {
                line("server_name", &env!("CARGO_PKG_NAME"));
                line("server_version", &env!("CARGO_PKG_VERSION"));
                line("redis_version", &REDIS_VERSION);
                line("redis_mode", &"standalone");
                line("process_id", &figures.process_id);
                line("tcp_port", &figures.port);
                line("uptime_in_seconds", &(figures.uptime / 1000));
                // Clients wait for this to be 0 before they begin.
                line("loading", &0);
            }
            "clients" => {
                line("connected_clients", &figures.clients);
                line("maxclients", &figures.max_clients);
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
                line(&format!("db{}", figures.database), &format_args!("keys={keys},expires={keys}"));
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
    fn sections_are_those_that_are_named() {
        let figures = Figures { uptime: 61_999, clients: 3, entries: 2, database: 5, ..Figures::default() };
        let told = |names: &[&str]| text(&figures, Sections::named(names.iter().map(|name| name.as_bytes())));
        assert_eq!(told(&["Clients"]), "# Clients\r\nconnected_clients:3\r\nmaxclients:0\r\n");
        assert_eq!(told(&["keyspace"]), "# Keyspace\r\ndb5:keys=2,expires=2\r\n");
        assert!(told(&["server"]).contains("\r\nuptime_in_seconds:61\r\n"));
        let two = told(&["keyspace", "replication", "nothing"]);
        assert_eq!(two.matches("# ").count(), 2);
        assert!(two.starts_with("# Replication\r\n") && two.contains("\r\n\r\n# Keyspace\r\n"), "{two}");
        let all = told(&[]);
        assert_eq!(all.matches("# ").count(), SECTIONS.len());
        for name in ["all", "EVERYTHING", "default"] {
            assert_eq!(told(&[name]), all);
        }
        assert_eq!(told(&["nothing"]), "");
        let empty = text(&Figures::default(), Sections::named([&b"keyspace"[..]].into_iter()));
        assert_eq!(empty, "# Keyspace\r\n");
    }
}
