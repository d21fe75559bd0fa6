//! Bounds over the Redis protocol: what clients send, and what they do not read.

use crate::common::resp::{RespClient, encode_command, encode_words};
use crate::common::{Proxy, Redis, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What one client may cost beyond what the kernel holds, in KiB: generous against what would be without a bound.
const ALLOWANCE: u64 = 8 * 1024;

fn descriptors(proxy: &Proxy) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("it runs").count()
}

#[test]
fn a_million_gets_whose_replies_nobody_reads_cost_no_memory_and_no_time_of_others() {
    const GETS: usize = 1_000_000;
    let redis = Redis::start();
    redis.set("a", "x".repeat(1000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut other = RespClient::connect(proxy.address);
    other.call_text("GET a");
    let before = proxy.memory_kib("VmHWM");
    let hit = |other: &mut RespClient| {
        let began = Instant::now();
        assert_eq!(other.call_text("GET a").len(), 1009);
        began.elapsed()
    };
    let mut undisturbed: Vec<Duration> = (0..2000).map(|_| hit(&mut other)).collect();
    let over = AtomicBool::new(false);
    let mut disturbed = Vec::new();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut client = RespClient::connect(proxy.address);
            client.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("an option can be set");
            let piece = encode_words("GET a").repeat(1000);
            let mut sent = 0;
            // Until the proxy takes no more. What the kernel holds on both sides is some megabytes.
            while sent < GETS * piece.len() / 1000 {
                match client.stream.write(&piece[sent % piece.len()..]) {
                    Ok(length) => sent += length,
                    Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            while !over.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            // Once it reads, it gets everything, in order.
            client.stream.set_nonblocking(true).expect("an option can be set");
            let (mut received, mut buffer, total) = (0, vec![0; 1 << 20], GETS * 1009);
            let bytes = GETS * piece.len() / 1000;
            while received < total {
                if sent < bytes
                    && let Ok(length) = client.stream.write(&piece[sent % piece.len()..])
                {
                    sent += length;
                }
                match client.stream.read(&mut buffer) {
                    Ok(0) => panic!("closed after {received} bytes"),
                    Ok(length) => received += length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        disturbed.extend((0..2000).map(|_| hit(&mut other)));
        let after = proxy.memory_kib("VmHWM");
        assert!(after < before + ALLOWANCE, "{before} KiB have become {after}");
        over.store(true, Ordering::Relaxed);
        flood.join().expect("all replies come");
    });
    undisturbed.sort();
    disturbed.sort();
    println!("a hit takes {:?} alone, {:?} beside the flood (p50 of 2000)", undisturbed[1000], disturbed[1000]);
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + ALLOWANCE, "{before} KiB have become {after}");
}

#[test]
fn what_is_refused_is_read_over_and_not_kept() {
    const LONG: usize = 64 * 1024 * 1024;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = RespClient::connect(proxy.address);
    client.call_text("PING");
    let before = proxy.memory_kib("VmHWM");
    client.send(format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${LONG}\r\n"));
    let piece = vec![b'*'; 1 << 20];
    (0..LONG / piece.len()).for_each(|_| client.send(&piece));
    client.send("\r\n");
    let reply = String::from_utf8(client.read_replies()).expect("text");
    assert!(reply.starts_with("-ERR unknown command 'SET': this proxy is read-only"), "{reply}");
    // A length alone is nothing.
    for begin in
        ["*1048576\r\n", "*2\r\n$536870912\r\n", "*65537\r\n$4\r\nMGET\r\n$65536\r\n", "*2\r\n$3\r\nGET\r\n$65536\r\n"]
    {
        let clients: Vec<RespClient> = (0..20)
            .map(|_| {
                let mut client = RespClient::connect(proxy.address);
                client.send(begin);
                client
            })
            .collect();
        client.call_text("PING");
        drop(clients);
    }
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + ALLOWANCE, "{before} KiB have become {after}");
}

#[test]
fn a_reply_about_many_keys_is_whole_whatever_has_to_be_read_for_it() {
    const KEYS: usize = 20_000;
    let redis = Redis::start();
    let mut filling = redis.connect();
    let mut set = redis::cmd("MSET");
    (0..KEYS).filter(|number| number % 10 != 0).for_each(|number| {
        set.arg(format!("key{number}")).arg(number.to_string().repeat(30));
    });
    set.exec(&mut filling).expect("MSET works");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut expected = format!("*{}\r\n", 2 * KEYS).into_bytes();
    let mut mget = vec!["MGET".to_owned()];
    for number in (0..KEYS).chain((0..KEYS).rev()) {
        mget.push(format!("key{number}"));
        let value = number.to_string().repeat(30);
        expected.extend(match number % 10 {
            0 => b"$-1\r\n".to_vec(),
            _ => format!("${}\r\n{value}\r\n", value.len()).into_bytes(),
        });
    }
    // Read whole, then from memory but for what is not there.
    for _ in 0..2 {
        let mut client = RespClient::connect(proxy.address);
        let reply = client.call(encode_command(&mget));
        assert!(reply == expected, "{} bytes instead of {}", reply.len(), expected.len());
    }
    mget[0] = "EXISTS".into();
    assert_eq!(
        RespClient::connect(proxy.address).call(encode_command(&mget)),
        format!(":{}\r\n", 2 * (KEYS - KEYS / 10)).into_bytes()
    );
}

#[test]
fn a_reply_that_would_hold_too_much_is_an_error_and_the_memory_comes_back() {
    let redis = Redis::start();
    redis.set("a", "x".repeat(16_000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut client = RespClient::connect(proxy.address);
    client.call_text("GET a");
    let mget = |keys| encode_command(&[&["MGET"][..], &vec!["a"; keys]].concat());
    assert_eq!(client.call(mget(4000)).len(), "*4000\r\n".len() + 4000 * (16_000 + "$16000\r\n\r\n".len()));
    let error = String::from_utf8(client.call(mget(5000))).expect("text");
    assert!(error.starts_with("-ERR the reply would be longer than 67108864 bytes; request fewer keys"), "{error}");
    wait_for("the memory is given back", || (proxy.memory_kib("VmRSS") < 48 * 1024).then_some(()));
}

/// Neither commands that do not end nor replies that nobody reads may fill the memory, however many clients try.
#[test]
fn what_all_replies_hold_together_is_bounded() {
    let redis = Redis::start();
    redis.set("a", "x".repeat(16_000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut watcher = RespClient::connect(proxy.address);
    watcher.call_text("GET a");
    let before = proxy.memory_kib("VmHWM");
    let mget = encode_command(&[&["MGET"][..], &["a"; 4000]].concat());
    let mut refused = String::new();
    let clients: Vec<RespClient> = (0..8)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address);
            client.send(&mget);
            let mut begin = [0; 24];
            client.stream.peek(&mut begin).expect("a reply begins");
            refused += &String::from_utf8_lossy(&begin);
            client
        })
        .collect();
    // Each may have half of what the others leave.
    assert_eq!(refused.matches("*4000\r\n").count(), 3, "{refused}");
    assert_eq!(refused.matches("-TRYAGAIN the memory").count(), 5, "{refused}");
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + (256 + 64) * 1024, "{before} KiB have become {after}");
    let some = encode_command(&[&["MGET"][..], &["a"; 500]].concat());
    assert!(watcher.call(&some).len() > 500 * 16_000, "there is none left for others");
    drop(clients);
    wait_for("there is room again", || (watcher.call(&mget).len() > 4000 * 16_000).then_some(()));
}

/// How often a key was found in memory so far.
fn hits(watcher: &mut RespClient) -> usize {
    let info = watcher.call_text("INFO stats");
    let line = info.lines().find_map(|line| line.strip_prefix("keyspace_hits:"));
    line.and_then(|hits| hits.parse().ok()).expect("it is told")
}

/// The reply fails while its keys are being read, as many as may be: whoever waits for that must be woken by them.
#[test]
fn a_reply_that_fails_while_it_waits_holds_up_nothing_for_ever() {
    const READ_AT_ONCE: usize = 1024;
    let redis = Redis::start();
    redis.set("long", "x".repeat(16_000));
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600"), ("REDIS_TIMEOUT", "60000")]);
    let mut watcher = RespClient::connect(proxy.address);
    watcher.call_text("MGET long a");
    // Others hold all there is, in commands that do not end: first long values, then nothing but keys, until there is less
    // left than what two segments take. The smallest take one more than is free with the fifth key, and with the 4096th.
    let mut holders = Vec::new();
    for (key, most, least) in [("long", 4000, 8), ("a", 4100, 4100)] {
        let mut keys = most;
        while keys >= least {
            let mut holder = RespClient::connect(proxy.address);
            let mget = encode_command(&[&["MGET"][..], &vec![key; keys + 1]].concat());
            let before = hits(&mut watcher);
            holder.send(&mget[..mget.len() - 3]);
            // A reply that has failed looks nothing up any more.
            let mut seen = (before, 0);
            wait_for("it has been looked at", || {
                let now = hits(&mut watcher);
                seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
                (now == before + keys || seen.1 == 50).then_some(())
            });
            match seen.0 == before + keys {
                true => holders.push(holder),
                false => keys = if keys == least { 0 } else { (keys / 2).max(least) },
            }
        }
    }
    redis.freeze();
    // The last key that may be read at once is the one with which it holds more than it may.
    let mut mget = vec!["MGET".to_owned()];
    mget.extend(std::iter::repeat_n("a".to_owned(), 4096 - READ_AT_ONCE));
    mget.extend((0..READ_AT_ONCE).map(|number| format!("missing {number}")));
    mget.extend(std::iter::repeat_n("a".to_owned(), 900));
    let mut client = RespClient::connect(proxy.address);
    client.send([encode_command(&mget), encode_words("PING")].concat());
    wait_for("it waits for all of them", || {
        let misses = format!("keyspace_misses:{}\r\n", READ_AT_ONCE + 2);
        watcher.call_text("INFO stats").contains(&misses).then_some(())
    });
    redis.thaw();
    let (mut reply, mut buffer) = (String::new(), [0; 1000]);
    while !reply.ends_with("+PONG\r\n") {
        let length = client.stream.read(&mut buffer).expect("a reply comes");
        reply += &String::from_utf8_lossy(&buffer[..length]);
    }
    assert!(reply.starts_with("-TRYAGAIN the memory limit for multi-key replies"), "{reply}");
}

/// Keys of commands that were broken off are being read all the same.
#[test]
fn who_breaks_commands_off_does_not_fill_the_queue() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "500")]);
    let mut client = RespClient::connect(proxy.address);
    client.call_text("GET a");
    redis.freeze();
    let too_long = "x".repeat(65_537);
    for round in 0..12 {
        let mut mget = vec!["MGET".to_owned()];
        mget.extend((0..1000).map(|number| format!("key {round} {number}")));
        mget.push(too_long.clone());
        client.send(encode_command(&mget));
    }
    let reply = RespClient::connect(proxy.address).call_text("GET innocent");
    assert!(reply.starts_with("-LOADING Redis did not reply within REDIS_TIMEOUT"), "{reply}");
    redis.thaw();
    // What stands behind them waits for them, and no longer.
    let replies = String::from_utf8(client.read_replies()).expect("text");
    assert_eq!(replies.matches("-ERR argument too long").count(), 12, "{replies}");
}

