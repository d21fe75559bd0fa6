//! RESP state of one connection: runs the commands that need only that, and maps all others to
//! operations.

use super::commands::{CommandName, CommandSpec};
use super::decode::{DecodeEvent, Decoder, RespRefusal};
use super::frame::{Arguments, Printable, ProtocolError};
use super::stateless::{parse_integer, run_stateless, unknown_subcommand, write_wrong_arity};
use super::tracking::{COMPATIBLE_SERVER, COMPATIBLE_VERSION, Tracking};
use super::upcoming::find_upcoming_keys;
use super::writer::{RespVersion, RespWriter};
use super::{InfoSections, ReplyKind, RespReplyFormat};
use crate::client_auth::{DEFAULT_USER, Verdict};
use crate::protocol::Decoded;
use crate::types::{Access, UpcomingKeys};

/// Maximum length of a connection name: a host name and some more.
///
/// Redis has no limit, but an idle connection must stay small.
const MAX_CLIENT_NAME_BYTES: usize = 256;

const INVALID_NAME: &str = "cannot contain spaces, newlines or special characters.";

/// Subcommands of `CLIENT` that Redis 7.0 has and the proxy refuses.
const REFUSED_SUBCOMMANDS: [&[u8]; 8] =
    [b"help", b"info", b"kill", b"list", b"pause", b"reply", b"unblock", b"unpause"];

/// Replies of Redis to a client that is not authenticated.
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const HELLO_WITHOUT_AUTH: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the \
                                  HELLO AUTH <user> <pass> option can be used to authenticate the client and select \
                                  the RESP protocol version at the same time";

/// Reply to credentials that are not checked. Redis has no such limit.
const TOO_MANY_FAILURES: &str = "ERR too many failed authentications from this address; retry in a second";

/// Checks a user and a password. Called only if clients must authenticate.
pub type Verify<'a> = dyn FnMut(&[u8], &[u8]) -> Verdict + 'a;

/// RESP state of one connection.
#[derive(Debug)]
pub struct Session {
    decoder: Decoder,
    /// Number that `CLIENT ID` returns.
    id: u64,
    /// Only database that `SELECT` accepts.
    database: u32,
    /// The client must authenticate before other commands.
    requires_auth: bool,
    version: RespVersion,
    /// Reads do not update the LRU order (`CLIENT NO-TOUCH`).
    no_touch: bool,
    tracking: Tracking,
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
    /// served. With `requires_auth` only commands that authenticate run first.
    pub fn new(id: u64, database: u32, requires_auth: bool) -> Session {
        Session {
            decoder: Decoder::new(requires_auth),
            id,
            database,
            requires_auth,
            version: RespVersion::Resp2,
            no_touch: false,
            tracking: Tracking::default(),
            name: None,
        }
    }

    /// Lets the client turn on tracking, if `is_offered` is true.
    pub fn offer_tracking(self, is_offered: bool) -> Session {
        Session { tracking: Tracking::new(is_offered), ..self }
    }

    /// Returns true if the client receives invalidations (`CLIENT TRACKING`).
    pub fn is_tracking(&self) -> bool {
        self.tracking.is_on()
    }

    /// Begins a command, or the refusal of one without `spec`.
    #[inline]
    pub fn begin_command(&mut self, spec: Option<&CommandSpec>) {
        // `CLIENT` commands leave `CLIENT CACHING` in force, as in Redis.
        if self.tracking.is_opt_in() && spec.is_none_or(|spec| spec.name != CommandName::Client) {
            self.tracking.begin_command();
        }
    }

    /// Returns the protocol version of the replies.
    pub fn version(&self) -> RespVersion {
        self.version
    }

