//! RESP state of one connection: runs the commands that need only that, and maps all others to
//! operations.

use super::commands::{self, CommandName, CommandSpec};
use super::decode::{DecodeEvent, Decoder, READ_ONLY, RespRefusal, wrong_arity};
use super::frame::{Arguments, Printable, ProtocolError};
use super::writer::{RespVersion, RespWriter};
use super::{InfoSections, ReplyKind, RespReplyFormat};
use crate::protocol::Decoded;

/// Maximum length of a connection name: a host name and some more.
///
/// Redis has no limit, but an idle connection must stay small.
const MAX_CLIENT_NAME_BYTES: usize = 256;

/// RESP state of one connection.
#[derive(Debug)]
pub struct Session {
    decoder: Decoder,
    /// Number that `CLIENT ID` returns.
    id: u64,
    /// Only database that `SELECT` accepts.
    database: u32,
    version: RespVersion,
    /// Reads do not update the LRU order (`CLIENT NO-TOUCH`).
    no_touch: bool,
    name: Option<Box<[u8]>>,
}

/// Operation that a command requests.
#[derive(Debug)]
pub enum RespOperation<'a> {
    /// Reads a key and replies in this format.
    Get(&'a [u8], RespReplyFormat),
    /// Returns the time until the cached copy of a key expires.
    Ttl(&'a [u8], RespReplyFormat),
    /// Returns metrics of the proxy.
    Info(RespReplyFormat),
    /// [`Session::run_local`] runs the command.
    Local,
    /// The command is refused.
    Refuse(RespRefusal),
}

/// State of the connection after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReply {
    /// The connection accepts the next command.
    Continue,
    /// The connection closes.
    Close,
}

impl Session {
    /// Creates the state of a new connection. `id` is unique, and `database` is the only one
    /// served.
    pub fn new(id: u64, database: u32) -> Session {
        Session { decoder: Decoder::default(), id, database, version: RespVersion::Resp2, no_touch: false, name: None }
    }

    /// Returns the protocol version of the replies.
    pub fn version(&self) -> RespVersion {
        self.version
    }

