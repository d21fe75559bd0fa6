//! Client-side caching of one connection: `CLIENT TRACKING`, `CACHING`, `TRACKINGINFO` and
//! `GETREDIR`.
//!
//! The replies are those of Redis, except that options which the proxy does not support are
//! refused. A client that tracks receives invalidations as push messages of RESP3.

use super::writer::{RespVersion, RespWriter};

/// Name that the proxy reports in `HELLO` if clients may track: client libraries offer client-side
/// caching only with this one (redis-py 8, Jedis 5).
pub const COMPATIBLE_SERVER: &str = "redis";

/// Version that it reports then: the lowest one with which these libraries offer it.
pub const COMPATIBLE_VERSION: &str = "7.4.0";

const NOT_OFFERED: &str = "ERR CLIENT TRACKING needs REDIS_TRACKING=on, which this proxy is started without";
const NEEDS_RESP3: &str = "ERR CLIENT TRACKING needs RESP3 in this proxy: send HELLO 3 before it";
const NO_REDIRECT: &str = "ERR CLIENT TRACKING REDIRECT is not supported by this proxy: send HELLO 3 and omit it, then \
                           invalidations arrive on this connection";
const NO_BROADCAST: &str = "ERR CLIENT TRACKING BCAST and PREFIX are not supported by this proxy: omit them, then the \
                            keys that are read on this connection are tracked";
const NO_OPTOUT: &str = "ERR CLIENT TRACKING OPTOUT is not supported by this proxy: use OPTIN, or neither";
const SYNTAX_ERROR: &str = "ERR syntax error";
const NOT_TRACKING: &str = "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or \
                            OPTOUT mode enabled";
const NOT_OPTIN: &str = "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.";
const NOT_OPTOUT: &str = "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.";

/// Reads of a connection that the client may cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Off,
    /// All reads.
    All,
    /// The command after `CLIENT CACHING YES`.
    OptIn,
}

/// State of `CLIENT TRACKING` on one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracking {
    /// The proxy receives invalidations from Redis (`REDIS_TRACKING=on`).
    is_offered: bool,
    mode: Mode,
    /// Accepted without effect: the client writes nothing here.
    is_noloop: bool,
    /// `CLIENT CACHING YES` was the last command, apart from other `CLIENT` commands.
    caches_next: bool,
    /// The client may cache what the present command reads.
    caches_reads: bool,
}

impl Tracking {
    /// Creates the state of a new connection, which may turn tracking on if `is_offered` is true.
    pub fn new(is_offered: bool) -> Tracking {
        Tracking { is_offered, ..Tracking::default() }
    }

    /// Returns true if clients may turn tracking on.
    pub fn is_offered(&self) -> bool {
        self.is_offered
    }

    /// Returns true if the client receives invalidations.
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// Returns true if the client may cache what the present command reads.
    pub fn caches_reads(&self) -> bool {
        self.caches_reads
    }

    /// Returns true if `CLIENT CACHING` decides about the next command.
    pub fn is_opt_in(&self) -> bool {
        self.mode == Mode::OptIn
    }

    /// Begins a command other than `CLIENT` in OPTIN mode.
    pub fn begin_command(&mut self) {
        self.caches_reads = std::mem::take(&mut self.caches_next);
    }

    /// Ends tracking.
    pub fn stop(&mut self) {
        *self = Tracking::new(self.is_offered);
    }

    /// Runs `CLIENT TRACKING ON|OFF [option...]`.
    pub fn run_switch(&mut self, words: &[&[u8]], version: RespVersion, out: &mut RespWriter<'_>) {
        match self.switch(words, version) {
            Ok(()) => out.simple("OK"),
            Err(text) => out.error(text),
        }
    }

    fn switch(&mut self, words: &[&[u8]], version: RespVersion) -> Result<(), &'static str> {
        let Some((switch, options)) = words.split_first() else { return Err(SYNTAX_ERROR) };
        let (mode, is_noloop, refusal) = read_options(options)?;
        match switch.to_ascii_lowercase().as_slice() {
            b"on" => {
                if !self.is_offered {
                    return Err(NOT_OFFERED);
                }
                if let Some(refusal) = refusal {
                    return Err(refusal);
                }
                if version != RespVersion::Resp3 {
                    return Err(NEEDS_RESP3);
                }
                (self.mode, self.is_noloop, self.caches_reads) = (mode, is_noloop, mode == Mode::All);
                Ok(())
            }
            b"off" => {
                self.stop();
                Ok(())
            }
            _ => Err(SYNTAX_ERROR),
        }
    }

    /// Runs `CLIENT CACHING YES|NO`.
    pub fn run_caching(&mut self, word: &[u8], out: &mut RespWriter<'_>) {
        match word.to_ascii_lowercase().as_slice() {
            _ if self.mode == Mode::Off => out.error(NOT_TRACKING),
            b"yes" if self.mode == Mode::OptIn => {
                self.caches_next = true;
                out.simple("OK");
            }
            b"yes" => out.error(NOT_OPTIN),
            b"no" => out.error(NOT_OPTOUT),
            _ => out.error(SYNTAX_ERROR),
        }
    }

    /// Appends the reply to `CLIENT TRACKINGINFO`.
    pub fn write_info(&self, out: &mut RespWriter<'_>) {
        let flags = [
            (self.mode == Mode::Off, "off"),
            (self.is_on(), "on"),
            (self.mode == Mode::OptIn, "optin"),
            (self.caches_next, "caching-yes"),
            (self.is_noloop, "noloop"),
        ];
        let flags: Vec<&str> = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect();
        out.map(3);
        out.bulk(b"flags");
        out.set(flags.len());
        flags.into_iter().for_each(|flag| out.bulk(flag.as_bytes()));
        out.bulk(b"redirect");
        out.integer(self.redirect());
        out.bulk(b"prefixes");
        out.array(0);
    }

    /// Returns the reply to `CLIENT GETREDIR`: invalidations go to no other client.
    pub fn redirect(&self) -> i64 {
        if self.is_on() { 0 } else { -1 }
    }
}

