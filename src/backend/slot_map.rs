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
    /// primary. Of overlapping ranges the last one counts. `without_slots` are further primaries,
    /// which slots may move to.
    pub fn of_cluster(
        ranges: impl IntoIterator<Item = (u16, u16, Primary)>,
        without_slots: impl IntoIterator<Item = Primary>,
    ) -> SlotMap {
        let ranges: Vec<_> = ranges.into_iter().collect();
        let mut primaries: Vec<Primary> = ranges.iter().map(|(.., primary)| primary.clone()).collect();
        primaries.extend(without_slots);
        primaries.sort();
        primaries.dedup();
        let mut owners = vec![NO_OWNER; usize::from(SLOTS)].into_boxed_slice();
        for (first, last, primary) in &ranges {
            // A cluster has at most as many primaries as slots.
            let index = primaries.binary_search(primary).map_or(NO_OWNER, |index| index as u16);
            (*first..=*last).filter(|&slot| slot < SLOTS).for_each(|slot| owners[usize::from(slot)] = index);
        }
        SlotMap { primaries, owners: Some(owners) }
    }

    /// Returns all primaries.
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

    /// Returns true for a cluster, and false if one primary serves all keys.
    pub fn has_slots(&self) -> bool {
        self.owners.is_some()
    }

    /// Returns true if another map gives each key to the same primary.
    pub fn has_same_owners(&self, other: &SlotMap) -> bool {
        let (Some(owners), Some(others)) = (&self.owners, &other.owners) else { return self == other };
        let is_same = |(&owner, &other_owner): (&u16, &u16)| {
            self.primaries.get(usize::from(owner)) == other.primaries.get(usize::from(other_owner))
        };
        owners.iter().zip(others).all(is_same)
    }

    /// Returns the number of slots that another map with the same primaries gives to another one.
    pub fn moved_slots(&self, other: &SlotMap) -> usize {
        let pairs = self.owners.iter().flatten().zip(other.owners.iter().flatten());
        pairs.filter(|(owner, other)| owner != other).count()
    }

    /// Returns the number of slots that no primary serves.
    pub fn unserved_slots(&self) -> usize {
        self.owners.iter().flatten().filter(|&&owner| owner == NO_OWNER).count()
    }
}

/// Nodes of a cluster as one of them names them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClusterView {
    pub(super) map: SlotMap,
    /// All nodes with an address, replicas too. Each may be asked for the map later.
    pub(super) nodes: Vec<Primary>,
}

impl ClusterView {
    /// Parses the replies of the node at `asked` to `CLUSTER SLOTS` and `CLUSTER NODES`. Returns
    /// `None` for another form.
    ///
    /// `CLUSTER SLOTS` has the addresses for clients, but no primary without slots. Such a primary
    /// serves keys that move to it (`ASK`). Without a reply to `CLUSTER NODES`, `nodes` is empty.
    pub(super) fn parse(slots: &Value, nodes: &str, asked: &UpstreamAddress) -> Option<ClusterView> {
        let Value::Array(items) = slots else { return None };
        let (mut ranges, mut all) = (Vec::new(), Vec::new());
        for item in items {
            let Value::Array(parts) = item else { return None };
            let [Value::Int(first), Value::Int(last), members @ ..] = &parts[..] else { return None };
            let members = members.iter().map(|member| parse_node(member, asked)).collect::<Option<Vec<_>>>()?;
            let [first, last] = [first, last].map(|slot| u16::try_from(*slot).ok().filter(|&slot| slot < SLOTS));
            let range = (first?, last?);
            if let Some(Some(primary)) = members.first() {
                ranges.push((range.0, range.1, primary.clone()));
            }
            all.extend(members.into_iter().flatten());
        }
        all.sort();
        all.dedup();
        let without_slots = primaries_without_slots(nodes, &all, asked);
        all.extend(without_slots.iter().cloned());
        Some(ClusterView { map: SlotMap::of_cluster(ranges, without_slots), nodes: all })
    }
}

/// Parses a node of `CLUSTER SLOTS`: host, port and id. Returns `Some(None)` if its host is
/// unknown.
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

/// Form in which the nodes of a cluster name each other to clients
/// (`cluster-preferred-endpoint-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndpointType {
    Ip,
    Hostname,
    /// None: it is the host at which a client has reached the cluster.
    Unknown,
}

