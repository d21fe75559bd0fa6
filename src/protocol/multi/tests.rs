//! Tests of replies for several keys.

use super::*;
use crate::protocol::http::ResponseDate;
use crate::protocol::resp::commands;
use crate::protocol::{ReplySummary, SendBuffer};
use crate::types::{Outage, Source};
use crate::value::JsonForm;
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::SystemTime;

fn reply(result: KeyResult<'_>) -> Reply<'_> {
    Reply { result, source: Source::Cache { ttl: 1 }, tracked: false }
}

/// Appends a complete reply to `out`.
fn encode(multi: MultiReply, out: &mut SendBuffer) -> ReplySummary {
    Box::new(multi).encode(&ResponseDate::at(SystemTime::UNIX_EPOCH), out)
}

/// A reply is charged for its memory until that is rendered or dropped.
///
/// Looks at the charge of each reply: the budget also counts the replies of other tests.
#[test]
fn charge_follows_memory_of_reply() {
    let mget = commands::find(b"mget").expect("a supported command");
    let long = Arc::new(Value::new(vec![b'l'; 1_000_000]));
    let text = vec![b's'; 16_000];
    let add = |multi: &mut MultiReply, result| multi.push(&reply(result));
    let short = || KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain });

    let mut absent = MultiReply::new(mget, 10_000, RespVersion::Resp2);
    (0..5000).for_each(|_| add(&mut absent, KeyResult::Missing));
    (0..5000).for_each(|_| absent.push_pending());
    let memory_bytes = 5000 * "$-1\r\n".len() + 5001 * 16;
    assert_eq!(
        (absent.charged_bytes, absent.memory_bytes()),
        (5001 * 16 / SEGMENT_BYTES * SEGMENT_BYTES, memory_bytes)
    );

    let mut multi = MultiReply::new(mget, 1000, RespVersion::Resp2);
    (0..4).for_each(|_| add(&mut multi, short()));
    add(&mut multi, KeyResult::Value(Payload::Shared(&long)));
    assert_eq!(multi.charged_bytes, 0, "the first segment and long values are not charged");
    assert!(multi.segments[0].bytes.capacity() <= SEGMENT_BYTES, "the first segment exceeds its limit");
    (0..200).for_each(|_| add(&mut multi, short()));
    let capacities: Vec<usize> =
        multi.segments.iter().map(|segment| segment.bytes.capacity() / SEGMENT_BYTES).collect();
    assert_eq!(capacities[1..], [2, 4, 8, 16, 16, 16], "jemalloc must reuse freed segments");
    add(&mut multi, KeyResult::Value(Payload::Shared(&long)));
    assert_eq!(multi.charged_bytes, 62 * SEGMENT_BYTES, "whole segments are charged; nine parts are fewer bytes");
    // Rendering frees memory.
    multi.keys_left = 0;
    let mut out = SendBuffer::default();
    let mut charges = Vec::new();
    while !multi.is_rendered() {
        multi.render(500_000, &mut out);
        out.drain(usize::MAX);
        charges.push(multi.charged_bytes);
    }
    assert!(charges.is_sorted_by(|one, next| one >= next) && charges.len() > 5, "{charges:?}");
    assert_eq!((charges.last(), multi.segment_bytes, multi.memory_bytes()), (Some(&0), 0, 0));
    assert!(multi.segments.iter().all(|segment| segment.bytes.capacity() == 0));
    assert_eq!(Arc::strong_count(&long), 1);

    let mut two = MultiReply::new(mget, 2, RespVersion::Resp2);
    (0..2).for_each(|_| add(&mut two, KeyResult::Value(Payload::Shared(&long))));
    assert_eq!(long.pins.get(), 2, "each of two parts pins the value");
    let mut out = SendBuffer::default();
    two.render(1, &mut out);
    assert_eq!(long.pins.get(), 2);
    drop((two, out));
    assert_eq!(long.pins.get(), 0);

    absent.complete_key(5000, &reply(KeyResult::Failed(&Failure::Internal)));
    assert_eq!((absent.charged_bytes, absent.memory_bytes(), absent.has_failed()), (0, 0, true));
}

