//! Client of event streams, which reads them as a browser does (HTML, section 9.2.6).

use super::{TEST_TIMEOUT, wait_for};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub name: String,
    pub id: String,
    pub data: String,
}

/// Open event stream.
pub struct EventStream {
    reader: BufReader<TcpStream>,
    /// Head of the response.
    pub head: String,
    /// Times of reconnection that the server has sent, in milliseconds.
    pub retries: Vec<u64>,
    pub comments: Vec<String>,
}

impl EventStream {
    /// Requests a target and reads the head of the response, which must be 200.
    pub fn open(address: SocketAddr, target: &str) -> EventStream {
        EventStream::open_with(address, target, "")
    }

    /// Requests a target with further header fields, each with its line end.
    pub fn open_with(address: SocketAddr, target: &str, fields: &str) -> EventStream {
        let mut stream = EventStream::request(address, target, fields);
        assert!(stream.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", stream.head);
        let mut line = String::new();
        stream.reader.read_line(&mut line).expect("the proxy sends in time");
        let retry = line.trim_end().strip_prefix("retry: ").and_then(|time| time.parse().ok());
        stream.retries.push(retry.expect("the time of reconnection comes first"));
        stream.reader.read_line(&mut line).expect("the proxy sends in time");
        stream
    }

    /// Requests a target and reads the head of the response, whatever its status.
    pub fn request(address: SocketAddr, target: &str, fields: &str) -> EventStream {
        let stream = wait_for("the proxy accepts connections", || TcpStream::connect(address).ok());
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        EventStream::try_request(stream, target, fields).expect("the proxy responds in time")
    }

    /// Requests a target on a new connection, and reads the head of the response.
    ///
    /// # Errors
    ///
    /// The connection failed, or ended before the first byte.
    pub fn try_request(mut stream: TcpStream, target: &str, fields: &str) -> io::Result<EventStream> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{fields}\r\n");
        stream.write_all(request.as_bytes())?;
        EventStream::try_read(BufReader::new(stream))
    }

    /// Reads the head of the response to a request that was sent.
    pub fn read(reader: BufReader<TcpStream>) -> EventStream {
        EventStream::try_read(reader).expect("the proxy responds in time")
    }

    fn try_read(mut reader: BufReader<TcpStream>) -> io::Result<EventStream> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(EventStream { reader, head, retries: Vec::new(), comments: Vec::new() })
    }

    /// Returns the next event, `None` at the end of the stream or after an error.
    pub fn next_event(&mut self) -> Option<Event> {
        let (mut event, mut line) = (Event::default(), String::new());
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            // Heartbeats keep the connection from timing out.
            assert!(Instant::now() < deadline, "no event within {TEST_TIMEOUT:?}");
            line.clear();
            match self.reader.read_line(&mut line) {
                // An incomplete line is the end of a connection that was cut.
                Ok(_) if line.ends_with('\n') => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("no event within {TEST_TIMEOUT:?}")
                }
                Ok(_) | Err(_) => return None,
            }
            match line.trim_end_matches('\n').split_once(": ").unwrap_or((line.trim_end(), "")) {
                ("", "") if event.data.is_empty() => event = Event::default(),
                ("", "") => return Some(event),
                ("event", text) => event.name = text.to_owned(),
                ("id", text) => event.id = text.to_owned(),
                ("data", text) => event.data += text,
                ("retry", text) => self.retries.push(text.parse().expect("a number")),
                ("" | ":", text) => self.comments.push(text.to_owned()),
                other => panic!("{other:?} is no field of an event stream"),
            }
        }
    }

    /// Returns the data of the next event.
    pub fn next_data(&mut self) -> String {
        self.next_event().expect("an event").data
    }

    /// Reads events until one has this text in its data. Returns those before it.
    pub fn read_until(&mut self, data: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next_event().unwrap_or_else(|| panic!("the stream ended before {data}: {events:?}"));
            if event.data.contains(data) {
                return events;
            }
            events.push(event);
        }
    }

    /// Reads events until one has this name, and returns it.
    pub fn read_until_name(&mut self, name: &str) -> Event {
        loop {
            let event = self.next_event().expect("an event");
            if event.name == name {
                return event;
            }
        }
    }

    /// Ends the input of the proxy, as `shutdown` does.
    pub fn end_input(&self) {
        self.reader.get_ref().shutdown(std::net::Shutdown::Write).expect("a connected stream");
    }

    /// Returns true if the stream sends nothing for this time.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        self.reader.get_ref().set_read_timeout(Some(time)).expect("a time-out can be set");
        let is_silent = self.reader.fill_buf().is_err();
        self.reader.get_ref().set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        is_silent
    }
}

/// Returns the data of an event of `/key` with a text as the value, read from Redis.
pub fn put(text: &str) -> String {
    format!("{{\"value\":\"{text}\",\"fromCache\":false}}")
}