/// Line of a reply to `CLUSTER NODES`: id, address, flags, five fields, the slots. An address is
/// `ip:port@bus-port[,hostname]`.
struct NodeLine<'a> {
    id: &'a str,
    ip: &'a str,
    port: u16,
    hostname: &'a str,
    flags: &'a str,
    /// True if the node serves slots. `[...]` is a slot that moves.
    has_slots: bool,
}

impl NodeLine<'_> {
    fn parse(line: &str) -> Option<NodeLine<'_>> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, _, _, _, _, _, slots @ ..] = &fields[..] else { return None };
        let (endpoint, names) = address.split_once('@')?;
        let (ip, port) = endpoint.rsplit_once(':')?;
        let hostname = names.split(',').nth(1).unwrap_or_default();
        let has_slots = slots.iter().any(|slot| !slot.starts_with('['));
        Some(NodeLine { id, ip, port: port.parse().ok()?, hostname, flags, has_slots })
    }

    /// Returns true for a primary that has not failed.
    fn is_usable_primary(&self) -> bool {
        let is_usable = |flag| matches!(flag, "myself" | "master" | "nofailover");
        self.flags.split(',').any(|flag| flag == "master") && self.flags.split(',').all(is_usable)
    }
}

/// Returns the primaries without slots in a reply to `CLUSTER NODES`, except failed ones. `known`
/// are the nodes of `CLUSTER SLOTS`, which names hosts as redirections do.
fn primaries_without_slots(nodes: &str, known: &[Primary], asked: &UpstreamAddress) -> Vec<Primary> {
    let lines: Vec<NodeLine<'_>> = nodes.lines().filter_map(NodeLine::parse).collect();
    let host_of = |line: &NodeLine<'_>| {
        let node = known.iter().find(|node| node.id.as_deref() == Some(line.id))?;
        if let UpstreamAddress::Tcp(host, _) = &node.address { Some(host) } else { None }
    };
    let endpoint_type = lines.iter().find_map(|line| {
        Some(match host_of(line)? {
            host if host == line.ip => EndpointType::Ip,
            host if host == line.hostname => EndpointType::Hostname,
            _ => EndpointType::Unknown,
        })
    });
    let address = |line: &NodeLine<'_>| {
        let host = match endpoint_type.unwrap_or(EndpointType::Ip) {
            EndpointType::Ip => line.ip,
            EndpointType::Hostname => line.hostname,
            EndpointType::Unknown => "",
        };
        Some(Primary { address: node_address(host, line.port, asked)?, id: Some(line.id.into()) })
    };
    lines.iter().filter(|line| !line.has_slots && line.is_usable_primary()).filter_map(address).collect()
}

/// Returns a string of a reply, if it is UTF-8.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Returns true if a text consists of characters of host names and IP addresses only. Others could
/// disturb the log.
pub(super) fn is_plain_host(host: &str) -> bool {
    host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte))
}

