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
use super::connect::{Connector, is_command_denied, single_line};
use super::slot_map::{Primary, SlotMap, is_plain_host, text_of};
use super::timed_throttle::TimedThrottle;
use super::topology::{Finding, MAX_SILENCE, Topology};
use super::wire::Wire;
use crate::upstream::UpstreamAddress;
use log::Level;
use redis::{ErrorKind, PushKind, RedisError, RedisResult, Value};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Channel on which sentinels announce a new primary.
const CHANNEL: &str = "+switch-master";

/// Longest wait for one answer, and until a lost connection is opened again.
const MAX_SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);

/// Answer of one sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) address: UpstreamAddress,
    /// Configuration epoch of the primary, as the sentinel knows it.
    epoch: u64,
    /// Time for which the primary may be silent before a failover (`down-after-milliseconds`).
    pub(super) down_after: Option<Duration>,
    received_at: Instant,
}

/// State of one sentinel.
#[derive(Clone, Debug, Default)]
struct SentinelState {
    /// Its last answer.
    report: Option<Report>,
    /// Its problem since then, and the time at which it began.
    problem: Option<(String, Instant)>,
}

impl SentinelState {
    /// Returns the last answer if it counts. That of a sentinel that was lost a moment ago does: it
    /// may be the only one that knew of a failover.
    fn recent_report(&self) -> Option<&Report> {
        let is_lost = self.problem.as_ref().is_some_and(|(_, since)| since.elapsed() >= MAX_SILENCE);
        self.report.as_ref().filter(|_| !is_lost)
    }
}

/// Answers of all sentinels.
struct Reports {
    of_sentinels: Mutex<Vec<SentinelState>>,
    /// Signals an answer or a problem.
    recorded: Condvar,
    /// True once the threads must end.
    is_closed: AtomicBool,
    topology: Arc<Topology>,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Vec<SentinelState>> {
        self.of_sentinels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an answer. Another primary than before makes the topology thread look at once.
    /// Returns true if the sentinel had a problem before.
    fn record(&self, number: usize, report: Report) -> bool {
        let state = &mut self.lock()[number];
        let previous = state.report.replace(report.clone());
        let had_problem = state.problem.take().is_some();
        self.recorded.notify_all();
        if previous.is_none_or(|previous| previous.address != report.address) {
            self.topology.request();
        }
        had_problem
    }

    /// Records a problem. Returns true if the sentinel had none before.
    fn record_problem(&self, number: usize, problem: String) -> bool {
        let state = &mut self.lock()[number];
        let since = state.problem.as_ref().map(|(_, since)| *since);
        state.problem = Some((problem, since.unwrap_or_else(Instant::now)));
        self.recorded.notify_all();
        self.topology.request();
        since.is_none()
    }
}

/// Source of the map of one primary.
pub(super) struct SentinelSource {
    reports: Arc<Reports>,
    /// Primary that was found last.
    present: Option<UpstreamAddress>,
    /// Throttle for the log lines about sentinels that disagree.
    disagreement_log: TimedThrottle,
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
        let of_sentinels = Mutex::new(vec![SentinelState::default(); sentinels.len()]);
        let (recorded, is_closed) = (Condvar::new(), AtomicBool::new(false));
        let reports = Arc::new(Reports { of_sentinels, recorded, is_closed, topology });
        // Ends the threads that have started if another one cannot.
        let source =
            SentinelSource { reports: Arc::clone(&reports), present: None, disagreement_log: TimedThrottle::default() };
        for (number, address) in sentinels.iter().enumerate() {
            let mut watch = SentinelWatch::new(settings, master, (number, address), Arc::clone(&reports));
            std::thread::Builder::new().name("redis-sentinel".into()).spawn(move || watch.run())?;
        }
        Ok(source)
    }

