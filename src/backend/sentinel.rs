//! Finds the primary that sentinels name (Redis Sentinel).
//!
//! Each sentinel has a thread and a connection of its own, so that a hung one delays no other. The
//! thread asks at the interval of the topology thread, because a lost message would hide a
//! failover. It also subscribes to `+switch-master`, and asks at once when it arrives. A sentinel
//! that refuses `HELLO 3` (before Redis 6) is only asked.
//!
//! Sentinels may disagree for a moment, or be cut off from the others. The one with the highest
//! configuration epoch is right (Sentinel documentation, "Configuration epochs").

use super::BackendConfig;
use super::connect::{Connector, describe_error, is_command_denied, single_line};
use super::slot_map::{Primary, SlotMap};
use super::topology::{FoundMap, Topology};
use super::wire::Wire;
use crate::upstream::UpstreamAddress;
use redis::{ErrorKind, PushKind, RedisError, RedisResult, Value};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Channel on which sentinels announce a new primary.
const CHANNEL: &str = "+switch-master";

/// Age from which an answer counts no longer, at least two intervals. Within it, a sentinel that is
/// lost after a failover outvotes those that do not know of the failover yet.
const MAX_REPORT_AGE: Duration = Duration::from_secs(5);

/// Longest wait for one answer, and until a lost connection is opened again.
const MAX_SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);

/// Answer of one sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    address: UpstreamAddress,
    /// Configuration epoch of the primary, as the sentinel knows it.
    epoch: u64,
    received_at: Instant,
}

/// Answers of all sentinels.
struct Reports {
    /// For each sentinel its last answer, and its problem since then.
    of_sentinels: Mutex<Vec<(Option<Report>, Option<String>)>>,
    /// Signals an answer or a problem.
    recorded: Condvar,
    /// True once the threads must end.
    is_closed: AtomicBool,
    topology: Arc<Topology>,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Vec<(Option<Report>, Option<String>)>> {
        self.of_sentinels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an answer. Another primary than before makes the topology thread look at once.
    /// Returns true if the sentinel had a problem before.
    fn record(&self, number: usize, report: Report) -> bool {
        let slot = &mut self.lock()[number];
        let previous = slot.0.replace(report.clone());
        let had_problem = slot.1.take().is_some();
        self.recorded.notify_all();
        if previous.is_none_or(|previous| previous.address != report.address) {
            self.topology.request();
        }
        had_problem
    }

    /// Records a problem. Returns true if the sentinel had none before.
    fn record_problem(&self, number: usize, problem: String) -> bool {
        let previous = self.lock()[number].1.replace(problem);
        self.recorded.notify_all();
        self.topology.request();
        previous.is_none()
    }
}

/// Source of the map of one primary.
pub(super) struct SentinelSource {
    reports: Arc<Reports>,
    /// Age from which an answer counts no longer.
    max_age: Duration,
}

impl Drop for SentinelSource {
    fn drop(&mut self) {
        self.reports.is_closed.store(true, Ordering::Relaxed);
    }
}

impl SentinelSource {
    /// Starts a thread for each sentinel.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub(super) fn start(settings: &BackendConfig, master: &str, topology: Arc<Topology>) -> io::Result<SentinelSource> {
        let sentinels = settings.access.addresses();
        let of_sentinels = Mutex::new(vec![(None, None); sentinels.len()]);
        let (recorded, is_closed) = (Condvar::new(), AtomicBool::new(false));
        let reports = Arc::new(Reports { of_sentinels, recorded, is_closed, topology });
        // Ends the threads that have started if another one cannot.
        let max_age = MAX_REPORT_AGE.max(2 * settings.access.topology_interval() + MAX_SENTINEL_TIMEOUT);
        let source = SentinelSource { reports: Arc::clone(&reports), max_age };
        for (number, address) in sentinels.iter().enumerate() {
            let mut watch = SentinelWatch::new(settings, master, (number, address), Arc::clone(&reports));
            std::thread::Builder::new().name("redis-sentinel".into()).spawn(move || watch.run())?;
        }
        Ok(source)
    }

    /// Returns the primary of the answer with the highest epoch. At start waits for the first
    /// answer, or for the problems of all sentinels.
    ///
    /// # Errors
    ///
    /// No sentinel has answered of late: the problem of the first one.
    pub(super) fn find(&mut self) -> Result<FoundMap, String> {
        let is_pending = |reports: &mut Vec<(Option<Report>, Option<String>)>| {
            reports.iter().all(|(report, _)| report.is_none()) && reports.iter().any(|(_, problem)| problem.is_none())
        };
        let waited = self.reports.recorded.wait_timeout_while(self.reports.lock(), MAX_SENTINEL_TIMEOUT, is_pending);
        find_in(&waited.unwrap_or_else(PoisonError::into_inner).0, self.max_age)
    }
}

