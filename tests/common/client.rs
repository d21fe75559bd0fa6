//! Many keys asked for over both protocols, and what became of each: its value, or the error instead.

use super::{Proxy, Response, TEST_TIMEOUT, resp, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What came for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Value(String),
    /// Over HTTP the status and the body, over RESP the error as it stands; a key that is not there is one too.
    Error(String),
}

/// What each key holds in these tests: a value that answers another key shows.
pub fn value_of(key: &str) -> String {
    format!("the value of {key}")
}

/// A client of one of the two protocols.
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

    /// As many of both, by turns.
    pub fn connect_mixed(address: SocketAddr, count: usize) -> Vec<Client> {
        (0..count)
            .map(|number| if number % 2 == 0 { Client::connect_http(address) } else { Client::connect_resp(address) })
            .collect()
    }

    /// Asks for all of them at once.
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

    /// What comes next.
    pub fn read_reply(&mut self) -> Reply {
        match self {
            Client::Http(client) => reply_of_response(&client.read_response()),
            Client::Resp(client) => read_resp_reply(client),
        }
    }

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
    client.read_line(&mut line).expect("a reply comes");
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
        _ => panic!("{line} is no reply to GET"),
    }
}

/// Asks for `keys`, spread over the clients, all at once; `told` gets each key's answer, whether it came over HTTP and how
/// long it took.
pub fn get_all(clients: &mut [Client], keys: &[String], mut told: impl FnMut(&str, Reply, bool, Duration)) {
    let shares: Vec<&[String]> = keys.chunks(keys.len().div_ceil(clients.len()).max(1)).collect();
    let asked: Vec<Instant> = clients
        .iter_mut()
        .zip(&shares)
        .map(|(client, share)| {
            let now = Instant::now();
            client.send_gets(share);
            now
        })
        .collect();
    for ((client, share), asked) in clients.iter_mut().zip(&shares).zip(asked) {
        for key in *share {
            let answer = client.read_reply();
            told(key, answer, client.is_http(), asked.elapsed());
        }
    }
}

/// So many keys that begin with `name`.
pub fn numbered_keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}-{number}")).collect()
}

/// Asks until every key has been answered with its value; what comes instead, as long as it does, is an error.
pub fn wait_until_all_served(proxy: &Proxy, keys: &[String]) {
    let mut clients = Client::connect_mixed(proxy.address, 8);
    let mut open = keys.to_vec();
    wait_for("all keys are answered with their values", || {
        let mut failed = Vec::new();
        get_all(&mut clients, &open, |key, answer, _, _| match answer {
            Reply::Value(value) => assert_eq!(value, value_of(key), "another key's value"),
            Reply::Error(_) => failed.push(key.to_owned()),
        });
        open = failed;
        open.is_empty().then_some(())
    });
}

/// The `share`th part of some times, such as 0.99.
pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
