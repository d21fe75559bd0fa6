//! Keys of a request for several: `MGET` and `EXISTS` over RESP, `/keys` over HTTP.

use super::{Connection, MAX_PENDING_KEYS, ProtocolState, ReplyContext};
use crate::protocol::resp::{DecodeEvent, ProtocolError, Session};
use crate::protocol::{Decoded, MultiReply};
use crate::types::{Access, RequestId, UpcomingKeys};

/// Keys that [`Connection::decode_keys`] has decoded, or limits on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyAmount {
    /// Number of keys.
    pub keys: usize,
    /// Bytes of values that are copied into the reply. The last value may exceed a limit.
    pub copied: usize,
}

/// Source of the keys of one request.
struct KeySource<'a> {
    /// Input from a RESP client.
    input: &'a [u8],
    /// Bytes of the input that are consumed.
    consumed: usize,
    /// Error in the input.
    error: Option<ProtocolError>,
}

impl<'a> KeySource<'a> {
    /// Returns the next key of a RESP client, `None` if input is missing or malformed.
    fn take_next(&mut self, session: &mut Session) -> Option<&'a [u8]> {
        match session.decode(&self.input[self.consumed..]) {
            Decoded::Complete(event, consumed) => {
                self.consumed += consumed;
                if let DecodeEvent::Key(key) = event { Some(key) } else { None }
            }
            Decoded::Incomplete => None,
            Decoded::Invalid(error) => {
                (self.error, self.consumed) = (Some(error), self.input.len());
                None
            }
        }
    }
}

impl Connection {
    /// Decodes keys of the request that [`super::DecodeStep::Keys`] announced, until a limit is
    /// reached. Those of a RESP client are at the start of `input`. `slot` is the slot of the
    /// client. Returns what was decoded, and the bytes of input consumed. Neither keys nor bytes
    /// mean no progress, as in [`super::DecodeStep::Blocked`].
    ///
    /// Calls `look_up` with each key, the use of the cache that the client allows, the id by which
    /// the key can be answered later, and the reply to add the result to. `look_up` returns the
    /// bytes that it copied into the reply, `None` if the key is pending.
    pub fn decode_keys(
        &mut self,
        slot: usize,
        input: &[u8],
        limits: KeyAmount,
        context: &mut ReplyContext<'_>,
        mut look_up: impl FnMut(&[u8], Access, RequestId, &mut MultiReply) -> Option<usize>,
    ) -> (KeyAmount, usize) {
        let mut decoded = KeyAmount::default();
        let mut source = KeySource { input, consumed: 0, error: None };
        let first_id = self.request_id(slot);
        let Connection { protocol, replies, pending_keys, .. } = self;
        replies.update_open_multi(context, |multi| {
            while multi.expects_keys()
                && *pending_keys < MAX_PENDING_KEYS
                && decoded.keys < limits.keys
                && decoded.copied <= limits.copied
            {
                let next = match protocol {
                    ProtocolState::Resp(session) => {
                        let access = session.access();
                        source.take_next(session).map(|key| (key, access))
                    }
                    ProtocolState::Http(state) => state.take_listed_key().zip(multi.http_access()),
                    ProtocolState::Detecting | ProtocolState::Rejecting { .. } => None,
                };
                let Some((key, access)) = next else { break };
                decoded.keys += 1;
                if multi.has_failed() {
                    multi.skip_key();
                    continue;
                }
                let request_id = RequestId { part: multi.next_key(), ..first_id };
                multi.begin_key(key);
                match look_up(key, access, request_id, multi) {
                    Some(copied) => decoded.copied += copied,
                    None => *pending_keys += 1,
                }
            }
        });
        if let ProtocolState::Http(state) = protocol {
            state.drop_empty_list();
        }
        if let Some(error) = source.error {
            self.refuse_input(error, context);
        }
        (decoded, source.consumed)
    }

    /// Returns true if keys of an HTTP request are left to be looked up. They need no further
    /// input.
    pub fn has_listed_keys(&self) -> bool {
        matches!(&self.protocol, ProtocolState::Http(state) if state.has_listed_keys())
    }

    /// Adds the next keys of an HTTP request for several.
    pub fn find_listed_keys<'a>(&'a self, keys: &mut UpcomingKeys<'a>) {
        if let ProtocolState::Http(state) = &self.protocol {
            state.find_listed_keys(keys);
        }
    }
}
