//! What long values hold in memory that are on their way to clients, all together.
//!
//! A value is held once, however many clients take it, and as long as the slowest of them. The cache may have let go of it long
//! since: without a bound, clients that ask for one long value after another and read none of them would take all memory.

use crate::request::Value;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the values that are held, of all loops.
static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Most of them. What the operator has set.
static MOST_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Bounds what may be held, in bytes, in all of the process.
pub fn bound_held_values(most: usize) {
    MOST_BYTES.store(most, Ordering::Relaxed);
}

/// Whether a value may be held: it is already, or takes no more than half of what is left, so that a few long ones leave
/// something for many short ones. One alone is held, however long it is.
pub fn has_room_for(value: &Value) -> bool {
    if value.holders.get() > 0 {
        return true;
    }
    let held = HELD_BYTES.load(Ordering::Relaxed);
    held == 0 || value.bytes.len() <= MOST_BYTES.load(Ordering::Relaxed).saturating_sub(held) / 2
}

/// A value on its way to a client.
#[derive(Debug)]
pub struct Held(Arc<Value>);

impl Held {
    /// Holds it. Whether there is room has been asked before.
    pub fn new(value: &Arc<Value>) -> Held {
        if value.holders.add() {
            HELD_BYTES.fetch_add(value.bytes.len(), Ordering::Relaxed);
        }
        Held(Arc::clone(value))
    }

    /// The value, to be held by somebody else too.
    pub fn value(&self) -> &Arc<Value> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.holders.remove() {
            HELD_BYTES.fetch_sub(self.0.bytes.len(), Ordering::Relaxed);
        }
    }
}

impl Deref for Held {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}