fn find_in(reports: &[(Option<Report>, Option<String>)], max_age: Duration) -> Result<FoundMap, String> {
    let is_recent = |report: &&Report| report.received_at.elapsed() < max_age;
    let recent = || reports.iter().filter_map(|(report, _)| report.as_ref()).filter(is_recent);
    // Of equal epochs, the latest answer.
    match recent().max_by_key(|report| (report.epoch, report.received_at)) {
        Some(Report { address, .. }) => {
            let confirmed_at = recent().map(|report| report.received_at).max().unwrap_or_else(Instant::now);
            Ok(FoundMap { map: SlotMap::of_one(Primary { address: address.clone(), id: None }), confirmed_at })
        }
        None => {
            let problem = reports.iter().find_map(|(_, problem)| problem.clone());
            Err(problem.unwrap_or_else(|| "no sentinel has answered yet".into()))
        }
    }
}

/// State of the thread of one sentinel.
struct SentinelWatch {
    connector: Connector,
    master: String,
    interval: Duration,
    number: usize,
    reports: Arc<Reports>,
}

impl SentinelWatch {
    fn new(
        settings: &BackendConfig,
        master: &str,
        (number, address): (usize, &UpstreamAddress),
        reports: Arc<Reports>,
    ) -> SentinelWatch {
        let settings = BackendConfig { timeout: settings.timeout.min(MAX_SENTINEL_TIMEOUT), ..settings.clone() };
        let interval = settings.access.topology_interval();
        let connector = Connector::to_sentinel(&settings, address);
        SentinelWatch { connector, master: master.to_owned(), interval, number, reports }
    }

    fn is_closed(&self) -> bool {
        self.reports.is_closed.load(Ordering::Relaxed)
    }

    /// Connects and asks, until the source is dropped.
    fn run(&mut self) {
        while !self.is_closed() {
            let result = catch_unwind(AssertUnwindSafe(|| {
                let mut wire = self.connector.connect(Ok)?;
                self.follow(&mut wire)
            }));
            let problem = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => describe_problem(&error),
                Err(_) => "the thread panicked; please report the panic logged before this line".into(),
            };
            let problem = format!("sentinel {}: {problem}", self.connector.target());
            match self.reports.record_problem(self.number, problem.clone()) {
                true => log::warn!("{problem}; the other sentinels are asked"),
                false => log::debug!("{problem}"),
            }
            std::thread::sleep(self.interval.min(MAX_SENTINEL_TIMEOUT));
        }
    }

    /// Asks for the primary at the interval, and when the sentinel announces another one.
    fn follow(&mut self, wire: &mut Wire) -> RedisResult<()> {
        let is_subscribed = subscribe(wire)?;
        while !self.is_closed() {
            let report = request_primary(wire, &self.master)?;
            self.connector.reset_backoff();
            if self.reports.record(self.number, report) {
                log::info!("sentinel {} answers again", self.connector.target());
            }
            let next = Instant::now() + self.interval;
            if is_subscribed {
                wait_for_switch(wire, &self.master, next)?;
            } else {
                std::thread::sleep(self.interval);
            }
        }
        Ok(())
    }
}

/// Subscribes to announcements. Returns false if the sentinel refuses the protocol that allows
/// questions on the same connection.
fn subscribe(wire: &mut Wire) -> RedisResult<bool> {
    wire.send(&redis::cmd("HELLO").arg(3).get_packed_command())?;
    if !matches!(wire.receive()?, Value::Map(_)) {
        return Ok(false);
    }
    wire.send(&redis::cmd("SUBSCRIBE").arg(CHANNEL).get_packed_command())?;
    match wire.receive()? {
        Value::Push { kind: PushKind::Subscribe, .. } => Ok(true),
        // An ACL may deny the channel.
        _ => Ok(false),
    }
}

/// Asks for the address and the epoch of the primary.
fn request_primary(wire: &mut Wire, master: &str) -> RedisResult<Report> {
    let mut packed = Vec::new();
    redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master).write_packed_command(&mut packed);
    redis::cmd("SENTINEL").arg("MASTER").arg(master).write_packed_command(&mut packed);
    wire.send(&packed)?;
    let (address, details) = loop {
        let ((address, _), (details, has_announcement)) = (receive_reply(wire)?, receive_reply(wire)?);
        if !has_announcement {
            break (address, details);
        }
        // It may be newer than the address.
        wire.send(&packed)?;
    };
    let address = match address.extract_error()? {
        Value::Array(parts) => address_of(&parts),
        Value::Nil => return Err(unknown_master(master)),
        _ => None,
    };
    let address = address.ok_or_else(|| io::Error::other("the sentinel names the primary in an unknown form"))?;
    let epoch = details.extract_error().ok().and_then(|details| field(&details, "config-epoch"));
    let epoch = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(Report { address, epoch, received_at: Instant::now() })
}

/// Returns the text of an error. Sentinels have credentials of their own.
fn describe_problem(error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("NOAUTH") {
        let text = single_line(error);
        return format!("{text}; set REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD to those of the sentinels");
    }
    if is_command_denied(error) && error.code() != Some("NOPERM") {
        return format!("{}; name sentinels in REDIS_URL, not servers of Redis", single_line(error));
    }
    describe_error(error)
}

fn unknown_master(master: &str) -> RedisError {
    io::Error::other(format!("it monitors no primary {master:?}; set REDIS_MASTER to a name in its configuration"))
        .into()
}