proptest! {
    /// Parts that complete in any order leave in key order, and the reply keeps no memory.
    #[test]
    fn parts_in_any_order_leave_sorted(
        parts in vec((0..6u8, 0..4usize), 1..120),
        order in any::<u64>(),
        step in prop_oneof![1..100usize, 10_000..200_000usize],
    ) {
        let mget = commands::find(b"mget").expect("a supported command");
        let long = Arc::new(Value::new(vec![b'l'; 20_000]));
        let lengths = [0, 10, 3000, 16_384];
        let (mut multi, mut late) = (MultiReply::new(mget, parts.len() as u32, RespVersion::Resp2), Vec::new());
        let mut expected = format!("*{}\r\n", parts.len()).into_bytes();
        for (number, &(kind, length)) in parts.iter().enumerate() {
            let text = vec![b'a' + number as u8 % 26; lengths[length]];
            let result = match kind {
                0 => KeyResult::Missing,
                1 => KeyResult::Value(Payload::Shared(&long)),
                _ => KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain }),
            };
            match result {
                KeyResult::Value(payload) => {
                    let bytes = payload.bytes();
                    expected.extend([format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat());
                }
                _ => expected.extend(b"$-1\r\n"),
            }
            if kind < 5 {
                multi.push(&reply(result));
            } else {
                late.push((number as u32, text));
                multi.push_pending();
            }
        }
        // The pending keys complete in some order, each of them twice.
        late.sort_by_key(|(part, _)| u64::from(*part).wrapping_mul(order | 1) >> 7);
        for (part, text) in &late {
            let result = KeyResult::Value(Payload::Inline { bytes: text, form: JsonForm::Plain });
            prop_assert!(multi.complete_key(*part, &reply(result)) && !multi.complete_key(*part, &reply(result)));
        }
        prop_assert!(multi.is_complete());
        let mut out = SendBuffer::default();
        encode(multi, &mut out);
        prop_assert_eq!(out.drain(step), expected);
        prop_assert_eq!((out.unsent_bytes(), Arc::strong_count(&long)), (0, 1));
    }
}

proptest! {
    /// The JSON form has the elements in order, and exactly the length that its head announces.
    #[test]
    fn json_has_announced_length(
        parts in vec((0..8u8, 0..5usize, 0..3usize), 1..100),
        order in any::<u64>(),
        step in prop_oneof![1..100usize, 10_000..200_000usize],
    ) {
        let lengths = [0, 10, 3000, 16_384, 20_000];
        let keys: [(&[u8], &str); 3] = [(b"a", "\"a\""), (b"\"", "\"\\\"\""), (b"\xff", "\"/w==\",\"keyEncoding\":\"base64\"")];
        let mut multi = MultiReply::new_json(HttpReplyFormat { keep_alive: true, ..HttpReplyFormat::default() }, parts.len() as u32);
        let (mut expected, mut late) = (Vec::new(), Vec::new());
        for (number, &(kind, length, key)) in parts.iter().enumerate() {
            let (bytes, text) = match kind % 3 {
                0 => (vec![b'x'; lengths[length]], format!("\"{}\"", "x".repeat(lengths[length]))),
                1 => (vec![b'\n'; lengths[length]], format!("\"{}\"", "\\n".repeat(lengths[length]))),
                _ => (b"12".to_vec(), "12".into()),
            };
            multi.begin_key(keys[key].0);
            let rest = match kind {
                6 => "\"value\":null".into(),
                7 => "\"error\":\"the key does not hold a string; the proxy reads only strings\"".into(),
                kind => format!("\"value\":{text},\"fromCache\":{}", kind < 3),
            };
            expected.push(format!("{{\"key\":{},{rest}}}", keys[key].1));
            let value = Arc::new(Value::new(bytes));
            match kind {
                0..3 => multi.push(&json_reply(kind, &value)),
                _ => {
                    late.push((number as u32, kind, value));
                    multi.push_pending();
                }
            }
        }
        late.sort_by_key(|(part, ..)| u64::from(*part).wrapping_mul(order | 1) >> 7);
        for (part, kind, value) in &late {
            prop_assert!(multi.complete_key(*part, &json_reply(*kind, value)));
            prop_assert!(!multi.complete_key(*part, &json_reply(*kind, value)));
        }
        prop_assert!(multi.is_complete());
        let mut out = SendBuffer::default();
        let sent = encode(multi, &mut out);
        let response = String::from_utf8(out.drain(step)).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        prop_assert!(body == format!("{{\"values\":[{}]}}", expected.join(",")), "another body");
        let length = format!("\r\nContent-Length: {}\r\n", body.len());
        prop_assert!(head.contains(&length) && sent.bytes == body.len(), "{}", head);
        let is_hit = parts.iter().all(|&(kind, ..)| kind < 3);
        prop_assert_eq!(head.contains("; hit"), is_hit);
    }
}