    /// Decodes the event at the start of `input`, the bytes that are not consumed.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        self.decoder.decode(input)
    }

    /// Returns true if a part of an incomplete command is consumed.
    pub fn in_command(&self) -> bool {
        self.decoder.in_command()
    }

    /// Returns true if reads of this connection update the LRU order.
    pub fn updates_recency(&self) -> bool {
        !self.no_touch
    }

    /// Returns the operation that a command requests.
    #[inline]
    pub fn operation_of<'a>(&self, spec: &CommandSpec, mut arguments: Arguments<'a>) -> RespOperation<'a> {
        let format = |form| RespReplyFormat { version: self.version, kind: form };
        // The decoder has checked the number of arguments.
        let mut key = || arguments.next().unwrap_or_default();
        match spec.name {
            CommandName::Get => RespOperation::Get(key(), format(ReplyKind::Value)),
            CommandName::StrLen => RespOperation::Get(key(), format(ReplyKind::Length)),
            CommandName::GetRange => {
                let key = key();
                match (arguments.next().and_then(parse_integer), arguments.next().and_then(parse_integer)) {
                    (Some(start), Some(end)) => RespOperation::Get(key, format(ReplyKind::Range(start, end))),
                    _ => RespOperation::Refuse(RespRefusal::NotANumber(spec.text)),
                }
            }
            CommandName::Ttl => RespOperation::Ttl(key(), format(ReplyKind::Seconds)),
            CommandName::PTtl => RespOperation::Ttl(key(), format(ReplyKind::Milliseconds)),
            CommandName::DbSize => RespOperation::Info(format(ReplyKind::Entries)),
            CommandName::Info => RespOperation::Info(format(ReplyKind::Info(InfoSections::named(arguments)))),
            _ => RespOperation::Local,
        }
    }

    /// Runs a [`RespOperation::Local`] command and appends its reply.
    pub fn run_local(&mut self, spec: &CommandSpec, arguments: Arguments<'_>, out: &mut Vec<u8>) -> AfterReply {
        let words: Vec<&[u8]> = arguments.collect();
        match spec.name {
            CommandName::Hello => self.run_hello(&words, out),
            CommandName::Client => self.run_client(&words, &mut self.writer(out)),
            CommandName::Reset => {
                *self = Session::new(self.id, self.database);
                self.writer(out).simple("RESET");
            }
            CommandName::Quit => {
                self.writer(out).simple("OK");
                return AfterReply::Close;
            }
            _ => run_stateless(spec, &words, self.database, &mut self.writer(out)),
        }
        AfterReply::Continue
    }

    fn writer<'a>(&self, out: &'a mut Vec<u8>) -> RespWriter<'a> {
        RespWriter::new(out, self.version)
    }

    /// Runs `HELLO [version [AUTH user password] [SETNAME name]]`. An error changes nothing.
    fn run_hello(&mut self, words: &[&[u8]], out: &mut Vec<u8>) {
        let options = parse_hello(words, self.version).and_then(|(version, name)| {
            name.map_or(Ok(()), |name| self.set_name(name))?;
            Ok(version)
        });
        match options {
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
        // Some clients read from a master only, so the proxy reports that role.
        out.pair("role", "master");
        out.bulk(b"modules");
        out.array(0);
    }

    /// Runs a subcommand of `CLIENT`.
    fn run_client(&mut self, words: &[&[u8]], out: &mut RespWriter<'_>) {
        let Some((word, rest)) = words.split_first() else { return write_wrong_arity("client", out) };
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
            // No supported command returns the library name, so it is not stored.
            (b"setinfo", [option, value]) => match option.to_ascii_lowercase().as_slice() {
                b"lib-name" | b"lib-ver" if is_name(value) => out.simple("OK"),
                b"lib-name" | b"lib-ver" => out.error(&format!("ERR {} {INVALID_NAME}", Printable(option))),
                _ => out.error(&format!("ERR Unrecognized option '{}'", Printable(option))),
            },
            // The proxy evicts no client, so the switch has no effect.
            (b"no-evict", [switch]) => _ = parse_on_off(switch, out),
            (b"no-touch", [switch]) => {
                if let Some(on) = parse_on_off(switch, out) {
                    self.no_touch = on;
                }
            }
            (b"id" | b"getname" | b"setname" | b"setinfo" | b"no-evict" | b"no-touch", _) => {
                write_wrong_arity(&format!("client|{}", Printable(&word.to_ascii_lowercase())), out);
            }
            _ => unknown_subcommand("client", word, out),
        }
    }

    /// Stores a valid name. An empty one removes the name.
    fn set_name(&mut self, name: &[u8]) -> Result<(), String> {
        if !is_name(name) {
            return Err(format!("ERR Client names {INVALID_NAME}"));
        }
        if name.len() > MAX_CLIENT_NAME_BYTES {
            return Err(format!("ERR Client name too long; the limit is {MAX_CLIENT_NAME_BYTES} bytes"));
        }
        self.name = Some(name).filter(|name| !name.is_empty()).map(Box::from);
        Ok(())
    }
}

