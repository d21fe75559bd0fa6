//! The layout is the architecture: a room that imports what it must not know fails here.

use std::path::{Path, PathBuf};

/// A room (a file or a folder of src), the rooms of this crate it may import, and the crates.
const ROOMS: [(&str, &[&str], &[&str]); 18] = [
    ("value.rs", &[], &[]),
    ("types.rs", &["value"], &[]),
    ("config.rs", &["cache", "protocol"], &[]),
    ("cache", &["types", "value"], &[]),
    ("inflight.rs", &["cache", "types"], &["slab"]),
    ("protocol", &["types", "value"], &["base64", "httparse", "httpdate", "itoa"]),
    ("metrics", &["protocol", "types"], &[]),
    ("admin", &["metrics", "protocol", "types"], &[]),
    ("connection", &["metrics", "protocol", "types"], &[]),
    ("read_through.rs", &["cache", "metrics", "inflight", "types", "value"], &["log"]),
    ("dispatch.rs", &["admin", "connection", "metrics", "protocol", "read_through", "types", "value"], &[]),
    ("log_writer.rs", &[], &["log"]),
    ("log_throttle.rs", &["types"], &[]),
    ("backend", &["log_throttle", "metrics", "types", "value"], &["log", "redis"]),
    (
        "server",
        &[
            "backend",
            "cache",
            "config",
            "connection",
            "metrics",
            "log_throttle",
            "log_writer",
            "protocol",
            "read_through",
            "types",
            "dispatch",
        ],
        &["log", "mio", "rlimit", "rustix", "slab", "socket2"],
    ),
    ("lib.rs", &[], &[]),
    ("healthcheck.rs", &[], &["segment_redis_proxy"]),
    ("main.rs", &[], &["env_logger", "log", "segment_redis_proxy", "signal_hook", "tikv_jemallocator"]),
];

const CRATES: [&str; 14] = [
    "base64",
    "env_logger",
    "httparse",
    "httpdate",
    "itoa",
    "log",
    "mio",
    "redis",
    "rlimit",
    "rustix",
    "signal_hook",
    "slab",
    "socket2",
    "tikv_jemallocator",
];

/// Where time may be asked for. The backend bounds its own blocking calls, `main` how long its workers and the log may take to end;
/// everybody else is told the time.
const CLOCKS: [&str; 3] = ["backend", "main.rs", "server"];

/// Who may touch sockets, threads, files and processes at all.
const OUTSIDE: [&str; 5] = ["backend", "server", "log_writer.rs", "healthcheck.rs", "main.rs"];

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).expect("a folder of src").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| files(&path)).collect()
}

/// The program's text without comments and without the tests at the end of a file.
fn code(file: &Path) -> String {
    if file.file_name().is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    let text = std::fs::read_to_string(file).expect("a source file");
    let program = text.split("#[cfg(test)]").next().unwrap_or_default();
    program.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether `path::` begins somewhere in `code`, not as the end of a longer name.
fn names(code: &str, path: &str) -> bool {
    let whole = |at: usize| !code[..at].ends_with(|before: char| before.is_alphanumeric() || "_:".contains(before));
    code.match_indices(&format!("{path}::")).any(|(at, _)| whole(at))
}

#[test]
fn every_room_imports_only_what_it_may_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms: Vec<_> =
        std::fs::read_dir(&src).expect("src").map(|entry| entry.expect("an entry").file_name()).collect();
    let mut broken = Vec::new();
    for room in &rooms {
        let room = room.to_str().expect("a plain name");
        let Some((_, may_rooms, may_crates)) = ROOMS.iter().find(|(known, ..)| *known == room) else {
            broken.push(format!("{room} is not in the table of rooms"));
            continue;
        };
        for file in files(&src.join(room)) {
            let code = code(&file);
            for other in rooms.iter().filter_map(|other| other.to_str()) {
                let name = other.trim_end_matches(".rs");
                let own = other == room;
                let imports = names(&code, &format!("crate::{name}")) || code.contains(&format!("use crate::{name};"));
                if imports && !own && !may_rooms.contains(&name) {
                    broken.push(format!("{} imports the room {name}", file.display()));
                }
            }
            for name in CRATES {
                if names(&code, name) && !may_crates.contains(&name) {
                    broken.push(format!("{} uses the crate {name}", file.display()));
                }
            }
            // These would hide a room from the search above.
            for hidden in ["use crate::{", "use crate::*", "super::super::super"] {
                if code.contains(hidden) {
                    broken.push(format!("{} has {hidden}; name one room in each line", file.display()));
                }
            }
            for system in ["std::net", "std::thread", "std::fs", "std::process"] {
                if code.contains(system) && !OUTSIDE.contains(&room) {
                    broken.push(format!("{} touches {system}", file.display()));
                }
            }
            let asks_for_time = code.contains("Instant::now") || code.contains("SystemTime::now");
            if asks_for_time && !CLOCKS.contains(&room) {
                broken.push(format!("{} asks for the time", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_table_knows_every_dependency() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("Cargo.toml");
    let (_, rest) = manifest.split_once("[dependencies]\n").expect("dependencies");
    let (dependencies, _) = rest.split_once("\n[").expect("a next section");
    for line in dependencies.lines().filter(|line| !line.is_empty()) {
        let name = line.split_once(" =").expect("a name").0.replace('-', "_");
        assert!(CRATES.contains(&name.as_str()), "{name} is in no room's list");
    }
}
