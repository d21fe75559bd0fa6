//! What long values hold in memory that are on their way to clients, all together.
//!
//! A value is held once, however many clients take it, and as long as the slowest of them. The cache may have let go of it long
//! since: without a bound, clients that ask for one long value after another and read none of them would take all memory.

use crate::types::Value;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the values that are held, of all loops.
static PINNED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Most of them. What the operator has set.
static MAX_PINNED_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Bounds what may be held, in bytes, in all of the process.
pub fn set_pinned_limit(most: usize) {
    MAX_PINNED_BYTES.store(most, Ordering::Relaxed);
}

/// Whether a value may be held: it is already, or takes no more than half of what is left, so that a few long ones leave
/// something for many short ones. One alone is held, however long it is.
pub fn can_pin(value: &Value) -> bool {
    if value.pins.get() > 0 {
        return true;
    }
    let held = PINNED_BYTES.load(Ordering::Relaxed);
    held == 0 || value.bytes.len() <= MAX_PINNED_BYTES.load(Ordering::Relaxed).saturating_sub(held) / 2
}

/// A value on its way to a client.
#[derive(Debug)]
pub struct PinnedValue(Arc<Value>);

impl PinnedValue {
    /// Holds it. Whether there is room has been asked before.
    pub fn new(value: &Arc<Value>) -> PinnedValue {
        if value.pins.add() {
            PINNED_BYTES.fetch_add(value.bytes.len(), Ordering::Relaxed);
        }
        PinnedValue(Arc::clone(value))
    }

    /// The value, to be held by somebody else too.
    pub fn value(&self) -> &Arc<Value> {
        &self.0
    }
}

impl Drop for PinnedValue {
    fn drop(&mut self) {
        if self.0.pins.remove() {
            PINNED_BYTES.fetch_sub(self.0.bytes.len(), Ordering::Relaxed);
        }
    }
}

impl Deref for PinnedValue {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}
