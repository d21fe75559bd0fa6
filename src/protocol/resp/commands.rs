//! Table of the supported commands, and the replies to `COMMAND`.

use super::docs::{self, Subcommand, Syntax};
use super::writer::RespWriter;

/// Supported command. Aliases share one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of Redis")]
pub enum CommandName {
    Auth,
    Client,
    Command,
    Config,
    DbSize,
    Echo,
    Exists,
    Get,
    GetRange,
    Hello,
    Info,
    MGet,
    Ping,
    PTtl,
    Quit,
    Reset,
    Select,
    StrLen,
    Ttl,
}

/// Properties of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// Command that runs under this name.
    pub name: CommandName,
    /// Name in lower case, as in error texts and `COMMAND`.
    pub text: &'static str,
    /// Number of words, the name included. A negative number is a minimum.
    pub arity: i64,
    /// Positions of the keys: first, last (from the end if negative), step. Zeros without keys.
    keys: [i64; 3],
    /// One sentence about the command.
    summary: &'static str,
    /// Group of commands in Redis.
    group: &'static str,
    /// First version of Redis with the command.
    since: &'static str,
    /// Arguments or subcommands, as in `COMMAND DOCS`.
    syntax: Syntax,
}

const NO_KEY: [i64; 3] = [0, 0, 0];
const ONE_KEY: [i64; 3] = [1, 1, 1];
const ALL_KEYS: [i64; 3] = [1, -1, 1];

#[rustfmt::skip]
#[allow(clippy::too_many_arguments, reason = "each is a column of the table")]
const fn spec(
    name: CommandName, text: &'static str, arity: i64, keys: [i64; 3], syntax: Syntax, group: &'static str, since: &'static str,
    summary: &'static str,
) -> CommandSpec {
    CommandSpec { name, text, arity, keys, summary, group, since, syntax }
}

/// All supported commands, in the order of lookup: frequent ones first.
#[rustfmt::skip]
static COMMANDS: [CommandSpec; 20] = [
    spec(CommandName::Get, "get", 2, ONE_KEY, docs::KEY, "string", "1.0.0", "Returns the value of a key."),
    spec(CommandName::MGet, "mget", -2, ALL_KEYS, docs::KEYS, "string", "1.0.0", "Returns the values of several keys. They are not read atomically."),
    spec(CommandName::Exists, "exists", -2, ALL_KEYS, docs::KEYS, "generic", "1.0.0", "Returns the number of these keys that exist."),
    spec(CommandName::StrLen, "strlen", 2, ONE_KEY, docs::KEY, "string", "2.2.0", "Returns the length of a value."),
    spec(CommandName::GetRange, "getrange", 4, ONE_KEY, docs::RANGE, "string", "2.4.0", "Returns a part of a value."),
    spec(CommandName::GetRange, "substr", 4, ONE_KEY, docs::RANGE, "string", "1.0.0", "Returns a part of a value."),
    spec(CommandName::Ttl, "ttl", 2, ONE_KEY, docs::KEY, "generic", "1.0.0", "Returns the seconds until the cached copy of a key expires, -2 if the key is not cached."),
    spec(CommandName::PTtl, "pttl", 2, ONE_KEY, docs::KEY, "generic", "2.6.0", "Returns the milliseconds until the cached copy of a key expires, -2 if the key is not cached."),
    spec(CommandName::Ping, "ping", -1, NO_KEY, docs::OPTIONAL_MESSAGE, "connection", "1.0.0", "Checks that the proxy replies."),
    spec(CommandName::Echo, "echo", 2, NO_KEY, docs::MESSAGE, "connection", "1.0.0", "Returns its argument."),
    spec(CommandName::Select, "select", 2, NO_KEY, docs::INDEX, "connection", "1.0.0", "Selects the only database that this proxy serves."),
    spec(CommandName::Hello, "hello", -1, NO_KEY, docs::HANDSHAKE, "connection", "6.0.0", "Selects RESP2 or RESP3, and returns properties of the proxy."),
    spec(CommandName::Auth, "auth", -2, NO_KEY, docs::CREDENTIALS, "connection", "1.0.0", "Authenticates the connection. Always succeeds without CLIENT_PASSWORD."),
    spec(CommandName::Client, "client", -2, NO_KEY, docs::CLIENT, "connection", "2.4.0", "Manages the connection: CACHING, GETNAME, GETREDIR, ID, NO-EVICT, NO-TOUCH, SETINFO, SETNAME, TRACKING, TRACKINGINFO."),
    spec(CommandName::Command, "command", -1, NO_KEY, docs::COMMAND, "server", "2.8.13", "Describes the supported commands: COUNT, DOCS, GETKEYS, GETKEYSANDFLAGS, INFO, LIST."),
    spec(CommandName::Info, "info", -1, NO_KEY, docs::SECTIONS, "server", "1.0.0", "Returns metrics of the proxy: server, clients, memory, persistence, stats, replication, cpu, cluster, keyspace."),
    spec(CommandName::Config, "config", -2, NO_KEY, docs::CONFIG, "server", "2.0.0", "Supports GET of save and appendonly only. Environment variables configure the proxy."),
    spec(CommandName::DbSize, "dbsize", 1, NO_KEY, docs::NO_ARGUMENTS, "server", "1.0.0", "Returns the number of cached keys."),
    spec(CommandName::Reset, "reset", 1, NO_KEY, docs::NO_ARGUMENTS, "connection", "6.2.0", "Resets the connection to its initial state."),
    spec(CommandName::Quit, "quit", -1, NO_KEY, docs::NO_ARGUMENTS, "connection", "1.0.0", "Closes the connection."),
];

