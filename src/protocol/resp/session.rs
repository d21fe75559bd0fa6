//! What a connection has chosen, the commands that are about the connection alone, and what all others ask for.

use super::commands::{self, CommandName, CommandSpec};
use super::decode::{DecodeEvent, Decoder, READ_ONLY, RespRefusal, wrong_arity};
use super::frame::{Arguments, Printable, ProtocolError};
use super::writer::{RespVersion, RespWriter};
use super::{InfoSections, ReplyKind, RespReplyFormat};
use crate::protocol::Decoded;

/// Longest name that a client may give its connection, in bytes: that of a host, and something behind it. Redis has no
/// limit; an idle connection shall be small.
const MAX_CLIENT_NAME_BYTES: usize = 256;

/// One connection's side of the protocol.
#[derive(Debug)]
pub struct Session {
    decoder: Decoder,
    /// The number that `CLIENT ID` tells.
    id: u64,
    /// The one that `SELECT` may choose.
    database: u32,
    version: RespVersion,
    /// What it looks up does not become recently used (`CLIENT NO-TOUCH`).
    no_touch: bool,
    name: Option<Box<[u8]>>,
}

/// What a command comes to.
#[derive(Debug)]
pub enum RespOperation<'a> {
    /// What Redis holds at a key, in this shape.
    Get(&'a [u8], RespReplyFormat),
    /// How long a key will be served from memory.
    Ttl(&'a [u8], RespReplyFormat),
    /// The proxy's figures.
    Info(RespReplyFormat),
    /// [`Session::answer`] answers it.
    Local,
    /// It cannot be carried out.
    Refuse(RespRefusal),
}

/// What is to happen after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReply {
    /// The next command.
    Continue,
    /// The end of the connection.
    Close,
}

impl Session {
    /// A new connection's. `id` is unique, `database` the one that is served.
    pub fn new(id: u64, database: u32) -> Session {
        Session { decoder: Decoder::default(), id, database, version: RespVersion::Resp2, no_touch: false, name: None }
    }

    /// The version of the protocol that replies are written in.
    pub fn version(&self) -> RespVersion {
        self.version
    }

