//! `/`: how the proxy does, for people. One page with all it needs in it: a script that plots what `/stats` tells, and tables
//! that are there without it too.
//!
//! The policy that goes with it lets a browser run this script and use this style, by their hashes, and nothing else. A test
//! compares them with the files.

use crate::metrics::{InstanceInfo, Snapshot};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What a browser may do with the page (Content Security Policy, level 3).
pub const CONTENT_SECURITY_POLICY: &str = concat!(
    "default-src 'none'; ",
    "style-src 'sha256-+e9jGPLBJcY23bHaNe7Z7T/weXEikNVwVotJWdHw3CI='; ",
    "script-src 'sha256-Pq9dilgtK8Px1GfRUEdoHW+prVSgo23e4M1cb8M+Y9A='; ",
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
);

/// The page, with the figures of this moment.
pub fn html(now: &Snapshot, settings: &InstanceInfo) -> String {
    let metrics = summary_rows(now, settings).into_iter().map(|(name, value)| row(name, &value)).collect::<String>();
    let configuration = settings.configuration.iter().map(|(name, value)| row(name, value)).collect::<String>();
    let mut page = String::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + metrics.len() + configuration.len());
    // In one pass: what is put in may look like a mark.
    let mut pieces = PAGE.split("<!--");
    page.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (mark, rest) = piece.split_once("-->").unwrap_or((piece, ""));
        for part in match mark {
            "style" => ["<style>", STYLE, "</style>"],
            "script" => ["<script>", SCRIPT, "</script>"],
            "figures" => ["", &metrics, ""],
            _ => ["", &configuration, ""],
        } {
            page.push_str(part);
        }
        page.push_str(rest);
    }
    page
}

/// What the table of figures shows: names and texts.
pub fn summary_rows(now: &Snapshot, settings: &InstanceInfo) -> Vec<(&'static str, String)> {
    let Snapshot { metrics, redis, process, .. } = now;
    let asked = metrics.hits + metrics.misses;
    let ratio = if asked == 0 { "-".into() } else { format!("{:.1} %", metrics.hits as f64 * 100.0 / asked as f64) };
    let of = |some: usize, most: usize| format!("{} of {}", with_thousands(some as u64), with_thousands(most as u64));
    let all = |counts: &[u64]| with_thousands(counts.iter().sum());
    vec![
        ("Version", env!("CARGO_PKG_VERSION").into()),
        ("Uptime", duration(metrics.uptime / 1000)),
        ("Workers", with_thousands(now.workers as u64)),
        ("HTTP requests", all(&metrics.requests_by_outcome[0])),
        ("RESP requests", all(&metrics.requests_by_outcome[1])),
        ("Hit ratio", ratio),
        ("Hits", with_thousands(metrics.hits)),
        ("Misses", with_thousands(metrics.misses)),
        ("Collapsed misses", with_thousands(metrics.collapsed)),
        ("Entries", of(metrics.entries, settings.capacity)),
        ("Cached bytes (keys and values)", with_thousands(metrics.bytes as u64)),
        ("Evicted", with_thousands(metrics.evicted)),
        ("Expired", with_thousands(metrics.expired)),
        ("Invalidated", with_thousands(metrics.invalidated)),
        ("Redis", redis.unavailable.clone().unwrap_or("available".into())),
        ("Freshness guarantee", redis.freshness.clone()),
        ("Redis connections", with_thousands(redis.connections as u64)),
        ("Redis round trips", with_thousands(redis.round_trips)),
        ("Keys in flight", with_thousands(metrics.inflight_keys as u64)),
        ("Queued keys", with_thousands(redis.queued as u64)),
        ("Failed key reads", all(&metrics.failures)),
        ("Client connections", of(metrics.connected_clients, settings.max_connections)),
        ("Rejected connections", with_thousands(metrics.rejected)),
        ("Client timeouts", all(&metrics.timeouts)),
        ("Resident memory", format!("{:.1} MiB", process.resident_bytes as f64 / 1_048_576.0)),
        ("Open files", of(process.open_files as usize, process.max_open_files as usize)),
        ("CPU time", format!("{:.1} s", process.cpu_seconds)),
    ]
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("{days} d {hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// With commas between thousands.
fn with_thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn row(name: &str, value: &str) -> String {
    format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escaped(name), escaped(value))
}

/// Text as HTML has it. What Redis and the operator say is shown, not run.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_shown_and_not_run() {
        let mut now = Snapshot::default();
        now.redis.unavailable = Some("<script>alert('1')</script>".into());
        let settings =
            InstanceInfo { configuration: vec![("REDIS_HOST", "\"<!--figures-->&".into())], ..InstanceInfo::default() };
        let page = html(&now, &settings);
        assert!(page.contains("<td>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;</td>"), "{page}");
        assert!(page.contains("<td>&quot;&lt;!--figures--&gt;&amp;</td>"), "{page}");
        assert_eq!((page.matches("<script>").count(), page.matches("<style>").count()), (1, 1));
        assert_eq!(duration(90_061), "1 d 01:01:01");
        assert_eq!([0, 999, 1000, 1_234_567].map(with_thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
