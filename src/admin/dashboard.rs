//! Dashboard at `/`: one self-contained HTML page.
//!
//! Its script plots what `/stats` returns, and watches a key on request. The problems and the
//! tables are in the page itself, so they need no script. The Content Security Policy allows this
//! script and this style by their hashes, and nothing else. A test compares the hashes with the
//! files.

use super::diagnosis::{Problem, Severity, problems};
use super::tables::tables;
use crate::log_format::rfc3339_seconds;
use crate::metrics::{InstanceInfo, Snapshot};

const PAGE: &str = include_str!("page.html");
/// Section of the page that watches a key.
const WATCH: &str = include_str!("page_watch.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("page_data.js"), include_str!("page.js"), include_str!("page_watch.js"));

/// Value of the `Content-Security-Policy` field (CSP level 3).
pub const CONTENT_SECURITY_POLICY: &str = concat!(
    "default-src 'none'; ",
    "style-src 'sha256-axihL7BrC/IdrrkmveuX34u/4yxhHR4f+B7TuPs1s/c='; ",
    "script-src 'sha256-XBhTChi7+i5ORx5xKOFaOdoiJ/An8W2G4YzcebVSYpw='; ",
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
);

/// Renders the page with the current metrics.
pub fn html(now: &Snapshot, settings: &InstanceInfo) -> String {
    let problems: String = problems(now, settings).iter().map(problem_item).collect();
    let tables = tables(now, settings).map(|(name, rows)| {
        let rows: String = rows.iter().map(|cells| row(cells)).collect();
        (name, rows)
    });
    let mut page = String::with_capacity(2 * (PAGE.len() + STYLE.len() + SCRIPT.len()));
    // One pass, because inserted text may look like a placeholder.
    let mut pieces = PAGE.split("<!--");
    page.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (placeholder, rest) = piece.split_once("-->").unwrap_or((piece, ""));
        for part in match placeholder {
            "style" => ["<style>", STYLE, "</style>"],
            "script" => ["<script>", SCRIPT, "</script>"],
            "problems" => ["", &problems, ""],
            "watch" => ["", if settings.can_watch_keys { WATCH } else { "" }, ""],
            "healthy" => ["", if problems.is_empty() { "" } else { " hidden" }, ""],
            _ => ["", tables.iter().find(|(name, _)| *name == placeholder).map_or("", |(_, rows)| rows), ""],
        } {
            page.push_str(part);
        }
        page.push_str(rest);
    }
    page
}

/// Renders a problem. The script renders the same elements.
fn problem_item(problem: &Problem) -> String {
    let label = match problem.severity {
        Severity::Critical => "Critical",
        Severity::Warning => "Warning",
    };
    let since = problem.since.map_or_else(String::new, |since| {
        let since = rfc3339_seconds(since);
        format!(" <time datetime=\"{since}\">{}</time>", readable_since(&since))
    });
    format!(
        "<li class=\"{}\"><strong>{label}: {}</strong>{since}<p>{}</p></li>\n",
        problem.severity.name(),
        escape(problem.title),
        escape(&problem.text)
    )
}

/// Returns the text for a begin, such as `since 2026-11-28 21:44:10 UTC`.
fn readable_since(timestamp: &str) -> String {
    format!("since {}", timestamp.replace('T', " ").replace('Z', " UTC"))
}

fn row(cells: &[String]) -> String {
    let (name, values) = cells.split_first().map_or(("", cells), |(name, values)| (name, values));
    let values: String = values.iter().map(|value| format!("<td>{}</td>", escape(value))).collect();
    format!("<tr><th scope=\"row\">{}</th>{values}</tr>\n", escape(name))
}

/// Escapes text for HTML, so that text of Redis and of variables cannot become markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Setting;

    /// Text of Redis and of variables is shown, not run.
    #[test]
    fn foreign_text_is_escaped() {
        let mut now = Snapshot::default();
        now.redis.unavailable = Some("<script>alert('1')</script>".into());
        let setting = Setting { name: "REDIS_HOST", value: "\"<!--figures-->&".into(), ..Setting::default() };
        let settings = InstanceInfo { configuration: vec![setting], ..InstanceInfo::default() };
        let page = html(&now, &settings);
        assert!(page.contains("<td>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;</td>"), "{page}");
        assert!(page.contains("</strong><p>&lt;script&gt;alert("), "{page}");
        assert!(page.contains("<td>&quot;&lt;!--figures--&gt;&amp;</td>"), "{page}");
        assert_eq!((page.matches("<script>").count(), page.matches("<style>").count()), (1, 1));
    }

    /// Only a page on a port with keys can watch one.
    #[test]
    fn watch_section_needs_keys() {
        let now = Snapshot::default();
        for can_watch_keys in [true, false] {
            let page = html(&now, &InstanceInfo { can_watch_keys, ..InstanceInfo::default() });
            assert_eq!(page.contains("<section id=\"watch\""), can_watch_keys);
        }
    }

    /// The page claims no health beside a problem, also without style and script.
    #[test]
    fn problem_hides_claim_of_health() {
        let mut now = Snapshot::default();
        assert!(html(&now, &InstanceInfo::default()).contains("<p id=\"healthy\">No problem"));
        now.stopping = true;
        assert!(html(&now, &InstanceInfo::default()).contains("<p id=\"healthy\" hidden>No problem"));
    }

    /// A problem shows its severity as a word, and when it began.
    #[test]
    fn problem_shows_severity_and_begin() {
        let problem = Problem { severity: Severity::Warning, title: "Title", text: "Text.".into(), since: Some(61) };
        assert_eq!(
            problem_item(&problem),
            "<li class=\"warning\"><strong>Warning: Title</strong> <time datetime=\"1970-01-01T00:01:01Z\">since \
             1970-01-01 00:01:01 UTC</time><p>Text.</p></li>\n"
        );
    }
}