/// Receives a reply. Also returns true if an announcement came before it.
fn receive_reply(wire: &mut Wire) -> RedisResult<(Value, bool)> {
    let mut has_announcement = false;
    loop {
        match wire.receive()? {
            Value::Push { .. } => has_announcement = true,
            reply => return Ok((reply, has_announcement)),
        }
    }
}

fn address_of(parts: &[Value]) -> Option<UpstreamAddress> {
    let [host, port] = parts else { return None };
    let port = text_of(port)?.parse().ok()?;
    Some(UpstreamAddress::Tcp(text_of(host)?, port))
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// Returns a field of a map, or of a list of names and values (RESP2).
fn field(details: &Value, name: &str) -> Option<String> {
    let is_name = |key: &Value| text_of(key).as_deref() == Some(name);
    match details {
        Value::Map(pairs) => pairs.iter().find(|(key, _)| is_name(key)).and_then(|(_, value)| text_of(value)),
        Value::Array(parts) => parts.chunks_exact(2).find(|pair| is_name(&pair[0])).and_then(|pair| text_of(&pair[1])),
        _ => None,
    }
}

/// Waits until `next`, or until the sentinel announces another address of `master`.
fn wait_for_switch(wire: &mut Wire, master: &str, next: Instant) -> RedisResult<()> {
    loop {
        wire.set_deadline(next);
        match wire.receive() {
            // Name, old host and port, new host and port.
            Ok(Value::Push { kind: PushKind::Message, data }) => {
                let text = data.last().and_then(text_of).unwrap_or_default();
                if text.split(' ').next() == Some(master) {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) if error.is_timeout() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A sentinel, and the primary that it names or its problem.
pub(super) type SentinelAnswer = (UpstreamAddress, Result<UpstreamAddress, String>);

/// Asks each configured sentinel once for the primary, for a check of the configuration. The answer
/// with the highest epoch comes first.
pub(super) fn ask_each(settings: &BackendConfig, master: &str) -> Vec<SentinelAnswer> {
    let ask = |address: &UpstreamAddress| {
        let answer = Connector::to_sentinel(settings, address).connect(Ok);
        (address.clone(), answer.and_then(|mut wire| request_primary(&mut wire, master)))
    };
    let mut answers: Vec<_> = settings.access.addresses().iter().map(ask).collect();
    answers.sort_by_key(|(_, answer)| std::cmp::Reverse(answer.as_ref().map_or(0, |report| report.epoch)));
    let described = |(sentinel, answer): (UpstreamAddress, RedisResult<Report>)| {
        (sentinel, answer.map(|report| report.address).map_err(|error| describe_problem(&error)))
    };
    answers.into_iter().map(described).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(port: u16, epoch: u64, age: Duration) -> (Option<Report>, Option<String>) {
        let received_at = Instant::now().checked_sub(age).expect("a machine that runs for a minute");
        (Some(Report { address: UpstreamAddress::Tcp("h".into(), port), epoch, received_at }), None)
    }

    /// The highest epoch wins, also if its sentinel was lost a moment ago. An old answer counts no
    /// longer.
    #[test]
    fn highest_epoch_names_primary() {
        let now = Duration::ZERO;
        let lost = |age| (report(2, 7, age).0, Some("gone".to_owned()));
        let port_of = |reports: &[_]| match find_in(reports, MAX_REPORT_AGE) {
            Ok(found) => match &found.map.primaries()[0].address {
                UpstreamAddress::Tcp(_, port) => Ok(*port),
                other => panic!("{other}"),
            },
            Err(problem) => Err(problem),
        };
        assert_eq!(port_of(&[report(1, 6, now), report(2, 7, now), report(1, 6, now)]), Ok(2));
        assert_eq!(port_of(&[report(1, 6, now), lost(MAX_REPORT_AGE / 2)]), Ok(2));
        assert_eq!(port_of(&[report(1, 6, now), lost(MAX_REPORT_AGE * 2)]), Ok(1));
        assert_eq!(port_of(&[lost(MAX_REPORT_AGE * 2), (None, None)]), Err("gone".into()));
        assert_eq!(port_of(&[(None, None)]), Err("no sentinel has answered yet".into()));
        let found = find_in(&[report(1, 6, now), lost(MAX_REPORT_AGE / 2)], MAX_REPORT_AGE).expect("an answer");
        assert!(found.confirmed_at.elapsed() < MAX_REPORT_AGE / 2, "any answer confirms that sentinels are reached");
    }

    /// Details are a map in RESP3, and a list in RESP2.
    #[test]
    fn details_have_fields() {
        for reply in [
            "%1\r\n$12\r\nconfig-epoch\r\n$1\r\n7\r\n",
            "*4\r\n$1\r\na\r\n$1\r\nb\r\n$12\r\nconfig-epoch\r\n$1\r\n7\r\n",
        ] {
            let details = redis::parse_redis_value(reply.as_bytes()).expect("a value");
            assert_eq!((field(&details, "config-epoch").as_deref(), field(&details, "b")), (Some("7"), None));
        }
    }
}
