//! What a program calls of the kernel, counted by strace.

use super::wait_for;
use std::collections::HashMap;
use std::path::Path;

/// The command that runs a program under strace, which writes what it has counted into the file `summary`.
pub fn wrap_command<'a>(program: &'a str, summary: &'a Path) -> [&'a str; 9] {
    let summary = summary.to_str().expect("a plain name");
    // -D: strace watches from a process of its own, and the one started is the program.
    ["strace", "-D", "-f", "-c", "-U", "calls,name", "-o", summary, program]
}

/// How often each system call was made, once the program has ended and strace has written.
pub fn read_counts(summary: &Path) -> HashMap<String, usize> {
    wait_for("strace has written", || parse_counts(&std::fs::read_to_string(summary).ok()?))
}

/// The lines between the two that are drawn. What stands elsewhere is about threads that strace saw in the middle of something
/// when they ended; it begins with their number, which is no count.
pub fn parse_counts(text: &str) -> Option<HashMap<String, usize>> {
    let mut parts = text.split_inclusive('\n').map(str::trim).skip_while(|line| !line.starts_with("---")).skip(1);
    let rows: Vec<&str> = parts.by_ref().take_while(|line| !line.starts_with("---")).collect();
    // A sum, behind the second of them: the table is whole.
    parts.next()?.strip_suffix("total")?;
    let row = |line: &str| {
        let (calls, name) = line.split_once(' ')?;
        Some((name.trim().to_owned(), calls.parse().ok()?))
    };
    Some(rows.into_iter().map(|line| row(line).unwrap_or_else(|| panic!("no count in {line}"))).collect())
}
