//! `segment-redis-proxy healthcheck`: asks the proxy that runs with the same variables whether it is well. For images without a
//! shell, and for whoever likes exit codes.

use segment_redis_proxy::config::Config;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// How long the proxy may take for anything. Docker's own limit is 30 s unless it is told otherwise, that of the image 3 s.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest answer that is looked at.
const MAX_RESPONSE_BYTES: u64 = 4096;

/// Asks, prints the answer, and says how to end.
pub fn run(config: &Config) -> Result<ExitCode, String> {
    let (host, port) = (config.proxy_host.as_str(), config.proxy_port);
    if port == 0 {
        return Err("healthcheck needs the port of the proxy, but PROXY_PORT=0; set PROXY_PORT".into());
    }
    let addresses =
        (host, port).to_socket_addrs().map_err(|error| format!("PROXY_HOST={host} does not resolve: {error}"))?;
    let mut failure = format!("PROXY_HOST={host} resolves to no address");
    for address in addresses.map(loopback_if_unspecified) {
        match probe(address) {
            Ok(answer) => {
                let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
                // Whoever does not read it wants the exit code.
                let _ = std::io::stdout().write_all(body.as_bytes());
                let well = head.starts_with("HTTP/1.1 200 ");
                return if well { Ok(ExitCode::SUCCESS) } else { Err(format!("the proxy at {address} is unhealthy")) };
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                failure = format!("no response from the proxy at {address} within {} s", TIMEOUT.as_secs());
            }
            Err(error) => failure = format!("no response from the proxy at {address}: {error}"),
        }
    }
    Err(failure)
}

/// Where to reach a proxy that listens there: who listens on all addresses, listens on the loopback's too.
fn loopback_if_unspecified(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn probe(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}
