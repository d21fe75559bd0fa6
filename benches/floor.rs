//! Lower bound for the CPU time of a single-threaded server: reads, writes fixed bytes, parses
//! nothing.
//!
//! `scripts/bench.sh` builds it as an example and compares the proxy with it; `cargo bench` skips
//! it. It answers each read with the contents of one file, and prints its port of 127.0.0.1. The
//! client must send at most one buffer at a time and wait for the whole reply, as `wrk` does.

#![allow(clippy::expect_used, reason = "a failed expectation ends the benchmark")]

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use std::io::{self, Read, Write};

const LISTENER: Token = Token(usize::MAX);

/// One client, with the number of reply bytes not yet sent to it.
struct Client {
    stream: TcpStream,
    unsent: usize,
}

impl Client {
    /// Reads once and sends the reply. An error means that the connection has ended.
    fn drive(&mut self, buffer: &mut [u8], reply: &[u8]) -> io::Result<()> {
        if self.unsent == 0 {
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.unsent = reply.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        while self.unsent > 0 {
            match self.stream.write(&reply[reply.len() - self.unsent..]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let path = std::env::args().nth(1).expect("argument: a file with the reply");
    let reply = std::fs::read(path)?;
    let mut listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address"))?;
    println!("{}", listener.local_addr()?.port());
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let (mut events, mut clients) = (Events::with_capacity(1024), Slab::<Client>::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let entry = clients.vacant_entry();
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(entry.key()), interest)?;
                    entry.insert(Client { stream, unsent: 0 });
                }
                continue;
            }
            let Token(slot) = event.token();
            if clients.get_mut(slot).is_some_and(|client| client.drive(&mut buffer, &reply).is_err()) {
                clients.remove(slot);
            }
        }
    }
}
