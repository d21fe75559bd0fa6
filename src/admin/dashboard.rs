//! Dashboard at `/`: one self-contained HTML page.
//!
//! Its script plots what `/stats` returns. The tables are in the page itself, so they need no
//! script. The Content Security Policy allows this script and this style by their hashes, and
//! nothing else. A test compares the hashes with the files.

use crate::metrics::{InstanceInfo, Snapshot};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Value of the `Content-Security-Policy` field (CSP level 3).
pub const CONTENT_SECURITY_POLICY: &str = concat!(
    "default-src 'none'; ",
    "style-src 'sha256-rejW6D7VhfsNq8d7qi38ST+NNiXckkbQE41Cuq5lN6c='; ",
    "script-src 'sha256-j6xBMn2PiA1B1OP3/mgrUl2Omlrp5QEVnu0w4g+ErH4='; ",
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
);

/// Renders the page with the current metrics.
pub fn html(now: &Snapshot, settings: &InstanceInfo) -> String {
    let summary = summary_rows(now, settings).into_iter().map(|(name, value)| row(name, &value)).collect::<String>();
    let configuration = settings.configuration.iter().map(|(name, value)| row(name, value)).collect::<String>();
    let mut page = String::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + summary.len() + configuration.len());
    // One pass, because inserted text may look like a placeholder.
    let mut pieces = PAGE.split("<!--");
    page.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (placeholder, rest) = piece.split_once("-->").unwrap_or((piece, ""));
        for part in match placeholder {
            "style" => ["<style>", STYLE, "</style>"],
            "script" => ["<script>", SCRIPT, "</script>"],
            "figures" => ["", &summary, ""],
            _ => ["", &configuration, ""],
        } {
            page.push_str(part);
        }
        page.push_str(rest);
    }
    page
}

/// Returns the rows of the table of current values: name and text.
pub fn summary_rows(now: &Snapshot, settings: &InstanceInfo) -> Vec<(&'static str, String)> {
    let Snapshot { metrics, redis, process, .. } = now;
    let lookups = metrics.hits + metrics.misses;
    let ratio =
        if lookups == 0 { "-".into() } else { format!("{:.1} %", metrics.hits as f64 * 100.0 / lookups as f64) };
    let of = |count: usize, max: usize| format!("{} of {}", with_thousands(count as u64), with_thousands(max as u64));
    let total = |counts: &[u64]| with_thousands(counts.iter().sum());
    vec![
        ("Version", env!("CARGO_PKG_VERSION").into()),
        ("Uptime", duration(metrics.uptime / 1000)),
        ("Workers", with_thousands(now.workers as u64)),
        ("HTTP requests", total(&metrics.requests_by_outcome[0])),
        ("RESP requests", total(&metrics.requests_by_outcome[1])),
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
        ("Failed key reads", total(&metrics.failures)),
        ("Client connections", of(metrics.connected_clients, settings.max_connections)),
        ("Rejected connections", with_thousands(metrics.rejected)),
        ("Client timeouts", total(&metrics.timeouts)),
        ("Resident memory", format!("{:.1} MiB", process.resident_bytes as f64 / 1_048_576.0)),
        ("Open files", of(process.open_files as usize, process.max_open_files as usize)),
        ("CPU time", format!("{:.1} s", process.cpu_seconds)),
    ]
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("{days} d {hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// Formats a number with commas between thousands.
fn with_thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn row(name: &str, value: &str) -> String {
    format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape(name), escape(value))
}

/// Escapes text for HTML, so that text of Redis and of variables cannot become markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text of Redis and of variables is shown, not run.
    #[test]
    fn foreign_text_is_escaped() {
        let mut now = Snapshot::default();
        now.redis.unavailable = Some("<script>alert('1')</script>".into());
        let settings =
            InstanceInfo { configuration: vec![("REDIS_HOST", "\"<!--figures-->&".into())], ..InstanceInfo::default() };
        let page = html(&now, &settings);
        assert!(page.contains("<td>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;</td>"), "{page}");
        assert!(page.contains("<td>&quot;&lt;!--figures--&gt;&amp;</td>"), "{page}");
        assert_eq!((page.matches("<script>").count(), page.matches("<style>").count()), (1, 1));
    }

    /// Durations show days, numbers show commas.
    #[test]
    fn numbers_are_readable() {
        assert_eq!(duration(90_061), "1 d 01:01:01");
        assert_eq!([0, 999, 1000, 1_234_567].map(with_thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
