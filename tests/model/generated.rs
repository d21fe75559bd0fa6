//! Documents with parts that are generated from the table of variables: docs/configuration.md and
//! the man page.
//!
//! `UPDATE_DOCUMENTS=1 cargo test --test model generated` updates these parts.

use segment_redis_proxy::config::{Config, Group, VARIABLES, Variable};
use std::fmt::Write;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Checks that a document has `parts` between its markers, each a pair of lines. With
/// UPDATE_DOCUMENTS writes them.
fn check_parts(name: &str, parts: &[(String, String, String)]) {
    let (found, mut expected) = (read(name), read(name));
    for (begin, end, part) in parts {
        let start = expected.find(begin).unwrap_or_else(|| panic!("{name} has no line {begin:?}")) + begin.len();
        let length =
            expected[start..].find(end).unwrap_or_else(|| panic!("{name} has no line {end:?} after {begin:?}"));
        expected.replace_range(start..start + length, part);
    }
    if found != expected && std::env::var_os("UPDATE_DOCUMENTS").is_some() {
        return std::fs::write(path(name), expected).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(
        found == expected,
        "{name} is not current; run UPDATE_DOCUMENTS=1 cargo test --test model generated, and commit the result"
    );
}

fn variables_of(group: Group) -> impl Iterator<Item = &'static Variable> {
    VARIABLES.iter().filter(move |variable| variable.group == group)
}

/// Returns the variables of a group as a Markdown table.
fn markdown_table(group: Group) -> String {
    let mut text = "\n| variable | default | allowed | meaning |\n|---|---|---|---|\n".to_owned();
    for Variable { name, default, kind, description, .. } in variables_of(group) {
        let default = if default.is_empty() { String::new() } else { format!("`{default}` ") };
        writeln!(text, "| `{name}` | {default}| {} | {description} |", kind.allowed()).expect("a String accepts all");
    }
    text + "\n"
}

/// Returns the variables of a group in the language of man pages (man(7)).
fn man_section(group: Group) -> String {
    let mut text = format!(".SS {}\n", group.title());
    for Variable { name, default, kind, description, .. } in variables_of(group) {
        let default = if default.is_empty() { "no default".to_owned() } else { format!("default \\fB{default}\\fR") };
        let line = format!(".TP\n.B {name}\n{description} ({default}).\nAllowed: {}.", kind.allowed());
        // A minus sign instead of a hyphen, so that values can be copied.
        writeln!(text, "{}", line.replace('-', "\\-")).expect("a String accepts all");
    }
    text
}

/// docs/configuration.md has every variable, as the program knows it.
#[test]
fn generated_configuration_document_is_current() {
    let part = |group: Group| {
        let begin = format!("<!-- generated: {} -->\n", group.title());
        (begin, "<!-- end of the generated part -->".to_owned(), markdown_table(group))
    };
    check_parts("docs/configuration.md", &Group::ALL.map(part));
}

/// The man page has every variable, as the program knows it.
#[test]
fn generated_man_page_is_current() {
    let variables: String = Group::ALL.map(man_section).concat();
    let (begin, end) = (".\\\" generated: variables\n", ".\\\" end of the generated part");
    check_parts("deploy/man/segment-redis-proxy.8", &[(begin.into(), end.into(), variables)]);
    let version = format!("\"segment-redis-proxy {}\"", env!("CARGO_PKG_VERSION"));
    assert!(read("deploy/man/segment-redis-proxy.8").contains(&version), "the man page is of another version");
}

/// Each profile and example in docs/configuration.md is a valid configuration.
#[test]
fn generated_profiles_are_valid() {
    let document = read("docs/configuration.md");
    let profiles: Vec<&str> = document.split("```ini\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(profiles.len(), 5, "demo, sidecar, shared, sentinels and cluster");
    for profile in profiles {
        let set: Vec<(&str, &str)> = profile
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter_map(|line| line.split_once('='))
            .collect();
        for (name, _) in &set {
            assert!(Variable::find(name).is_some(), "{name} is not a variable");
        }
        let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        assert!(Config::read(find).is_ok(), "{:?}", Config::read(find).err());
    }
}
