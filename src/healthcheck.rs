//! `segment-redis-proxy healthcheck`: asks the proxy that runs with the same variables for
//! `/healthz`.
//!
//! Made for container images without a shell. The exit code is the result.

use segment_redis_proxy::config::Config;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// Timeout of connecting, and of each read and write. Shorter than the timeouts of the image (3 s)
/// and of Docker (30 s).
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest response that is read.
const MAX_RESPONSE_BYTES: u64 = 4096;

/// Probes the proxy, prints the body of the response, and returns the exit code.
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
            Ok(response) => {
                let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
                // A closed standard output is not an error: the exit code is the result.
                let _ = std::io::stdout().write_all(body.as_bytes());
                let is_healthy = head.starts_with("HTTP/1.1 200 ");
                return if is_healthy {
                    Ok(ExitCode::SUCCESS)
                } else {
                    Err(format!("the proxy at {address} is unhealthy"))
                };
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                failure = format!("no response from the proxy at {address} within {} s", TIMEOUT.as_secs());
            }
            Err(error) => failure = format!("no response from the proxy at {address}: {error}"),
        }
    }
    Err(failure)
}

/// Returns the address to probe: loopback if the proxy listens on all addresses.
fn loopback_if_unspecified(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Sends `GET /healthz` and returns the whole response.
fn probe(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut response)?;
    Ok(response)
}
