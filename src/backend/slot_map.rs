//! Map from keys to the primaries that serve them, and the redirections of Redis Cluster.
//!
//! A cluster has 16,384 hash slots, and each slot belongs to one primary (cluster specification,
//! "Key distribution model"). One Redis without a cluster is a map with one primary.
//!
//! This module performs no I/O.

use crate::upstream::UpstreamAddress;
use redis::Value;
use std::sync::Arc;

/// Number of hash slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// Owner of a slot that no primary serves.
const NO_OWNER: u16 = u16::MAX;

/// Generator polynomial of CRC-16/XMODEM, which the cluster specification prescribes.
const CRC_POLYNOMIAL: u16 = 0x1021;

/// Checksums of all single bytes.
static CRC_TABLE: [u16; 256] = crc_table();

const fn crc_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ CRC_POLYNOMIAL };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Returns the hash slot of a key. If the key has a hash tag, a part in braces that is not empty,
/// only the tag is hashed.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let end = rest.iter().position(|&byte| byte == b'}').filter(|&end| end > 0)?;
        Some(&rest[..end])
    });
    let crc = tag.unwrap_or(key).iter().fold(0u16, |crc, &byte| {
        let index = (crc >> 8) as u8 ^ byte;
        (crc << 8) ^ CRC_TABLE[usize::from(index)]
    });
    crc % SLOTS
}

/// Primary as sentinels or a cluster name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Primary {
    /// Address for clients.
    pub address: UpstreamAddress,
    /// Id of the node in its cluster. Another server at the same address has another one.
    pub id: Option<Arc<str>>,
}

/// Primaries, and the slots that each of them serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    /// In a fixed order, so that equal maps compare as equal.
    primaries: Vec<Primary>,
    /// Index of the primary of each slot. `None` if the first primary serves all keys.
    owners: Option<Box<[u16]>>,
}

impl SlotMap {
    /// Returns the map of one primary that serves all keys.
    pub fn of_one(primary: Primary) -> SlotMap {
        SlotMap { primaries: vec![primary], owners: None }
    }

    /// Returns the map of a cluster, from ranges of slots: the first and the last slot, and their
    /// primary. Of overlapping ranges the last one counts.
    pub fn of_cluster(ranges: impl IntoIterator<Item = (u16, u16, Primary)>) -> SlotMap {
        let ranges: Vec<_> = ranges.into_iter().collect();
        let mut primaries: Vec<Primary> = ranges.iter().map(|(.., primary)| primary.clone()).collect();
        primaries.sort();
        primaries.dedup();
        let mut owners = vec![NO_OWNER; usize::from(SLOTS)].into_boxed_slice();
        for (first, last, primary) in &ranges {
            // There are at most as many primaries as slots.
            let index = primaries.binary_search(primary).map_or(NO_OWNER, |index| index as u16);
            (*first..=*last).filter(|&slot| slot < SLOTS).for_each(|slot| owners[usize::from(slot)] = index);
        }
        SlotMap { primaries, owners: Some(owners) }
    }

    /// Returns all primaries that serve keys.
    pub fn primaries(&self) -> &[Primary] {
        &self.primaries
    }

    /// Returns the index of the primary of a key; `None` if no primary serves it.
    pub fn owner_of(&self, key: &[u8]) -> Option<usize> {
        match &self.owners {
            None => Some(0),
            Some(owners) => Some(owners[usize::from(slot_of(key))]).filter(|&owner| owner != NO_OWNER).map(usize::from),
        }
    }

    /// Returns the number of slots that no primary serves.
    pub fn unserved_slots(&self) -> usize {
        self.owners.iter().flatten().filter(|&&owner| owner == NO_OWNER).count()
    }
}

/// Answer of a node to `CLUSTER SLOTS`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SlotsReply {
    pub(super) map: SlotMap,
    /// All nodes with an address, replicas too. Each may be asked for the map later.
    pub(super) nodes: Vec<Primary>,
}

