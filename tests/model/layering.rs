//! Checks the layout of `src`: which module imports which, and which modules use a crate, perform
//! I/O or read the clock.
//!
//! The expected tables are exact. An import that is no longer in use fails as well, so that no
//! table allows more than the code needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Dependencies, each with the modules that use it.
const CRATES: [(&str, &[&str]); 19] = [
    ("base64", &["protocol"]),
    ("env_logger", &["main"]),
    ("hmac_sha256", &["client_auth"]),
    ("httparse", &["protocol"]),
    ("httpdate", &["protocol", "log_format"]),
    ("itoa", &["backend", "protocol"]),
    ("log", &["read_through", "backend", "log_writer", "server", "listeners", "main", "reload"]),
    ("mio", &["server"]),
    ("redis", &["backend"]),
    ("rlimit", &["server"]),
    ("rustix", &["server"]),
    ("rustls", &["connection", "tls_files", "backend", "tls_server"]),
    ("signal_hook", &["main"]),
    ("slab", &["inflight", "read_through", "server"]),
    ("socket2", &["backend", "server"]),
    ("subtle", &["client_auth"]),
    ("tikv_jemallocator", &["main"]),
    ("twox_hash", &["value"]),
    ("webpki_roots", &["backend"]),
];

/// Modules that read the clock. The backend bounds its blocking calls, and `main` the time that
/// workers and logs may take to end. The log writer dates a message of its own. All other modules
/// receive the time as an argument.
const CLOCK_MODULES: [&str; 4] = ["backend", "log_writer", "server", "main"];

/// Modules that use sockets, threads, files or processes.
const IO_MODULES: [&str; 8] =
    ["backend", "bounded_file", "log_writer", "server", "check", "healthcheck", "listeners", "main"];

/// Set of modules or crates.
type Names = BTreeSet<String>;

fn to_names(names: &[&str]) -> Names {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// One source file, without comments and unit tests.
struct Source {
    /// Path below `src`.
    path: PathBuf,
    code: String,
}

impl Source {
    fn read(src: &Path, path: &Path) -> Source {
        let text = std::fs::read_to_string(path).expect("a source file");
        let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = program.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        Source { path: path.strip_prefix(src).expect("a path below src").to_owned(), code }
    }

    /// Returns true if the code names an item of `module`, which may be a path. Longer paths that
    /// end with it do not count.
    fn names_item_of(&self, module: &str) -> bool {
        let starts = |at: usize| !self.code[..at].ends_with(|before| is_identifier(before) || before == ':');
        self.code.match_indices(&format!("{module}::")).any(|(at, _)| starts(at))
    }

    /// Returns true if the code imports a module of this crate, or names an item of it.
    fn imports(&self, module: &str) -> bool {
        let path = format!("crate::{module}");
        let ends = |at: usize| !self.code[at + path.len()..].starts_with(is_identifier);
        self.code.match_indices(&path).any(|(at, _)| ends(at))
    }

    /// Returns the forms of `use` in this file that the search for imports would miss.
    fn hidden_imports(&self) -> Vec<String> {
        // A file `mod.rs` is its directory's module.
        let depth = self.path.components().count() - usize::from(self.path.ends_with("mod.rs"));
        let forms = ["use crate::{".to_owned(), "use crate::*".to_owned(), "super::".repeat(depth)];
        forms.into_iter().filter(|form| self.code.contains(form)).collect()
    }
}

fn is_identifier(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// Returns all source files below `path`. A file `tests.rs` holds unit tests and is left out.
fn read_sources(src: &Path, path: &Path) -> Vec<Source> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).expect("a directory of src");
        return entries.flat_map(|entry| read_sources(src, &entry.expect("a directory entry").path())).collect();
    }
    let is_program = path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs");
    if is_program { vec![Source::read(src, path)] } else { Vec::new() }
}

/// Returns the files of each module. A module is a file or a directory of `src`.
fn read_modules() -> BTreeMap<String, Vec<Source>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = std::fs::read_dir(&src).expect("src").map(|entry| entry.expect("a directory entry").path());
    let name = |path: &Path| path.file_stem().and_then(|name| name.to_str()).expect("a name in UTF-8").to_owned();
    entries.map(|path| (name(&path), read_sources(&src, &path))).collect()
}

