//! Operations on the cache, spelled by bytes: each has one that says what, and those of its arguments.

use super::reference::{Operation, Pair};
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::types::Millis;

/// Operations of one input. Every link is walked after each of them.
const MOST_OPERATIONS: usize = 400;

/// See the top of the file.
pub fn check(input: &[u8]) {
    let mut bytes = input.iter().copied();
    let mut next = || bytes.next();
    let (entries, size, stale) = (next().unwrap_or(0), next().unwrap_or(0), next().unwrap_or(0));
    let mut pair = Pair::new(limits(entries, size, stale));
    for number in 0..MOST_OPERATIONS {
        let Some(operation) = operation(&mut next) else { break };
        if let Err(what) = pair.apply(&operation) {
            panic!("operation {number}, {operation:?}: {what}");
        }
    }
}

/// Small ones, so that a short input reaches them, and few links have to be walked; one in eight has room for all keys. Half
/// of the caches have no limit of bytes, half keep nothing stale.
fn limits(entries: u8, size: u8, stale: u8) -> Limits {
    let bytes = if size < 128 { usize::MAX } else { 100 + usize::from(size - 128) * 800 };
    let stale = if stale.is_multiple_of(2) { 0 } else { Millis::from(stale) * 2 };
    let entries = if entries.is_multiple_of(8) { 256 } else { 1 + usize::from(entries % 40) };
    Limits { entries, bytes, stale }
}

/// The next operation; `None` at the end of the bytes.
fn operation(next: &mut impl FnMut() -> Option<u8>) -> Option<Operation> {
    let operation = match next()? % 16 {
        0..=4 => {
            let (key, value) = (next()?, u16::from_le_bytes([next()?, next()?]));
            Operation::Insert(key, value, Millis::from(next()?) * 2, Millis::from(next()?) * 2)
        }
        5..=6 => Operation::Get(next()?),
        7 => Operation::Peek(next()?),
        8 => Operation::Kept(next()?),
        9 => Operation::Remove(next()?),
        10 => Operation::Clear,
        11 => Operation::ExpireAll,
        12..=13 => Operation::Sweep,
        _ => Operation::Wait(Millis::from(next()?)),
    };
    Some(operation)
}
