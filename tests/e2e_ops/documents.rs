//! Tests of the documents: their commands give the output that they show, their links resolve, and
//! README stays short.
//!
//! | fence | rule |
//! |---|---|
//! | `console` | `$ command` and its output. The commands run beside a Redis with sample keys and a proxy with default ports. `...` stands for any lines, or for any text within a line. `<!-- with: NAME=value -->` sets variables of the proxy |
//! | `sh`, `bash` | follows `<!-- not run: reason -->` or `<!-- run by: file -->`; the file contains the command |
//! | another language | not checked |
//! | none | not allowed |

use segment_redis_proxy::config::VARIABLES;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PROXY: &str = env!("CARGO_BIN_EXE_segment-redis-proxy");

/// Limits of README: what a reader takes in within five minutes.
const MAX_README_LINES: usize = 150;
const MAX_README_WORDS: usize = 1200;

/// Fenced block of a document.
#[derive(Debug)]
struct Block {
    /// File and line of the fence.
    place: String,
    language: String,
    /// The line before the fence.
    before: String,
    lines: Vec<String>,
}

/// Command of a `console` block and the lines that it must print.
struct ConsoleCommand {
    text: String,
    expected: Vec<String>,
}

/// Returns the Markdown files of the repository that git tracks or would add.
fn markdown_files() -> Vec<String> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"];
    let output = Command::new("git").current_dir(ROOT).args(list).output().expect("git is installed");
    let names = String::from_utf8(output.stdout).expect("names in UTF-8");
    let names: Vec<String> =
        names.lines().filter(|name| Path::new(ROOT).join(name).exists()).map(str::to_owned).collect();
    assert!(names.iter().any(|name| name == "README.md"), "git lists no README.md: {names:?}");
    names
}

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(name)).expect("a file of the repository")
}

/// Returns the fenced blocks of a document, and its other lines.
fn parse(name: &str, text: &str) -> (Vec<Block>, Vec<String>) {
    let (mut blocks, mut prose, mut open): (Vec<Block>, Vec<String>, Option<Block>) = (vec![], vec![], None);
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line.to_owned()),
            (None, Some(language)) => {
                let before = prose.last().cloned().unwrap_or_default();
                let place = format!("{name}:{}", index + 1);
                open = Some(Block { place, language: language.trim().to_owned(), before, lines: vec![] });
                // The next block does not have the same line before it.
                prose.push(String::new());
            }
            (None, None) => prose.push(line.to_owned()),
        }
    }
    assert!(open.is_none(), "{name} ends within a fence");
    (blocks, prose)
}

/// Returns the blocks of all documents.
fn all_blocks() -> Vec<Block> {
    markdown_files().iter().flat_map(|name| parse(name, &read(name)).0).collect()
}

/// Returns the text of a comment such as `<!-- run by: file -->`.
fn comment<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim().strip_prefix(kind)?.strip_prefix(": ")
}

/// Splits a `console` block into commands. A command that ends with a backslash goes on in the next
/// line.
fn parse_console(block: &Block) -> Vec<ConsoleCommand> {
    let mut commands: Vec<ConsoleCommand> = Vec::new();
    for line in &block.lines {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(text), _) => commands.push(ConsoleCommand { text: text.to_owned(), expected: vec![] }),
            (None, Some(command)) if command.text.ends_with('\\') => command.text += &format!("\n{line}"),
            (None, Some(command)) => command.expected.push(line.to_owned()),
            (None, None) => panic!("{}: the block does not start with a command", block.place),
        }
    }
    // An empty line may separate an output from the next command.
    for command in &mut commands {
        while command.expected.last().is_some_and(String::is_empty) {
            command.expected.pop();
        }
    }
    commands
}

/// Returns true if the lines match the pattern.
fn matches_lines(pattern: &[String], lines: &[&str]) -> bool {
    match (pattern.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "..." => {
            (0..=lines.len()).any(|skipped| matches_lines(rest, &lines[skipped..]))
        }
        (Some((first, rest)), Some((line, others))) => matches_line(first, line) && matches_lines(rest, others),
        _ => false,
    }
}

/// Returns true if a line matches the pattern.
fn matches_line(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once("...") else { return pattern == line };
    let Some(mut remaining) = line.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split("...").collect();
    let end = parts.pop().expect("split returns at least one part");
    for part in parts {
        let Some((_, behind)) = remaining.split_once(part) else { return false };
        remaining = behind;
    }
    remaining.ends_with(end)
}

/// Runs a `console` block. Returns a description of each difference.
fn run_console(block: &Block) -> Vec<String> {
    let commands = parse_console(block);
    let name: String = block.place.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    std::fs::create_dir(&directory).expect("a new name");
    for (index, command) in commands.iter().enumerate() {
        std::fs::write(directory.join(format!("{}.command", index + 1)), &command.text).expect("a writable directory");
    }
    let is_root = Command::new("id").arg("-u").output().expect("id is installed").stdout == b"0\n";
    let mut path = std::ffi::OsString::from(Path::new(PROXY).parent().expect("a directory"));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    let output = Command::new("unshare")
        .arg(if is_root { "-n" } else { "-rn" })
        .arg(Path::new(ROOT).join("tests/e2e_ops/console.sh"))
        .arg(&directory)
        .args(comment(&block.before, "with").unwrap_or_default().split_ascii_whitespace())
        .current_dir(ROOT)
        .env("PATH", path)
        .output()
        .expect("unshare is installed");
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}\nlog of the proxy:\n{log}", block.place);
    let mut differences = Vec::new();
    for (index, command) in commands.iter().enumerate() {
        let actual = std::fs::read(directory.join(format!("{}.output", index + 1))).expect("an output");
        let actual = String::from_utf8_lossy(&actual).replace('\r', "");
        let lines: Vec<&str> = actual.trim_end_matches('\n').lines().collect();
        if !matches_lines(&command.expected, &lines) {
            let expected = command.expected.join("\n");
            differences
                .push(format!("{}: $ {}\n--- document\n{expected}\n--- output\n{actual}", block.place, command.text));
        }
    }
    std::fs::remove_dir_all(&directory).expect("a directory of this test");
    differences
}

