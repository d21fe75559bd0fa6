//! What long values hold in memory that are on their way to clients, all together.
//!
//! A value is held once, however many clients take it, and as long as the slowest of them. The cache may have let go of it long
//! since: without a bound, clients that ask for one long value after another and read none of them would take all memory.

use super::output_budget::OutputBudget;
use crate::value::Value;
use std::ops::Deref;
use std::sync::Arc;

/// Bytes of the values that replies of all workers pin, each value counted once.
static PINNED_BUDGET: OutputBudget = OutputBudget::new(usize::MAX);

/// Sets the limit on pinned bytes, for the whole process.
pub fn set_pinned_limit(bytes: usize) {
    PINNED_BUDGET.set_limit(bytes);
}

/// Returns true if a reply may pin `value`: another reply pins it already, or the budget has memory for it.
pub fn can_pin(value: &Value) -> bool {
    value.pins.get() > 0 || PINNED_BUDGET.allows(value.bytes.len(), 0)
}

/// A value on its way to a client.
#[derive(Debug)]
pub struct PinnedValue(Arc<Value>);

impl PinnedValue {
    /// Holds it. Whether there is room has been asked before.
    pub fn new(value: &Arc<Value>) -> PinnedValue {
        if value.pins.add() {
            PINNED_BUDGET.update_charge(0, value.bytes.len());
        }
        PinnedValue(Arc::clone(value))
    }
}

impl Drop for PinnedValue {
    fn drop(&mut self) {
        if self.0.pins.remove() {
            PINNED_BUDGET.update_charge(self.0.bytes.len(), 0);
        }
    }
}

impl Deref for PinnedValue {
    type Target = Arc<Value>;

    fn deref(&self) -> &Arc<Value> {
        &self.0
    }
}