/// Returns the entry of `GET`.
pub fn get() -> &'static CommandSpec {
    &COMMANDS[0]
}

/// Returns the command called `name`, in any case.
pub fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|spec| spec.text.as_bytes().eq_ignore_ascii_case(name))
}

impl CommandSpec {
    /// Returns true if the command may have `count` words, its name included.
    pub fn accepts_arity(&self, count: i64) -> bool {
        if self.arity < 0 { count >= -self.arity } else { count == self.arity }
    }

    /// Returns true if the first argument is a key.
    pub fn has_key(&self) -> bool {
        self.keys[0] == 1
    }

    /// Returns true if an unauthenticated client may run the command.
    pub fn runs_unauthenticated(&self) -> bool {
        matches!(self.name, CommandName::Auth | CommandName::Hello | CommandName::Quit | CommandName::Reset)
    }

    /// Returns true if the command takes any number of keys and gets a multi-key reply.
    pub fn is_multi_key(&self) -> bool {
        self.keys == ALL_KEYS
    }

    /// Appends the entry of the reply to `COMMAND`, with the ten elements of Redis 7.
    fn write(&self, out: &mut RespWriter<'_>) {
        let (flags, category): (&[&str], _) = match self.group {
            "connection" => (&["loading", "stale", "fast"], "@connection"),
            "server" => (&["loading", "stale"], "@slow"),
            _ => (&["readonly", "fast"], "@read"),
        };
        out.array(10);
        out.bulk(self.text.as_bytes());
        out.integer(self.arity);
        out.set(flags.len());
        flags.iter().for_each(|flag| out.simple(flag));
        self.keys.iter().for_each(|&position| out.integer(position));
        out.set(1);
        out.simple(category);
        // Tips, key specifications, subcommands.
        out.set(0);
        out.set(usize::from(self.has_key()));
        if self.has_key() {
            self.write_key_specification(out);
        }
        out.set(0);
    }

    /// Appends positions and flags of the keys. `COMMAND DOCS` refers to them by `key_spec_index`.
    fn write_key_specification(&self, out: &mut RespWriter<'_>) {
        out.map(3);
        out.bulk(b"flags");
        self.write_key_flags(out);
        out.bulk(b"begin_search");
        write_search("index", &[("index", self.keys[0])], out);
        out.bulk(b"find_keys");
        // The last key counts from the first one, or from the end if it is negative.
        let last = if self.is_multi_key() { -1 } else { 0 };
        write_search("range", &[("lastkey", last), ("keystep", self.keys[2]), ("limit", 0)], out);
    }

    fn write_key_flags(&self, out: &mut RespWriter<'_>) {
        let flags = self.key_flags();
        out.set(flags.len());
        flags.iter().for_each(|flag| out.simple(flag));
    }

    fn write_docs(&self, out: &mut RespWriter<'_>) {
        out.bulk(self.text.as_bytes());
        docs::write_head(self.summary, self.since, self.group, self.syntax != docs::NO_ARGUMENTS, out);
        self.syntax.write(self.text, self.group, out);
    }

    /// Returns the flags of the keys as in Redis: "access" if the command returns their data.
    fn key_flags(&self) -> &'static [&'static str] {
        match self.name {
            CommandName::Exists | CommandName::StrLen => &["RO"],
            _ => &["RO", "access"],
        }
    }
}

