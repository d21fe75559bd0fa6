//! Syntax of the commands for `COMMAND DOCS`: arguments and subcommands in the shape of Redis 7.0.
//!
//! The arguments are those of Redis wherever the proxy takes the same ones. `redis-cli` builds its
//! `help` from them.

use super::writer::RespWriter;

/// Argument of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Argument {
    name: &'static str,
    kind: Kind,
    /// Word that precedes the argument, such as `AUTH`.
    token: Option<&'static str>,
    /// First version of Redis that took the argument, if that is later than the command's.
    since: Option<&'static str>,
    is_optional: bool,
    is_multiple: bool,
}

/// Type of an argument.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Key. All keys of a command belong to its only key specification.
    Key,
    String,
    Integer,
    /// Token without a value.
    Token,
    OneOf(&'static [Argument]),
    /// Several arguments in this order.
    Block(&'static [Argument]),
}

/// Arguments or subcommands of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Syntax {
    /// Arguments, in order.
    Arguments(&'static [Argument]),
    /// One of these subcommands.
    Subcommands(&'static [Subcommand]),
}

/// Subcommand of a command, such as `CLIENT GETNAME`.
#[derive(Debug, PartialEq, Eq)]
pub struct Subcommand {
    /// Name behind the command's, in lower case.
    name: &'static str,
    since: &'static str,
    summary: &'static str,
    arguments: &'static [Argument],
}

impl Argument {
    const fn new(name: &'static str, kind: Kind) -> Argument {
        Argument { name, kind, token: None, since: None, is_optional: false, is_multiple: false }
    }

    const fn token(word: &'static str, name: &'static str) -> Argument {
        Argument::new(name, Kind::Token).after(word)
    }

    const fn after(self, word: &'static str) -> Argument {
        Argument { token: Some(word), ..self }
    }

    const fn since(self, version: &'static str) -> Argument {
        Argument { since: Some(version), ..self }
    }

    const fn optional(self) -> Argument {
        Argument { is_optional: true, ..self }
    }

    const fn multiple(self) -> Argument {
        Argument { is_multiple: true, ..self }
    }

    fn write(&self, out: &mut RespWriter<'_>) {
        let (kind, parts) = match self.kind {
            Kind::Key => ("key", None),
            Kind::String => ("string", None),
            Kind::Integer => ("integer", None),
            Kind::Token => ("pure-token", None),
            Kind::OneOf(parts) => ("oneof", Some(parts)),
            Kind::Block(parts) => ("block", Some(parts)),
        };
        let flags = [(self.is_optional, "optional"), (self.is_multiple, "multiple")];
        let flags: Vec<&str> = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect();
        let is_key = self.kind == Kind::Key;
        let fields = [is_key, self.token.is_some(), self.since.is_some(), !flags.is_empty(), parts.is_some()];
        out.map(2 + fields.into_iter().filter(|is_present| *is_present).count());
        out.pair("name", self.name);
        out.pair("type", kind);
        if is_key {
            out.bulk(b"key_spec_index");
            out.integer(0);
        }
        if let Some(word) = self.token {
            out.pair("token", word);
        }
        if let Some(version) = self.since {
            out.pair("since", version);
        }
        if !flags.is_empty() {
            out.bulk(b"flags");
            out.set(flags.len());
            flags.into_iter().for_each(|flag| out.simple(flag));
        }
        if let Some(parts) = parts {
            write_arguments(parts, out);
        }
    }
}

impl Subcommand {
    const fn new(
        name: &'static str,
        since: &'static str,
        summary: &'static str,
        arguments: &'static [Argument],
    ) -> Subcommand {
        Subcommand { name, since, summary, arguments }
    }

    /// Returns the name by which Redis lists the subcommand of `command`.
    pub fn full_name(&self, command: &str) -> String {
        format!("{command}|{}", self.name)
    }

    /// Appends the subcommand's entry in the reply to `COMMAND DOCS`: its name and a map.
    pub fn write(&self, command: &str, group: &str, out: &mut RespWriter<'_>) {
        out.bulk(self.full_name(command).as_bytes());
        write_head(self.summary, self.since, group, !self.arguments.is_empty(), out);
        write_arguments(self.arguments, out);
    }
}

impl Syntax {
    /// Returns the subcommands; none for a command with arguments.
    pub fn subcommands(&self) -> &'static [Subcommand] {
        match self {
            Syntax::Arguments(_) => &[],
            Syntax::Subcommands(subcommands) => subcommands,
        }
    }

    /// Returns the subcommand called `name`, in any case.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Subcommand> {
        self.subcommands().iter().find(|subcommand| subcommand.name.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Appends the last field of the map that describes `command`. Without arguments, appends
    /// nothing.
    pub fn write(&self, command: &str, group: &str, out: &mut RespWriter<'_>) {
        match self {
            Syntax::Arguments(arguments) => write_arguments(arguments, out),
            Syntax::Subcommands(subcommands) => {
                out.bulk(b"subcommands");
                out.map(subcommands.len());
                subcommands.iter().for_each(|subcommand| subcommand.write(command, group, out));
            }
        }
    }
}

/// Appends the map that describes a command, up to its syntax.
pub fn write_head(summary: &str, since: &str, group: &str, has_syntax: bool, out: &mut RespWriter<'_>) {
    out.map(3 + usize::from(has_syntax));
    out.pair("summary", summary);
    out.pair("since", since);
    out.pair("group", group);
}

fn write_arguments(arguments: &[Argument], out: &mut RespWriter<'_>) {
    if !arguments.is_empty() {
        out.bulk(b"arguments");
        out.array(arguments.len());
        arguments.iter().for_each(|argument| argument.write(out));
    }
}

/// Syntax of a command without arguments.
pub const NO_ARGUMENTS: Syntax = Syntax::Arguments(&[]);
/// Syntax of a command about one key.
pub const KEY: Syntax = Syntax::Arguments(&[A_KEY]);
/// Syntax of a command about any number of keys.
pub const KEYS: Syntax = Syntax::Arguments(&[A_KEY.multiple()]);
/// Syntax of `GETRANGE`.
pub const RANGE: Syntax = Syntax::Arguments(&[A_KEY, integer("start"), integer("end")]);
/// Syntax of `PING`.
pub const OPTIONAL_MESSAGE: Syntax = Syntax::Arguments(&[string("message").optional()]);
/// Syntax of `ECHO`.
pub const MESSAGE: Syntax = Syntax::Arguments(&[string("message")]);
/// Syntax of `SELECT`.
pub const INDEX: Syntax = Syntax::Arguments(&[integer("index")]);
/// Syntax of `AUTH`.
pub const CREDENTIALS: Syntax = Syntax::Arguments(&[string("username").since("6.0.0").optional(), string("password")]);
/// Syntax of `INFO`.
pub const SECTIONS: Syntax = Syntax::Arguments(&[string("section").optional().multiple()]);

/// Syntax of `HELLO`.
pub const HANDSHAKE: Syntax = Syntax::Arguments(&[Argument::new(
    "arguments",
    Kind::Block(&[
        integer("protover"),
        Argument::new("username_password", Kind::Block(&[string("username"), string("password")]))
            .after("AUTH")
            .optional(),
        string("clientname").after("SETNAME").optional(),
    ]),
)
.optional()]);

/// Syntax of `CLIENT`.
pub const CLIENT: Syntax = Syntax::Subcommands(&[
    Subcommand::new(
        "caching",
        "6.0.0",
        "Lets the client cache what the next command reads, in OPTIN mode of CLIENT TRACKING.",
        &[Argument::new("mode", Kind::OneOf(&[Argument::token("YES", "yes"), Argument::token("NO", "no")]))],
    ),
    Subcommand::new("getname", "2.6.9", "Returns the name of the connection.", &[]),
    Subcommand::new("getredir", "6.0.0", "Returns 0 if the client tracks, otherwise -1: it never redirects.", &[]),
    Subcommand::new("id", "5.0.0", "Returns the ID of the connection.", &[]),
    Subcommand::new("no-evict", "7.0.0", "Accepted without effect: the proxy does not evict clients.", &[SWITCH]),
    Subcommand::new("no-touch", "7.2.0", "Stops reads of this connection from updating the LRU order.", &[SWITCH]),
    Subcommand::new(
        "setinfo",
        "7.2.0",
        "Accepted without effect: the proxy does not store library names.",
        &[Argument::new(
            "attr",
            Kind::OneOf(&[string("libname").after("LIB-NAME"), string("libver").after("LIB-VER")]),
        )],
    ),
    Subcommand::new("setname", "2.6.9", "Sets the name of the connection.", &[string("connection-name")]),
    Subcommand::new(
        "tracking",
        "6.0.0",
        "Sends the client invalidations of the keys that it reads. Needs RESP3 and REDIS_TRACKING=on.",
        &[
            Argument::new("status", Kind::OneOf(&[Argument::token("ON", "on"), Argument::token("OFF", "off")])),
            Argument::token("OPTIN", "optin").optional(),
            Argument::token("NOLOOP", "noloop").optional(),
        ],
    ),
    Subcommand::new("trackinginfo", "6.2.0", "Returns the state of CLIENT TRACKING on the connection.", &[]),
]);

/// Syntax of `COMMAND`.
pub const COMMAND: Syntax = Syntax::Subcommands(&[
    Subcommand::new("count", "2.8.13", "Returns the number of commands.", &[]),
    Subcommand::new("docs", "7.0.0", "Describes commands, all of them by default.", &[NAMES]),
    Subcommand::new("getkeys", "2.8.13", "Returns the keys in a command line.", &[]),
    Subcommand::new("getkeysandflags", "7.0.0", "Returns the keys in a command line, and how they are used.", &[]),
    Subcommand::new("info", "2.8.13", "Returns arity, flags and key positions of commands.", &[NAMES]),
    Subcommand::new("list", "7.0.0", "Returns the names of all commands.", &[]),
]);

/// Syntax of `CONFIG`.
pub const CONFIG: Syntax = Syntax::Subcommands(&[Subcommand::new(
    "get",
    "2.0.0",
    "Returns the parameters save and appendonly, both disabled.",
    &[Argument::new("parameter", Kind::Block(&[string("parameter")])).multiple()],
)]);

const A_KEY: Argument = Argument::new("key", Kind::Key);
const NAMES: Argument = string("command-name").optional().multiple();
const SWITCH: Argument =
    Argument::new("enabled", Kind::OneOf(&[Argument::token("ON", "on"), Argument::token("OFF", "off")]));

const fn string(name: &'static str) -> Argument {
    Argument::new(name, Kind::String)
}

const fn integer(name: &'static str) -> Argument {
    Argument::new(name, Kind::Integer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::resp::writer::RespVersion;

    /// A map says how many fields follow: only those that an argument has are counted and written.
    #[test]
    fn argument_writes_only_present_fields() {
        let written = |argument: Argument| {
            let mut bytes = Vec::new();
            argument.write(&mut RespWriter::new(&mut bytes, RespVersion::Resp3));
            String::from_utf8(bytes).expect("text")
        };
        assert_eq!(written(integer("start")), "%2\r\n$4\r\nname\r\n$5\r\nstart\r\n$4\r\ntype\r\n$7\r\ninteger\r\n");
        let all = written(Argument::new("k", Kind::Block(&[A_KEY])).after("T").since("7.0.0").optional().multiple());
        let (own, parts) = all.split_once("$9\r\narguments\r\n").expect("parts");
        let flags = "$5\r\nflags\r\n~2\r\n+optional\r\n+multiple\r\n";
        assert!(own.starts_with("%6\r\n$4\r\nname\r\n$1\r\nk\r\n$4\r\ntype\r\n$5\r\nblock\r\n"), "{own}");
        assert!(
            own.contains("$5\r\ntoken\r\n$1\r\nT\r\n$5\r\nsince\r\n$5\r\n7.0.0\r\n") && own.ends_with(flags),
            "{own}"
        );
        assert_eq!(parts, format!("*1\r\n{}", written(A_KEY)));
        assert!(parts.ends_with("$14\r\nkey_spec_index\r\n:0\r\n"), "{parts}");
    }

    #[test]
    fn subcommands_are_found_any_case() {
        assert_eq!(CLIENT.subcommand(b"GetName").map(|found| found.full_name("client")), Some("client|getname".into()));
        assert!(CLIENT.subcommand(b"kill").is_none() && KEYS.subcommand(b"key").is_none());
    }
}
