//! The commands that are answered here, and what `COMMAND` tells of them.

use super::docs::{self, Subcommand, Syntax};
use super::writer::RespWriter;

/// A command, by what has to be done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Redis' own")]
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

/// What is known of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// Which it is.
    pub name: CommandName,
    /// Its name in lower case, as error texts and `COMMAND` have it.
    pub text: &'static str,
    /// How many words it takes, its name included; at least so many where it is negative.
    pub arity: i64,
    /// Where its keys stand: first, last (from the end where it is negative), step. Zeros for none.
    keys: [i64; 3],
    /// A word on what it does.
    summary: &'static str,
    /// Redis' group of commands.
    group: &'static str,
    /// The version of Redis that had it first.
    since: &'static str,
    /// Its arguments or subcommands, as `COMMAND DOCS` tells them.
    syntax: Syntax,
}

const NO_KEY: [i64; 3] = [0, 0, 0];
const ONE_KEY: [i64; 3] = [1, 1, 1];
const ALL_KEYS: [i64; 3] = [1, -1, 1];

#[rustfmt::skip]
#[allow(clippy::too_many_arguments, reason = "each is a column of the table")]
const fn known(
    name: CommandName, text: &'static str, arity: i64, keys: [i64; 3], syntax: Syntax, group: &'static str, since: &'static str,
    summary: &'static str,
) -> CommandSpec {
    CommandSpec { name, text, arity, keys, summary, group, since, syntax }
}

/// All of them; the usual ones first, because they are looked for in this order.
#[rustfmt::skip]
static COMMANDS: [CommandSpec; 20] = [
    known(CommandName::Get, "get", 2, ONE_KEY, docs::KEY, "string", "1.0.0", "Returns the value of a key."),
    known(CommandName::MGet, "mget", -2, ALL_KEYS, docs::KEYS, "string", "1.0.0", "Returns the values of several keys. They are not read atomically."),
    known(CommandName::Exists, "exists", -2, ALL_KEYS, docs::KEYS, "generic", "1.0.0", "Returns the number of these keys that exist."),
    known(CommandName::StrLen, "strlen", 2, ONE_KEY, docs::KEY, "string", "2.2.0", "Returns the length of a value."),
    known(CommandName::GetRange, "getrange", 4, ONE_KEY, docs::RANGE, "string", "2.4.0", "Returns a part of a value."),
    known(CommandName::GetRange, "substr", 4, ONE_KEY, docs::RANGE, "string", "1.0.0", "Returns a part of a value."),
    known(CommandName::Ttl, "ttl", 2, ONE_KEY, docs::KEY, "generic", "1.0.0", "Returns the seconds until the cached copy of a key expires, -2 if the key is not cached."),
    known(CommandName::PTtl, "pttl", 2, ONE_KEY, docs::KEY, "generic", "2.6.0", "Returns the milliseconds until the cached copy of a key expires, -2 if the key is not cached."),
    known(CommandName::Ping, "ping", -1, NO_KEY, docs::OPTIONAL_MESSAGE, "connection", "1.0.0", "Checks that the proxy replies."),
    known(CommandName::Echo, "echo", 2, NO_KEY, docs::MESSAGE, "connection", "1.0.0", "Returns its argument."),
    known(CommandName::Select, "select", 2, NO_KEY, docs::INDEX, "connection", "1.0.0", "Selects the only database that this proxy serves."),
    known(CommandName::Hello, "hello", -1, NO_KEY, docs::HANDSHAKE, "connection", "6.0.0", "Selects RESP2 or RESP3, and returns properties of the proxy."),
    known(CommandName::Auth, "auth", -2, NO_KEY, docs::CREDENTIALS, "connection", "1.0.0", "Always succeeds: the proxy does not authenticate clients."),
    known(CommandName::Client, "client", -2, NO_KEY, docs::CLIENT, "connection", "2.4.0", "Manages the connection: SETINFO, SETNAME, GETNAME, ID, NO-EVICT, NO-TOUCH."),
    known(CommandName::Command, "command", -1, NO_KEY, docs::COMMAND, "server", "2.8.13", "Describes the supported commands: COUNT, DOCS, GETKEYS, GETKEYSANDFLAGS, INFO, LIST."),
    known(CommandName::Info, "info", -1, NO_KEY, docs::SECTIONS, "server", "1.0.0", "Returns metrics of the proxy: server, clients, memory, persistence, stats, replication, cpu, cluster, keyspace."),
    known(CommandName::Config, "config", -2, NO_KEY, docs::CONFIG, "server", "2.0.0", "Supports GET of save and appendonly only. Environment variables configure the proxy."),
    known(CommandName::DbSize, "dbsize", 1, NO_KEY, docs::NOTHING, "server", "1.0.0", "Returns the number of cached keys."),
    known(CommandName::Reset, "reset", 1, NO_KEY, docs::NOTHING, "connection", "6.2.0", "Resets the connection to its initial state."),
    known(CommandName::Quit, "quit", -1, NO_KEY, docs::NOTHING, "connection", "1.0.0", "Closes the connection."),
];

/// `GET`.
pub fn get() -> &'static CommandSpec {
    &COMMANDS[0]
}