    /// The event at the beginning of all bytes that are not consumed.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        self.decoder.decode(input)
    }

    /// Whether a command has begun and not come whole, beside what is not consumed.
    pub fn in_command(&self) -> bool {
        self.decoder.in_command()
    }

    /// Whether keys become recently used by being asked for.
    pub fn updates_recency(&self) -> bool {
        !self.no_touch
    }

    /// What a command comes to.
    #[inline]
    pub fn operation_of<'a>(&self, known: &CommandSpec, mut arguments: Arguments<'a>) -> RespOperation<'a> {
        let shape = |form| RespReplyFormat { version: self.version, kind: form };
        // The number of arguments has been looked at.
        let mut key = || arguments.next().unwrap_or_default();
        match known.name {
            CommandName::Get => RespOperation::Get(key(), shape(ReplyKind::Value)),
            CommandName::StrLen => RespOperation::Get(key(), shape(ReplyKind::Length)),
            CommandName::GetRange => {
                let key = key();
                match (arguments.next().and_then(number), arguments.next().and_then(number)) {
                    (Some(start), Some(end)) => RespOperation::Get(key, shape(ReplyKind::Range(start, end))),
                    _ => RespOperation::Refuse(RespRefusal::NotANumber),
                }
            }
            CommandName::Ttl => RespOperation::Ttl(key(), shape(ReplyKind::Seconds)),
            CommandName::PTtl => RespOperation::Ttl(key(), shape(ReplyKind::Milliseconds)),
            CommandName::DbSize => RespOperation::Info(shape(ReplyKind::Entries)),
            CommandName::Info => RespOperation::Info(shape(ReplyKind::Info(InfoSections::named(arguments)))),
            _ => RespOperation::Local,
        }
    }

    /// Carries out a command that is about the connection, or about nothing, and answers it.
    pub fn run_local(&mut self, known: &CommandSpec, arguments: Arguments<'_>, out: &mut Vec<u8>) -> AfterReply {
        let words: Vec<&[u8]> = arguments.collect();
        match known.name {
            CommandName::Hello => self.hello(&words, out),
            CommandName::Client => self.client(&words, &mut self.writer(out)),
            CommandName::Reset => {
                *self = Session::new(self.id, self.database);
                self.writer(out).simple("RESET");
            }
            CommandName::Quit => {
                self.writer(out).simple("OK");
                return AfterReply::Close;
            }
            _ => run_stateless(known, &words, self.database, &mut self.writer(out)),
        }
        AfterReply::Continue
    }

    fn writer<'a>(&self, out: &'a mut Vec<u8>) -> RespWriter<'a> {
        RespWriter::new(out, self.version)
    }

    /// `HELLO [version [AUTH user password] [SETNAME name]]`. Nothing is changed unless all of it can be.
    fn hello(&mut self, words: &[&[u8]], out: &mut Vec<u8>) {
        let chosen = hello_options(words, self.version).and_then(|(version, name)| {
            name.map_or(Ok(()), |name| self.set_name(name))?;
            Ok(version)
        });
        match chosen {
            Err(text) => return self.writer(out).error(&text),
            Ok(version) => self.version = version,
        }
        let mut out = self.writer(out);
        out.map(7);
        out.pair("server", env!("CARGO_PKG_NAME"));
        out.pair("version", env!("CARGO_PKG_VERSION"));
        out.bulk(b"proto");
        out.integer(if self.version == RespVersion::Resp3 { 3 } else { 2 });
        out.bulk(b"id");
        out.integer(self.id as i64);
        out.pair("mode", "standalone");
        // Clients look for a master to read from; to them this is one.
        out.pair("role", "master");
        out.bulk(b"modules");
        out.array(0);
    }

    /// `CLIENT`, and a word that says what.
    fn client(&mut self, words: &[&[u8]], out: &mut RespWriter<'_>) {
        let Some((word, rest)) = words.split_first() else { return wrong_number("client", out) };
        match (word.to_ascii_lowercase().as_slice(), rest) {
            (b"id", []) => out.integer(self.id as i64),
            (b"getname", []) => match &self.name {
                Some(name) => out.bulk(name),
                None => out.null(),
            },
            (b"setname", [name]) => match self.set_name(name) {
                Ok(()) => out.simple("OK"),
                Err(text) => out.error(&text),
            },
            // Nobody can ask for the library, so that it is not kept.
            (b"setinfo", [option, value]) => match option.to_ascii_lowercase().as_slice() {
                b"lib-name" | b"lib-ver" if is_name(value) => out.simple("OK"),
                b"lib-name" | b"lib-ver" => out.error(&format!("ERR {} {BAD_NAME}", Printable(option))),
                _ => out.error(&format!("ERR Unrecognized option '{}'", Printable(option))),
            },
            // No client is ever evicted here.
            (b"no-evict", [switch]) => _ = parse_on_off(switch, out),
            (b"no-touch", [switch]) => {
                if let Some(on) = parse_on_off(switch, out) {
                    self.no_touch = on;
                }
            }
            (b"id" | b"getname" | b"setname" | b"setinfo" | b"no-evict" | b"no-touch", _) => {
                wrong_number(&format!("client|{}", Printable(&word.to_ascii_lowercase())), out);
            }
            _ => unknown_subcommand("client", word, out),
        }
    }

    /// Keeps a name, or none, if it may be one.
    fn set_name(&mut self, name: &[u8]) -> Result<(), String> {
        if !is_name(name) {
            return Err(format!("ERR Client names {BAD_NAME}"));
        }
        if name.len() > MAX_CLIENT_NAME_BYTES {
            return Err(format!("ERR Client name too long; the limit is {MAX_CLIENT_NAME_BYTES} bytes"));
        }
        self.name = Some(name).filter(|name| !name.is_empty()).map(Box::from);
        Ok(())
    }
}

/// What the words of `HELLO` choose: a version, which is the `present` one where there is none, and a name. Or the error.
fn hello_options<'a>(words: &[&'a [u8]], present: RespVersion) -> Result<(RespVersion, Option<&'a [u8]>), String> {
    let Some((wanted, mut options)) = words.split_first() else { return Ok((present, None)) };
    let version = match number(wanted) {
        Some(2) => RespVersion::Resp2,
        Some(3) => RespVersion::Resp3,
        Some(_) => return Err("NOPROTO unsupported protocol version".into()),
        None => return Err("ERR Protocol version is not an integer or out of range".into()),
    };
    let mut name = None;
    while let [option, rest @ ..] = options {
        options = match rest {
            // Any user and any password: there are none here.
            [_, _, rest @ ..] if option.eq_ignore_ascii_case(b"auth") => rest,
            [given, rest @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                name = Some(*given);
                rest
            }
            _ => return Err(format!("ERR Syntax error in HELLO option '{}'", Printable(option))),
        };
    }
    Ok((version, name))
}

/// Answers a command whose answer is the same for every connection.
fn run_stateless(known: &CommandSpec, words: &[&[u8]], database: u32, out: &mut RespWriter<'_>) {
    let first = words.first().map(|word| word.to_ascii_lowercase()).unwrap_or_default();
    match (known.name, words) {
        (CommandName::Ping, []) => out.simple("PONG"),
        (CommandName::Ping | CommandName::Echo, [text]) => out.bulk(text),
        // Clients bring the password of the Redis behind. Nothing is protected here, so that all are right.
        (CommandName::Auth, [_] | [_, _]) => out.simple("OK"),
        (CommandName::Auth, _) => out.error("ERR syntax error"),
        (CommandName::Select, [index]) => match number(index) {
            Some(index) if index == i64::from(database) => out.simple("OK"),
            Some(_) => out.error(&format!(
                "ERR this proxy serves only database {database}; set its REDIS_DB, or run another proxy"
            )),
            None => out.error(&RespRefusal::NotANumber.to_string()),
        },
        (CommandName::Config, [_, names @ ..]) if first == b"get" && !names.is_empty() => {
            let asked: Vec<_> = SETTINGS
                .iter()
                .filter(|(setting, _)| names.iter().any(|name| name.eq_ignore_ascii_case(setting.as_bytes())))
                .collect();
            out.map(asked.len());
            asked.iter().for_each(|(setting, value)| out.pair(setting, value));
        }
        (CommandName::Config, [_]) if first == b"get" => wrong_number("config|get", out),
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
            wrong_number(&format!("command|{}", Printable(&first)), out);
        }
        (CommandName::Command | CommandName::Config, [word, ..]) => unknown_subcommand(known.text, word, out),
        _ => wrong_number(known.text, out),
    }
}

