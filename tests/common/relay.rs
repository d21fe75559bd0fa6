//! A relay between the proxy and Redis, to do to the network what the network may do to itself: delay, silence, cuts.

use super::wait_for;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a connection turned out to be for, by the first command that tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reads keys.
    Fetching,
    /// Hears of changes.
    Tracking,
}

#[derive(Default)]
struct State {
    /// Where new connections lead.
    target: u16,
    /// Whose bytes from Redis are held back for now.
    held: Option<Purpose>,
    connections: Vec<Connection>,
}

struct Connection {
    purpose: Option<Purpose>,
    ends: [TcpStream; 2],
    /// Bytes from Redis that wait.
    waiting: Vec<u8>,
    closed: bool,
}

/// See the top of the file.
pub struct Relay {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Relay {
    /// A relay to the Redis at `port`.
    pub fn start(port: u16) -> Relay {
        Relay::start_at(("127.0.0.1", 0), port)
    }

    /// One that listens at an address of the test's choice.
    pub fn start_at(address: (&str, u16), port: u16) -> Relay {
        let listener = TcpListener::bind(address).expect("a free port");
        let relay = Relay { port: listener.local_addr().expect("an address").port(), state: Arc::default() };
        relay.set_target(port);
        let state = Arc::clone(&relay.state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let target = state.lock().expect("no panic").target;
                if let Ok(server) = TcpStream::connect(("127.0.0.1", target)) {
                    connect_ends(client, server, &state);
                }
            }
        });
        relay
    }

    /// From now on new connections lead to the Redis at `port`.
    pub fn set_target(&self, port: u16) {
        self.state.lock().expect("no panic").target = port;
    }

    /// Cuts all connections of these purposes.
    pub fn disconnect(&self, purposes: &[Purpose]) {
        let state = self.state.lock().expect("no panic");
        let concerned =
            |connection: &&Connection| connection.purpose.is_some_and(|purpose| purposes.contains(&purpose));
        for connection in state.connections.iter().filter(concerned) {
            // One that is closed already stays so.
            let _ = connection.ends[0].shutdown(Shutdown::Both);
        }
    }

    /// Holds back what Redis sends to connections of one purpose.
    pub fn hold_replies(&self, purpose: Purpose) {
        self.state.lock().expect("no panic").held = Some(purpose);
    }

    /// Waits until something is held back.
    pub fn wait_until_held(&self) {
        wait_for("something is held back", || {
            self.state.lock().expect("no panic").connections.iter().any(|one| !one.waiting.is_empty()).then_some(())
        });
    }

    /// Passes everything on again.
    pub fn release(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.held = None;
        for connection in &mut state.connections {
            let waiting = std::mem::take(&mut connection.waiting);
            // A client that is gone gets nothing any more.
            let _ = connection.ends[0].write_all(&waiting);
        }
    }

    /// How many connections of one purpose there are.
    pub fn count_open(&self, purpose: Purpose) -> usize {
        let state = self.state.lock().expect("no panic");
        state.connections.iter().filter(|one| one.purpose == Some(purpose) && !one.closed).count()
    }
}

fn connect_ends(client: TcpStream, server: TcpStream, state: &Arc<Mutex<State>>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("an option can be set");
    }
    let mut all = state.lock().expect("no panic");
    let number = all.connections.len();
    let ends = [clone(&client), clone(&server)];
    all.connections.push(Connection { purpose: None, ends, waiting: Vec::new(), closed: false });
    drop(all);
    let (state, backwards) = (Arc::clone(state), Arc::clone(state));
    let (mut from_client, mut to_server) = (clone(&client), clone(&server));
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(length @ 1..) = from_client.read(&mut buffer) {
            let sent = &buffer[..length];
            let says = |word: &[u8]| sent.windows(word.len()).any(|window| window == word);
            let connection = &mut state.lock().expect("no panic").connections[number];
            if says(b"GETRANGE") {
                connection.purpose = Some(Purpose::Fetching);
            } else if says(b"SUBSCRIBE") {
                connection.purpose = Some(Purpose::Tracking);
            }
            if to_server.write_all(sent).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let (mut from_server, mut to_client) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(length @ 1..) = from_server.read(&mut buffer) {
            let mut state = backwards.lock().expect("no panic");
            let held = state.held;
            let connection = &mut state.connections[number];
            if held.is_some() && held == connection.purpose {
                connection.waiting.extend_from_slice(&buffer[..length]);
            } else if to_client.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        backwards.lock().expect("no panic").connections[number].closed = true;
        let _ = to_client.shutdown(Shutdown::Both);
    });
}