/// The command of that name, in whatever case.
pub fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|known| known.text.as_bytes().eq_ignore_ascii_case(name))
}

impl CommandSpec {
    /// Whether it may have `count` words, its name included.
    pub fn accepts_arity(&self, count: i64) -> bool {
        if self.arity < 0 { count >= -self.arity } else { count == self.arity }
    }

    /// Whether its first argument is a key.
    pub fn has_key(&self) -> bool {
        self.keys[0] == 1
    }

    /// Whether it is about any number of keys, so that its reply is put together.
    pub fn is_multi_key(&self) -> bool {
        self.keys == ALL_KEYS
    }

    /// One entry of the reply to `COMMAND`: the ten elements of Redis 7.
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
        // The last key counts from the first one, or from the end where it is negative.
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
        docs::write_head(self.summary, self.since, self.group, self.syntax != docs::NOTHING, out);
        self.syntax.write(self.text, self.group, out);
    }

    /// Returns the flags that Redis has for the keys: "access" if the command returns data of them.
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

/// The reply to `COMMAND` and to `COMMAND INFO` without names.
pub fn write_all(out: &mut RespWriter<'_>) {
    out.array(COMMANDS.len());
    COMMANDS.iter().for_each(|known| known.write(out));
}

/// The reply to `COMMAND COUNT`.
pub fn write_count(out: &mut RespWriter<'_>) {
    out.integer(COMMANDS.len() as i64);
}

/// The reply to `COMMAND INFO name...`.
pub fn write_named(names: &[&[u8]], out: &mut RespWriter<'_>) {
    out.array(names.len());
    for name in names {
        match find(name) {
            Some(known) => known.write(out),
            None => out.null(),
        }
    }
}

/// Appends the reply to `COMMAND DOCS`: an entry for each known name, or for all commands if no
/// name is given. A subcommand is named like `client|getname`.
pub fn write_docs(names: &[&[u8]], out: &mut RespWriter<'_>) {
    let named: Vec<_> = names.iter().filter_map(|name| find_documented(name)).collect();
    let all = COMMANDS.iter().map(|known| (known, None));
    let asked = if names.is_empty() { all.collect() } else { named };
    out.map(asked.len());
    for (known, subcommand) in asked {
        match subcommand {
            Some(subcommand) => subcommand.write(known.text, known.group, out),
            None => known.write_docs(out),
        }
    }
}

/// Returns the command, or the command and its subcommand, of a name with at most one `|`.
fn find_documented(name: &[u8]) -> Option<(&'static CommandSpec, Option<&'static Subcommand>)> {
    let mut words = name.splitn(2, |&byte| byte == b'|');
    let known = find(words.next()?)?;
    match words.next() {
        None => Some((known, None)),
        Some(word) => Some((known, Some(known.syntax.subcommand(word)?))),
    }
}

/// Appends the reply to `COMMAND LIST`: the names of all commands, with their subcommands.
pub fn write_names(out: &mut RespWriter<'_>) {
    let subcommands =
        |known: &'static CommandSpec| known.syntax.subcommands().iter().map(|word| word.full_name(known.text));
    let names: Vec<String> =
        COMMANDS.iter().flat_map(|known| std::iter::once(known.text.to_owned()).chain(subcommands(known))).collect();
    out.array(names.len());
    names.iter().for_each(|name| out.bulk(name.as_bytes()));
}

/// Appends the reply to `COMMAND GETKEYS`, or `COMMAND GETKEYSANDFLAGS`, for the command line
/// `words`. The command is not run.
pub fn write_keys(words: &[&[u8]], with_flags: bool, out: &mut RespWriter<'_>) {
    let known = words.first().and_then(|name| find(name));
    // An unknown subcommand makes the whole command unknown, as in Redis.
    let is_subcommand = |known: &CommandSpec, word: &[u8]| {
        known.syntax.subcommands().is_empty() || known.syntax.subcommand(word).is_some()
    };
    let known = known.filter(|known| words.get(1).is_none_or(|word| is_subcommand(known, word)));
    match known {
        None => out.error("ERR Invalid command specified"),
        Some(known) if !known.has_key() => out.error("ERR The command has no key arguments"),
        Some(known) if !known.accepts_arity(words.len() as i64) => {
            out.error("ERR Invalid number of arguments specified for command");
        }
        Some(known) => {
            let keys = if known.is_multi_key() { &words[1..] } else { &words[1..2] };
            out.array(keys.len());
            for key in keys {
                if with_flags {
                    out.array(2);
                }
                out.bulk(key);
                if with_flags {
                    known.write_key_flags(out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::resp::frame::MAX_PRINTED_BYTES;

    #[test]
    fn names_are_found_in_any_case_and_none_is_longer_than_it_may_be() {
        for known in &COMMANDS {
            assert_eq!(find(known.text.to_uppercase().as_bytes()).map(|found| found.text), Some(known.text));
            assert!(known.text.len() <= MAX_PRINTED_BYTES && known.arity != 0, "{}", known.text);
        }
        assert_eq!(get().name, CommandName::Get);
        assert!(find(b"set").is_none() && find(b"").is_none() && find(b"getx").is_none());
    }
}
