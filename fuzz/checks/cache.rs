//! Fuzz check of the cache: runs operations on the cache and on a model, and compares them.
//!
//! An input is a sequence of operations, each one byte for its kind and further bytes for its
//! arguments.

use super::reference::{Operation, Pair};
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::types::Millis;

/// Maximum of operations of one input. The cache validates all its links after each of them.
const MAX_OPERATIONS: usize = 400;

/// Checks one input.
pub fn check(input: &[u8]) {
    let mut bytes = input.iter().copied();
    let mut next = || bytes.next();
    let (entries, size, stale) = (next().unwrap_or(0), next().unwrap_or(0), next().unwrap_or(0));
    let mut pair = Pair::new(limits(entries, size, stale));
    for number in 0..MAX_OPERATIONS {
        let Some(operation) = next_operation(&mut next) else { break };
        if let Err(difference) = pair.apply(&operation) {
            panic!("operation {number}, {operation:?}: {difference}");
        }
    }
}

/// Returns the limits of the cache. They are small, so that a short input reaches them and
/// validation is fast.
///
/// One cache in eight holds all keys. Half of the caches have no limit of bytes, half keep no stale
/// entries.
fn limits(entries: u8, size: u8, stale: u8) -> Limits {
    let bytes = if size < 128 { usize::MAX } else { 100 + usize::from(size - 128) * 800 };
    let stale = if stale.is_multiple_of(2) { 0 } else { Millis::from(stale) * 2 };
    let entries = if entries.is_multiple_of(8) { 256 } else { 1 + usize::from(entries % 40) };
    Limits { entries, bytes, stale }
}

/// Decodes the next operation, or `None` at the end of the input.
fn next_operation(next: &mut impl FnMut() -> Option<u8>) -> Option<Operation> {
    let operation = match next()? % 16 {
        0..=4 => {
            let (key, value) = (next()?, u16::from_le_bytes([next()?, next()?]));
            Operation::Insert(key, value, Millis::from(next()?) * 2, Millis::from(next()?) * 2)
        }
        5..=6 => Operation::Get(next()?),
        7 => Operation::Peek(next()?),
        8 => Operation::GetAllowStale(next()?),
        9 => Operation::Remove(next()?),
        10 => Operation::Clear,
        11 => Operation::ExpireAll,
        12..=13 => Operation::Sweep,
        14 => Operation::LookAhead(next()?, next()?),
        _ => Operation::Wait(Millis::from(next()?)),
    };
    Some(operation)
}
