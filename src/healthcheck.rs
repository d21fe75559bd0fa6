//! `segment-redis-proxy healthcheck`: asks the proxy that runs with the same variables for
//! `/healthz`.
//!
//! Made for container images without a shell. The exit code is the result.

use segment_redis_proxy::config::Config;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// Timeout of connecting, and of each read and write. Shorter than the timeouts of the image (3 s)
/// and of Docker (30 s).
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest response that is read.
const MAX_RESPONSE_BYTES: u64 = 4096;

/// Probes the proxy, prints the body of the response, and returns the exit code.
pub fn run(config: &Config) -> Result<ExitCode, String> {
    let is_known = |port: &u16| *port != 0;
    let admin_host = config.admin_host.as_ref().unwrap_or(&config.proxy_host);
    match (config.proxy_port.filter(is_known), &config.proxy_socket, config.admin_port.filter(is_known)) {
        (Some(port), ..) => probe_port("PROXY_HOST", &config.proxy_host, port),
        (None, Some(path), _) => report(path, probe_socket(path)),
        (None, None, Some(port)) => probe_port("ADMIN_HOST", admin_host, port),
        (None, None, None) => {
            Err("healthcheck needs the port of the proxy, but PROXY_PORT=0; set PROXY_PORT or PROXY_SOCKET".into())
        }
    }
}

/// Probes the addresses of a host, until one responds.
fn probe_port(host_name: &str, host: &str, port: u16) -> Result<ExitCode, String> {
    let addresses =
        (host, port).to_socket_addrs().map_err(|error| format!("{host_name}={host} does not resolve: {error}"))?;
    let mut failure = Err(format!("{host_name}={host} resolves to no address"));
    for address in addresses.map(loopback_if_unspecified) {
        let response = probe_address(address);
        let has_responded = response.is_ok();
        failure = report(&address.to_string(), response);
        if has_responded {
            break;
        }
    }
    failure
}

/// Prints the body of a response from `place`. Returns the exit code, or the reason of a failure.
fn report(place: &str, response: std::io::Result<String>) -> Result<ExitCode, String> {
    match response {
        Ok(response) => {
            let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
            // A closed standard output is not an error: the exit code is the result.
            let _ = std::io::stdout().write_all(body.as_bytes());
            let is_healthy = head.starts_with("HTTP/1.1 200 ");
            if is_healthy { Ok(ExitCode::SUCCESS) } else { Err(format!("the proxy at {place} is unhealthy")) }
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(format!("no response from the proxy at {place} within {} s", TIMEOUT.as_secs()))
        }
        Err(error) => Err(format!("no response from the proxy at {place}: {error}")),
    }
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

fn probe_address(address: SocketAddr) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    request(stream, &address.to_string())
}

/// Connects like a client. With a full backlog it waits, as long as the orchestrator lets it.
fn probe_socket(path: &str) -> std::io::Result<String> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    request(stream, "localhost")
}

/// Sends `GET /healthz` and returns the whole response.
fn request(mut stream: impl Read + Write, host: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut response)?;
    Ok(response)
}