impl SlotsReply {
    /// Parses the reply of the node at `asked`. Returns `None` for another form.
    ///
    /// Each range has its first and last slot, its primary and the replicas. A node has its host,
    /// port and id. A host that is absent is that of the asked node. `?` is an unknown one: the
    /// slots of such a primary have no owner.
    pub(super) fn parse(value: &Value, asked: &UpstreamAddress) -> Option<SlotsReply> {
        let Value::Array(items) = value else { return None };
        let (mut ranges, mut nodes) = (Vec::new(), Vec::new());
        for item in items {
            let Value::Array(parts) = item else { return None };
            let [Value::Int(first), Value::Int(last), members @ ..] = &parts[..] else { return None };
            let members = members.iter().map(|member| parse_node(member, asked)).collect::<Option<Vec<_>>>()?;
            if let Some(Some(primary)) = members.first() {
                ranges.push((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, primary.clone()));
            }
            nodes.extend(members.into_iter().flatten());
        }
        nodes.sort();
        nodes.dedup();
        Some(SlotsReply { map: SlotMap::of_cluster(ranges), nodes })
    }
}

/// Parses a node of `CLUSTER SLOTS`. Returns `Some(None)` if its host is unknown.
fn parse_node(value: &Value, asked: &UpstreamAddress) -> Option<Option<Primary>> {
    let Value::Array(parts) = value else { return None };
    let [host, Value::Int(port), rest @ ..] = &parts[..] else { return None };
    let host = match host {
        Value::Nil => "",
        host => text_of(host)?,
    };
    let Some(address) = node_address(host, u16::try_from(*port).ok()?, asked) else { return Some(None) };
    // Redis before 4.0 reports no id.
    Some(Some(Primary { address, id: rest.first().and_then(text_of).map(Arc::from) }))
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Returns the address of a node that another one names. An empty host is that of the node at
/// `asked`, and `?` is unknown.
fn node_address(host: &str, port: u16, asked: &UpstreamAddress) -> Option<UpstreamAddress> {
    match (host, asked) {
        ("?", _) => None,
        _ if port == 0 => None,
        ("", UpstreamAddress::Tcp(asked_host, _)) => Some(UpstreamAddress::Tcp(asked_host.clone(), port)),
        ("", UpstreamAddress::Unix(_)) => None,
        (host, _) => Some(UpstreamAddress::Tcp(host.to_owned(), port)),
    }
}

/// Redirection of a key to another node (cluster specification, "Redirection and resharding").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirection {
    /// True for `ASK`: only this read goes to the node, and begins with `ASKING`.
    pub(super) is_ask: bool,
    /// Address of the node, `None` if it is unknown.
    pub(super) target: Option<UpstreamAddress>,
}