/// Parses the arguments of `HELLO`. Returns the version, `current` if there is none, and the name.
fn parse_hello<'a>(words: &[&'a [u8]], current: RespVersion) -> Result<(RespVersion, Option<&'a [u8]>), String> {
    let Some((requested, mut options)) = words.split_first() else { return Ok((current, None)) };
    let version = match parse_integer(requested) {
        Some(2) => RespVersion::Resp2,
        Some(3) => RespVersion::Resp3,
        Some(_) => return Err("NOPROTO unsupported protocol version".into()),
        None => return Err("ERR Protocol version is not an integer or out of range".into()),
    };
    let mut name = None;
    while let [option, rest @ ..] = options {
        options = match rest {
            // The proxy does not authenticate clients, so it accepts any user and password.
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

/// Runs a command that neither reads nor changes the state of the connection.
fn run_stateless(spec: &CommandSpec, words: &[&[u8]], database: u32, out: &mut RespWriter<'_>) {
    let first = words.first().map(|word| word.to_ascii_lowercase()).unwrap_or_default();
    match (spec.name, words) {
        (CommandName::Ping, []) => out.simple("PONG"),
        (CommandName::Ping | CommandName::Echo, [text]) => out.bulk(text),
        // Clients may send the password of Redis. AUTH always succeeds: the proxy does not
        // authenticate clients.
        (CommandName::Auth, [_] | [_, _]) => out.simple("OK"),
        (CommandName::Auth, _) => out.error("ERR syntax error"),
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

/// Parameters of Redis that `CONFIG GET` returns: the proxy saves nothing.
///
/// `redis-benchmark` reads them, and warns without a reply. Environment variables configure the
/// proxy itself.
const CONFIG_PARAMETERS: [(&str, &str); 2] = [("save", ""), ("appendonly", "no")];

const INVALID_NAME: &str = "cannot contain spaces, newlines or special characters.";

/// Returns true if Redis accepts `bytes` as the name of a connection or a library.
fn is_name(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

/// Parses an integer as Redis does, without plus or leading zeros.
fn parse_integer(word: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(word).ok()?;
    let number: i64 = text.parse().ok()?;
    (itoa::Buffer::new().format(number) == text).then_some(number)
}

/// Parses `ON` or `OFF`, appends the reply, and returns the value.
fn parse_on_off(word: &[u8], out: &mut RespWriter<'_>) -> Option<bool> {
    let on = word.eq_ignore_ascii_case(b"on");
    if !on && !word.eq_ignore_ascii_case(b"off") {
        out.error("ERR syntax error");
        return None;
    }
    out.simple("OK");
    Some(on)
}

fn write_wrong_arity(command: &str, out: &mut RespWriter<'_>) {
    out.error(&wrong_arity(command));
}

fn unknown_subcommand(command: &str, word: &[u8], out: &mut RespWriter<'_>) {
    out.error(&format!("ERR unknown subcommand '{}' of '{command}': {READ_ONLY}", Printable(word)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and integers are valid if Redis accepts them.
    #[test]
    fn names_and_integers_match_redis() {
        assert!(is_name(b"!~az-09:/") && is_name(b""));
        for bytes in [&b"a b"[..], b"a\n", b"\x7f", b"\xc3\xa9", b"\0"] {
            assert!(!is_name(bytes), "{bytes:?}");
        }
        assert_eq!((parse_integer(b"0"), parse_integer(b"-9223372036854775808")), (Some(0), Some(i64::MIN)));
        for word in [&b""[..], b"-0", b"01", b"+1", b" 1", b"1.0", b"9223372036854775808", b"\xff"] {
            assert_eq!(parse_integer(word), None, "{word:?}");
        }
    }

    /// Every subcommand in `docs.rs` has an implementation.
    #[test]
    fn documented_subcommands_are_implemented() {
        let mut session = Session::new(7, 0);
        let mut run = |words: &[&str]| {
            let frames: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            let input = format!("*{}\r\n{frames}", words.len());
            let mut out = Vec::new();
            match session.decode(input.as_bytes()) {
                Decoded::Complete(DecodeEvent::Command(spec, arguments), _) => {
                    session.run_local(spec, arguments, &mut out)
                }
                _ => unreachable!("a complete command"),
            };
            String::from_utf8(out).expect("UTF-8")
        };
        let list = run(&["COMMAND", "LIST"]);
        let subcommands: Vec<_> = list.lines().filter_map(|name| name.split_once('|')).collect();
        assert!(subcommands.contains(&("client", "getname")) && subcommands.len() > 10, "{list}");
        for (command, subcommand) in subcommands {
            let reply = run(&[command, subcommand]);
            assert!(!reply.contains("unknown subcommand"), "{command} {subcommand}: {reply}");
        }
        assert!(run(&["CLIENT", "KILL"]).contains("unknown subcommand"));
    }

    /// A failed `HELLO` changes neither version nor name.
    #[test]
    fn failed_hello_changes_nothing() {
        let mut session = Session::new(7, 0);
        let hello = |session: &mut Session, words: &[&[u8]]| {
            let mut out = Vec::new();
            session.run_hello(words, &mut out);
            String::from_utf8(out).expect("UTF-8")
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
