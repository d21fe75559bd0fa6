//! Keys of a request for several: the query of `/keys` (RFC 3986, section 3.4).

use super::target::{MALFORMED_ESCAPE, append_decoded};
use super::{HttpRefusal, bad_request};
use crate::types::UpcomingKeys;
use std::ops::Range;

/// Parameter of the query that names a key. All others are ignored.
const PARAMETER: &[u8] = b"key=";

/// Keys of one request that were not looked up yet. The length of a request target bounds them.
#[derive(Debug)]
pub struct KeyList {
    /// All keys, one after the other.
    bytes: Vec<u8>,
    /// End of each key in `bytes`.
    ends: Vec<u16>,
    /// Index of the next key.
    next: usize,
}

// Each end fits into its 16 bits.
const _: () = assert!(super::MAX_TARGET_BYTES <= u16::MAX as usize);

impl KeyList {
    /// Parses a query. Refuses one without a key, and one with a malformed escape.
    pub fn parse(query: &[u8]) -> Result<KeyList, HttpRefusal> {
        let mut list = KeyList { bytes: Vec::new(), ends: Vec::new(), next: 0 };
        for key in query.split(|&byte| byte == b'&').filter_map(|parameter| parameter.strip_prefix(PARAMETER)) {
            if !append_decoded(key, &mut list.bytes) {
                return Err(MALFORMED_ESCAPE);
            }
            list.ends.push(list.bytes.len() as u16);
        }
        match list.ends.len() {
            0 => Err(bad_request("the query names no key; use ?key=a&key=b")),
            _ => Ok(list),
        }
    }

    /// Returns a list of one key.
    pub fn one(key: &[u8]) -> KeyList {
        KeyList { bytes: key.to_vec(), ends: vec![key.len() as u16], next: 0 }
    }

    /// Returns the list with the first of equal keys only.
    pub fn without_repetitions(self) -> KeyList {
        let mut list = KeyList { bytes: Vec::new(), ends: Vec::new(), next: 0 };
        let mut known = std::collections::BTreeSet::new();
        for index in 0..self.ends.len() {
            let key = self.get(index);
            if known.insert(key) {
                list.bytes.extend_from_slice(key);
                list.ends.push(list.bytes.len() as u16);
            }
        }
        list
    }

    /// Returns the bytes in memory.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u16>()
    }

    /// Returns the key at an index, taken or not, and an empty one behind the last.
    pub fn get(&self, index: usize) -> &[u8] {
        self.range_of(index).map_or(&[], |key| &self.bytes[key])
    }

    /// Returns the number of keys that are left.
    pub fn len(&self) -> usize {
        self.ends.len() - self.next
    }

    /// Returns true if no key is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the next key and returns it.
    pub fn take_next(&mut self) -> Option<&[u8]> {
        let key = self.range_of(self.next)?;
        self.next += 1;
        Some(&self.bytes[key])
    }

    /// Adds the next keys, as many as `keys` takes.
    pub fn find_upcoming_keys<'a>(&'a self, keys: &mut UpcomingKeys<'a>) {
        for key in (self.next..).map_while(|index| self.range_of(index)) {
            if keys.is_full() {
                return;
            }
            keys.push(&self.bytes[key]);
        }
    }

    fn range_of(&self, index: usize) -> Option<Range<usize>> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(usize::from(start)..usize::from(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys are decoded and kept in their order, duplicates too. Other parameters are ignored.
    #[test]
    fn query_names_keys_in_order() {
        for (query, keys) in [
            ("key=a", &["a"][..]),
            ("key=a&key=b&key=a", &["a", "b", "a"]),
            ("key=&key=", &["", ""]),
            ("x=1&key=a&_=2&&key", &["a"]),
            ("key=a=b&key=c?d/e+f", &["a=b", "c?d/e+f"]),
            ("key=%61%26key%3db&key=\u{2603}", &["a&key=b", "\u{2603}"]),
        ] {
            let mut list = KeyList::parse(query.as_bytes()).unwrap_or_else(|refusal| panic!("{query}: {refusal:?}"));
            assert_eq!(list.len(), keys.len(), "{query}");
            for (number, key) in keys.iter().enumerate() {
                let mut upcoming = UpcomingKeys::new();
                list.find_upcoming_keys(&mut upcoming);
                let rest: Vec<&[u8]> = keys[number..].iter().map(|key| key.as_bytes()).collect();
                assert_eq!(upcoming.as_slice(), rest, "{query}");
                assert_eq!(list.take_next(), Some(key.as_bytes()), "{query}");
            }
            assert!(list.is_empty() && list.take_next().is_none());
        }
        for query in ["", "a", "keys=a", "key", "Key=a", "&&", "key=%", "key=a&key=%6", "key=%zz"] {
            assert!(KeyList::parse(query.as_bytes()).is_err(), "{query}");
        }
    }
}