impl Redirection {
    /// Parses the code and the text of an error reply of the node at `asked`, such as `MOVED 3999
    /// 127.0.0.1:6381`. Returns `None` for another error.
    pub(super) fn parse(code: &str, text: &str, asked: &UpstreamAddress) -> Option<Redirection> {
        let is_ask = match code {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let address = text.split_ascii_whitespace().nth(1).and_then(|address| address.rsplit_once(':'));
        let target = address.and_then(|(host, port)| node_address(host, port.parse().ok()?, asked));
        Some(Redirection { is_ask, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> UpstreamAddress {
        UpstreamAddress::Tcp(host.into(), port)
    }

    fn primary(port: u16) -> Primary {
        Primary { address: address("h", port), id: Some(port.to_string().into()) }
    }

    /// Slots are those that Redis reports (`CLUSTER KEYSLOT`), hash tags included.
    #[test]
    fn slots_equal_those_of_redis() {
        for (key, slot) in [
            (&b""[..], 0),
            (b"123456789", 0x31C3),
            (b"foo", 12182),
            (b"{foo}bar", 12182),
            (b"a{foo}{bar}", 12182),
            (b"foo{}", 5542),
            (b"foo{}{bar}", 8363),
            (b"foo{{bar}}zap", 4015),
            (b"{foo", 13308),
            (b"\xff\x00", 1023),
        ] {
            assert_eq!(slot_of(key), slot, "{}", key.escape_ascii());
        }
    }

    /// Maps with the same owners are equal, whatever the order of their ranges is.
    #[test]
    fn maps_compare_by_owners() {
        let ranges = [(0, 5000, primary(1)), (5001, 10_000, primary(2)), (10_001, 16_383, primary(1))];
        let map = SlotMap::of_cluster(ranges.clone());
        assert_eq!(map, SlotMap::of_cluster(ranges.into_iter().rev()));
        assert_eq!(map.primaries(), [primary(1), primary(2)]);
        assert_eq!((map.owner_of(b"foo"), map.owner_of(b"foo{}")), (Some(0), Some(1)));
        assert_eq!(map.unserved_slots(), 0);
        let partial = SlotMap::of_cluster([(0, 9999, primary(2))]);
        assert_eq!((partial.owner_of(b"foo"), partial.owner_of(b"foo{}")), (None, Some(0)));
        assert_eq!(partial.unserved_slots(), 6384);
        let one = SlotMap::of_one(primary(1));
        assert_eq!((one.owner_of(b"foo"), one.unserved_slots()), (Some(0), 0));
    }

    fn parse(reply: &str, asked: &UpstreamAddress) -> Option<SlotsReply> {
        SlotsReply::parse(&redis::parse_redis_value(reply.as_bytes()).expect("a value"), asked)
    }

    /// A host that a node leaves out is the host that it was reached at. `?` is no host.
    #[test]
    fn slots_reply_names_nodes() {
        let asked = address("seed", 7);
        let reply = "*3\r\n\
            *4\r\n:0\r\n:99\r\n*4\r\n$2\r\nh1\r\n:1\r\n$1\r\na\r\n*0\r\n*3\r\n$2\r\nh2\r\n:2\r\n$1\r\nb\r\n\
            *3\r\n:100\r\n:199\r\n*3\r\n$-1\r\n:3\r\n$1\r\nc\r\n\
            *3\r\n:200\r\n:299\r\n*3\r\n$1\r\n?\r\n:4\r\n$1\r\nd\r\n";
        let node = |host, port, id: &str| Primary { address: address(host, port), id: Some(id.into()) };
        let parsed = parse(reply, &asked).expect("a reply");
        assert_eq!(parsed.map.primaries(), [node("h1", 1, "a"), node("seed", 3, "c")]);
        assert_eq!(parsed.map.unserved_slots(), 16_384 - 200);
        assert_eq!(parsed.nodes, [node("h1", 1, "a"), node("h2", 2, "b"), node("seed", 3, "c")]);
        assert_eq!(parse("*0\r\n", &asked).map(|parsed| parsed.nodes.len()), Some(0));
        for reply in
            ["+OK\r\n", "*1\r\n:1\r\n", "*1\r\n*1\r\n:1\r\n", "*1\r\n*3\r\n:-1\r\n:1\r\n*2\r\n$1\r\nh\r\n:1\r\n"]
        {
            assert_eq!(parse(reply, &asked), None, "{reply:?}");
        }
    }

    /// The target of a redirection may be an IPv6 address, lack its host, or be unknown.
    #[test]
    fn redirections_are_parsed() {
        let asked = address("here", 7);
        let parse = |code, text| Redirection::parse(code, text, &asked);
        let moved = |target| Some(Redirection { is_ask: false, target });
        assert_eq!(parse("MOVED", "3999 10.0.0.1:6381"), moved(Some(address("10.0.0.1", 6381))));
        assert_eq!(parse("MOVED", "3999 ::1:6381"), moved(Some(address("::1", 6381))));
        assert_eq!(parse("MOVED", "3999 :6381"), moved(Some(address("here", 6381))));
        for unknown in ["3999 ?:6381", "3999", "", "3999 h:0", "3999 h:x", "3999 h:65536"] {
            assert_eq!(parse("MOVED", unknown), moved(None), "{unknown:?}");
        }
        let ask = Redirection { is_ask: true, target: Some(address("h", 1)) };
        assert_eq!((parse("ASK", "1 h:1"), parse("TRYAGAIN", "1 h:1")), (Some(ask), None));
    }
}
