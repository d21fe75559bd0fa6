//! Arguments, configuration, logging, signals, exit codes. Everything else is in the library.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 1 when it cannot go on, 2 for a wrong argument or variable, 128 and the signal's number
//! when a second one came before it had ended.

mod healthcheck;

use segment_redis_proxy::config::{self, Config, ConfigError};
use segment_redis_proxy::log_writer::{LogTarget, LogWriter};
use segment_redis_proxy::metrics::{InstanceInfo, MetricsRegistry};
use segment_redis_proxy::protocol::set_pinned_limit;
use segment_redis_proxy::server::{
    ConnectionLimiter, FileLimitTooLow, WATCHDOG_INTERVAL, Watchdog, Worker, WorkerHandle,
};
use segment_redis_proxy::server::{bind, check_port_free, check_port_handover};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// A cache lives and dies by its allocator: with glibc's, half of what 60 MB of entries had taken stayed with the
/// process after they expired; this one, which Redis uses too, gives it back, from a thread of its own so that no
/// request pays for it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long the last lines of the log may take to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The same where the program is to end at once.
const LOG_FLUSH_TIMEOUT_FORCED: Duration = Duration::from_millis(100);

/// How long beyond `SHUTDOWN_GRACE` the workers may take to return. One that does not is stuck.
const STUCK_WORKER_GRACE: Duration = Duration::from_secs(1);

/// What happens while the workers run.
enum SupervisorEvent {
    Signal(i32),
    /// The worker of that number has returned, because it was told to or with what went wrong.
    WorkerExited(usize, Result<(), String>),
}

/// Why the program cannot go on, and its exit code.
struct ExitError(u8, String);

impl From<ConfigError> for ExitError {
    fn from(error: ConfigError) -> ExitError {
        ExitError(2, error.to_string())
    }
}

impl From<FileLimitTooLow> for ExitError {
    fn from(error: FileLimitTooLow) -> ExitError {
        ExitError(1, error.to_string())
    }
}

/// Where lines go.
struct Logs {
    events: LogWriter,
    /// Each request, if that is wanted.
    requests: Option<LogWriter>,
}

impl Logs {
    /// All of them, each once.
    fn all(&self) -> impl Iterator<Item = &LogWriter> {
        // What is said about the requests' is among the events.
        self.requests.iter().filter(|requests| !requests.ptr_eq(&self.events)).chain([&self.events])
    }

