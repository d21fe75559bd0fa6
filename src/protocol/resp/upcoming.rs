//! Finds the keys of complete commands before they are decoded.

use super::super::Decoded;
use super::commands;
use super::frame::{parse_argument, parse_argument_count, parse_get};
use crate::types::{MAX_KEY_BYTES, UpcomingKeys};

/// Adds the keys of `GET`, `MGET` and `EXISTS` at the start of `input` to `keys`, up to the first
/// other command or incomplete key. The first `keys_left` arguments are keys of a command that has
/// started. Returns the end of the last key.
pub fn find_upcoming_keys<'a>(input: &'a [u8], mut keys_left: u32, keys: &mut UpcomingKeys<'a>) -> usize {
    let (mut at, mut end) = (0, 0);
    while !keys.is_full() {
        let rest = &input[at..];
        let found = if keys_left > 0 { parse_argument(rest) } else { parse_get(rest) };
        if let Some((key, consumed)) = found {
            if key.len() > MAX_KEY_BYTES {
                break;
            }
            keys_left = keys_left.saturating_sub(1);
            keys.push(key);
            at += consumed;
            end = at;
        } else if keys_left == 0
            && let Some((count, consumed)) = parse_multi_start(rest)
        {
            keys_left = count;
            at += consumed;
        } else {
            break;
        }
    }
    end
}

/// Returns the number of keys of the `MGET` or `EXISTS` at the start of `input`, and the length of
/// the bytes before them.
fn parse_multi_start(input: &[u8]) -> Option<(u32, usize)> {
    let Decoded::Complete(count @ 2.., head) = parse_argument_count(input) else { return None };
    let (name, consumed) = parse_argument(&input[head..])?;
    commands::find(name).filter(|spec| spec.is_multi_key())?;
    Some((count as u32 - 1, head + consumed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the keys found in `input`, and their end.
    fn find(input: &[u8], keys_left: u32) -> (Vec<&[u8]>, usize) {
        let mut keys = UpcomingKeys::new();
        let end = find_upcoming_keys(input, keys_left, &mut keys);
        (keys.as_slice().to_vec(), end)
    }

    /// Keys are found in their order, up to the first command without keys, malformed or
    /// incomplete.
    #[test]
    fn upcoming_keys_end_at_other_command() {
        let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
        let mget = "*3\r\n$4\r\nmget\r\n$1\r\nb\r\n$2\r\ncc\r\n";
        let exists = "*2\r\n$6\r\nEXISTS\r\n$1\r\nd\r\n";
        let all = [get("a").as_str(), mget, exists, &get("")].concat();
        let expected: [&[u8]; 5] = [b"a", b"b", b"cc", b"d", b""];
        assert_eq!(find(all.as_bytes(), 0), (expected.to_vec(), all.len()));
        for other in ["*1\r\n$4\r\nPING\r\n", "GET a\r\n", "*2\r\n$4\r\nMGET\r\n$x", "*2\r\n$3\r\nTTL\r\n$1\r\nb\r\n"] {
            let input = [get("a").as_str(), other, &get("c")].concat();
            assert_eq!(find(input.as_bytes(), 0), (vec![&b"a"[..]], get("a").len()), "{other}");
            assert_eq!(find(other.as_bytes(), 0), (vec![], 0), "{other}");
        }
        for cut in 0..all.len() {
            let (keys, end) = find(&all.as_bytes()[..cut], 0);
            assert!(expected.starts_with(&keys) && end <= cut, "{cut}");
        }
    }

    /// Keys of a command that has started come first, and the list takes a limited number.
    #[test]
    fn upcoming_keys_continue_started_command() {
        let keys = "$1\r\nk\r\n".repeat(20);
        assert_eq!(find(keys.as_bytes(), 3), (vec![&b"k"[..]; 3], 21));
        assert_eq!(find(keys.as_bytes(), 20), (vec![&b"k"[..]; 16], 16 * 7));
        assert_eq!(find(keys.as_bytes(), 0), (vec![], 0));
        let long = format!("${}\r\n{}\r\n", MAX_KEY_BYTES + 1, "k".repeat(MAX_KEY_BYTES + 1));
        assert_eq!(find(long.as_bytes(), 1), (vec![], 0), "a key over the limit");
    }
}