/// Appends one half of a key specification: a kind of search, and its numbers.
fn write_search(kind: &str, numbers: &[(&str, i64)], out: &mut RespWriter<'_>) {
    out.map(2);
    out.pair("type", kind);
    out.bulk(b"spec");
    out.map(numbers.len());
    for (name, number) in numbers {
        out.bulk(name.as_bytes());
        out.integer(*number);
    }
}

/// Appends the reply to `COMMAND`, and to `COMMAND INFO` without names.
pub fn write_all(out: &mut RespWriter<'_>) {
    out.array(COMMANDS.len());
    COMMANDS.iter().for_each(|spec| spec.write(out));
}

/// Appends the reply to `COMMAND COUNT`.
pub fn write_count(out: &mut RespWriter<'_>) {
    out.integer(COMMANDS.len() as i64);
}

/// Appends the reply to `COMMAND INFO name...`.
pub fn write_named(names: &[&[u8]], out: &mut RespWriter<'_>) {
    out.array(names.len());
    for name in names {
        match find(name) {
            Some(spec) => spec.write(out),
            None => out.null(),
        }
    }
}

/// Appends the reply to `COMMAND DOCS`: an entry for each known name, or for all commands if no
/// name is given. A subcommand is named like `client|getname`.
pub fn write_docs(names: &[&[u8]], out: &mut RespWriter<'_>) {
    let named: Vec<_> = names.iter().filter_map(|name| find_documented(name)).collect();
    let all = COMMANDS.iter().map(|spec| (spec, None));
    let selected = if names.is_empty() { all.collect() } else { named };
    out.map(selected.len());
    for (spec, subcommand) in selected {
        match subcommand {
            Some(subcommand) => subcommand.write(spec.text, spec.group, out),
            None => spec.write_docs(out),
        }
    }
}

/// Returns the command, or the command and its subcommand, of a name with at most one `|`.
fn find_documented(name: &[u8]) -> Option<(&'static CommandSpec, Option<&'static Subcommand>)> {
    let mut words = name.splitn(2, |&byte| byte == b'|');
    let spec = find(words.next()?)?;
    match words.next() {
        None => Some((spec, None)),
        Some(word) => Some((spec, Some(spec.syntax.subcommand(word)?))),
    }
}

/// Appends the reply to `COMMAND LIST`: the names of all commands, with their subcommands.
pub fn write_names(out: &mut RespWriter<'_>) {
    let subcommands =
        |spec: &'static CommandSpec| spec.syntax.subcommands().iter().map(|word| word.full_name(spec.text));
    let names: Vec<String> =
        COMMANDS.iter().flat_map(|spec| std::iter::once(spec.text.to_owned()).chain(subcommands(spec))).collect();
    out.array(names.len());
    names.iter().for_each(|name| out.bulk(name.as_bytes()));
}

/// Appends the reply to `COMMAND GETKEYS`, or `COMMAND GETKEYSANDFLAGS`, for the command line
/// `words`. The command is not run.
pub fn write_keys(words: &[&[u8]], with_flags: bool, out: &mut RespWriter<'_>) {
    let spec = words.first().and_then(|name| find(name));
    // An unknown subcommand makes the whole command unknown, as in Redis.
    let is_subcommand = |spec: &CommandSpec, word: &[u8]| {
        spec.syntax.subcommands().is_empty() || spec.syntax.subcommand(word).is_some()
    };
    let spec = spec.filter(|spec| words.get(1).is_none_or(|word| is_subcommand(spec, word)));
    match spec {
        None => out.error("ERR Invalid command specified"),
        Some(spec) if !spec.has_key() => out.error("ERR The command has no key arguments"),
        Some(spec) if !spec.accepts_arity(words.len() as i64) => {
            out.error("ERR Invalid number of arguments specified for command");
        }
        Some(spec) => {
            let keys = if spec.is_multi_key() { &words[1..] } else { &words[1..2] };
            out.array(keys.len());
            for key in keys {
                if with_flags {
                    out.array(2);
                }
                out.bulk(key);
                if with_flags {
                    spec.write_key_flags(out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::resp::frame::MAX_PRINTED_BYTES;

    /// Commands are found in any case, and no name is longer than an error text may show.
    #[test]
    fn names_are_found_in_any_case() {
        for spec in &COMMANDS {
            assert_eq!(find(spec.text.to_uppercase().as_bytes()).map(|found| found.text), Some(spec.text));
            assert!(spec.text.len() <= MAX_PRINTED_BYTES && spec.arity != 0, "{}", spec.text);
        }
        assert_eq!(get().name, CommandName::Get);
        assert!(find(b"set").is_none() && find(b"").is_none() && find(b"getx").is_none());
    }
}