/// Returns the modules with a file that matches.
fn modules_with(is_match: impl Fn(&Source) -> bool) -> Names {
    let modules = read_modules().into_iter();
    modules.filter(|(_, sources)| sources.iter().any(&is_match)).map(|(name, _)| name).collect()
}

fn read_repository_file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a file of the repository")
}

/// Returns the names in a table cell: `` `cache/`, `value.rs` `` are cache and value.
fn parse_names(cell: &str) -> Vec<String> {
    let names = cell.split(", ").map(|name| name.trim_matches('`').trim_end_matches('/').trim_end_matches(".rs"));
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Returns the modules in ARCHITECTURE.md with their imports, in the order of its table.
fn read_architecture() -> Vec<(String, Names)> {
    let text = read_repository_file("ARCHITECTURE.md");
    let (_, rest) =
        text.split_once("| module | purpose | imports from above |\n|---|---|---|\n").expect("the table of modules");
    let mut rows = Vec::new();
    for line in rest.lines().take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, modules, _, imports, _] = cells[..] else { panic!("a row without three cells: {line}") };
        let imports: Names = parse_names(imports).into_iter().collect();
        rows.extend(parse_names(modules).into_iter().map(|module| (module, imports.clone())));
    }
    rows
}

/// Each module imports exactly the modules that ARCHITECTURE.md lists for it.
#[test]
fn imports_match_architecture() {
    let modules = read_modules();
    let documented: BTreeMap<String, Names> = read_architecture().into_iter().collect();
    assert!(
        documented.keys().eq(modules.keys()),
        "ARCHITECTURE.md: {:?}\nsrc: {:?}",
        documented.keys(),
        modules.keys()
    );
    let mut differences = Vec::new();
    for (module, sources) in &modules {
        let others = modules.keys().filter(|&other| other != module);
        let is_imported = |other: &&String| sources.iter().any(|source| source.imports(other));
        let mut imports: Names = others.filter(is_imported).cloned().collect();
        if sources.iter().any(|source| source.names_item_of("segment_redis_proxy")) {
            imports.insert("the library".to_owned());
        }
        if imports != documented[module] {
            differences.push(format!("{module} imports {imports:?}, documented are {:?}", documented[module]));
        }
        for source in sources {
            let forms = source.hidden_imports().into_iter();
            differences.extend(forms.map(|form| format!("{}: {form} hides imports", source.path.display())));
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}

/// A module imports only modules above it in the table, so that there are no circular imports.
#[test]
fn architecture_has_no_circular_import() {
    let mut above = Names::from(["the library".to_owned()]);
    for (module, imports) in read_architecture() {
        assert!(imports.is_subset(&above), "{module} imports {imports:?}, above it are {above:?}");
        above.insert(module);
    }
}

/// Each crate is used by exactly the modules in the table, and each dependency is in the table.
#[test]
fn crates_are_used_as_listed() {
    for (name, expected) in CRATES {
        assert_eq!(modules_with(|source| source.names_item_of(name)), to_names(expected), "crate {name}");
    }
    let manifest = read_repository_file("Cargo.toml");
    let (_, rest) = manifest.split_once("[dependencies]\n").expect("dependencies");
    let (dependencies, _) = rest.split_once("\n[").expect("a next section");
    let name = |line: &str| line.split_once(" =").expect("a name").0.replace('-', "_");
    let names: Names = dependencies.lines().filter(|line| !line.is_empty()).map(name).collect();
    assert_eq!(names, to_names(&CRATES.map(|(name, _)| name)));
}

/// Only few modules perform I/O or read the clock; all others are deterministic.
#[test]
fn few_modules_touch_the_system() {
    let has_any = |source: &Source, texts: &[&str]| texts.iter().any(|&text| source.code.contains(text));
    let io = modules_with(|source| has_any(source, &["std::net", "std::thread", "std::fs", "std::process"]));
    assert_eq!(io, to_names(&IO_MODULES));
    let clock = modules_with(|source| has_any(source, &["Instant::now", "SystemTime::now"]));
    assert_eq!(clock, to_names(&CLOCK_MODULES));
}
