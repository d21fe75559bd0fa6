//! Listening sockets of the program: binds those of all workers, and logs where clients connect.

use crate::ExitError;
use segment_redis_proxy::config::{Config, ConfigError};
use segment_redis_proxy::server::{Endpoint, Listener, SocketFile, UnixSocketError, bind, bind_unix};
use segment_redis_proxy::server::{check_port_free, check_port_handover, exposure_warning};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

/// Listening sockets of all workers.
pub struct Listeners {
    /// Sockets of each worker.
    pub of_workers: Vec<Vec<(Endpoint, Listener)>>,
    /// Port of `PROXY_PORT`; 0 with `PROXY_PORT=off`.
    pub port: u16,
    /// File of `PROXY_SOCKET`, which is to be removed before the sockets close.
    pub socket_file: Option<SocketFile>,
    /// Address of each port.
    bound: Vec<(Endpoint, SocketAddr)>,
}

/// Port to bind, with the variables that set it.
struct Port<'a> {
    host_name: &'static str,
    host: &'a str,
    port_name: &'static str,
    port: u16,
}

impl Listeners {
    /// Binds all sockets. Clients find that of `PROXY_SOCKET` after [`Listeners::publish`].
    ///
    /// # Errors
    ///
    /// An address does not resolve, is in use or is not available.
    pub fn bind(config: &Config) -> Result<Listeners, ExitError> {
        let of_workers = (0..config.workers).map(|_| Vec::new()).collect();
        let mut listeners = Listeners { of_workers, port: 0, socket_file: None, bound: Vec::new() };
        let host = config.proxy_host.as_str();
        if let Some(port) = config.proxy_port {
            let main = Port { host_name: "PROXY_HOST", host, port_name: "PROXY_PORT", port };
            listeners.port = listeners.bind_port(config, Endpoint::Main, &main)?.port();
        }
        if let Some(port) = config.admin_port {
            let (host_name, host) = match &config.admin_host {
                Some(host) => ("ADMIN_HOST", host.as_str()),
                None => ("PROXY_HOST", host),
            };
            let admin = Port { host_name, host, port_name: "ADMIN_PORT", port };
            listeners.bind_port(config, Endpoint::Admin, &admin)?;
        }
        if let Some(path) = config.proxy_socket.as_deref() {
            listeners.bind_socket(config, path).map_err(|error| socket_error(path, &error))?;
        }
        Ok(listeners)
    }

    /// Gives the Unix socket its path, and logs where clients connect. Called once the workers
    /// exist, because the socket may take the place of a running proxy.
    ///
    /// # Errors
    ///
    /// Another process has taken the path meanwhile.
    pub fn publish(&mut self, config: &Config) -> Result<(), ExitError> {
        let mut places: Vec<String> = Vec::new();
        for (endpoint, address) in &self.bound {
            places.push(match endpoint {
                Endpoint::Main => address.to_string(),
                Endpoint::Admin => format!("admin port {address}"),
            });
        }
        if let (Some(path), Some(file)) = (&config.proxy_socket, &mut self.socket_file) {
            file.publish(Path::new(path), config.share_port).map_err(|error| socket_error(path, &error))?;
            places.push(format!("the Unix socket {path}"));
        }
        log_start(config, &places.join(", "));
        for (endpoint, address) in &self.bound {
            exposure_warning(*endpoint, *address, config).iter().for_each(|warning| log::warn!("{warning}"));
        }
        Ok(())
    }

    /// Binds a socket for each worker, all at the same port. Returns the address.
    fn bind_port(
        &mut self,
        config: &Config,
        endpoint: Endpoint,
        Port { host_name, host, port_name, port }: &Port<'_>,
    ) -> Result<SocketAddr, ExitError> {
        let unresolvable = |why: &str| ConfigError::unresolvable_host(host_name, host, why);
        let addresses: Vec<SocketAddr> =
            (*host, *port).to_socket_addrs().map_err(|error| unresolvable(&error.to_string()))?.collect();
        let share_port = config.share_port || config.workers > 1;
        let mut result = Err(ExitError::from(unresolvable("no address found")));
        for address in addresses {
            // With SO_REUSEPORT among the workers, bind() would also succeed on the port of another
            // proxy.
            let is_free = match share_port && !config.share_port && *port != 0 {
                true => check_port_free(address),
                false => Ok(()),
            };
            result = is_free.and_then(|()| bind(address, share_port)).map_err(|error| {
                ExitError(
                    1,
                    format!("cannot listen on {address}: {error}; check {host_name}={host} and {port_name}={port}"),
                )
            });
            if result.is_ok() {
                break;
            }
        }
        let first = result?;
        let exit_error = |error| ExitError(1, format!("cannot listen: {error}"));
        let address = first.local_addr().map_err(exit_error)?;
        if config.share_port {
            check_port_handover(&first);
        }
        let mut bound = vec![first];
        for _ in 1..config.workers {
            bound.push(bind(address, share_port).map_err(exit_error)?);
        }
        for (of_worker, listener) in self.of_workers.iter_mut().zip(bound) {
            of_worker.push((endpoint, Listener::Tcp(listener)));
        }
        self.bound.push((endpoint, address));
        Ok(address)
    }

    /// Creates the Unix socket, and gives a copy of it to each worker: it has no SO_REUSEPORT.
    fn bind_socket(&mut self, config: &Config, path: &str) -> Result<(), UnixSocketError> {
        let (listener, file) = bind_unix(Path::new(path), config.proxy_socket_mode, config.share_port)?;
        self.socket_file = Some(file);
        for of_worker in &mut self.of_workers {
            of_worker.push((Endpoint::Main, listener.try_clone()?));
        }
        Ok(())
    }
}

fn socket_error(path: &str, error: &UnixSocketError) -> ExitError {
    ExitError(1, format!("cannot listen on PROXY_SOCKET={path}: {error}"))
}

/// Logs what was started, in one line. `places` are the addresses to connect to.
fn log_start(config: &Config, places: &str) {
    let Config { redis, cache_size, cache_ttl, workers, .. } = config;
    let bytes = config.cache_bytes.map(|bytes| format!(" and {bytes} bytes")).unwrap_or_default();
    let tracking = if config.redis_tracking { ", at once while tracking is active" } else { "" };
    log::info!(
        "segment-redis-proxy {} listening on {places}, {redis}, \
         {workers} worker(s) with up to {cache_size} keys{bytes} each, changes visible within CACHE_TTL={} s{tracking}",
        env!("CARGO_PKG_VERSION"),
        cache_ttl.as_secs_f64()
    );
}
