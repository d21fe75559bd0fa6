//! Reply to the Redis command `INFO`: metrics of the worker that answers.
//!
//! A figure with the meaning of one in Redis has its name, so that monitors of Redis find it.

use crate::metrics::{InstanceInfo, ProcessStats, WorkerMetrics};
use crate::protocol::resp::InfoSections;
use std::fmt::Write;

/// Version of Redis that the replies follow. Client libraries choose their commands by it.
const REDIS_VERSION: &str = "7.0.0";

/// Renders the sections, each a title and lines of `name:value`, all ended by CR LF.
///
/// `metrics` are those of the worker that answers, `process` those of the whole process. A field of
/// Redis without a known value is left out.
pub fn text(
    metrics: &WorkerMetrics,
    process: &ProcessStats,
    settings: &InstanceInfo,
    sections: InfoSections,
) -> String {
    let mut text = String::new();
    for name in sections.names() {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let title = match name {
            "cpu" => "CPU".to_owned(),
            _ => name[..1].to_uppercase() + &name[1..],
        };
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
                line("os", &format_args!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
                line("arch_bits", &usize::BITS);
                line("process_id", &settings.process_id);
                line("tcp_port", &settings.port);
                line("uptime_in_seconds", &(metrics.uptime / 1000));
                line("uptime_in_days", &(metrics.uptime / 86_400_000));
            }
            "clients" => {
                line("connected_clients", &metrics.connected_clients);
                line("maxclients", &settings.max_connections);
                // There are no blocking commands.
                line("blocked_clients", &0);
                line("tracking_clients", &metrics.tracking_clients);
            }
            // The figures could not be read. A false zero would be worse than no field.
            "memory" if process.resident_bytes == 0 => {}
            "memory" => {
                // redis-cli searches for the first field that contains "used_memory".
                let (used, peak) = (process.resident_bytes, process.peak_resident_bytes);
                line("used_memory", &used);
                line("used_memory_human", &human_bytes(used));
                line("used_memory_rss", &used);
                line("used_memory_rss_human", &human_bytes(used));
                line("used_memory_peak", &peak);
                line("used_memory_peak_human", &human_bytes(peak));
                line("maxmemory_policy", &"allkeys-lru");
            }
            "persistence" => {
                // Clients start when this is 0.
                line("loading", &0);
                // There is no persistence.
                line("rdb_bgsave_in_progress", &0);
                line("aof_enabled", &0);
                line("aof_rewrite_in_progress", &0);
            }
            "stats" => {
                line("total_connections_received", &metrics.accepted);
                line("rejected_connections", &metrics.rejected);
                line("total_commands_processed", &metrics.requests);
                line("keyspace_hits", &metrics.hits);
                line("keyspace_misses", &metrics.misses);
                line("collapsed_misses", &metrics.collapsed);
                line("expired_keys", &metrics.expired);
                line("evicted_keys", &metrics.evicted);
                line("invalidated_keys", &metrics.invalidated);
                line("tracking_total_items", &metrics.tracked_keys);
            }
            "replication" => {
                // The same role as in the reply to `HELLO`.
                line("role", &"master");
                line("connected_slaves", &0);
            }
            "cpu" => {
                line("used_cpu_sys", &format_args!("{:.6}", process.system_cpu_seconds));
                let user = process.cpu_seconds - process.system_cpu_seconds;
                line("used_cpu_user", &format_args!("{user:.6}"));
            }
            "cluster" => line("cluster_enabled", &0),
            _ if metrics.entries > 0 => {
                // Every cached entry has an expiry.
                let keys = metrics.entries;
                line(&format!("db{}", settings.database), &format_args!("keys={keys},expires={keys}"));
            }
            _ => {}
        }
    }
    text
}

/// Formats bytes as Redis does in `*_human` fields, in units of 1024.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [(u32, char); 3] = [(30, 'G'), (20, 'M'), (10, 'K')];
    match UNITS.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.2}{unit}", bytes as f64 / f64::from(1 << shift)),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(metrics: &WorkerMetrics, process: &ProcessStats, settings: &InstanceInfo, names: &[&str]) -> String {
        text(metrics, process, settings, InfoSections::named(names.iter().map(|name| name.as_bytes())))
    }

    /// Each section has a title and its lines. Unknown sections are left out.
    #[test]
    fn sections_have_title_and_lines() {
        let metrics = WorkerMetrics { uptime: 61_999, connected_clients: 3, entries: 2, ..WorkerMetrics::default() };
        let settings = InstanceInfo { database: 5, max_connections: 7, ..InstanceInfo::default() };
        let info = |names: &[&str]| render(&metrics, &ProcessStats::default(), &settings, names);
        assert_eq!(
            info(&["Clients"]),
            "# Clients\r\nconnected_clients:3\r\nmaxclients:7\r\nblocked_clients:0\r\ntracking_clients:0\r\n"
        );
        assert_eq!(info(&["keyspace"]), "# Keyspace\r\ndb5:keys=2,expires=2\r\n");
        assert!(info(&["server"]).contains("\r\nuptime_in_seconds:61\r\n"));
        let two = info(&["keyspace", "replication", "nothing"]);
        assert_eq!(two.matches("# ").count(), 2);
        assert!(two.starts_with("# Replication\r\n") && two.contains("\r\n\r\n# Keyspace\r\n"), "{two}");
        let empty = render(&WorkerMetrics::default(), &ProcessStats::default(), &settings, &["keyspace"]);
        assert_eq!(empty, "# Keyspace\r\n");
    }

    /// Memory and CPU figures have the units of Redis.
    #[test]
    fn process_figures_keep_redis_units() {
        let (resident_bytes, peak_resident_bytes) = (19_398_656, 3 << 29);
        let process = ProcessStats {
            resident_bytes,
            peak_resident_bytes,
            cpu_seconds: 1.5,
            system_cpu_seconds: 0.25,
            ..ProcessStats::default()
        };
        let text = render(&WorkerMetrics::default(), &process, &InstanceInfo::default(), &["cpu", "memory"]);
        let (memory, cpu) = text.split_once("\r\n\r\n# CPU\r\n").expect("two sections");
        assert!(memory.starts_with("# Memory\r\nused_memory:19398656\r\nused_memory_human:18.50M\r\n"), "{memory}");
        assert!(memory.contains("\r\nused_memory_peak:1610612736\r\nused_memory_peak_human:1.50G\r\n"), "{memory}");
        assert_eq!(cpu, "used_cpu_sys:0.250000\r\nused_cpu_user:1.250000\r\n");
        assert_eq!((human_bytes(1023), human_bytes(1024)), ("1023B".into(), "1.00K".into()));
    }

    /// Memory figures that could not be read are left out. A monitor could take a zero for a
    /// restart.
    #[test]
    fn unread_memory_figures_are_left_out() {
        let text = render(&WorkerMetrics::default(), &ProcessStats::default(), &InstanceInfo::default(), &["memory"]);
        assert_eq!(text, "# Memory\r\n");
    }
}
