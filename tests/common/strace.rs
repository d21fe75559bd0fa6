//! System calls of a program, counted by strace.

use super::wait_for;
use std::collections::HashMap;
use std::path::Path;

/// Returns a command that runs `program` under strace, which writes its counts to the file
/// `summary`.
pub fn wrap_command<'a>(program: &'a str, summary: &'a Path) -> [&'a str; 9] {
    let summary = summary.to_str().expect("a plain name");
    // -D: strace runs as a detached grandchild, so the started process is the program itself.
    ["strace", "-D", "-f", "-c", "-U", "calls,name", "-o", summary, program]
}

/// Waits for the summary of strace and returns the number of calls for each system call.
///
/// strace writes the summary when the program exits.
pub fn read_counts(summary: &Path) -> HashMap<String, usize> {
    wait_for("strace writes its summary", || parse_counts(&std::fs::read_to_string(summary).ok()?))
}

/// Parses a summary of strace, or returns `None` if it is incomplete.
///
/// Only the lines between the two rules are counts. Lines elsewhere report threads that exited
/// during a call and start with a thread id.
pub fn parse_counts(text: &str) -> Option<HashMap<String, usize>> {
    let mut parts = text.split_inclusive('\n').map(str::trim).skip_while(|line| !line.starts_with("---")).skip(1);
    let rows: Vec<&str> = parts.by_ref().take_while(|line| !line.starts_with("---")).collect();
    // The total follows the second rule, so its presence shows that the table is complete.
    parts.next()?.strip_suffix("total")?;
    let row = |line: &str| {
        let (calls, name) = line.split_once(' ')?;
        Some((name.trim().to_owned(), calls.parse().ok()?))
    };
    Some(rows.into_iter().map(|line| row(line).unwrap_or_else(|| panic!("no count in {line}"))).collect())
}