/// Reads the options of `CLIENT TRACKING`. Returns the mode, true for `NOLOOP`, and the reason why
/// tracking cannot be turned on with one of the others.
fn read_options(mut options: &[&[u8]]) -> Result<(Mode, bool, Option<&'static str>), &'static str> {
    let (mut mode, mut is_noloop, mut refusal) = (Mode::All, false, None);
    while let [option, rest @ ..] = options {
        options = rest;
        match (option.to_ascii_lowercase().as_slice(), rest) {
            (b"optin", _) => mode = Mode::OptIn,
            (b"noloop", _) => is_noloop = true,
            (b"optout", _) => refusal = Some(NO_OPTOUT),
            (b"bcast", _) => refusal = Some(NO_BROADCAST),
            (b"prefix", [_, rest @ ..]) => (refusal, options) = (Some(NO_BROADCAST), rest),
            (b"redirect", [_, rest @ ..]) => (refusal, options) = (Some(NO_REDIRECT), rest),
            _ => return Err(SYNTAX_ERROR),
        }
    }
    Ok((mode, is_noloop, refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs commands, each a line of words behind `CLIENT`, and returns their replies.
    fn run(tracking: &mut Tracking, lines: &[&str]) -> Vec<String> {
        let run = |line: &&str| {
            let (words, mut bytes) = (line.split(' ').map(str::as_bytes).collect::<Vec<_>>(), Vec::new());
            let mut out = RespWriter::new(&mut bytes, RespVersion::Resp3);
            match words[0] {
                b"TRACKING" => tracking.run_switch(&words[1..], RespVersion::Resp3, &mut out),
                b"CACHING" => tracking.run_caching(words[1], &mut out),
                _ => tracking.write_info(&mut out),
            }
            String::from_utf8(bytes).expect("text")
        };
        lines.iter().map(run).collect()
    }

    /// In OPTIN mode only the command after `CLIENT CACHING YES` is cached.
    #[test]
    fn optin_caches_next_command_only() {
        let mut tracking = Tracking::new(true);
        assert_eq!(run(&mut tracking, &["TRACKING ON OPTIN", "CACHING YES"]), ["+OK\r\n", "+OK\r\n"]);
        let reads = [true, false, false].map(|expected| {
            tracking.begin_command();
            (tracking.caches_reads(), expected)
        });
        assert!(reads.iter().all(|(found, expected)| found == expected), "{reads:?}");
        run(&mut tracking, &["CACHING YES", "TRACKING OFF", "TRACKING ON OPTIN"]);
        tracking.begin_command();
        assert!(!tracking.caches_reads(), "CLIENT CACHING outlived CLIENT TRACKING OFF");
        run(&mut tracking, &["TRACKING ON"]);
        assert!(tracking.caches_reads() && tracking.is_on() && !tracking.is_opt_in());
    }

    /// An option that is not supported is refused by its name, and leaves the state as it is.
    #[test]
    fn unsupported_option_is_refused() {
        let mut tracking = Tracking::new(true);
        for (line, expected) in [
            ("TRACKING ON REDIRECT 1", NO_REDIRECT),
            ("TRACKING ON BCAST PREFIX a", NO_BROADCAST),
            ("TRACKING ON OPTOUT", NO_OPTOUT),
            ("TRACKING ON REDIRECT", SYNTAX_ERROR),
            ("TRACKING maybe", SYNTAX_ERROR),
        ] {
            assert_eq!(run(&mut tracking, &[line]), [format!("-{expected}\r\n")]);
            assert!(!tracking.is_on());
        }
        assert_eq!(run(&mut Tracking::new(false), &["TRACKING ON"]), [format!("-{NOT_OFFERED}\r\n")]);
        let mut bytes = Vec::new();
        tracking.run_switch(&[b"on"], RespVersion::Resp2, &mut RespWriter::new(&mut bytes, RespVersion::Resp2));
        assert_eq!(bytes, format!("-{NEEDS_RESP3}\r\n").as_bytes());
    }
}
