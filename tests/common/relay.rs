//! TCP relay between the proxy and Redis that simulates network faults: delay, silence,
//! disconnects.

use super::wait_for;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Purpose of a connection, detected by its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reads keys (`GETRANGE`).
    Fetching,
    /// Receives invalidations (`SUBSCRIBE`).
    Tracking,
}

#[derive(Default)]
struct State {
    /// Port that new connections are relayed to.
    target: u16,
    /// Purpose of the connections with replies that are held back.
    held_purpose: Option<Purpose>,
    connections: Vec<Connection>,
}

struct Connection {
    purpose: Option<Purpose>,
    ends: [TcpStream; 2],
    /// Bytes from Redis that are held back.
    held_bytes: Vec<u8>,
    closed: bool,
}

/// Running relay.
pub struct Relay {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Relay {
    /// Starts a relay on a free port to the Redis at `port`.
    pub fn start(port: u16) -> Relay {
        Relay::start_at(("127.0.0.1", 0), port)
    }

    /// Starts a relay that listens at `address`.
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

    /// Relays new connections to the Redis at `port`. Open connections stay.
    pub fn set_target(&self, port: u16) {
        self.state.lock().expect("no panic").target = port;
    }

    /// Closes all connections of these purposes.
    pub fn disconnect(&self, purposes: &[Purpose]) {
        let state = self.state.lock().expect("no panic");
        let matches_purpose =
            |connection: &&Connection| connection.purpose.is_some_and(|purpose| purposes.contains(&purpose));
        for connection in state.connections.iter().filter(matches_purpose) {
            // Fails if the connection is closed already.
            let _ = connection.ends[0].shutdown(Shutdown::Both);
        }
    }

    /// Holds back the replies of Redis on connections of one purpose.
    pub fn hold_replies(&self, purpose: Purpose) {
        self.state.lock().expect("no panic").held_purpose = Some(purpose);
    }

    /// Waits until at least one reply is held back.
    pub fn wait_until_held(&self) {
        wait_for("a reply is held back", || {
            self.state.lock().expect("no panic").connections.iter().any(|one| !one.held_bytes.is_empty()).then_some(())
        });
    }

    /// Sends the replies that are held back and holds back no more.
    pub fn release(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.held_purpose = None;
        for connection in &mut state.connections {
            let held_bytes = std::mem::take(&mut connection.held_bytes);
            // Fails if the proxy has closed the connection.
            let _ = connection.ends[0].write_all(&held_bytes);
        }
    }

    /// Returns the number of open connections of one purpose.
    pub fn count_open(&self, purpose: Purpose) -> usize {
        let state = self.state.lock().expect("no panic");
        state.connections.iter().filter(|one| one.purpose == Some(purpose) && !one.closed).count()
    }
}

/// Copies bytes between a client and a server in both directions, on two threads.
fn connect_ends(client: TcpStream, server: TcpStream, state: &Arc<Mutex<State>>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("an option can be set");
    }
    let mut all = state.lock().expect("no panic");
    let number = all.connections.len();
    let ends = [clone(&client), clone(&server)];
    all.connections.push(Connection { purpose: None, ends, held_bytes: Vec::new(), closed: false });
    drop(all);
    let (state, reply_state) = (Arc::clone(state), Arc::clone(state));
    let (mut from_client, mut to_server) = (clone(&client), clone(&server));
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(length @ 1..) = from_client.read(&mut buffer) {
            let sent = &buffer[..length];
            let contains = |word: &[u8]| sent.windows(word.len()).any(|window| window == word);
            let connection = &mut state.lock().expect("no panic").connections[number];
            if contains(b"GETRANGE") {
                connection.purpose = Some(Purpose::Fetching);
            } else if contains(b"SUBSCRIBE") {
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
            let mut state = reply_state.lock().expect("no panic");
            let held_purpose = state.held_purpose;
            let connection = &mut state.connections[number];
            if held_purpose.is_some() && held_purpose == connection.purpose {
                connection.held_bytes.extend_from_slice(&buffer[..length]);
            } else if to_client.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        reply_state.lock().expect("no panic").connections[number].closed = true;
        let _ = to_client.shutdown(Shutdown::Both);
    });
}
