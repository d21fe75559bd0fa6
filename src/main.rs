//! Command line program: arguments, logging, signals, supervision of the workers, exit codes.
//!
//! | exit code | reason |
//! |---|---|
//! | 0 | shutdown after SIGTERM or SIGINT; `check`: the proxy can work; `healthcheck`: it is healthy |
//! | 1 | failure that the program cannot continue after |
//! | 2 | invalid argument or variable |
//! | 128 + signal | second signal before the shutdown was complete |

mod check;
mod healthcheck;
mod listeners;
mod reload;

use listeners::Listeners;
use reload::Reloadables;
use segment_redis_proxy::backend::QUEUE_LIMIT;
use segment_redis_proxy::config::{self, Config, ConfigError, ShownValue};
use segment_redis_proxy::log_format::{LogFormat, event_line};
use segment_redis_proxy::log_writer::{LogTarget, LogWriter};
use segment_redis_proxy::metrics::{InstanceInfo, MetricsRegistry, Setting};
use segment_redis_proxy::protocol::set_pinned_limit;
use segment_redis_proxy::read_through::WatcherLimit;
use segment_redis_proxy::server::{
    ConnectionLimiter, FileLimitTooLow, SharedState, SocketFile, WATCHDOG_INTERVAL, Watchdog, Worker, WorkerHandle,
};
use segment_redis_proxy::tls_server::TlsServer;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

/// The allocator that Redis uses too. It returns the memory of expired entries to the system, from
/// a background thread so that no request pays for it (glibc kept half of what 60 MB of entries had
/// taken). `.cargo/config.toml` has its options.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Time to write the last log lines before the program exits.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The same after a second signal.
const LOG_FLUSH_TIMEOUT_FORCED: Duration = Duration::from_millis(100);

/// Time beyond `SHUTDOWN_GRACE` for the workers to return. A worker that exceeds it is stuck.
const STUCK_WORKER_GRACE: Duration = Duration::from_secs(1);

/// Event that the main thread handles while the workers run.
enum SupervisorEvent {
    Signal(i32),
    /// The worker with this index returned: after a shutdown, or with an error message.
    WorkerExited(usize, Result<(), String>),
}

/// Exit code and error message of the program.
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

/// Writers of the event log and of the access log.
struct Logs {
    events: LogWriter,
    /// `None` if `ACCESS_LOG=off`. The same as `events` if both go to `LOG_FILE`.
    access: Option<LogWriter>,
}

impl Logs {
    /// Returns each writer once.
    fn all(&self) -> impl Iterator<Item = &LogWriter> {
        // The event log comes last, because messages about the access log go there.
        self.access.iter().filter(|access| !access.ptr_eq(&self.events)).chain([&self.events])
    }

    /// Waits until all lines are written, at most for `timeout`.
    fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.all().for_each(|log_writer| log_writer.flush(deadline.saturating_duration_since(Instant::now())));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [] => run(),
        [Some("healthcheck")] => read_config().and_then(|config| healthcheck::run(&config).map_err(|error| ExitError(1, error))),
        [Some("check")] => read_config().map(|config| check::run(&config, &unknown_variables())),
        [Some("--help" | "-h")] => {
            // `--help | head` closes the pipe, which is not an error.
            let _ = std::io::stdout().write_all(config::help().as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        [Some("--version" | "-V")] => {
            println!("segment-redis-proxy {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(ExitError(
            2,
            "invalid arguments; use check, healthcheck, --help or --version, and configure by environment variables (see --help)".into(),
        )),
    };
    result.unwrap_or_else(|ExitError(code, message)| {
        // Only a proxy that serves has lines for a log collector. Other arguments are for people.
        let format = if arguments.is_empty() { requested_format() } else { LogFormat::Text };
        let lines = message.lines().flat_map(|line| error_line(format, "segment-redis-proxy: ", line));
        let _ = std::io::stderr().write_all(&lines.collect::<Vec<u8>>());
        ExitCode::from(code)
    })
}

/// Returns the format that `LOG_FORMAT` asks for, also if another variable is invalid.
fn requested_format() -> LogFormat {
    std::env::var("LOG_FORMAT").ok().and_then(|name| LogFormat::parse(&name)).unwrap_or_default()
}

/// Returns the line of a message that bypasses the logger. Text has `prefix` before it.
fn error_line(format: LogFormat, prefix: &str, message: &str) -> Vec<u8> {
    match format {
        LogFormat::Text => format!("{prefix}{message}\n").into_bytes(),
        LogFormat::Json => event_line(SystemTime::now(), log::Level::Error, module_path!(), message),
    }
}

/// Reads the configuration. The error has a line for each invalid variable, after the warnings
/// about misspelt ones: a missing value may have been set under a wrong name.
fn read_config() -> Result<Config, ExitError> {
    Config::read(|name| std::env::var_os(name)).map_err(|errors| {
        ExitError(2, unknown_variables().into_iter().chain([errors.to_string()]).collect::<Vec<_>>().join("\n"))
    })
}

/// Returns a warning for each variable of the environment that looks like a misspelt one.
fn unknown_variables() -> Vec<String> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    config::unknown_variables(std::env::vars_os().map(|(name, value)| (text(name), text(value))))
}

