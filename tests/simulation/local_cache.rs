//! Local cache of a RESP client that tracks what it reads (`CLIENT TRACKING`).
//!
//! The client caches each value when it receives the reply, and forgets it when it receives an
//! invalidation. So it holds an outdated value for as long as an invalidation is missing, or if it
//! came too early.

use crate::client::{Content, KeyReply, Kind, Request};
use crate::random::Random;
use crate::versions::{KEYS, Versions};
use crate::world::Moment;

/// Reads that are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    All,
    /// The command after `CLIENT CACHING YES`.
    OptIn,
}

/// Invalidation that a client receives: of a key, or of all keys.
pub type Push = Option<usize>;

/// Values of one client.
#[derive(Debug)]
pub struct LocalCache {
    /// True if the proxy offers tracking.
    is_offered: bool,
    /// State behind all commands that were sent.
    is_resp3: bool,
    mode: Mode,
    /// True if `CLIENT CACHING YES` was the last command, apart from other `CLIENT` commands.
    is_next_cached: bool,
    /// True if the last reply is one of a client that tracks.
    is_on: bool,
    values: [Option<KeyReply>; KEYS],
}

impl LocalCache {
    pub fn new(is_offered: bool) -> LocalCache {
        LocalCache {
            is_offered,
            is_resp3: false,
            mode: Mode::Off,
            is_next_cached: false,
            is_on: false,
            values: Default::default(),
        }
    }

    /// Returns a command about tracking that the proxy accepts now, if there is one.
    pub fn random_command(&self, random: &mut Random) -> Option<Kind> {
        match self.mode {
            _ if !self.is_offered => None,
            _ if !self.is_resp3 => Some(Kind::Hello),
            Mode::OptIn if random.percent(70) => Some(Kind::Caching),
            Mode::Off => Some(Kind::Track { opt_in: random.percent(40) }),
            _ if random.percent(80) => None,
            _ if random.percent(30) => Some(Kind::Untrack),
            _ => Some(Kind::Track { opt_in: random.percent(50) }),
        }
    }

    /// Notes a command that is sent. Returns true if what it reads is cached.
    pub fn on_send(&mut self, kind: &Kind) -> bool {
        match kind {
            Kind::Denied(_) => return false,
            Kind::Hello => self.is_resp3 = true,
            Kind::Reset => (self.is_resp3, self.mode) = (false, Mode::Off),
            Kind::Track { opt_in } => self.mode = if *opt_in { Mode::OptIn } else { Mode::All },
            Kind::Untrack => (self.mode, self.is_next_cached) = (Mode::Off, false),
            Kind::Caching => self.is_next_cached = true,
            _ => {}
        }
        if matches!(kind, Kind::Track { .. } | Kind::Untrack | Kind::Caching) {
            return false;
        }
        let is_chosen = std::mem::take(&mut self.is_next_cached);
        self.mode == Mode::All || (self.mode == Mode::OptIn && is_chosen)
    }

    /// Applies the reply to a request.
    pub fn on_reply(&mut self, request: &Request, content: &Content) {
        match &request.kind {
            Kind::Track { .. } => self.is_on = true,
            Kind::Untrack | Kind::Reset => *self = LocalCache { is_on: false, values: Default::default(), ..*self },
            kind if request.is_cached => {
                if let Content::Keys(replies) = content
                    && matches!(kind, Kind::Value(_) | Kind::Values(_))
                {
                    kind.keys().iter().zip(replies).for_each(|(&key, reply)| self.values[key] = Some(reply.clone()));
                }
            }
            _ => {}
        }
    }

    /// Applies an invalidation.
    pub fn on_push(&mut self, push: Push) -> Result<(), String> {
        match push {
            Some(key) => self.values[key] = None,
            None => self.values = Default::default(),
        }
        if self.is_on { Ok(()) } else { Err("an invalidation for a client that does not track".into()) }
    }

    /// Returns the number of cached values.
    pub fn len(&self) -> usize {
        self.values.iter().flatten().count()
    }

    /// Checks the values of a client that has received everything, invalidations included. Redis
    /// held each of them after the last invalidation of its key (`invalidated_at`). Without
    /// tracking of Redis there are none.
    pub fn check(&self, versions: &Versions, invalidated_at: &[Moment; KEYS], is_tracked: bool) -> Result<(), String> {
        if !is_tracked && self.len() > 0 {
            return Err(format!("values that no invalidation will follow: {:?}", self.values));
        }
        for (key, reply) in self.values.iter().enumerate() {
            let Some(reply) = reply else { continue };
            let is_allowed = versions.keys[key].iter().any(|version| {
                let is_same = match (reply, &version.value) {
                    (KeyReply::Value(text), Some(value)) => text == value,
                    (KeyReply::Missing, None) => true,
                    // A key that has expired is missing, whether Redis has removed it or not.
                    (KeyReply::Missing, Some(_)) => version.expires.max(version.newer_expires) < u64::MAX,
                    _ => false,
                };
                is_same && version.until > invalidated_at[key]
            });
            if !is_allowed {
                return Err(format!("k{key} is {reply:?} in a local cache, although it was invalidated"));
            }
        }
        Ok(())
    }
}