    /// Waits for the last lines, but no longer than this for all of them.
    fn flush(&self, timer: Duration) {
        let until = Instant::now() + timer;
        self.all().for_each(|log_writer| log_writer.flush(until.saturating_duration_since(Instant::now())));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [] => run(),
        [Some("healthcheck")] => read_config().and_then(|config| healthcheck::run(&config).map_err(|error| ExitError(1, error))),
        [Some("--help" | "-h")] => {
            // `--help | head` closes the pipe; that is no reason to complain.
            let _ = std::io::stdout().write_all(config::help().as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        [Some("--version" | "-V")] => {
            println!("segment-redis-proxy {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(ExitError(
            2,
            "invalid arguments; use healthcheck, --help or --version, and configure by environment variables (see --help)".into(),
        )),
    };
    result.unwrap_or_else(|ExitError(code, message)| {
        eprintln!("segment-redis-proxy: {message}");
        ExitCode::from(code)
    })
}

fn read_config() -> Result<Config, ExitError> {
    Ok(Config::read(|name| std::env::var_os(name))?)
}

/// Runs all workers until a signal comes or one of them fails.
fn run() -> Result<ExitCode, ExitError> {
    let config = read_config()?;
    let logs = start_logs(&config)?;
    let result = serve(&config, &logs);
    if let (Err(ExitError(_, message)), Some(_)) = (&result, &config.log_file) {
        // Where somebody looks for it. It goes to standard error, too.
        log::error!("{message}");
    }
    logs.flush(LOG_FLUSH_TIMEOUT);
    result
}

fn serve(config: &Config, logs: &Logs) -> Result<ExitCode, ExitError> {
    let (sender, events) = mpsc::channel();
    catch_signals(sender.clone(), logs)
        .map_err(|error| ExitError(1, format!("cannot install the signal handlers: {error}")))?;
    let connection_limiter = ConnectionLimiter::from_config(config)?;
    set_pinned_limit(config.client_bytes);
    let listeners = listen(config)?;
    let register = Arc::new(MetricsRegistry::new(settings(config, &connection_limiter, &listeners), config.workers));
    let mut watch = Watchdog::new(Arc::clone(&register));
    let mut stoppers = Vec::new();
    for (number, (listener, slot)) in listeners.into_iter().zip(register.slots().iter().cloned()).enumerate() {
        let worker = Worker::new(listener, config, connection_limiter.clone(), Arc::clone(&register), slot);
        let stopper = start_worker(number, worker, logs, sender.clone())?;
        watch.push_loop(stopper.clone());
        stoppers.push(stopper);
    }
    supervise(config, &register, watch, &stoppers, &events, logs)
}

/// Opens the logs: events to standard error and requests to standard output, or both to one file.
fn start_logs(config: &Config) -> Result<Logs, ExitError> {
    let cannot = |error: std::io::Error| match &config.log_file {
        Some(path) => ExitError(
            2,
            format!("cannot open LOG_FILE={path:?}: {error}; check that the directory exists and is writable"),
        ),
        None => ExitError(1, format!("cannot start the log thread: {error}")),
    };
    let file = config.log_file.as_ref().map(|path| LogTarget::File(path.into()));
    let events = LogWriter::start(file.clone().unwrap_or(LogTarget::Error)).map_err(cannot)?;
    let requests = match (config.access_log, file) {
        (false, _) => None,
        (true, Some(_)) => Some(events.clone()),
        (true, None) => Some(LogWriter::start(LogTarget::Output).map_err(cannot)?),
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .target(env_logger::Target::Pipe(Box::new(events.clone())))
        .init();
    // What breaks tells so where somebody looks for it, and waits for nobody who has stopped reading.
    let log = events.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let trace = Backtrace::capture();
        let text = match trace.status() {
            BacktraceStatus::Captured => format!("{panic}\n{trace}"),
            _ => format!("{panic}; set RUST_BACKTRACE=1 to log a stack trace"),
        };
        if log::log_enabled!(log::Level::Error) {
            log::error!("{text}");
        } else {
            // Whatever RUST_LOG leaves out. It takes whatever there is room for.
            let _ = writeln!(log.clone(), "{text}");
        }
    }));
    Ok(Logs { events, requests })
}

fn settings(config: &Config, connection_limiter: &ConnectionLimiter, listeners: &[TcpListener]) -> InstanceInfo {
    let port = listeners.first().and_then(|listener| listener.local_addr().ok()).map_or(0, |address| address.port());
    InstanceInfo {
        admin: config.admin,
        capacity: config.cache_size * config.workers,
        capacity_bytes: config.cache_bytes.unwrap_or(0) * config.workers,
        max_connections: connection_limiter.max_connections(),
        process_id: std::process::id(),
        port,
        database: config.redis_db,
        configuration: config::redacted_values(|name| std::env::var_os(name)),
    }
}

/// Starts one event loop on a thread of its own.
fn start_worker(
    number: usize,
    server: std::io::Result<Worker>,
    logs: &Logs,
    events: Sender<SupervisorEvent>,
) -> Result<WorkerHandle, ExitError> {
    let cannot = |error| ExitError(1, format!("cannot start event loop {number}: {error}"));
    let mut server = server.map_err(cannot)?;
    if let Some(requests) = &logs.requests {
        server.log_requests(requests.clone());
    }
    let stopper = server.handle();
    let work = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.run()));
        let result = match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("event loop {number} failed, exiting: {error}")),
            Err(_) => {
                Err(format!("event loop {number} panicked, exiting; please report the panic logged before this line"))
            }
        };
        // Nobody listens any more only when the program is ending anyway.
        let _ = events.send(SupervisorEvent::WorkerExited(number, result));
    };
    std::thread::Builder::new().name(format!("loop-{number}")).spawn(work).map_err(cannot)?;
    Ok(stopper)
}

