//! Tests of the bounds on RESP clients: input, multi-key replies, and replies that clients do not
//! read.

use crate::common::resp::{RespClient, encode_command, encode_words};
use crate::common::{Proxy, Redis, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most memory that one client may take in user space, in KiB. Without a bound it would be far
/// more.
const MAX_GROWTH_KIB: u64 = 8 * 1024;

/// A million unread replies take bounded memory, and hits of another client are served meanwhile.
#[test]
fn unread_replies_take_bounded_memory() {
    const GETS: usize = 1_000_000;
    let redis = Redis::start();
    redis.set("a", "x".repeat(1000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut other = RespClient::connect(proxy.address);
    other.call_text("GET a");
    let before = proxy.memory_kib("VmHWM");
    let hit = |other: &mut RespClient| {
        let started = Instant::now();
        assert_eq!(other.call_text("GET a").len(), 1009);
        started.elapsed()
    };
    let mut idle_times: Vec<Duration> = (0..2000).map(|_| hit(&mut other)).collect();
    let stop = AtomicBool::new(false);
    let mut flood_times = Vec::new();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut client = RespClient::connect(proxy.address);
            client.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("an option can be set");
            let commands = encode_words("GET a").repeat(1000);
            let mut sent = 0;
            // Until the proxy stops reading. Kernel buffers hold some megabytes on both sides.
            while sent < GETS * commands.len() / 1000 {
                match client.stream.write(&commands[sent % commands.len()..]) {
                    Ok(length) => sent += length,
                    Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            // Once the client reads, it receives every reply in order.
            client.stream.set_nonblocking(true).expect("an option can be set");
            let (mut received, mut buffer, total) = (0, vec![0; 1 << 20], GETS * 1009);
            let bytes = GETS * commands.len() / 1000;
            while received < total {
                if sent < bytes
                    && let Ok(length) = client.stream.write(&commands[sent % commands.len()..])
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
        flood_times.extend((0..2000).map(|_| hit(&mut other)));
        let after = proxy.memory_kib("VmHWM");
        assert!(after < before + MAX_GROWTH_KIB, "memory grew from {before} to {after} KiB");
        stop.store(true, Ordering::Relaxed);
        flood.join().expect("all replies arrive");
    });
    idle_times.sort();
    flood_times.sort();
    println!("a hit takes {:?} alone, {:?} during the flood (p50 of 2000)", idle_times[1000], flood_times[1000]);
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + MAX_GROWTH_KIB, "memory grew from {before} to {after} KiB");
}

/// The proxy skips a refused command of 64 MiB, and an announced length costs no memory.
#[test]
fn refused_input_is_not_buffered() {
    const LONG: usize = 64 * 1024 * 1024;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = RespClient::connect(proxy.address);
    client.call_text("PING");
    let before = proxy.memory_kib("VmHWM");
    client.send(format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${LONG}\r\n"));
    let chunk = vec![b'*'; 1 << 20];
    (0..LONG / chunk.len()).for_each(|_| client.send(&chunk));
    client.send("\r\n");
    let reply = String::from_utf8(client.read_replies()).expect("text");
    assert!(reply.starts_with("-ERR unknown command 'SET': this proxy is read-only"), "{reply}");
    // An announced length alone allocates nothing.
    for prefix in
        ["*1048576\r\n", "*2\r\n$536870912\r\n", "*65537\r\n$4\r\nMGET\r\n$65536\r\n", "*2\r\n$3\r\nGET\r\n$65536\r\n"]
    {
        let clients: Vec<RespClient> = (0..20)
            .map(|_| {
                let mut client = RespClient::connect(proxy.address);
                client.send(prefix);
                client
            })
            .collect();
        client.call_text("PING");
        drop(clients);
    }
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + MAX_GROWTH_KIB, "memory grew from {before} to {after} KiB");
}

/// A reply to 40,000 keys is complete, whether Redis or the cache has them.
#[test]
fn multi_key_reply_is_complete() {
    const KEYS: usize = 20_000;
    let redis = Redis::start();
    let mut writer = redis.connect();
    let mut mset = redis::cmd("MSET");
    (0..KEYS).filter(|number| number % 10 != 0).for_each(|number| {
        mset.arg(format!("key{number}")).arg(number.to_string().repeat(30));
    });
    mset.exec(&mut writer).expect("MSET works");
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
    // The first round reads all keys from Redis, the second only those that do not exist.
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

/// A reply over the size limit is an error, and its memory returns to the kernel.
#[test]
fn oversized_reply_fails_and_frees_memory() {
    let redis = Redis::start();
    redis.set("a", "x".repeat(16_000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut client = RespClient::connect(proxy.address);
    client.call_text("GET a");
    let mget = |keys| encode_command(&[&["MGET"][..], &vec!["a"; keys]].concat());
    assert_eq!(client.call(mget(4000)).len(), "*4000\r\n".len() + 4000 * (16_000 + "$16000\r\n\r\n".len()));
    let error = String::from_utf8(client.call(mget(5000))).expect("text");
    assert!(error.starts_with("-ERR the reply would be longer than 67108864 bytes; request fewer keys"), "{error}");
    wait_for("memory returns to the kernel", || (proxy.memory_kib("VmRSS") < 48 * 1024).then_some(()));
}

/// Incomplete commands and unread replies take bounded memory, at any number of clients.
#[test]
fn multi_key_replies_share_memory_limit() {
    let redis = Redis::start();
    redis.set("a", "x".repeat(16_000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut watcher = RespClient::connect(proxy.address);
    watcher.call_text("GET a");
    let before = proxy.memory_kib("VmHWM");
    let mget = encode_command(&[&["MGET"][..], &["a"; 4000]].concat());
    let mut replies = String::new();
    let clients: Vec<RespClient> = (0..8)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address);
            client.send(&mget);
            let mut start = [0; 24];
            client.stream.peek(&mut start).expect("a reply starts");
            replies += &String::from_utf8_lossy(&start);
            client
        })
        .collect();
    // A reply may take half of what the others leave.
    assert_eq!(replies.matches("*4000\r\n").count(), 3, "{replies}");
    assert_eq!(replies.matches("-TRYAGAIN the memory").count(), 5, "{replies}");
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + (256 + 64) * 1024, "memory grew from {before} to {after} KiB");
    let smaller = encode_command(&[&["MGET"][..], &["a"; 500]].concat());
    assert!(watcher.call(&smaller).len() > 500 * 16_000, "no memory is left for other clients");
    drop(clients);
    wait_for("memory is available again", || (watcher.call(&mget).len() > 4000 * 16_000).then_some(()));
}

/// Returns the number of cache hits so far.
fn read_hits(watcher: &mut RespClient) -> usize {
    let info = watcher.call_text("INFO stats");
    let line = info.lines().find_map(|line| line.strip_prefix("keyspace_hits:"));
    line.and_then(|hits| hits.parse().ok()).expect("INFO has the count")
}

/// A multi-key reply that fails while it waits for its keys resumes its client.
///
/// As many keys as allowed are pending, and only their completions can wake the client.
#[test]
fn failed_multi_key_reply_resumes_client() {
    const MAX_PENDING_KEYS: usize = 1024;
    let redis = Redis::start();
    redis.set("long", "x".repeat(16_000));
    redis.set("a", "1");
    (0..MAX_PENDING_KEYS).for_each(|number| redis.set(format!("long {number}"), "x".repeat(16_000)));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600"), ("REDIS_TIMEOUT", "60000")]);
    let mut watcher = RespClient::connect(proxy.address);
    watcher.call_text("MGET long a");
    // Incomplete commands of other clients take all memory, until no further segment is left. The
    // smallest commands need one at the fifth key.
    let (mut holders, mut keys) = (Vec::new(), 4000);
    while keys >= 8 {
        let mut holder = RespClient::connect(proxy.address);
        let mget = encode_command(&[&["MGET"][..], &vec!["long"; keys + 1]].concat());
        let before = read_hits(&mut watcher);
        holder.send(&mget[..mget.len() - 3]);
        // A failed reply looks up no further keys.
        let mut seen = (before, 0);
        wait_for("the keys are looked up", || {
            let now = read_hits(&mut watcher);
            seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
            (now == before + keys || seen.1 == 50).then_some(())
        });
        match seen.0 == before + keys {
            true => holders.push(holder),
            false => keys = if keys == 8 { 0 } else { (keys / 2).max(8) },
        }
    }
    redis.freeze();
    // Values of keys that are pending make the reply exceed its memory.
    let mut mget = vec!["MGET".to_owned()];
    mget.extend((0..MAX_PENDING_KEYS).map(|number| format!("long {number}")));
    mget.extend(std::iter::repeat_n("a".to_owned(), 900));
    let mut client = RespClient::connect(proxy.address);
    client.send([encode_command(&mget), encode_words("PING")].concat());
    wait_for("all keys are pending", || {
        let misses = format!("keyspace_misses:{}\r\n", MAX_PENDING_KEYS + 2);
        watcher.call_text("INFO stats").contains(&misses).then_some(())
    });
    redis.thaw();
    let (mut reply, mut buffer) = (String::new(), [0; 1000]);
    while !reply.ends_with("+PONG\r\n") {
        let length = client.stream.read(&mut buffer).expect("a reply arrives");
        reply += &String::from_utf8_lossy(&buffer[..length]);
    }
    assert!(reply.starts_with("-TRYAGAIN the memory limit for multi-key replies"), "{reply}");
}

/// Keys of aborted commands are still read, and do not fill the queue for other clients.
#[test]
fn aborted_commands_leave_queue_usable() {
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
    // Later commands wait for these keys, and no longer.
    let replies = String::from_utf8(client.read_replies()).expect("text");
    assert_eq!(replies.matches("-ERR argument too long").count(), 12, "{replies}");
}

/// Long values count toward the memory of replies, which may be their only owners.
#[test]
fn long_values_count_toward_reply_memory() {
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
            let mut start = [0];
            client.stream.peek(&mut start).expect("a reply starts");
            (client, start[0])
        })
        .collect();
    assert!(clients.iter().filter(|(_, start)| *start == b'*').count() >= 3);
    assert!(clients.iter().filter(|(_, start)| *start == b'-').count() >= 5);
    // The fetchers and the inbox of the event loop hold further values meanwhile.
    let after = proxy.memory_kib("VmHWM");
    assert!(after < before + (256 + 128) * 1024, "memory grew from {before} to {after} KiB");
}

/// A client that sends FIN within a command gets earlier replies and leaves no descriptor behind.
#[test]
fn partial_command_at_eof_leaves_nothing() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1")]);
    let mut watcher = RespClient::connect(proxy.address);
    watcher.call_text("GET a");
    let before = proxy.count_descriptors();
    for partial in [
        "*",
        "*3\r\n$4\r\nMGET\r\n$1\r\na\r\n",
        "*3\r\n$4\r\nMGET\r\n$1\r\nb\r\n",
        "*2\r\n$3\r\nSET\r\n$100\r\n",
        "*2\r\n$3",
    ] {
        // The client sends FIN and reads. There is no reply for it.
        let mut client = RespClient::connect(proxy.address);
        client.send(partial);
        client.shutdown_write();
        assert_eq!(client.read_to_close(), "", "{partial:?}");
    }
    // Complete commands before the FIN are answered.
    let mut client = RespClient::connect(proxy.address);
    client.send([encode_words("GET a"), encode_words("MGET a nothing"), b"*2\r\n$4\r\nMGET\r\n".to_vec()].concat());
    client.shutdown_write();
    assert_eq!(client.read_to_close(), "$1\r\n1\r\n*2\r\n$1\r\n1\r\n$-1\r\n");
    wait_for("all descriptors are closed", || (proxy.count_descriptors() == before).then_some(()));
}
