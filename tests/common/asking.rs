//! Many keys asked for over both protocols, and what became of each: its value, or the error instead.

use super::{PATIENCE, Proxy, Response, resp, until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What came for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
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
    Http(super::Http),
    Resp(BufReader<TcpStream>),
}

impl Client {
    pub fn http(address: SocketAddr) -> Client {
        Client::Http(super::Http::connect(address))
    }

    pub fn resp(address: SocketAddr) -> Client {
        let stream = resp::Resp::connect(address).stream;
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        Client::Resp(BufReader::new(stream))
    }

    /// As many of both, by turns.
    pub fn some(address: SocketAddr, count: usize) -> Vec<Client> {
        (0..count).map(|number| if number % 2 == 0 { Client::http(address) } else { Client::resp(address) }).collect()
    }

    /// Asks for all of them at once.
    pub fn ask<T: AsRef<str>>(&mut self, keys: &[T]) {
        let keys = keys.iter().map(AsRef::as_ref);
        match self {
            Client::Http(client) => {
                client.send(keys.map(|key| format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\n\r\n")).collect::<String>());
            }
            Client::Resp(client) => {
                let all: Vec<u8> = keys.flat_map(|key| resp::command(&["GET", key])).collect();
                client.get_mut().write_all(&all).expect("the proxy reads");
            }
        }
    }

    /// What comes next.
    pub fn answer(&mut self) -> Answer {
        match self {
            Client::Http(client) => over_http(&client.response()),
            Client::Resp(client) => over_resp(client),
        }
    }

    pub fn get(&mut self, key: &str) -> Answer {
        self.ask(&[key]);
        self.answer()
    }

    pub fn is_http(&self) -> bool {
        matches!(self, Client::Http(_))
    }
}

fn over_http(response: &Response) -> Answer {
    let (status, text) = (response.status, response.text());
    assert_eq!(response.field("retry-after") == "1", status == 503, "{response:?}");
    if status == 200 { Answer::Value(text) } else { Answer::Error(format!("{status} {text}")) }
}

fn over_resp(client: &mut BufReader<TcpStream>) -> Answer {
    let mut line = String::new();
    client.read_line(&mut line).expect("a reply comes");
    let line = line.strip_suffix("\r\n").expect("a whole line");
    let error = |text: &str| Answer::Error(text.to_owned());
    match (&line[..1], &line[1..]) {
        ("-", text) => error(text),
        ("$", "-1") => error("nil"),
        ("$", length) => {
            let mut bytes = vec![0; length.parse::<usize>().expect("a length") + 2];
            client.read_exact(&mut bytes).expect("a whole value");
            bytes.truncate(bytes.len() - 2);
            Answer::Value(String::from_utf8(bytes).expect("a value that is text"))
        }
        _ => panic!("{line} is no reply to GET"),
    }
}

/// Asks for `keys`, spread over the clients, all at once; `told` gets each key's answer, whether it came over HTTP and how
/// long it took.
pub fn ask_all(clients: &mut [Client], keys: &[String], mut told: impl FnMut(&str, Answer, bool, Duration)) {
    let shares: Vec<&[String]> = keys.chunks(keys.len().div_ceil(clients.len()).max(1)).collect();
    let asked: Vec<Instant> = clients
        .iter_mut()
        .zip(&shares)
        .map(|(client, share)| {
            let now = Instant::now();
            client.ask(share);
            now
        })
        .collect();
    for ((client, share), asked) in clients.iter_mut().zip(&shares).zip(asked) {
        for key in *share {
            let answer = client.answer();
            told(key, answer, client.is_http(), asked.elapsed());
        }
    }
}

/// So many keys that begin with `name`.
pub fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}-{number}")).collect()
}

/// Asks until every key has been answered with its value; what comes instead, as long as it does, is an error.
pub fn until_all_are_there(proxy: &Proxy, keys: &[String]) {
    let mut clients = Client::some(proxy.address, 8);
    let mut open = keys.to_vec();
    until("all keys are answered with their values", || {
        let mut failed = Vec::new();
        ask_all(&mut clients, &open, |key, answer, _, _| match answer {
            Answer::Value(value) => assert_eq!(value, value_of(key), "another key's value"),
            Answer::Error(_) => failed.push(key.to_owned()),
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