/// Runs the proxy until a signal arrives or a worker fails.
fn run() -> Result<ExitCode, ExitError> {
    let config = read_config()?;
    let logs = start_logs(&config)?;
    unknown_variables().iter().for_each(|warning| log::warn!("{warning}"));
    let result = serve(&config, &logs);
    if let (Err(ExitError(_, message)), Some(_)) = (&result, &config.log_file) {
        // The caller writes the message to standard error, but operators read the log file.
        log::error!("{message}");
    }
    logs.flush(LOG_FLUSH_TIMEOUT);
    result
}

fn serve(config: &Config, logs: &Logs) -> Result<ExitCode, ExitError> {
    let (sender, events) = mpsc::channel();
    let reloadables = Reloadables::load(config).map_err(|error| ExitError(2, error))?;
    catch_signals(sender.clone(), logs, reloadables.clone())
        .map_err(|error| ExitError(1, format!("cannot install the signal handlers: {error}")))?;
    let connection_limiter = ConnectionLimiter::from_config(config)?;
    set_pinned_limit(config.client_bytes);
    let mut listeners = Listeners::bind(config)?;
    let registry = Arc::new(MetricsRegistry::new(
        instance_info(config, &connection_limiter, listeners.port, reloadables.tls_server().as_deref()),
        config.workers,
    ));
    let mut watchdog = Watchdog::new(Arc::clone(&registry));
    let access = reloadables.redis_access();
    let shared = SharedState {
        connection_limit: connection_limiter,
        watcher_limit: WatcherLimit::new(config.max_watchers),
        access,
        registry: Arc::clone(&registry),
        client_passwords: reloadables.client_passwords(),
        tls: reloadables.tls_server(),
    };
    let (mut workers, mut handles) = (Vec::new(), Vec::new());
    let of_workers = std::mem::take(&mut listeners.of_workers);
    for (index, (sockets, slot)) in of_workers.into_iter().zip(registry.slots().iter().cloned()).enumerate() {
        workers.push(Worker::new(sockets, config, shared.clone(), slot).map_err(|error| worker_error(index, &error))?);
    }
    listeners.publish(config)?;
    for (index, worker) in workers.into_iter().enumerate() {
        let handle = start_worker(index, worker, logs, sender.clone())?;
        watchdog.push_worker(handle.clone());
        handles.push(handle);
    }
    supervise(config, &registry, watchdog, &handles, listeners.socket_file, &events, logs)
}

/// Opens the logs: events to standard error and requests to standard output, or both to `LOG_FILE`.
///
/// Also installs the logger and the panic hook.
fn start_logs(config: &Config) -> Result<Logs, ExitError> {
    let exit_error = |error: std::io::Error| match &config.log_file {
        Some(path) => ExitError(
            2,
            format!("cannot open LOG_FILE={path:?}: {error}; check that the directory exists and is writable"),
        ),
        None => ExitError(1, format!("cannot start the log thread: {error}")),
    };
    let file = config.log_file.as_ref().map(|path| LogTarget::File(path.into()));
    let format = config.log_format;
    let events = LogWriter::start(file.clone().unwrap_or(LogTarget::Error), format).map_err(exit_error)?;
    let access = match (config.access_log, file) {
        (false, _) => None,
        (true, Some(_)) => Some(events.clone()),
        (true, None) => Some(LogWriter::start(LogTarget::Output, format).map_err(exit_error)?),
    };
    let mut logger = env_logger::Builder::new();
    logger
        .parse_filters(if config.log_filter.is_empty() { "info" } else { &config.log_filter })
        .target(env_logger::Target::Pipe(Box::new(events.clone())));
    if format == LogFormat::Json {
        logger.format(|out, record| {
            out.write_all(&event_line(SystemTime::now(), record.level(), record.target(), &record.args().to_string()))
        });
    }
    logger.init();
    // Panics go to the event log. Its bounded queue never blocks the thread that panicked.
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
            // Panics are logged even with RUST_LOG=off.
            let _ = log.clone().write_all(&error_line(format, "", &text));
        }
    }));
    Ok(Logs { events, access })
}