    /// Decodes the event at the start of `input`, the bytes that are not consumed.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        self.decoder.decode(input)
    }

    /// Adds the keys that the commands at the start of `input` will look up. Returns the end of the
    /// last one. Decodes nothing.
    pub fn find_upcoming_keys<'a>(&self, input: &'a [u8], keys: &mut UpcomingKeys<'a>) -> usize {
        self.decoder.keys_left().map_or(0, |keys_left| find_upcoming_keys(input, keys_left, keys))
    }

    /// Returns true if keys of the present command follow.
    pub fn expects_keys(&self) -> bool {
        self.decoder.keys_left().is_some_and(|keys_left| keys_left > 0)
    }

    /// Returns true if a part of an incomplete command is consumed.
    pub fn in_command(&self) -> bool {
        self.decoder.in_command()
    }

    /// Returns the use of the cache that reads of this connection allow.
    pub fn access(&self) -> Access {
        let client_caches = self.tracking.caches_reads();
        Access { updates_recency: !self.no_touch, client_caches, ..Access::NORMAL }
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

    /// Runs a [`RespOperation::Local`] command and appends its reply. `verify` checks passwords.
    pub fn run_local(
        &mut self,
        spec: &CommandSpec,
        arguments: Arguments<'_>,
        verify: &mut Verify<'_>,
        out: &mut Vec<u8>,
    ) -> AfterReply {
        let words: Vec<&[u8]> = arguments.collect();
        match spec.name {
            CommandName::Auth => self.run_auth(&words, verify, out),
            CommandName::Hello => self.run_hello(&words, verify, out),
            CommandName::Client => self.run_client(&words, &mut self.writer(out)),
            CommandName::Reset => {
                let session = Session::new(self.id, self.database, self.requires_auth);
                *self = session.offer_tracking(self.tracking.is_offered());
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

    /// Runs `AUTH [user] password`. A failure leaves an authenticated client as it is, as in Redis.
    fn run_auth(&mut self, words: &[&[u8]], verify: &mut Verify<'_>, out: &mut Vec<u8>) {
        let result = match words {
            [password] => self.authenticate(DEFAULT_USER, password, verify),
            [user, password] => self.authenticate(user, password, verify),
            _ => Err("ERR syntax error"),
        };
        match result {
            Ok(()) => self.writer(out).simple("OK"),
            Err(text) => self.writer(out).error(text),
        }
    }

    /// Checks a password. If clients need none, any is right: some send the password of Redis.
    fn authenticate(&mut self, user: &[u8], password: &[u8], verify: &mut Verify<'_>) -> Result<(), &'static str> {
        if !self.requires_auth {
            return Ok(());
        }
        match verify(user, password) {
            Verdict::Accepted => {
                self.decoder.lift_restriction();
                Ok(())
            }
            Verdict::Wrong => Err(WRONG_PASSWORD),
            Verdict::Throttled => Err(TOO_MANY_FAILURES),
        }
    }

    /// Runs `HELLO [version [AUTH user password] [SETNAME name]]`. An error changes neither version
    /// nor name. As in Redis 7.0, a password before the error counts.
    fn run_hello(&mut self, words: &[&[u8]], verify: &mut Verify<'_>, out: &mut Vec<u8>) {
        match self.read_hello(words, verify) {
            Err(text) => return self.writer(out).error(&text),
            Ok((version, name)) => {
                self.version = version;
                if version == RespVersion::Resp2 {
                    // Invalidations could not be sent any more.
                    self.tracking.stop();
                }
                if let Some(name) = name {
                    self.set_name(name);
                }
            }
        }
        let (server, version) = match self.tracking.is_offered() {
            true => (COMPATIBLE_SERVER, COMPATIBLE_VERSION),
            false => (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
        };
        let mut out = self.writer(out);
        out.map(7);
        out.pair("server", server);
        out.pair("version", version);
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
            (b"setname", [name]) => match check_client_name(name) {
                Ok(()) => {
                    self.set_name(name);
                    out.simple("OK");
                }
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
            (b"tracking", [_, ..]) => self.tracking.run_switch(rest, self.version, out),
            (b"caching", [word]) => self.tracking.run_caching(word, out),
            (b"trackinginfo", []) => self.tracking.write_info(out),
            (b"getredir", []) => out.integer(self.tracking.redirect()),
            (
                b"id" | b"getname" | b"setname" | b"setinfo" | b"no-evict" | b"no-touch" | b"tracking" | b"caching"
                | b"trackinginfo" | b"getredir",
                _,
            ) => {
                write_wrong_arity(&format!("client|{}", Printable(&word.to_ascii_lowercase())), out);
            }
            (subcommand, _) => {
                if !REFUSED_SUBCOMMANDS.contains(&subcommand) {
                    // Ends `CLIENT CACHING`, as in Redis, where this is an unknown command.
                    self.begin_command(None);
                }
                unknown_subcommand("client", word, out);
            }
        }
    }

    /// Stores a valid name. An empty one removes the name.
    fn set_name(&mut self, name: &[u8]) {
        self.name = Some(name).filter(|name| !name.is_empty()).map(Box::from);
    }

    /// Reads the arguments of `HELLO`, and authenticates. Returns the version, the current one if
    /// there is none, and the name.
    fn read_hello<'a>(
        &mut self,
        words: &[&'a [u8]],
        verify: &mut Verify<'_>,
    ) -> Result<(RespVersion, Option<&'a [u8]>), String> {
        let (version, mut options) = match words.split_first() {
            None => (self.version, words),
            Some((requested, options)) => match parse_integer(requested) {
                Some(2) => (RespVersion::Resp2, options),
                Some(3) => (RespVersion::Resp3, options),
                Some(_) => return Err("NOPROTO unsupported protocol version".into()),
                None => return Err("ERR Protocol version is not an integer or out of range".into()),
            },
        };
        let mut name = None;
        while let [option, rest @ ..] = options {
            options = match rest {
                [user, password, rest @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                    self.authenticate(user, password, verify)?;
                    rest
                }
                [given, rest @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                    check_client_name(given)?;
                    name = Some(*given);
                    rest
                }
                _ => return Err(format!("ERR Syntax error in HELLO option '{}'", Printable(option))),
            };
        }
        if self.decoder.is_restricted() { Err(HELLO_WITHOUT_AUTH.into()) } else { Ok((version, name)) }
    }
}

/// Checks the name of a connection.
fn check_client_name(name: &[u8]) -> Result<(), String> {
    if !is_name(name) {
        return Err(format!("ERR Client names {INVALID_NAME}"));
    }
    if name.len() > MAX_CLIENT_NAME_BYTES {
        return Err(format!("ERR Client name too long; the limit is {MAX_CLIENT_NAME_BYTES} bytes"));
    }
    Ok(())
}

/// Returns true if Redis accepts `bytes` as the name of a connection or a library.
fn is_name(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| (b'!'..=b'~').contains(byte))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are valid if Redis accepts them.
    #[test]
    fn names_match_redis() {
        assert!(is_name(b"!~az-09:/") && is_name(b""));
        for bytes in [&b"a b"[..], b"a\n", b"\x7f", b"\xc3\xa9", b"\0"] {
            assert!(!is_name(bytes), "{bytes:?}");
        }
    }

    /// Every subcommand in `docs.rs` has an implementation.
    #[test]
    fn documented_subcommands_are_implemented() {
        let mut session = Session::new(7, 0, false);
        let mut run = |words: &[&str]| {
            let frames: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            let input = format!("*{}\r\n{frames}", words.len());
            let mut out = Vec::new();
            match session.decode(input.as_bytes()) {
                Decoded::Complete(DecodeEvent::Command(spec, arguments), _) => {
                    session.run_local(spec, arguments, &mut |_, _| Verdict::Wrong, &mut out)
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
        let mut session = Session::new(7, 0, false);
        let hello = |session: &mut Session, words: &[&[u8]]| {
            let mut out = Vec::new();
            session.run_hello(words, &mut |_, _| Verdict::Wrong, &mut out);
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

    /// Before authentication each event of the decoder is a command that authenticates, or a
    /// refusal. `RESET` restores that state.
    #[test]
    fn restricted_session_runs_nothing_else() {
        let mut session = Session::new(7, 0, true);
        let mut run = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            let frames: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            let (input, mut at) = (format!("*{}\r\n{frames}", words.len()), 0);
            let mut verify = |user: &[u8], password: &[u8]| match (user, password) {
                (DEFAULT_USER, b"word") => Verdict::Accepted,
                (b"slow", _) => Verdict::Throttled,
                _ => Verdict::Wrong,
            };
            loop {
                match session.decode(&input.as_bytes()[at..]) {
                    Decoded::Complete(DecodeEvent::Skipped, consumed) => at += consumed,
                    Decoded::Complete(DecodeEvent::Refuse(refusal), _) => return refusal.to_string(),
                    Decoded::Complete(DecodeEvent::Command(spec, arguments), _) => {
                        let RespOperation::Local = session.operation_of(spec, arguments) else {
                            return spec.text.to_owned();
                        };
                        let mut out = Vec::new();
                        session.run_local(spec, arguments, &mut verify, &mut out);
                        return String::from_utf8_lossy(&out).lines().next().unwrap_or_default().to_owned();
                    }
                    other => return format!("{other:?}"),
                }
            }
        };
        let wrong = format!("-{WRONG_PASSWORD}");
        let hello = format!("-{HELLO_WITHOUT_AUTH}");
        let slow = format!("-{TOO_MANY_FAILURES}");
        for (words, expected) in [
            ("GET a", "NOAUTH Authentication required."),
            ("MGET a b", "NOAUTH Authentication required."),
            ("PING", "NOAUTH Authentication required."),
            ("CLIENT ID", "NOAUTH Authentication required."),
            ("FOO", "ERR unknown command 'FOO': this proxy is read-only; COMMAND DOCS lists the supported commands"),
            ("GET", "ERR wrong number of arguments for 'get' command"),
            ("MGET a a a a a a a a a a", "Invalid(UnauthenticatedArgumentCount)"),
            ("HELLO 3", &hello),
            ("HELLO 3 AUTH default no", &wrong),
            ("HELLO 3 AUTH slow word", &slow),
            ("AUTH no", &wrong),
            ("AUTH other word", &wrong),
            ("AUTH slow word", &slow),
            ("AUTH a b c", "-ERR syntax error"),
            ("GET a", "NOAUTH Authentication required."),
            ("AUTH word", "+OK"),
            ("GET a", "get"),
            ("AUTH no", &wrong),
            ("GET a", "get"),
            ("RESET", "+RESET"),
            ("GET a", "NOAUTH Authentication required."),
            ("HELLO 3 AUTH default word SETNAME x", "%7"),
            ("GET a", "get"),
        ] {
            assert_eq!(run(words), expected, "{words}");
        }
    }
}
