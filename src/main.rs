//! Arguments, configuration, logging, signals, exit codes. Everything else is in the library.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 1 when it cannot go on, 2 for a wrong argument or variable.

use segment_redis_proxy::config::{self, Config, ConfigError};
use segment_redis_proxy::protocol::bound_held_values;
use segment_redis_proxy::server::{NoPlace, Places, Server, Stopper, bind};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::mpsc;

/// A cache lives and dies by its allocator: with glibc's, half of what 60 MB of entries had taken stayed with the
/// process after they expired; this one, which Redis uses too, gives it back, from a thread of its own so that no
/// request pays for it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Why the program ends.
enum End {
    Signal(i32),
    /// A worker stopped by itself, with what it said.
    Worker(String),
}

/// Why the program cannot go on, and its exit code.
struct Failed(u8, String);

impl From<ConfigError> for Failed {
    fn from(error: ConfigError) -> Failed {
        Failed(2, error.to_string())
    }
}

impl From<NoPlace> for Failed {
    fn from(error: NoPlace) -> Failed {
        Failed(1, error.to_string())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [] => {}
        [Some("--help" | "-h")] => {
            // `--help | head` closes the pipe; that is no reason to complain.
            let _ = std::io::stdout().write_all(config::help().as_bytes());
            return ExitCode::SUCCESS;
        }
        [Some("--version" | "-V")] => {
            println!("segment-redis-proxy {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("segment-redis-proxy: takes no argument but --help or --version; it is configured by variables");
            return ExitCode::from(2);
        }
    }
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(code, message)) => {
            eprintln!("segment-redis-proxy: {message}");
            ExitCode::from(code)
        }
    }
}

/// Runs all workers until a signal comes or one of them fails.
fn run() -> Result<(), Failed> {
    let config = Config::read(|name| std::env::var_os(name))?;
    let (ends, end) = mpsc::channel();
    catch_signals(ends.clone()).map_err(|error| Failed(1, format!("cannot catch signals: {error}")))?;
    let places = Places::make(&config)?;
    bound_held_values(config.client_bytes);
    let mut stoppers = Vec::new();
    for (number, listener) in listen(&config)?.into_iter().enumerate() {
        stoppers.push(start_worker(number, listener, &config, &places, ends.clone())?);
    }
    let result = match end.recv() {
        Ok(End::Signal(signal)) => {
            log::info!("signal {signal}: stopping");
            Ok(())
        }
        Ok(End::Worker(message)) => Err(Failed(1, message)),
        Err(mpsc::RecvError) => Err(Failed(1, "all workers are gone".into())),
    };
    stoppers.iter().for_each(Stopper::stop);
    result
}

/// Starts one event loop on a thread of its own.
fn start_worker(
    number: usize,
    listener: TcpListener,
    config: &Config,
    places: &Places,
    ends: mpsc::Sender<End>,
) -> Result<Stopper, Failed> {
    let cannot = |error| Failed(1, format!("cannot start worker {number}: {error}"));
    let mut server = Server::new(listener, config, places.clone()).map_err(cannot)?;
    let stopper = server.stopper();
    let work = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.run()));
        let message = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("worker {number} cannot poll: {error}"),
            Err(_) => format!("worker {number} broke; please report what stands above"),
        };
        // Nobody listens any more only when the program is ending anyway.
        let _ = ends.send(End::Worker(message));
    };
    std::thread::Builder::new().name(format!("loop-{number}")).spawn(work).map_err(cannot)?;
    Ok(stopper)
}

/// A listening socket for each worker, all on the same port.
fn listen(config: &Config) -> Result<Vec<TcpListener>, Failed> {
    let (host, port) = (config.proxy_host.as_str(), config.proxy_port);
    let unresolvable = |why: &str| ConfigError::unresolvable_proxy_host(host, why);
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|error| unresolvable(&error.to_string()))?.collect();
    let share_port = config.workers > 1;
    let mut result = Err(Failed::from(unresolvable("it has no address")));
    for address in addresses {
        result = bind(address, share_port).map_err(|error| {
            Failed(1, format!("cannot listen on {address}: {error}; check PROXY_HOST={host} and PROXY_PORT={port}"))
        });
        if result.is_ok() {
            break;
        }
    }
    let first = result?;
    let cannot = |error| Failed(1, format!("cannot listen: {error}"));
    let address = first.local_addr().map_err(cannot)?;
    let mut listeners = vec![first];
    for _ in 1..config.workers {
        listeners.push(bind(address, share_port).map_err(cannot)?);
    }
    log::info!("listening on {address}, {} worker(s)", config.workers);
    Ok(listeners)
}

/// Waits for SIGTERM and SIGINT on a thread of its own. As process 1 of a container the program would be deaf to them
/// without a handler.
fn catch_signals(ends: mpsc::Sender<End>) -> std::io::Result<()> {
    let signals = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            // The receiver is gone only when the program is ending already.
            let _ = ends.send(End::Signal(signal));
        }
    })?;
    Ok(())
}
