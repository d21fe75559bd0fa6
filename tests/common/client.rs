//! Client of either protocol and helpers that request many keys at once.

use super::{Proxy, Response, TEST_TIMEOUT, resp, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Reply to a request for a key, over either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Value(String),
    /// Status and body over HTTP, the error text over RESP. A missing key is an error, too.
    Error(String),
}

/// Returns the value of a key in these tests. It contains the key, so that a mix-up shows.
pub fn value_of(key: &str) -> String {
    format!("the value of {key}")
}

/// Client of one of the two protocols.
pub enum Client {
    Http(super::HttpClient),
    Resp(BufReader<TcpStream>),
}

impl Client {
    pub fn connect_http(address: SocketAddr) -> Client {
        Client::Http(super::HttpClient::connect(address))
    }

    pub fn connect_resp(address: SocketAddr) -> Client {
        let stream = resp::RespClient::connect(address).stream;
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        Client::Resp(BufReader::new(stream))
    }

    /// Connects `count` clients that alternate between HTTP and RESP.
    pub fn connect_mixed(address: SocketAddr, count: usize) -> Vec<Client> {
        (0..count)
            .map(|number| if number % 2 == 0 { Client::connect_http(address) } else { Client::connect_resp(address) })
            .collect()
    }

    /// Sends requests for all keys without waiting for a reply.
    pub fn send_gets<T: AsRef<str>>(&mut self, keys: &[T]) {
        let keys = keys.iter().map(AsRef::as_ref);
        match self {
            Client::Http(client) => {
                client.send(keys.map(|key| format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\n\r\n")).collect::<String>());
            }
            Client::Resp(client) => {
                let all: Vec<u8> = keys.flat_map(|key| resp::encode_command(&["GET", key])).collect();
                client.get_mut().write_all(&all).expect("the proxy reads");
            }
        }
    }

    /// Returns the next reply.
    pub fn read_reply(&mut self) -> Reply {
        match self {
            Client::Http(client) => reply_of_response(&client.read_response()),
            Client::Resp(client) => read_resp_reply(client),
        }
    }

    /// Requests a key and returns the reply.
    pub fn get(&mut self, key: &str) -> Reply {
        self.send_gets(&[key]);
        self.read_reply()
    }

    pub fn is_http(&self) -> bool {
        matches!(self, Client::Http(_))
    }
}

fn reply_of_response(response: &Response) -> Reply {
    let (status, text) = (response.status, response.text());
    assert_eq!(response.header("retry-after") == "1", status == 503, "{response:?}");
    if status == 200 { Reply::Value(text) } else { Reply::Error(format!("{status} {text}")) }
}

fn read_resp_reply(client: &mut BufReader<TcpStream>) -> Reply {
    let mut line = String::new();
    client.read_line(&mut line).expect("a reply");
    let line = line.strip_suffix("\r\n").expect("a whole line");
    let error = |text: &str| Reply::Error(text.to_owned());
    match (&line[..1], &line[1..]) {
        ("-", text) => error(text),
        ("$", "-1") => error("nil"),
        ("$", length) => {
            let mut bytes = vec![0; length.parse::<usize>().expect("a length") + 2];
            client.read_exact(&mut bytes).expect("a whole value");
            bytes.truncate(bytes.len() - 2);
            Reply::Value(String::from_utf8(bytes).expect("a value that is text"))
        }
        _ => panic!("unexpected reply to GET: {line}"),
    }
}

/// Requests all `keys` at once, spread over the clients, and calls `on_reply` for each reply.
///
/// `on_reply` receives the key, the reply, true if it came over HTTP, and the time since the
/// request.
pub fn get_all(clients: &mut [Client], keys: &[String], mut on_reply: impl FnMut(&str, Reply, bool, Duration)) {
    let shares: Vec<&[String]> = keys.chunks(keys.len().div_ceil(clients.len()).max(1)).collect();
    let sent_at: Vec<Instant> = clients
        .iter_mut()
        .zip(&shares)
        .map(|(client, share)| {
            let now = Instant::now();
            client.send_gets(share);
            now
        })
        .collect();
    for ((client, share), sent_at) in clients.iter_mut().zip(&shares).zip(sent_at) {
        for key in *share {
            let reply = client.read_reply();
            on_reply(key, reply, client.is_http(), sent_at.elapsed());
        }
    }
}

/// Returns `count` keys with the prefix `name` and a number.
pub fn numbered_keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}-{number}")).collect()
}

/// Requests the keys until each is answered with its value. Until then a reply must be an error.
pub fn wait_until_all_served(proxy: &Proxy, keys: &[String]) {
    let mut clients = Client::connect_mixed(proxy.address, 8);
    let mut pending = keys.to_vec();
    wait_for("every key is answered with its value", || {
        let mut failed = Vec::new();
        get_all(&mut clients, &pending, |key, reply, _, _| match reply {
            Reply::Value(value) => assert_eq!(value, value_of(key), "another key's value"),
            Reply::Error(_) => failed.push(key.to_owned()),
        });
        pending = failed;
        pending.is_empty().then_some(())
    });
}

/// Returns the quantile `share` (such as 0.99) of `times`, or zero if there are none.
pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
