//! A whole connection, over HTTP or over the Redis protocol, as its first line says: however its requests are cut, its
//! replies taken and its fetches completed, it is answered as one whose requests come whole and whose fetches come back
//! at once.

use super::choices::{Choices, expand};
use super::driver::{Driver, World};
use super::http::EMPTY_LINE_BYTES;
use super::replies::Comparing;
use segment_redis_proxy::protocol::http::MAX_HEAD_BYTES;
use segment_redis_proxy::protocol::resp::is_resp;
use segment_redis_proxy::types::{Failure, MAX_KEY_BYTES};

/// Longest wire over HTTP: more than the longest head.
const MOST_HTTP_BYTES: usize = MAX_HEAD_BYTES + 1024;

/// Longest wire over the Redis protocol: enough for arguments that are too long, and for more keys than may be open.
const MOST_RESP_BYTES: usize = 200 * 1024;

/// Most keys that may have long values: some megabytes of replies.
const MOST_LONG_VALUES: usize = 60;

/// How often the wire is repeated, so that a short input reaches the bounds of open replies and of unsent bytes.
const TIMES: [usize; 8] = [1, 1, 1, 1, 1, 2, 20, 300];

/// See the top of the file.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    let mode = choices.bytes[3];
    let most = if is_resp(wire) == Some(false) { MOST_HTTP_BYTES } else { MOST_RESP_BYTES };
    let gathers = gathers(wire);
    let wire = expand(wire, TIMES[usize::from(mode % 8)], most);
    let resp = is_resp(&wire) == Some(true);
    let world = World {
        comparing: Comparing { resp, stores: mode & 8 != 0 },
        failure: failure(mode >> 4),
        long_values: wire.iter().filter(|byte| b"lqb".contains(byte)).count() <= MOST_LONG_VALUES,
        most_keys: if gathers { 1 + count(&wire, b'$') } else { 1 },
        most_kept: if resp { MAX_KEY_BYTES + 8 * 1024 } else { MAX_HEAD_BYTES + EMPTY_LINE_BYTES },
    };
    let expected = Driver::new(&world, &wire).run_whole();
    check_count(&wire, resp, expected.len());
    let found = Driver::new(&world, &wire).run(&mut choices);
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "reply {number}: {}\ninstead of {}", shown(found), shown(expected));
    }
    assert_eq!(found.len(), expected.len(), "replies");
}

/// One for all keys that fail: of several in one command, the first to fail would be told.
fn failure(choice: u8) -> Failure {
    match choice % 8 {
        0 => Failure::Unavailable,
        1 => Failure::Timeout,
        2 => Failure::QueueFull,
        3 => Failure::TooLong,
        4 => Failure::WrongType,
        5 => Failure::Redis("ERR \"so\"\r\n\u{1}it is".into()),
        6 => Failure::NotReady("LOADING data".into()),
        _ => Failure::Internal,
    }
}

/// No more replies than requests could have begun: lines with an end, or asterisks; and one for what is malformed.
fn check_count(wire: &[u8], resp: bool, replies: usize) {
    let most = count(wire, b'\n') + if resp { count(wire, b'*') } else { 0 };
    assert!(replies <= most + 1, "{replies} replies to {most} requests");
}

/// Whether there may be a reply that has several values.
fn gathers(wire: &[u8]) -> bool {
    wire.windows(4).any(|word| word.eq_ignore_ascii_case(b"mget"))
}

fn count(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().filter(|&&byte| byte == wanted).count()
}

fn shown(reply: &[u8]) -> String {
    reply[..reply.len().min(400)].escape_ascii().to_string()
}
