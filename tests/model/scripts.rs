//! Checks what all scripts have in common.

use std::path::{Path, PathBuf};

/// Path that is wrong if CARGO_TARGET_DIR or Cargo's configuration names another directory.
const FIXED_PATH: &str = concat!("target", "/");

/// Returns the files below a directory of the repository.
fn list_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory of the repository");
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    paths.flat_map(|path| if path.is_dir() { list_files(&path) } else { vec![path] }).collect()
}

/// Returns true if a line of code contains [`FIXED_PATH`] other than as the end of a variable.
fn has_fixed_path(line: &str) -> bool {
    let is_comment = ["#", "//"].iter().any(|mark| line.trim_start().starts_with(mark));
    let is_in_path =
        |at: usize| !line[..at].ends_with(|last: char| last == '$' || last == '_' || last.is_alphanumeric());
    !is_comment && line.match_indices(FIXED_PATH).any(|(at, _)| is_in_path(at))
}

/// Scripts and tests find Cargo's target directory instead of assuming its name.
#[test]
fn scripts_assume_no_target_directory() {
    assert!(has_fixed_path(&format!("exec {FIXED_PATH}x")) && has_fixed_path(&format!("\"$PWD/{FIXED_PATH}x\"")));
    assert!(!has_fixed_path(&format!("# {FIXED_PATH}x")) && !has_fixed_path(&format!("\"${FIXED_PATH}x\"")));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["scripts", "tests"].iter().flat_map(|name| list_files(&root.join(name)));
    let mut checked = 0;
    for path in
        files.filter(|path| ["sh", "py", "rs"].iter().any(|kind| path.extension().is_some_and(|it| it == *kind)))
    {
        let text = std::fs::read_to_string(&path).expect("a text file");
        let found: Vec<_> = text.lines().filter(|line| has_fixed_path(line)).collect();
        assert!(found.is_empty(), "{}: {found:#?}", path.display());
        checked += 1;
    }
    assert!(checked > 50, "{checked} files");
}
