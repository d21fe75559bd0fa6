//! Warnings about variables that have no effect because their names are misspelt.
//!
//! Unknown variables are no errors: the environment also holds those of other programs.

use super::error::is_service_link;
use super::variables::VARIABLES;

/// Most edits between a misspelt name and the name that it resembles.
const MAX_EDITS: usize = 2;

/// Prefixes of names that no other program is expected to use in the environment of this one.
const PREFIXES: [&str; 4] = ["REDIS_", "CACHE_", "PROXY_", "CLIENT_"];

/// Variable with one of these prefixes that systemd sets (systemd.exec(5), `CacheDirectory=`).
const OF_SYSTEMD: &str = "CACHE_DIRECTORY";

/// Returns a warning for each variable that is unknown but resembles a known one. `variables` are
/// the names and values of the environment.
pub fn unknown_variables(variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let mut warnings: Vec<String> = variables
        .into_iter()
        .filter(|(name, value)| !is_known(name) && !is_injected(name, value))
        .filter_map(|(name, _)| warning(&name))
        .collect();
    warnings.sort_unstable();
    warnings
}

fn is_known(name: &str) -> bool {
    name == OF_SYSTEMD || VARIABLES.iter().any(|variable| variable.name == name)
}

/// Returns the warning about an unknown variable, `None` if it resembles no known one.
fn warning(name: &str) -> Option<String> {
    let upper = name.to_uppercase();
    let nearest = VARIABLES.iter().map(|known| (edits(&upper, known.name), known.name)).min();
    // Debug format, because a name may have control characters.
    let shown = format!("{name:?}").trim_matches('"').to_owned();
    if let Some((count, known)) = nearest
        && count <= MAX_EDITS
    {
        return Some(format!("{shown} is not a known variable and has no effect; did you mean {known}?"));
    }
    let prefix = PREFIXES.iter().find(|prefix| upper.starts_with(*prefix))?;
    let known = VARIABLES.iter().map(|variable| variable.name).filter(|known| known.starts_with(prefix));
    Some(format!(
        "{shown} is not a known variable and has no effect; the variables with this prefix are {}",
        known.collect::<Vec<_>>().join(", ")
    ))
}