/// Settings of Redis that hold here too: nothing is saved. `redis-benchmark` asks for them, and warns where it gets none.
/// The proxy's own are environment variables.
const SETTINGS: [(&str, &str); 2] = [("save", ""), ("appendonly", "no")];

const BAD_NAME: &str = "cannot contain spaces, newlines or special characters.";

/// What Redis takes for the name of a connection or a library.
fn is_name(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

/// A whole number, as Redis reads it: no plus, no leading zeros.
fn number(word: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(word).ok()?;
    let number: i64 = text.parse().ok()?;
    (itoa::Buffer::new().format(number) == text).then_some(number)
}

/// `ON` or `OFF`: says so, and which it was.
fn parse_on_off(word: &[u8], out: &mut RespWriter<'_>) -> Option<bool> {
    let on = word.eq_ignore_ascii_case(b"on");
    if !on && !word.eq_ignore_ascii_case(b"off") {
        out.error("ERR syntax error");
        return None;
    }
    out.simple("OK");
    Some(on)
}

fn wrong_number(command: &str, out: &mut RespWriter<'_>) {
    out.error(&wrong_arity(command));
}

fn unknown_subcommand(command: &str, word: &[u8], out: &mut RespWriter<'_>) {
    out.error(&format!("ERR unknown subcommand '{}' of '{command}': {READ_ONLY}", Printable(word)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_what_redis_takes_for_them() {
        assert!(is_name(b"!~az-09:/") && is_name(b""));
        for bytes in [&b"a b"[..], b"a\n", b"\x7f", b"\xc3\xa9", b"\0"] {
            assert!(!is_name(bytes), "{bytes:?}");
        }
        assert_eq!((number(b"0"), number(b"-9223372036854775808")), (Some(0), Some(i64::MIN)));
        for word in [&b""[..], b"-0", b"01", b"+1", b" 1", b"1.0", b"9223372036854775808", b"\xff"] {
            assert_eq!(number(word), None, "{word:?}");
        }
    }

    /// Subcommands are described in one place and answered in another.
    #[test]
    fn documented_subcommands_are_answered() {
        let mut session = Session::new(7, 0);
        let mut answer = |words: &[&str]| {
            let frames: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            let input = format!("*{}\r\n{frames}", words.len());
            let mut out = Vec::new();
            match session.decode(input.as_bytes()) {
                Decoded::Complete(DecodeEvent::Command(known, arguments), _) => {
                    session.run_local(known, arguments, &mut out)
                }
                _ => unreachable!("a whole command"),
            };
            String::from_utf8(out).expect("text")
        };
        let list = answer(&["COMMAND", "LIST"]);
        let subcommands: Vec<_> = list.lines().filter_map(|name| name.split_once('|')).collect();
        assert!(subcommands.contains(&("client", "getname")) && subcommands.len() > 10, "{list}");
        for (command, subcommand) in subcommands {
            let reply = answer(&[command, subcommand]);
            assert!(!reply.contains("unknown subcommand"), "{command} {subcommand}: {reply}");
        }
        assert!(answer(&["CLIENT", "KILL"]).contains("unknown subcommand"));
    }

    #[test]
    fn nothing_is_changed_by_a_hello_that_fails() {
        let mut session = Session::new(7, 0);
        let hello = |session: &mut Session, words: &[&[u8]]| {
            let mut out = Vec::new();
            session.hello(words, &mut out);
            String::from_utf8(out).expect("text")
        };
        assert!(hello(&mut session, &[b"2", b"SETNAME", b"me"]).starts_with("*14\r\n"));
        for words in [&[&b"3"[..], b"SETNAME", b"a b"][..], &[b"3", b"SETNAME", b"you", b"x"], &[b"3", b"AUTH", b"x"]] {
            assert!(hello(&mut session, words).starts_with('-'));
            assert_eq!((session.version, session.name.as_deref()), (RespVersion::Resp2, Some(&b"me"[..])));
        }
        assert!(hello(&mut session, &[b"3", b"AUTH", b"x", b"y", b"SETNAME", b""]).starts_with("%7\r\n"));
        assert_eq!((session.version, session.name.as_deref()), (RespVersion::Resp3, None));
    }
}
