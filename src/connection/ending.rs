//! How a connection comes to its end, and what it waits for until then.

use super::over_http::{Between, HEAD, describe_malformed, is_head};
use super::{Connection, Phase, Protocol, Step};
use crate::figures::{Ending, Ledger, Protocol as Wire, escape_into};
use crate::protocol::http::{self, Command, Date, Heads, Refusal, Rules, Status};
use crate::protocol::{Decoded, resp};

/// What a client is told that is one too many, over HTTP.
const TOO_MANY: Refusal =
    Refusal { status: Status::ServiceUnavailable, message: "connection limit reached (MAX_CONNECTIONS); retry later" };

/// What a client is told whose request does not come whole.
const TOO_SLOW: Refusal =
    Refusal { status: Status::RequestTimeout, message: "the request was not complete within CLIENT_TIMEOUT" };

impl Connection {
    /// Returns a connection that is one too many. Its first line says what it speaks, and then it is refused.
    pub fn one_too_many() -> Connection {
        Connection { protocol: Protocol::OneTooMany, ..Connection::new(0, 0) }
    }

    /// Tells the client to go; but whoever asks for the proxy itself is answered: that there are too many clients is what they are
    /// to see, not that the proxy is ill.
    pub(super) fn turn_away<'a>(
        &mut self,
        input: &[u8],
        rules: &Rules,
        heads: &mut Heads,
        date: &Date,
        ledger: &mut Ledger,
    ) -> Step<'a> {
        let Some(is_resp) = resp::is_resp(input) else { return Step::Stop };
        let may_be_answered = http::may_be_about_the_proxy(input);
        match http::decode(input, rules, heads) {
            Decoded::Incomplete if may_be_answered => return Step::Stop,
            Decoded::Complete(head, consumed) => {
                ledger.asked(&self.address, |text| escape_into(text, head.line));
                if let Command::About(topic) = head.command {
                    self.phase = Phase::Last { unread: true };
                    let shape = http::Shape { keep_alive: false, ..head.shape };
                    return Step::About { topic, shape, consumed };
                }
            }
            Decoded::Incomplete | Decoded::Invalid(_) => {
                ledger.asked(&self.address, |text| describe_malformed(text, input));
            }
        }
        if is_resp {
            self.phase = Phase::Last { unread: true };
            self.replies.answer_resp(Ending::Refused, ledger, resp::encode_too_many_clients);
        } else if HEAD.starts_with(input) && input != HEAD {
            // It may become a request whose response has no body.
            return Step::Stop;
        } else {
            self.end_http(TOO_MANY, is_head(input), date, ledger);
        }
        Step::Passed(input.len())
    }

    /// Whether every reply that is due has been sent. A request that has not come whole has none.
    pub fn is_settled(&self) -> bool {
        self.replies.is_settled()
    }

    /// Whether a request has begun to come and is not whole: the number of those before it, the same from its first byte to its
    /// last. What has been read, and not been taken because too much is open, may be one too; its number is not known yet.
    pub fn begun_request(&self) -> Option<u64> {
        // An empty line before a request is not its beginning: an old client may send one behind its last.
        let empty_line = || matches!(self.protocol, Protocol::Http(_)) && b"\r\n".starts_with(&self.unparsed);
        // Asked with every hit. Where there are no bytes none are compared: a Zen 5 takes a hundred nanoseconds over the vector loads
        // by which `memcmp` finds nothing at an address where nothing is.
        (self.is_amid() || (self.has_unparsed() && !empty_line())).then_some(self.before)
    }

    /// Whether what was taken last is a part of a request, of which there is more to come.
    pub(super) fn is_amid(&self) -> bool {
        match &self.protocol {
            Protocol::Unknown | Protocol::OneTooMany => false,
            Protocol::Http(between) => between.is_amid_body(),
            Protocol::Resp(session) => session.is_amid_command(),
        }
    }

    /// Its client is gone, or is cut off: what waits for an answer gets none.
    pub fn abort(&mut self, ledger: &mut Ledger) {
        self.replies.abort(ledger);
    }

    /// Ends it because its client has not sent the rest of a request. Over HTTP the client is told, if it was one that
    /// would be answered; Redis closes such connections without a word.
    pub fn give_up(&mut self, date: &Date, ledger: &mut Ledger) {
        if matches!(self.protocol, Protocol::Unknown) {
            // A first line that has no end yet may be one of either protocol.
            self.protocol = Protocol::Http(Between::NOTHING);
        }
        match &self.protocol {
            Protocol::Http(between) if !between.is_answered() => {
                let head_only = between.awaits_head() || is_head(&self.unparsed);
                match between.note() {
                    Some(note) => ledger.go_on(note),
                    None => ledger.asked(&self.address, |text| describe_malformed(text, &self.unparsed)),
                }
                self.end_http(TOO_SLOW, head_only, date, ledger);
            }
            _ => {
                self.phase = Phase::Last { unread: true };
                if let Some(note) = self.replies.abandon() {
                    ledger.aborted(&note, Wire::Resp);
                }
            }
        }
        self.unparsed = Vec::new();
    }

    /// Whether no further request will be taken, whatever comes.
    pub fn has_ended(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Whether the client may still be sending what nobody will read, so that closing has to wait for it.
    pub fn leaves_unread(&self) -> bool {
        matches!(self.phase, Phase::Last { unread: true })
    }
}