/// Returns true for a variable that Kubernetes sets for a Service, or Docker for a link.
///
/// For a Service `redis-cache` with port 6379, Kubernetes sets `REDIS_CACHE_SERVICE_HOST`,
/// `REDIS_CACHE_SERVICE_PORT`, `REDIS_CACHE_SERVICE_PORT_<PORT NAME>`, `REDIS_CACHE_PORT`,
/// `REDIS_CACHE_PORT_6379_TCP`, and the last one with `_PROTO`, `_PORT` and `_ADDR`. Docker links
/// set the last five, `REDIS_CACHE_NAME`, and `REDIS_CACHE_ENV_<NAME>`.
fn is_injected(name: &str, value: &str) -> bool {
    let is_port_detail = |rest: &str| {
        let protocol = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        protocol.len() < rest.len() && ["_TCP", "_UDP", "_SCTP"].iter().any(|known| protocol.starts_with(known))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.contains("_ENV_")
        || name.split("_PORT_").skip(1).any(is_port_detail)
        || (name.ends_with("_PORT") && is_service_link(value))
        || (name.ends_with("_NAME") && value.starts_with('/'))
}

/// Returns the number of edits (insertions, deletions, replacements) between two names, or a number
/// above [`MAX_EDITS`] if their lengths differ by more.
fn edits(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    if one.len().abs_diff(other.len()) > MAX_EDITS {
        return MAX_EDITS + 1;
    }
    // The row of edits between the first characters of `one` and each beginning of `other`.
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, character) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, expected) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(character != expected);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(variables: &[(&str, &str)]) -> Vec<String> {
        unknown_variables(variables.iter().map(|&(name, value)| (name.into(), value.into())))
    }

    /// Every variable misspelt by one letter gives a warning that names it.
    #[test]
    fn misspelt_variable_is_suggested() {
        for known in VARIABLES.iter().map(|variable| variable.name) {
            let mut misspelt = vec![known.to_lowercase(), format!("{known}S"), format!("X{known}")];
            for index in 0..known.len() {
                let (before, after) = (&known[..index], &known[index + 1..]);
                misspelt.extend([format!("{before}{after}"), format!("{before}X{after}")]);
                misspelt.extend([format!("{before}X{}", &known[index..])]);
                if let Some(next) = after.chars().next() {
                    misspelt.push(format!("{before}{next}{}{}", &known[index..=index], &after[1..]));
                }
            }
            for name in misspelt.into_iter().filter(|name| !is_known(name)) {
                let found = warnings(&[(&name, "1")]);
                assert!(found.len() == 1 && found[0].starts_with(&name), "{name}: {found:?}");
                // Another variable may be as near.
                let count = edits(&name.to_uppercase(), known);
                let is_nearer = |other: &&str| *other != known && edits(&name.to_uppercase(), other) <= count;
                let other = VARIABLES.iter().map(|variable| variable.name).find(is_nearer);
                assert!(found[0].contains(&format!("did you mean {known}?")) || other.is_some(), "{found:?}");
            }
        }
    }

    /// A variable with a known prefix gives a warning, however its name ends.
    #[test]
    fn known_prefix_lists_its_variables() {
        for name in ["REDIS_ADDRESS", "REDIS_PASSWORD_PATH", "CACHE_MAXIMUM", "PROXY_PROTOCOL_VERSION", "CLIENT_LIMIT"]
        {
            let found = warnings(&[(name, "x")]);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{name} is not a known variable")), "{found:?}");
        }
        let expected = "REDIS_PASSWORD_PATH is not a known variable and has no effect; the variables with this prefix are \
                        REDIS_HOST, REDIS_PORT, ";
        assert!(warnings(&[("REDIS_PASSWORD_PATH", "x")])[0].starts_with(expected));
        assert_eq!(warnings(&[("CACHE_TTL\n", "x")])[0].lines().count(), 1);
    }

    /// Known variables, those of other programs and those that orchestrators inject are accepted.
    #[test]
    fn foreign_and_injected_variables_are_silent() {
        let injected = [
            ("PATH", "/usr/bin"),
            ("HOSTNAME", "segment"),
            ("CACHE_DIRECTORY", "/var/cache/segment"),
            ("KUBERNETES_PORT", "tcp://10.0.0.1:443"),
            ("REDIS_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_SERVICE_PORT", "6379"),
            ("REDIS_SERVICE_PORT_REDIS", "6379"),
            ("REDIS_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("REDIS_CACHE_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_CACHE_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("REDIS_MASTER_SERVICE_HOST", "10.0.0.12"),
            ("REDIS_MASTER_PORT", "tcp://10.0.0.12:6379"),
            ("REDIS_MASTER_NAME", "/web/redis-master"),
            ("REDIS_NAME", "/web/redis"),
            ("REDIS_ENV_REDIS_VERSION", "7.0.15"),
        ];
        assert_eq!(warnings(&injected), Vec::<String>::new());
        let known: Vec<(&str, &str)> = VARIABLES.iter().map(|variable| (variable.name, "1")).collect();
        assert_eq!(warnings(&known), Vec::<String>::new());
    }

    /// Edits are counted as in the dynamic programme of Wagner and Fischer.
    #[test]
    fn edits_count_single_characters() {
        for (one, other, expected) in [
            ("CACHE_TTL", "CACHE_TTL", 0),
            ("CACHE_TLL", "CACHE_TTL", 1),
            ("CACH_TTL", "CACHE_TTL", 1),
            ("CACHE_TLT", "CACHE_TTL", 2),
            ("", "AB", 2),
            ("ABC", "X", 3),
            ("ABCD", "", 3),
        ] {
            assert_eq!(edits(one, other), expected, "{one} {other}");
        }
    }
}