    /// Returns the primary of the answer with the highest epoch. At start waits for the first
    /// answer, or for the problems of all sentinels.
    pub(super) fn find(&mut self) -> Finding {
        let is_pending = |states: &mut Vec<SentinelState>| {
            states.iter().all(|state| state.report.is_none()) && states.iter().any(|state| state.problem.is_none())
        };
        let waited = self.reports.recorded.wait_timeout_while(self.reports.lock(), MAX_SENTINEL_TIMEOUT, is_pending);
        let states = waited.unwrap_or_else(PoisonError::into_inner).0.clone();
        let named = newest_primaries(&states);
        // Of equal epochs the present primary, so that sentinels that disagree cause no series of
        // failovers.
        let present = self.present.take().filter(|present| named.contains(&present));
        let found = present.or_else(|| named.first().map(|address| (*address).clone()));
        if named.len() > 1 && self.disagreement_log.admit().is_some() {
            log::warn!(
                "the sentinels name different primaries in the same epoch, the proxy reads {}: check that all of them \
                 monitor the same Redis",
                found.iter().map(UpstreamAddress::to_string).collect::<String>()
            );
        }
        self.present.clone_from(&found);
        let map = found.map(|address| SlotMap::of_one(Primary { address, id: None }));
        Finding { map, problem: problem_of(&states), is_down: false }
    }
}

/// Returns the primaries in the recent answers with the highest epoch, the latest answer first.
fn newest_primaries(states: &[SentinelState]) -> Vec<&UpstreamAddress> {
    let recent = || states.iter().filter_map(SentinelState::recent_report);
    let highest = recent().map(|report| report.epoch).max();
    let mut newest: Vec<&Report> = recent().filter(|report| Some(report.epoch) == highest).collect();
    newest.sort_by_key(|report| std::cmp::Reverse(report.received_at));
    let mut addresses: Vec<&UpstreamAddress> = Vec::new();
    for report in newest {
        if !addresses.contains(&&report.address) {
            addresses.push(&report.address);
        }
    }
    addresses
}

/// Returns why a failover might go unnoticed: no sentinel answers. One is enough.
fn problem_of(states: &[SentinelState]) -> Option<String> {
    let answers = |state: &SentinelState| state.report.is_some() && state.problem.is_none();
    if states.iter().any(answers) {
        return None;
    }
    let problem = states.iter().find_map(|state| state.problem.as_ref());
    Some(problem.map_or_else(|| "no sentinel has answered yet".to_owned(), |(problem, _)| problem.clone()))
}

/// State of the thread of one sentinel.
struct SentinelWatch {
    connector: Connector,
    master: String,
    interval: Duration,
    number: usize,
    reports: Arc<Reports>,
    /// Throttle for the log lines about a lost connection.
    problem_log: TimedThrottle,
}

impl SentinelWatch {
    fn new(
        settings: &BackendConfig,
        master: &str,
        (number, address): (usize, &UpstreamAddress),
        reports: Arc<Reports>,
    ) -> SentinelWatch {
        let settings = BackendConfig { timeout: settings.timeout.min(MAX_SENTINEL_TIMEOUT), ..settings.clone() };
        // A sentinel that hangs must not count for longer than a lost one.
        let interval = settings.access.topology_interval().min(MAX_SILENCE);
        let connector = Connector::to_sentinel(&settings, address);
        SentinelWatch {
            connector,
            master: master.to_owned(),
            interval,
            number,
            reports,
            problem_log: TimedThrottle::default(),
        }
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
                Ok(Err(error)) => describe_problem(&self.connector, &error),
                Err(_) => "the thread panicked; please report the panic logged before this line".into(),
            };
            let problem = format!("sentinel {}: {problem}", self.connector.target());
            let is_new = self.reports.record_problem(self.number, problem.clone());
            log::log!(if is_new { self.problem_log.level(Level::Warn) } else { Level::Debug }, "{problem}");
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
    let ((mut address, _), (mut details, has_announcement)) = (receive_reply(wire)?, receive_reply(wire)?);
    if has_announcement {
        // It may be newer than the address.
        wire.send(&packed)?;
        ((address, _), (details, _)) = (receive_reply(wire)?, receive_reply(wire)?);
    }
    let address = match address.extract_error()? {
        Value::Array(parts) => address_of(&parts),
        Value::Nil => return Err(unknown_master(master)),
        _ => None,
    };
    let address = address.ok_or_else(|| io::Error::other("the sentinel names the primary in an unknown form"))?;
    let details = details.extract_error().unwrap_or(Value::Nil);
    let number = |name| field(&details, name).and_then(|number| number.parse().ok());
    let (epoch, down_after) = (number("config-epoch").unwrap_or(0), number("down-after-milliseconds"));
    Ok(Report { address, epoch, down_after: down_after.map(Duration::from_millis), received_at: Instant::now() })
}

