//! The floor under what an HTTP server of one thread can cost: reads, answers with what it was given, parses nothing.
//! `scripts/bench.sh` builds it as an example and measures the proxy against it; `cargo bench` leaves it alone.
//!
//! It answers each read with the bytes of one file, on a port of 127.0.0.1 that it prints. So its client must send each
//! time as much as one read brings and wait for the whole answer, as `wrk` does.

#![allow(clippy::expect_used, reason = "a benchmark may stop at what it did not expect")]

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use std::io::{self, Read, Write};

const LISTENER: Token = Token(usize::MAX);

/// One client, and how many bytes of an answer it has still to take.
struct Client {
    stream: TcpStream,
    unsent: usize,
}

impl Client {
    /// Reads once and answers. An error means that it is gone.
    fn turn(&mut self, buffer: &mut [u8], answer: &[u8]) -> io::Result<()> {
        if self.unsent == 0 {
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.unsent = answer.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        while self.unsent > 0 {
            match self.stream.write(&answer[answer.len() - self.unsent..]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let path = std::env::args().nth(1).expect("the argument is a file that holds the answer");
    let answer = std::fs::read(path)?;
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
            if clients.get_mut(slot).is_some_and(|client| client.turn(&mut buffer, &answer).is_err()) {
                clients.remove(slot);
            }
        }
    }
}