/// Every command in a `console` block gives the output that the document shows.
#[test]
fn console_blocks_give_documented_output() {
    let blocks: Vec<Block> = all_blocks().into_iter().filter(|block| block.language == "console").collect();
    assert!(!blocks.is_empty(), "the documents have no console block");
    // Two at a time: each has a Redis and a proxy of its own.
    let (first, second) = blocks.split_at(blocks.len() / 2);
    let differences = std::thread::scope(|scope| {
        let half = scope.spawn(|| first.iter().flat_map(run_console).collect::<Vec<_>>());
        let mut differences: Vec<String> = second.iter().flat_map(run_console).collect();
        differences.extend(half.join().expect("the other half runs"));
        differences
    });
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// Returns what is wrong with a block that the tests do not run, or `None`.
fn find_problem(block: &Block) -> Option<String> {
    match block.language.as_str() {
        "" => return Some("the fence has no language".into()),
        "sh" | "bash" => {}
        _ => return None,
    }
    let Some(file) = comment(&block.before, "run by") else {
        let reason = comment(&block.before, "not run");
        return reason.is_none().then(|| "no \"run by:\" or \"not run:\" comment before the fence".into());
    };
    let Ok(test) = std::fs::read_to_string(Path::new(ROOT).join(file)) else {
        return Some(format!("{file} does not exist"));
    };
    let is_variable = |word: &&str| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
    let commands = block.lines.iter().filter(|line| !line.starts_with(['#', ' ']));
    let mut words = commands.filter_map(|line| line.split_ascii_whitespace().find(|word| !is_variable(word)));
    let missing = words.find(|word| !test.contains(word.rsplit('/').next().unwrap_or(word)))?;
    Some(format!("{file} does not run {missing}"))
}

/// Every fence has a language. Commands that the tests do not run say why, or name the test that
/// runs them.
#[test]
fn shell_blocks_name_their_test() {
    let problem = |block: &Block| Some(format!("{}: {}", block.place, find_problem(block)?));
    let problems: Vec<String> = all_blocks().iter().filter_map(problem).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Returns the anchors of a document as GitHub derives them from its headings.
fn anchors(name: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    for line in parse(name, &read(name)).1 {
        let heading = line.trim_start_matches('#');
        if !heading.starts_with(' ') || heading.len() == line.len() {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let slug: String = heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|slug| !anchors.contains(slug));
        anchors.extend(free);
    }
    anchors
}

/// Returns the targets of the links and images in a line, without those in code.
fn link_targets(line: &str) -> Vec<String> {
    let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// Every relative link leads to a file, and its anchor to a heading.
#[test]
fn relative_links_and_anchors_resolve() {
    let mut broken = Vec::new();
    for name in markdown_files() {
        let links = parse(&name, &read(&name)).1.into_iter().flat_map(|line| link_targets(&line));
        for link in links.filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let path = Path::new(&name).parent().unwrap_or(Path::new("")).join(file);
            let path = if file.is_empty() { PathBuf::from(&name) } else { path };
            let has_anchor = |anchor| anchors(path.to_str().expect("a name in UTF-8")).contains(anchor);
            if !Path::new(ROOT).join(&path).exists() || !anchor.is_none_or(has_anchor) {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "broken links: {broken:#?}");
}

/// README is short enough to read, and its variables have the defaults of the program.
#[test]
fn readme_is_short_and_current() {
    let readme = read("README.md");
    let (lines, words) = (readme.lines().count(), readme.split_whitespace().count());
    assert!(lines <= MAX_README_LINES && words <= MAX_README_WORDS, "README.md: {lines} lines, {words} words");
    let is_variable = |cell: &&str| cell.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let names: Vec<&str> = rows.map(|(name, _)| name).filter(is_variable).collect();
    assert!(!names.is_empty(), "README.md has no table of variables");
    for name in names {
        let variable = VARIABLES.iter().find(|variable| variable.name == name).expect("a variable of the program");
        let cells = format!("| `{name}` | {} |", variable.default).replace("|  |", "| |");
        assert!(readme.contains(&cells), "README.md does not have {cells:?}");
    }
}

/// `...` matches any lines or any text. Everything else must be equal.
#[test]
fn output_pattern_matches_any_text() {
    let matches = |pattern: &str, text: &str| {
        let pattern: Vec<String> = pattern.lines().map(str::to_owned).collect();
        matches_lines(&pattern, &text.lines().collect::<Vec<_>>())
    };
    for (pattern, text) in
        [("", ""), ("a", "a"), ("a\n...\nd", "a\nb\nc\nd"), ("...", ""), ("a...c...e", "abcde"), ("a...", "a")]
    {
        assert!(matches(pattern, text), "{pattern:?} {text:?}");
    }
    for (pattern, text) in
        [("", "a"), ("a", ""), ("a", "ab"), ("a\n...\nd", "a\nb\nc"), ("a...c", "abcd"), ("a...x...e", "abcde")]
    {
        assert!(!matches(pattern, text), "{pattern:?} {text:?}");
    }
}
