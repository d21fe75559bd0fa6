//! Values that replies hold by reference until they are sent, and the memory limit on them.
//!
//! A pinned value counts once, however many replies hold it, until the slowest client has read it.
//! By then the cache may have evicted the value. Without a limit, clients that request one long
//! value after another and never read would exhaust memory.

use super::output_budget::OutputBudget;
use crate::value::Value;
use std::ops::Deref;
use std::sync::Arc;

/// Bytes of the values that replies of all workers pin. `CLIENT_BYTES` sets the limit.
static PINNED_BUDGET: OutputBudget = OutputBudget::new(usize::MAX);

/// Sets the limit on pinned bytes for the whole process.
pub fn set_pinned_limit(bytes: usize) {
    PINNED_BUDGET.set_limit(bytes);
}

/// Returns true if a reply may pin `value`.
///
/// True if another reply pins the value already, or if the budget allows it.
pub fn can_pin(value: &Value) -> bool {
    value.pins.get() > 0 || PINNED_BUDGET.allows(value.bytes.len())
}

/// Reference to a value, held by a reply that is not sent.
#[derive(Debug)]
pub struct PinnedValue(Arc<Value>);

impl PinnedValue {
    /// Pins `value`. The caller has checked [`can_pin`]; the charge counts in any case.
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