/// Values that need an encoding are held and rendered in pieces, if there is memory for references.
/// A response to `HEAD` holds nothing.
#[test]
fn json_holds_values_to_encode() {
    let escaped = Arc::new(Value::new(vec![b'\n'; 10_000]));
    let plain = Arc::new(Value::new(vec![b'x'; 10_000]));
    for (head_only, held_bytes) in [(false, 10_000), (true, 0)] {
        let format = HttpReplyFormat { head_only, keep_alive: true, ..HttpReplyFormat::default() };
        let mut multi = MultiReply::new_json(format, 2);
        for value in [&escaped, &plain] {
            multi.begin_key(b"a");
            let before = multi.part_bytes();
            multi.push(&reply(KeyResult::Value(Payload::Shared(value))));
            let is_escaped = Arc::ptr_eq(value, &escaped);
            assert_eq!(value.pins.get(), u32::from(is_escaped && !head_only));
            let encoded =
                if is_escaped || head_only { held_bytes } else { 10_000 + "\"value\":\"\",\"fromCache\":true}".len() };
            assert_eq!(multi.part_bytes() - before, encoded);
        }
        let mut out = SendBuffer::default();
        let bytes = "{\"values\":[,]}".len() + 2 * "{\"key\":\"a\",\"value\":\"\",\"fromCache\":true}".len() + 30_000;
        encode(multi, &mut out);
        let text = String::from_utf8(out.drain(usize::MAX)).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("\r\nContent-Length: {bytes}\r\n")), "{head}");
        assert_eq!(body.len(), if head_only { 0 } else { bytes });
        assert_eq!(escaped.pins.get(), 0);
    }
}

/// `Cache-Status` is that of the value that is trusted least.
#[test]
fn json_reports_least_trusted_origin() {
    let hit = |ttl| Source::Cache { ttl };
    let miss = Source::Redis { collapsed: true, stored: Some(9000) };
    let stale = |expired_for| Source::Stale { expired_for, outage: Outage::TimedOut };
    for (sources, status) in [
        (&[hit(9000), hit(2000), hit(5000)][..], "hit; ttl=2"),
        (&[hit(9000), Source::Neither], "detail=only-if-cached"),
        (&[hit(9000), miss, hit(2000)], "fwd=miss; collapsed; stored; ttl=9"),
        (&[stale(1), miss, stale(3000), hit(1)], "fwd=stale; detail=redis-timed-out; ttl=-3"),
    ] {
        let mut multi = MultiReply::new_json(HttpReplyFormat::default(), sources.len() as u32);
        for &source in sources {
            multi.begin_key(b"a");
            let result = KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer });
            multi.push(&Reply { result, source, tracked: false });
        }
        let mut out = SendBuffer::default();
        encode(multi, &mut out);
        let text = String::from_utf8(out.drain(usize::MAX)).expect("text");
        assert!(text.contains(&format!("\r\nCache-Status: segment-redis-proxy; {status}\r\n")), "{text}");
        assert!(text.contains("\r\nCache-Control: no-store\r\n"), "{text}");
    }
}

/// Returns the result of a key: a value from the cache, one from Redis, a missing key or an error.
fn json_reply(kind: u8, value: &Arc<Value>) -> Reply<'_> {
    let payload = match value.bytes.len() {
        0..=SHARED_VALUE_BYTES if kind.is_multiple_of(2) => Payload::Inline { bytes: &value.bytes, form: value.form },
        0..=1024 => Payload::Inline { bytes: &value.bytes, form: value.form },
        _ => Payload::Shared(value),
    };
    let result = match kind {
        6 => KeyResult::Missing,
        7 => KeyResult::Failed(&Failure::WrongType),
        _ => KeyResult::Value(payload),
    };
    let source = if kind < 3 { Source::Cache { ttl: 1 } } else { Source::Redis { collapsed: false, stored: None } };
    Reply { result, source, tracked: false }
}