fn instance_info(
    config: &Config,
    connection_limiter: &ConnectionLimiter,
    port: u16,
    tls: Option<&TlsServer>,
) -> InstanceInfo {
    InstanceInfo {
        admin: config.admin,
        can_watch_keys: config.admin_port.is_none() && config.max_watchers > 0,
        capacity: config.cache_size * config.workers,
        capacity_bytes: config.cache_bytes.unwrap_or(0) * config.workers,
        max_connections: connection_limiter.max_connections(),
        process_id: std::process::id(),
        port,
        database: config.redis.database,
        queue_limit: QUEUE_LIMIT * config.workers,
        configuration: config::redacted_values(|name| std::env::var_os(name)).into_iter().map(setting).collect(),
        tls: tls.map(TlsServer::status),
    }
}

fn setting(ShownValue { name, value, unit, is_changed }: ShownValue) -> Setting {
    Setting { name, value, unit, is_changed }
}

/// Starts the thread of one worker.
fn start_worker(
    index: usize,
    mut worker: Worker,
    logs: &Logs,
    events: Sender<SupervisorEvent>,
) -> Result<WorkerHandle, ExitError> {
    if let Some(access) = &logs.access {
        worker.log_requests(access.clone());
    }
    let handle = worker.handle();
    let run = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run()));
        let result = match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("event loop {index} failed, exiting: {error}")),
            Err(_) => {
                Err(format!("event loop {index} panicked, exiting; please report the panic logged before this line"))
            }
        };
        // The receiver is gone only if the program already exits.
        let _ = events.send(SupervisorEvent::WorkerExited(index, result));
    };
    let thread = std::thread::Builder::new().name(format!("loop-{index}"));
    thread.spawn(run).map_err(|error| worker_error(index, &error))?;
    Ok(handle)
}

fn worker_error(index: usize, error: &std::io::Error) -> ExitError {
    ExitError(1, format!("cannot start event loop {index}: {error}"))
}

/// Runs the watchdog once a second and handles events, until all workers have returned.
fn supervise(
    config: &Config,
    registry: &MetricsRegistry,
    mut watchdog: Watchdog,
    handles: &[WorkerHandle],
    mut socket_file: Option<SocketFile>,
    events: &Receiver<SupervisorEvent>,
    logs: &Logs,
) -> Result<ExitCode, ExitError> {
    let mut running: BTreeSet<usize> = (0..handles.len()).collect();
    let mut exit_deadline: Option<Instant> = None;
    while !running.is_empty() {
        // No checks during the shutdown: a worker that has returned would look stuck.
        if exit_deadline.is_none() {
            watchdog.check(logs.all().map(LogWriter::dropped).sum());
        }
        let timeout =
            exit_deadline.map_or(WATCHDOG_INTERVAL, |deadline| deadline.saturating_duration_since(Instant::now()));
        match events.recv_timeout(timeout) {
            Ok(SupervisorEvent::Signal(signal)) => {
                let grace = config.shutdown_grace;
                log::info!("received signal {signal}: shutting down within {} s", grace.as_secs_f64());
                exit_deadline = Some(Instant::now() + grace + STUCK_WORKER_GRACE);
                registry.set_stopping();
                // New clients get an error at once, or reach the next proxy. The workers accept
                // those that have connected.
                socket_file.iter_mut().for_each(SocketFile::remove);
                handles.iter().for_each(|handle| handle.stop(grace));
            }
            Ok(SupervisorEvent::WorkerExited(index, Ok(()))) => _ = running.remove(&index),
            Ok(SupervisorEvent::WorkerExited(_, Err(message))) => return Err(ExitError(1, message)),
            Err(RecvTimeoutError::Timeout) if exit_deadline.is_some() => {
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

/// Starts the thread that waits for signals.
///
/// As process 1 of a container the program would ignore SIGTERM and SIGINT without a handler.
/// SIGHUP, which ends a program by default, reopens the log file and reads secrets and certificates
/// again.
fn catch_signals(events: Sender<SupervisorEvent>, logs: &Logs, reloadables: Reloadables) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let logs = Logs { events: logs.events.clone(), access: logs.access.clone() };
    let mut is_stopping = false;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                log::info!("received signal {signal}: reopening the log, reading secrets and certificates again");
                logs.events.reopen();
                reloadables.reload();
            } else if std::mem::replace(&mut is_stopping, true) {
                // Exits from this thread, because the main thread may wait for DNS or for slow
                // clients.
                log::warn!("received a second signal ({signal}): exiting immediately, requests in flight are lost");
                logs.flush(LOG_FLUSH_TIMEOUT_FORCED);
                std::process::exit(128 + signal);
            } else if events.send(SupervisorEvent::Signal(signal)).is_err() {
                // The main thread is exiting, and may wait for a slow reader of the log.
                std::process::exit(128 + signal);
            }
        }
    })?;
    Ok(())
}