/// Returns the address of a node that another one names. An empty host is that of the node at
/// `asked`, and `?` is unknown.
fn node_address(host: &str, port: u16, asked: &UpstreamAddress) -> Option<UpstreamAddress> {
    match (host, asked) {
        _ if port == 0 || !is_plain_host(host) => None,
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
        let map = SlotMap::of_cluster(ranges.clone(), []);
        assert_eq!(map, SlotMap::of_cluster(ranges.clone().into_iter().rev(), []));
        assert_eq!(map.primaries(), [primary(1), primary(2)]);
        assert_eq!((map.owner_of(b"foo"), map.owner_of(b"foo{}")), (Some(0), Some(1)));
        assert_eq!(map.unserved_slots(), 0);
        let moved = SlotMap::of_cluster([(0, 4999, primary(1)), (5000, 16_383, primary(2))], []);
        assert_eq!((map.moved_slots(&map), map.moved_slots(&moved)), (0, 6384));
        let wider = SlotMap::of_cluster(ranges.clone(), [primary(0)]);
        assert!(map.has_same_owners(&wider) && wider.has_same_owners(&map) && !map.has_same_owners(&moved));
        let partial = SlotMap::of_cluster([(0, 9999, primary(2))], []);
        assert_eq!((partial.owner_of(b"foo"), partial.owner_of(b"foo{}")), (None, Some(0)));
        assert_eq!(partial.unserved_slots(), 6384);
        assert_eq!((wider.owner_of(b"foo"), wider.primaries().len()), (Some(1), 3));
        let one = SlotMap::of_one(primary(1));
        assert_eq!((one.owner_of(b"foo"), one.unserved_slots()), (Some(0), 0));
    }

    fn parse(slots: &str, nodes: &str, asked: &UpstreamAddress) -> Option<ClusterView> {
        ClusterView::parse(&redis::parse_redis_value(slots.as_bytes()).expect("a value"), nodes, asked)
    }

    fn node(host: &str, port: u16, id: &str) -> Primary {
        Primary { address: address(host, port), id: Some(id.into()) }
    }

    /// A host that a node leaves out is the host that it was reached at. `?` is no host.
    #[test]
    fn slots_reply_names_nodes() {
        let asked = address("seed", 7);
        let reply = "*3\r\n\
            *4\r\n:0\r\n:99\r\n*4\r\n$2\r\nh1\r\n:1\r\n$1\r\na\r\n*0\r\n*3\r\n$2\r\nh2\r\n:2\r\n$1\r\nb\r\n\
            *3\r\n:100\r\n:199\r\n*3\r\n$-1\r\n:3\r\n$1\r\nc\r\n\
            *3\r\n:200\r\n:299\r\n*3\r\n$1\r\n?\r\n:4\r\n$1\r\nd\r\n";
        let parsed = parse(reply, "", &asked).expect("a reply");
        assert_eq!(parsed.map.primaries(), [node("h1", 1, "a"), node("seed", 3, "c")]);
        assert_eq!(parsed.map.unserved_slots(), 16_384 - 200);
        assert_eq!(parsed.nodes, [node("h1", 1, "a"), node("h2", 2, "b"), node("seed", 3, "c")]);
        assert_eq!(parse("*0\r\n", "", &asked).map(|parsed| parsed.nodes.len()), Some(0));
        for reply in
            ["+OK\r\n", "*1\r\n:1\r\n", "*1\r\n*1\r\n:1\r\n", "*1\r\n*3\r\n:-1\r\n:1\r\n*2\r\n$1\r\nh\r\n:1\r\n"]
        {
            assert_eq!(parse(reply, "", &asked), None, "{reply:?}");
        }
    }

    /// A primary without slots belongs to the map, unless it has failed. Its host is of the kind
    /// that `CLUSTER SLOTS` has.
    #[test]
    fn primaries_without_slots_are_known() {
        let asked = address("seed", 7);
        let slots =
            |host: &str| format!("*1\r\n*3\r\n:0\r\n:9\r\n*3\r\n${}\r\n{host}\r\n:1\r\n$1\r\na\r\n", host.len());
        let nodes = "a 10.0.0.1:1@11,h1 myself,master - 0 0 1 connected 0-9\n\
            b 10.0.0.2:2@12,h2 master - 0 0 2 connected\n\
            c 10.0.0.3:3@13,h3 slave a 0 0 1 connected\n\
            d 10.0.0.4:4@14,h4 master,fail - 0 0 3 disconnected\n\
            e 10.0.0.5:5@15,h5 master,fail? - 0 0 3 connected\n\
            f :6@16 master,noaddr - 0 0 3 disconnected\n\
            no line\n";
        let primaries =
            |host: &str, nodes: &str| parse(&slots(host), nodes, &asked).expect("a reply").map.primaries().to_vec();
        assert_eq!(primaries("10.0.0.1", nodes), [node("10.0.0.1", 1, "a"), node("10.0.0.2", 2, "b")]);
        assert_eq!(primaries("h1", nodes), [node("h1", 1, "a"), node("h2", 2, "b")]);
        // While it imports its first slot, and where nodes name no hosts.
        let importing = "a 10.0.0.1:1@11 master - 0 0 1 connected 0-9\n\
            g 10.0.0.2:8@18 myself,master - 0 0 2 connected [5-<-a]\n";
        assert_eq!(primaries("seed", importing), [node("seed", 1, "a"), node("seed", 8, "g")]);
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
