//! Fuzz check of a whole connection, over HTTP or the Redis protocol.
//!
//! The replies must not depend on how the input is split, when the client reads, or in which order
//! fetches complete. They are compared with those to the whole input with immediate fetches. If
//! clients need a password, nothing is looked up before the input has one.

use super::choices::{Choices, expand};
use super::driver::{Driver, World};
use super::http::EMPTY_LINE_BYTES;
use super::replies::Comparing;
use segment_redis_proxy::protocol::http::MAX_HEAD_BYTES;
use segment_redis_proxy::protocol::resp::is_resp;
use segment_redis_proxy::types::{Failure, MAX_KEY_BYTES};

/// Maximum of input bytes over HTTP: more than the longest head.
const MAX_HTTP_BYTES: usize = MAX_HEAD_BYTES + 1024;

/// Maximum of input bytes over the Redis protocol: enough for arguments beyond the limit, and for
/// more keys than may be pending.
const MAX_RESP_BYTES: usize = 200 * 1024;

/// Maximum of keys with long values, which bounds the replies to some megabytes.
const MAX_LONG_VALUES: usize = 60;

/// Password of clients. An input that contains it runs with authentication.
const PASSWORD: &str = "word";

/// Repetitions of the input, so that a short one reaches the limits of pending replies and unsent
/// bytes.
const REPETITIONS: [usize; 8] = [1, 1, 1, 1, 1, 2, 20, 300];

/// Checks one input.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    let mode = choices.bytes[3];
    let max_bytes = if is_resp(wire) == Some(false) { MAX_HTTP_BYTES } else { MAX_RESP_BYTES };
    if contains(wire, b"only-if-cached") {
        // The response depends on when fetches complete. The simulation covers it.
        return;
    }
    let has_mget = has_mget(wire);
    let wire = expand(wire, REPETITIONS[usize::from(mode % 8)], max_bytes);
    let resp = is_resp(&wire) == Some(true);
    let credentials_at = find_credentials(&wire);
    let requires_password = mode & 128 != 0 || contains(&wire, PASSWORD.as_bytes());
    let world = World {
        comparing: Comparing { resp, stores: mode & 8 != 0 },
        failure: failure(mode >> 4),
        long_values: wire.iter().filter(|byte| b"lqb".contains(byte)).count() <= MAX_LONG_VALUES,
        password: requires_password.then_some(PASSWORD),
        is_locked: requires_password && credentials_at == wire.len(),
        max_keys: if has_mget { 1 + count(&wire, b'$') } else { 1 + count(&wire, b'&') },
        max_unparsed: if resp { MAX_KEY_BYTES + 8 * 1024 } else { MAX_HEAD_BYTES + EMPTY_LINE_BYTES },
    };
    if requires_password {
        // Up to the first credentials nothing is looked up, whatever follows.
        let locked = World { is_locked: true, failure: world.failure.clone(), ..world };
        Driver::new(&locked, &wire[..credentials_at]).run_whole();
    }
    let expected = Driver::new(&world, &wire).run_whole();
    check_count(&wire, resp, expected.len());
    let found = Driver::new(&world, &wire).run(&mut choices);
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "reply {number}: {}\ninstead of {}", printable(found), printable(expected));
    }
    assert_eq!(found.len(), expected.len(), "replies");
}

/// Returns the failure of all keys that fail. It is the same for all, because a command with
/// several keys replies with the first failure.
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

/// Checks that there are no more replies than requests could have started, plus one for a malformed
/// request. A request starts with a line or an asterisk.
fn check_count(wire: &[u8], resp: bool, replies: usize) {
    let requests = count(wire, b'\n') + if resp { count(wire, b'*') } else { 0 };
    assert!(replies <= requests + 1, "{replies} replies to {requests} requests");
}

/// Returns true if a reply may contain several values.
fn has_mget(wire: &[u8]) -> bool {
    contains(wire, b"mget")
}

/// Returns the position of the first text that may be a password: itself, or any in base64.
fn find_credentials(wire: &[u8]) -> usize {
    let may_start = |at: &usize| {
        let starts_with =
            |text: &[u8]| wire[*at..].get(..text.len()).is_some_and(|found| found.eq_ignore_ascii_case(text));
        starts_with(PASSWORD.as_bytes()) || starts_with(b"basic")
    };
    (0..wire.len()).find(may_start).unwrap_or(wire.len())
}

fn contains(wire: &[u8], text: &[u8]) -> bool {
    wire.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text))
}

fn count(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().filter(|&&byte| byte == wanted).count()
}

fn printable(reply: &[u8]) -> String {
    reply[..reply.len().min(400)].escape_ascii().to_string()
}