/// A long reply is rendered in pieces, and leaves complete, in order with other replies.
#[test]
fn long_reply_is_rendered_in_pieces() {
    let long = Arc::new(Value::new(vec![b'l'; 100_000]));
    let mget = commands::find(b"mget").expect("a supported command");
    for version in [RespVersion::Resp2, RespVersion::Resp3] {
        let lengths = [0, 1, 16_384, 100, 16_384, 16_383, 5000, 16_384, 16_384, 3, 70];
        let keys = 5 * lengths.len() as u32;
        let (mut multi, mut expected) = (MultiReply::new(mget, keys, version), format!("*{keys}\r\n").into_bytes());
        let mut late = Vec::new();
        for part in 0..keys {
            let text = vec![b'a' + (part % 26) as u8; lengths[part as usize % lengths.len()]];
            let result = KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain });
            assert_eq!(multi.next_key(), part);
            match part % 5 {
                0 => multi.push(&reply(KeyResult::Missing)),
                1 => multi.push(&reply(KeyResult::Value(Payload::Shared(&long)))),
                2 => {
                    late.push((part, text.clone()));
                    multi.push_pending();
                }
                _ => multi.push(&reply(result)),
            }
            let null: &[u8] = if version == RespVersion::Resp3 { b"_\r\n" } else { b"$-1\r\n" };
            match part % 5 {
                0 => expected.extend_from_slice(null),
                1 => expected.extend([b"$100000\r\n", &long.bytes[..], b"\r\n"].concat()),
                _ => expected.extend([format!("${}\r\n", text.len()).as_bytes(), &text, b"\r\n"].concat()),
            }
        }
        assert!(!multi.expects_keys() && !multi.is_complete() && multi.pending == late.len());
        for (part, text) in late.iter().rev() {
            let result = KeyResult::Value(Payload::Inline { bytes: text, form: JsonForm::Plain });
            assert!(
                multi.complete_key(*part, &reply(result)) && !multi.complete_key(*part, &reply(KeyResult::Missing))
            );
        }
        assert!(multi.is_complete());
        let queued = multi.memory_bytes();
        let mut out = SendBuffer::default();
        out.tail().extend_from_slice(b"before");
        encode(multi, &mut out);
        // Neither short replies nor another reply for several keys overtake it.
        let other = vec![b'o'; 16_384];
        let mut next = MultiReply::new(mget, 4, version);
        (0..4).for_each(|_| {
            next.push(&reply(KeyResult::Value(Payload::Inline { bytes: &other, form: JsonForm::Plain })));
        });
        out.tail().extend_from_slice(b"between");
        let queued = queued + next.memory_bytes();
        encode(next, &mut out);
        out.tail().extend_from_slice(b"after");
        expected.extend([b"between*4\r\n", &[b"$16384\r\n", &other[..], b"\r\n"].concat().repeat(4)[..]].concat());
        let short = b"before*55\r\nbetween*4\r\nafter".len();
        assert_eq!(out.unsent_bytes(), queued + short, "the reply was rendered at once");
        let step = if version == RespVersion::Resp3 { 1000 } else { usize::MAX };
        assert_eq!(out.drain(step), [b"before", &expected[..], b"after"].concat());
    }
    assert_eq!(Arc::strong_count(&long), 1);
}

/// The limit counts values only: one alone may exceed it, whatever missing keys are beside it.
#[test]
fn single_value_may_exceed_limit() {
    let mget = commands::find(b"mget").expect("a supported command");
    let long = Arc::new(Value::new(vec![b'l'; MAX_MULTI_REPLY_BYTES + 1]));
    let mut multi = MultiReply::new(mget, 3, RespVersion::Resp2);
    multi.push(&reply(KeyResult::Missing));
    multi.push(&reply(KeyResult::Value(Payload::Shared(&long))));
    assert!(!multi.has_failed());
    multi.push(&reply(KeyResult::Value(Payload::Inline { bytes: b"x", form: JsonForm::Plain })));
    assert!(multi.has_failed());
}