/// Returns the text of an error. Sentinels have credentials of their own.
fn describe_problem(connector: &Connector, error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("NOAUTH") {
        let text = single_line(error);
        return format!("{text}; set REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD to those of the sentinels");
    }
    if is_command_denied(error) && error.code() != Some("NOPERM") {
        return format!("{}; name sentinels in REDIS_URL, not servers of Redis", single_line(error));
    }
    connector.describe(error)
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
    let (host, port) = (text_of(host).filter(|host| is_plain_host(host))?, text_of(port)?.parse().ok()?);
    Some(UpstreamAddress::Tcp(host.to_owned(), port))
}

/// Returns a field of a map, or of a list of names and values (RESP2).
fn field<'a>(details: &'a Value, name: &str) -> Option<&'a str> {
    let is_name = |key: &Value| text_of(key) == Some(name);
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
pub(super) type SentinelAnswer = (UpstreamAddress, Result<Report, String>);

/// Asks each configured sentinel once for the primary, for a check of the configuration. The answer
/// with the highest epoch comes first.
pub(super) fn ask_each(settings: &BackendConfig, master: &str) -> Vec<SentinelAnswer> {
    let ask = |address: &UpstreamAddress| {
        let mut connector = Connector::to_sentinel(settings, address);
        let answer = connector.connect(Ok).and_then(|mut wire| request_primary(&mut wire, master));
        let epoch = answer.as_ref().map_or(0, |report| report.epoch);
        let answer = answer.map_err(|error| describe_problem(&connector, &error));
        (epoch, (address.clone(), answer))
    };
    let mut answers: Vec<(u64, SentinelAnswer)> = settings.access.addresses().iter().map(ask).collect();
    answers.sort_by_key(|(epoch, _)| std::cmp::Reverse(*epoch));
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the state of a sentinel with its last answer, and the time since which it is lost.
    fn state(port: u16, epoch: u64, lost_for: Option<Duration>) -> SentinelState {
        let since = |age| Instant::now().checked_sub(age).expect("a machine that runs for a minute");
        let address = UpstreamAddress::Tcp("h".into(), port);
        SentinelState {
            report: Some(Report { address, epoch, down_after: None, received_at: Instant::now() }),
            problem: lost_for.map(|age| ("gone".to_owned(), since(age))),
        }
    }

    fn ports(states: &[SentinelState]) -> Vec<String> {
        newest_primaries(states).into_iter().map(UpstreamAddress::to_string).collect()
    }

    /// The highest epoch wins, also if its sentinel was lost a moment ago. Of equal epochs, all
    /// primaries are candidates.
    #[test]
    fn highest_epoch_names_primary() {
        let (now, lost) = (Some(MAX_SILENCE / 2), Some(MAX_SILENCE * 2));
        assert_eq!(ports(&[state(1, 6, None), state(2, 7, None), state(1, 6, None)]), ["h:2"]);
        assert_eq!(ports(&[state(1, 6, None), state(2, 7, now)]), ["h:2"]);
        assert_eq!(ports(&[state(1, 6, None), state(2, 7, lost)]), ["h:1"]);
        assert_eq!(ports(&[state(1, 6, None), state(2, 6, None), state(1, 6, None)]), ["h:1", "h:2"]);
        assert_eq!(ports(&[state(2, 7, lost), SentinelState::default()]), [""; 0]);
    }

    /// One sentinel that answers is enough. A lost one has a problem, however new its answer is.
    #[test]
    fn one_sentinel_is_enough() {
        let lost = Some(Duration::ZERO);
        assert_eq!(problem_of(&[state(1, 6, lost), state(1, 6, None)]), None);
        assert_eq!(problem_of(&[SentinelState::default(), state(1, 6, lost)]).as_deref(), Some("gone"));
        assert_eq!(problem_of(&[SentinelState::default()]).as_deref(), Some("no sentinel has answered yet"));
    }

    /// Details are a map in RESP3, and a list in RESP2.
    #[test]
    fn details_have_fields() {
        for reply in [
            "%1\r\n$12\r\nconfig-epoch\r\n$1\r\n7\r\n",
            "*4\r\n$1\r\na\r\n$1\r\nb\r\n$12\r\nconfig-epoch\r\n$1\r\n7\r\n",
        ] {
            let details = redis::parse_redis_value(reply.as_bytes()).expect("a value");
            assert_eq!((field(&details, "config-epoch"), field(&details, "b")), (Some("7"), None));
        }
    }
}