/// Long values may be nowhere else any more than in the replies that wait for their clients.
#[test]
fn long_values_count_among_what_all_replies_hold() {
    let redis = Redis::start();
    let mut keys = vec!["MGET".to_owned()];
    for number in 0..300 {
        keys.push(format!("key{number}"));
        redis.set(&keys[number + 1], "x".repeat(200_000));
    }
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "3")]);
    let before = proxy.memory_kib("VmHWM");
    let clients: Vec<(RespClient, u8)> = (0..10)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address);
            client.send(encode_command(&keys));
            let mut begin = [0];
            client.stream.peek(&mut begin).expect("a reply begins");
            (client, begin[0])
        })
        .collect();
    assert!(clients.iter().filter(|(_, begin)| *begin == b'*').count() >= 3);
    assert!(clients.iter().filter(|(_, begin)| *begin == b'-').count() >= 5);
    // Beside them: what helpers and the queue to the loop hold meanwhile.
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + (256 + 128) * 1024, "{before} KiB have become {after}");
}

#[test]
fn who_leaves_in_the_middle_leaves_nothing_behind() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1")]);
    let mut watcher = RespClient::connect(proxy.address);
    watcher.call_text("GET a");
    let before = descriptors(&proxy);
    for begin in [
        "*",
        "*3\r\n$4\r\nMGET\r\n$1\r\na\r\n",
        "*3\r\n$4\r\nMGET\r\n$1\r\nb\r\n",
        "*2\r\n$3\r\nSET\r\n$100\r\n",
        "*2\r\n$3",
    ] {
        // It sends no more, but reads: there is nothing for it to get.
        let mut client = RespClient::connect(proxy.address);
        client.send(begin);
        client.shutdown_write();
        assert_eq!(client.read_to_close(), "", "{begin:?}");
    }
    // It gets what it has asked for whole.
    let mut client = RespClient::connect(proxy.address);
    client.send([encode_words("GET a"), encode_words("MGET a nothing"), b"*2\r\n$4\r\nMGET\r\n".to_vec()].concat());
    client.shutdown_write();
    assert_eq!(client.read_to_close(), "$1\r\n1\r\n*2\r\n$1\r\n1\r\n$-1\r\n");
    wait_for("all descriptors are closed", || (descriptors(&proxy) == before).then_some(()));
}
