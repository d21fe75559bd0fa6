//! Types about watched keys: the states that watchers distinguish, and events.

use super::{Failure, Reply};
use std::cell::OnceCell;

/// State of a key, as far as watchers distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// The key has a value with this digest.
    Value(u64),
    /// Redis has no such key.
    Missing,
    /// The key does not hold a string.
    WrongType,
    /// The value is longer than `MAX_VALUE_BYTES`.
    TooLong,
}

impl KeyState {
    /// Returns the state of a key that was read with this failure, `None` if it could not be read.
    pub fn of_failure(failure: &Failure) -> Option<KeyState> {
        match failure {
            Failure::WrongType => Some(KeyState::WrongType),
            Failure::TooLong => Some(KeyState::TooLong),
            _ => None,
        }
    }

    /// Returns the failure of a key that exists and has no value for clients.
    pub fn failure(self) -> Option<Failure> {
        match self {
            KeyState::Value(_) | KeyState::Missing => None,
            KeyState::WrongType => Some(Failure::WrongType),
            KeyState::TooLong => Some(Failure::TooLong),
        }
    }
}

/// State of a watched key, on its way to the watchers.
#[derive(Clone, Copy, Debug)]
pub struct WatchEvent<'a> {
    /// State of the key, `None` if it could not be read.
    pub state: Option<KeyState>,
    /// Reply that a request for the key would get.
    pub reply: Reply<'a>,
    /// Texts of the event for all watchers.
    pub rendered: &'a RenderedEvent,
}

/// Texts of one event, rendered for the first watcher that needs them.
#[derive(Debug, Default)]
pub struct RenderedEvent {
    /// Event of a stream for one key.
    pub unnamed: OnceCell<Box<[u8]>>,
    /// Event that names its key.
    pub named: OnceCell<Box<[u8]>>,
}

/// Result of the delivery of an event to one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The watcher has the state of the event.
    Taken,
    /// The watcher had that state already, and its client got nothing.
    Unchanged,
    /// The watcher has not sent its earlier events, and asks for the present state later.
    Behind,
    /// The watcher watches no more.
    Ended,
}