/// Looks after the workers until all have ended.
fn supervise(
    config: &Config,
    register: &MetricsRegistry,
    mut watch: Watchdog,
    stoppers: &[WorkerHandle],
    events: &Receiver<SupervisorEvent>,
    logs: &Logs,
) -> Result<ExitCode, ExitError> {
    let mut running: BTreeSet<usize> = (0..stoppers.len()).collect();
    let mut ends: Option<Instant> = None;
    while !running.is_empty() {
        // Of those that stop, some have ended and do not turn any more.
        if ends.is_none() {
            watch.check(logs.all().map(LogWriter::dropped).sum());
        }
        let rest = ends.map_or(WATCHDOG_INTERVAL, |ends| ends.saturating_duration_since(Instant::now()));
        match events.recv_timeout(rest) {
            Ok(SupervisorEvent::Signal(signal)) => {
                let grace = config.shutdown_grace;
                log::info!("received signal {signal}: shutting down within {} s", grace.as_secs_f64());
                ends = Some(Instant::now() + grace + STUCK_WORKER_GRACE);
                register.set_stopping();
                stoppers.iter().for_each(|stopper| stopper.stop(grace));
            }
            Ok(SupervisorEvent::WorkerExited(number, Ok(()))) => _ = running.remove(&number),
            Ok(SupervisorEvent::WorkerExited(_, Err(message))) => return Err(ExitError(1, message)),
            Err(RecvTimeoutError::Timeout) if ends.is_some() => {
                return Err(ExitError(
                    1,
                    format!(
                        "shutdown not complete after SHUTDOWN_GRACE, exiting: event loops {running:?} are stuck; please report this"
                    ),
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ExitError(1, "all event loops ended unexpectedly, exiting; please report this".into()));
            }
        }
    }
    log::info!("shutdown complete");
    Ok(ExitCode::SUCCESS)
}

/// A listening socket for each worker, all on the same port.
fn listen(config: &Config) -> Result<Vec<TcpListener>, ExitError> {
    let (host, port) = (config.proxy_host.as_str(), config.proxy_port);
    let unresolvable = |why: &str| ConfigError::unresolvable_proxy_host(host, why);
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|error| unresolvable(&error.to_string()))?.collect();
    let share_port = config.share_port || config.workers > 1;
    let mut result = Err(ExitError::from(unresolvable("no address found")));
    for address in addresses {
        // Workers share the port with each other; that nobody else is to have it must be looked at.
        let is_free = match share_port && !config.share_port && port != 0 {
            true => check_port_free(address),
            false => Ok(()),
        };
        result = is_free.and_then(|()| bind(address, share_port)).map_err(|error| {
            ExitError(1, format!("cannot listen on {address}: {error}; check PROXY_HOST={host} and PROXY_PORT={port}"))
        });
        if result.is_ok() {
            break;
        }
    }
    let first = result?;
    let cannot = |error| ExitError(1, format!("cannot listen: {error}"));
    let address = first.local_addr().map_err(cannot)?;
    let mut listeners = vec![first];
    for _ in 1..config.workers {
        listeners.push(bind(address, share_port).map_err(cannot)?);
    }
    if config.share_port {
        check_port_handover(&listeners[0]);
    }
    log::info!("listening on {address}, {} worker(s)", config.workers);
    Ok(listeners)
}

/// Waits for signals on a thread of its own. As process 1 of a container the program would be deaf to SIGTERM and SIGINT without a
/// handler. SIGHUP has a log file opened anew; it would end the program otherwise.
fn catch_signals(events: Sender<SupervisorEvent>, logs: &Logs) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let logs = Logs { events: logs.events.clone(), requests: logs.requests.clone() };
    let mut told = false;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                log::info!("received signal {signal}: reopening the log");
                logs.events.reopen();
            } else if std::mem::replace(&mut told, true) {
                // Whatever the rest of the program is at, a name server that does not answer or clients that take their time.
                log::warn!("received a second signal ({signal}): exiting immediately, requests in flight are lost");
                logs.flush(LOG_FLUSH_TIMEOUT_FORCED);
                std::process::exit(128 + signal);
            } else if events.send(SupervisorEvent::Signal(signal)).is_err() {
                // The program is ending already, and takes its time: whoever reads what it says last has stopped reading.
                std::process::exit(128 + signal);
            }
        }
    })?;
    Ok(())
}
