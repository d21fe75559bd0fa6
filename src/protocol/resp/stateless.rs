//! Commands that neither read nor change the state of the connection, such as `PING` and `COMMAND`.

use super::commands::{self, CommandName, CommandSpec};
use super::decode::{READ_ONLY, RespRefusal, wrong_arity};
use super::frame::Printable;
use super::writer::RespWriter;

/// Parameters of Redis that `CONFIG GET` returns: the proxy saves nothing.
///
/// `redis-benchmark` reads them, and warns without a reply. Environment variables configure the
/// proxy itself.
const CONFIG_PARAMETERS: [(&str, &str); 2] = [("save", ""), ("appendonly", "no")];

/// Runs a command that neither reads nor changes the state of the connection.
pub fn run_stateless(spec: &CommandSpec, words: &[&[u8]], database: u32, out: &mut RespWriter<'_>) {
    let first = words.first().map(|word| word.to_ascii_lowercase()).unwrap_or_default();
    match (spec.name, words) {
        (CommandName::Ping, []) => out.simple("PONG"),
        (CommandName::Ping | CommandName::Echo, [text]) => out.bulk(text),
        (CommandName::Select, [index]) => match parse_integer(index) {
            Some(index) if index == i64::from(database) => out.simple("OK"),
            Some(_) => out.error(&format!(
                "ERR this proxy serves only database {database}; set its REDIS_DB, or run another proxy"
            )),
            None => out.error(&RespRefusal::NotANumber(spec.text).to_string()),
        },
        (CommandName::Config, [_, names @ ..]) if first == b"get" && !names.is_empty() => {
            let selected: Vec<_> = CONFIG_PARAMETERS
                .iter()
                .filter(|(parameter, _)| names.iter().any(|name| name.eq_ignore_ascii_case(parameter.as_bytes())))
                .collect();
            out.map(selected.len());
            selected.iter().for_each(|(parameter, value)| out.pair(parameter, value));
        }
        (CommandName::Config, [_]) if first == b"get" => write_wrong_arity("config|get", out),
        (CommandName::Command, []) => commands::write_all(out),
        (CommandName::Command, [_]) if first == b"count" => commands::write_count(out),
        (CommandName::Command, [_]) if first == b"info" => commands::write_all(out),
        (CommandName::Command, [_, names @ ..]) if first == b"info" => commands::write_named(names, out),
        (CommandName::Command, [_, names @ ..]) if first == b"docs" => commands::write_docs(names, out),
        (CommandName::Command, [_]) if first == b"list" => commands::write_names(out),
        (CommandName::Command, [_, ..]) if first == b"list" => out.error("ERR COMMAND LIST FILTERBY is not supported"),
        (CommandName::Command, [_, line @ ..]) if first == b"getkeys" && line.len() > 1 => {
            commands::write_keys(line, false, out);
        }
        (CommandName::Command, [_, line @ ..]) if first == b"getkeysandflags" && line.len() > 1 => {
            commands::write_keys(line, true, out);
        }
        (CommandName::Command, [_, ..]) if [&b"count"[..], b"getkeys", b"getkeysandflags"].contains(&&*first) => {
            write_wrong_arity(&format!("command|{}", Printable(&first)), out);
        }
        (CommandName::Command | CommandName::Config, [word, ..]) => unknown_subcommand(spec.text, word, out),
        _ => write_wrong_arity(spec.text, out),
    }
}

/// Parses an integer as Redis does, without plus or leading zeros.
pub fn parse_integer(word: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(word).ok()?;
    let number: i64 = text.parse().ok()?;
    (itoa::Buffer::new().format(number) == text).then_some(number)
}

/// Appends the error for a wrong number of arguments.
pub fn write_wrong_arity(command: &str, out: &mut RespWriter<'_>) {
    out.error(&wrong_arity(command));
}

/// Appends the error for a subcommand that the proxy does not support.
pub fn unknown_subcommand(command: &str, word: &[u8], out: &mut RespWriter<'_>) {
    out.error(&format!("ERR unknown subcommand '{}' of '{command}': {READ_ONLY}", Printable(word)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers are valid if Redis accepts them.
    #[test]
    fn integers_match_redis() {
        assert_eq!((parse_integer(b"0"), parse_integer(b"-9223372036854775808")), (Some(0), Some(i64::MIN)));
        for word in [&b""[..], b"-0", b"01", b"+1", b" 1", b"1.0", b"9223372036854775808", b"\xff"] {
            assert_eq!(parse_integer(word), None, "{word:?}");
        }
    }
}
