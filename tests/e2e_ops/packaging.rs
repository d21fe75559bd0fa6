//! What operators are given beside the program, with the tools that read it: the unit with systemd-analyze, the rotation of logs
//! with logrotate itself.

use crate::common::{Proxy, Redis, strace, wait_for};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const PROXY: &str = env!("CARGO_BIN_EXE_segment-redis-proxy");

/// Where the unit and the rotation expect things.
const INSTALLED: &str = "/usr/local/bin/segment-redis-proxy";
const LOGS: &str = "/var/log/segment-redis-proxy/";

/// Tenths of systemd's score for the unit, of 100 for no protection at all. Today it is 11, nearly all for having a network; the rest
/// is for what later versions of systemd may look at. Without any of the lines that matter it is more.
const MAX_EXPOSURE: u32 = 14;

/// Seconds that stopping may take beside SHUTDOWN_GRACE: the last lines of two logs (main.rs), and a machine that is busy.
const MORE_THAN_GRACE: f64 = 3.0;

/// Starts a proxy that logs to a file, tells on standard error when it listens, as if it logged there, and becomes the command.
const LOG_TO_FILE: &str = r#"
    ulimit -Sn 1024
    (
        tries=0
        until grep 'listening on' "$LOG_FILE" >&2; do
            tries=$((tries + 1))
            [ $tries -lt 600 ] || exit 1
            sleep 0.1
        done
    ) 2>&2 &
    exec "$@"
"#;

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a file of the repository")
}

/// A folder of the test's own. Only its owner may write to it: logrotate looks.
struct Folder(PathBuf);

impl Folder {
    fn make(name: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("nobody has it");
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("it is ours");
        Folder(path)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("it can be written");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
        path
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a plain name")
    }

    /// Its files whose names begin so.
    fn files(&self, beginning: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).expect("it is there").map(|entry| entry.expect("an entry").path());
        entries.filter(|path| name(path).starts_with(beginning)).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a plain name")
}

/// PATH with the programs of administrators, and with a folder before all others.
fn search_path(first: &str) -> OsString {
    let mut path = OsString::from(format!("{first}:"));
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    path
}

/// Runs to its end. Says whether it went well, and all that it printed.
fn run(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().expect("it is installed");
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Starts the proxy with a log file, by a command that runs it.
fn start_logging_to(log: &Path, redis: &Redis, command: &[&str], variables: &[(&str, &str)]) -> Proxy {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(LOG_TO_FILE).arg("sh").args(command);
    let log = log.to_str().expect("a plain name");
    Proxy::start_command(shell, redis.port, &[variables, &[("LOG_FILE", log), ("ACCESS_LOG", "on")]].concat())
}

// ---- Rotation ----

/// A proxy whose log the repository's configuration has rotated.
struct Rotation {
    folder: Folder,
    log: PathBuf,
    proxy: Proxy,
}

impl Rotation {
    fn start(redis: &Redis) -> Rotation {
        let folder = Folder::make("rotation");
        let log = folder.0.join("proxy.log");
        let proxy = start_logging_to(&log, redis, &[PROXY], &[]);
        let configuration = file("scripts/logrotate.conf");
        assert!(configuration.contains(LOGS), "it is for the logs elsewhere");
        let here = configuration.replace(LOGS, &format!("{}/", folder.path()));
        folder.write("logrotate.conf", &here, 0o600);
        // It knows only what the configuration may ask of systemd: whether the unit runs, and to reload it.
        let systemctl = format!(
            "#!/bin/sh\ncase \"$*\" in\n'--quiet is-active segment-redis-proxy.service') ;;\n\
             'reload segment-redis-proxy.service') kill -HUP {} ;;\n*) exit 1 ;;\nesac\n",
            proxy.pid()
        );
        folder.write("systemctl", &systemctl, 0o700);
        Rotation { folder, log, proxy }
    }

    /// Rotates once there is something to rotate. Says whether that went well, and what was said.
    fn logrotate(&self) -> (bool, String) {
        let is_begun = || std::fs::metadata(&self.log).is_ok_and(|metadata| metadata.len() > 0);
        wait_for("the log has lines", || is_begun().then_some(()));
        let folder = self.folder.path();
        let (state, configuration) = (format!("{folder}/state"), format!("{folder}/logrotate.conf"));
        let mut command = Command::new("logrotate");
        run(command.env("PATH", search_path(folder)).args(["--force", "--state", &state, &configuration]))
    }

    /// Rotates, and waits until the proxy has gone on to a new file.
    fn rotate(&self) {
        let (went_well, told) = self.logrotate();
        assert!(went_well && told.is_empty(), "logrotate: {told}");
        wait_for("the new log, and no other, is open", || (self.open() == [self.log.clone()]).then_some(()));
    }

    /// The files of the folder that the proxy has open. One that is removed has another name.
    fn open(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.proxy.pid())).expect("it runs");
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(&self.folder.0)).collect()
    }

    /// What is in all logs, the compressed ones too. Each ends with a whole line.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for path in self.folder.files("proxy.log") {
            let reader = if path.extension().is_some_and(|extension| extension == "gz") { "zcat" } else { "cat" };
            let (went_well, text) = run(Command::new(reader).arg(&path));
            assert!(went_well, "{text}");
            assert!(text.is_empty() || text.ends_with('\n'), "{} ends within a line", path.display());
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    }
}

/// The path that a line of the access log tells of; `None` for a line that is not whole.
fn requested(line: &str) -> Option<&str> {
    let (client, rest) = line.strip_suffix(|last: char| last.is_ascii_digit())?.split_once(" - - [")?;
    let (_, rest) = rest.split_once("] \"GET ")?;
    let (path, rest) = rest.split_once(" HTTP/1.1\" 404 ")?;
    (client == "127.0.0.1" && rest.split(' ').count() == 3).then_some(path)
}

/// Asks for one key after another that nobody else asks for, until it is told to end. Says what it has asked for.
fn ask_until(over: &AtomicBool, proxy: std::net::SocketAddr, number: usize) -> Vec<String> {
    let mut client = crate::common::HttpClient::connect(proxy);
    let paths = (0..).map(|count| format!("/key/{number}-{count}")).take_while(|_| !over.load(Ordering::Relaxed));
    paths.inspect(|path| assert_eq!(client.get(path).status, 404)).collect()
}

#[test]
fn rotating_the_log_under_load_loses_and_tears_no_line_and_keeps_fourteen() {
    // So that none is thrown away before all lines are counted, and then some are.
    const COUNTED: usize = 12;
    const ALL: usize = 17;
    const CLIENTS: usize = 4;
    let redis = Redis::start();
    let rotation = Rotation::start(&redis);
    let over = Arc::new(AtomicBool::new(false));
    let address = rotation.proxy.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| (number, Arc::clone(&over)))
        .map(|(number, over)| std::thread::spawn(move || ask_until(&over, address, number)))
        .collect();
    (0..COUNTED).for_each(|_| rotation.rotate());
    over.store(true, Ordering::Relaxed);
    let made: Vec<String> = clients.into_iter().flat_map(|client| client.join().expect("all were answered")).collect();
    // Those of events are in brackets; they have a test of their own (journal.rs).
    let logged = || rotation.lines().into_iter().filter(|line| !line.starts_with('[')).collect::<Vec<_>>();
    wait_for("as many lines as requests", || (logged().len() >= made.len()).then_some(()));
    let lines = logged();
    let torn: Vec<_> = lines.iter().filter(|line| requested(line).is_none()).collect();
    assert!(torn.is_empty(), "not whole: {torn:#?}");
    assert_eq!(lines.len(), made.len());
    let (told, made): (HashSet<_>, HashSet<_>) =
        (lines.iter().filter_map(|line| requested(line)).collect(), made.iter().map(String::as_str).collect());
    assert_eq!(told.symmetric_difference(&made).count(), 0);

    for _ in COUNTED..ALL {
        assert_eq!(rotation.proxy.get("/key/one-more").status, 404);
        rotation.rotate();
    }
    let kept: BTreeSet<String> = rotation.folder.files("proxy.log").iter().map(|path| name(path).to_owned()).collect();
    let compressed = (2..=14).map(|number| format!("proxy.log.{number}.gz"));
    assert_eq!(kept, ["proxy.log".to_owned(), "proxy.log.1".to_owned()].into_iter().chain(compressed).collect());

    // Whoever asks nobody to open the log anew is told so: it would be written to for ever under its old name.
    assert_eq!(rotation.proxy.get("/key/one-more").status, 404);
    for (systemctl, is_right) in [
        // A unit that does not run; one that nobody knows; no systemd at all.
        ("#!/bin/sh\n[ \"$1\" = cat ] || exit 3\n", true),
        ("#!/bin/sh\n[ \"$1\" = cat ] && exit 1\nexit 4\n", false),
        ("#!/bin/sh\nexit 1\n", false),
    ] {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(&rotation.log);
        log.expect("it is ours").write_all(b"a line\n").expect("there is room");
        rotation.folder.write("systemctl", systemctl, 0o700);
        let (went_well, told) = rotation.logrotate();
        assert_eq!((went_well, told.contains("have postrotate send it SIGHUP")), (is_right, !is_right), "{told}");
    }
}

// ---- The unit ----

/// The values that a file gives to a name, in its lines `name=value`.
fn values<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix(['=', ':'])).map(str::trim).collect()
}

fn systemd_analyze(arguments: &[&str]) -> (bool, String) {
    run(Command::new("systemd-analyze").env("PATH", search_path("/usr/bin")).arg("--no-pager").args(arguments))
}

#[test]
fn systemd_understands_the_unit_and_calls_it_safe() {
    let folder = Folder::make("unit");
    let unit = file("scripts/segment-redis-proxy.service");
    assert!(unit.contains(&format!("ExecStart={INSTALLED}\n")));
    let path = folder.write("segment-redis-proxy.service", &unit.replace(INSTALLED, PROXY), 0o644);
    let path = path.to_str().expect("a plain name");
    let (went_well, told) = systemd_analyze(&["verify", "--recursive-errors=no", path]);
    // Other units of the machine, which it looks at too, are none of our business.
    let about_us: Vec<_> = told.lines().filter(|line| line.contains("segment-redis-proxy")).collect();
    assert!(went_well && about_us.is_empty(), "{told}");
    let threshold = format!("--threshold={MAX_EXPOSURE}");
    let (went_well, told) = systemd_analyze(&["security", "--offline=true", &threshold, path]);
    assert!(went_well && told.contains("Overall exposure level"), "{told}");
}

#[test]
fn systemd_docker_and_logrotate_are_told_the_same_as_the_program() {
    let (unit, compose) = (file("scripts/segment-redis-proxy.service"), file("docker-compose.yml"));
    let grace = segment_redis_proxy::config::VARIABLES.iter().find(|variable| variable.name == "SHUTDOWN_GRACE");
    let grace: f64 = grace.expect("a variable").default.parse().expect("seconds");
    let seconds = |text: &str| text.trim_end_matches('s').parse::<f64>().expect("seconds");
    for (limits, text) in [(values(&unit, "TimeoutStopSec"), &unit), (values(&compose, "stop_grace_period"), &compose)]
    {
        assert_eq!(limits.len(), 1, "one limit is expected in {text}");
        assert!(seconds(limits[0]) >= grace + MORE_THAN_GRACE, "{limits:?} cuts off who stops for {grace} s");
    }
    let folders = values(&unit, "LogsDirectory");
    assert_eq!(folders.iter().map(|folder| format!("/var/log/{folder}/")).collect::<Vec<_>>(), [LOGS]);
    assert!(unit.contains(&format!("LOG_FILE={LOGS}proxy.log")), "another log is recommended than is rotated");
    // What the unit sets is known to the program, and allowed.
    let set: Vec<_> = values(&unit, "Environment")
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|pair| pair.split_once('=').expect("a name and a value"))
        .collect();
    let known = |name: &str| segment_redis_proxy::config::VARIABLES.iter().any(|variable| variable.name == name);
    assert!(!set.is_empty() && set.iter().all(|(name, _)| known(name)), "{set:?}");
    let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    assert!(segment_redis_proxy::config::Config::read(find).is_ok(), "{set:?}");
}

/// The system calls of one of systemd's sets, or the one that has this name.
fn members(set: &str) -> Vec<String> {
    if !set.starts_with('@') {
        return vec![set.to_owned()];
    }
    let (went_well, told) = systemd_analyze(&["syscall-filter", set]);
    assert!(went_well, "{told}");
    let lines = told.lines().filter(|line| line.starts_with(' ')).map(str::trim).filter(|line| !line.starts_with('#'));
    lines.flat_map(members).collect()
}

/// What the unit lets the program call: the first line says what, each further one takes away or adds.
fn allowed(unit: &str) -> HashSet<String> {
    // What systemd itself adds to whatever is allowed.
    let mut allowed: HashSet<String> = members("@default").into_iter().collect();
    for line in values(unit, "SystemCallFilter") {
        let taken_away = line.strip_prefix('~');
        for name in taken_away.unwrap_or(line).split_whitespace().flat_map(members) {
            if taken_away.is_some() {
                allowed.remove(&name)
            } else {
                allowed.insert(name)
            };
        }
    }
    allowed
}

#[test]
fn the_unit_lets_the_program_call_what_it_calls() {
    let redis = Redis::start();
    redis.set("a", "1");
    let folder = Folder::make("calls");
    let (log, summary) = (folder.0.join("proxy.log"), folder.0.join("calls"));
    let strace = strace::wrap_command(PROXY, &summary);
    let variables = [("REDIS_HOST", "localhost"), ("REDIS_TRACKING", "on"), ("WORKERS", "2"), ("SHARE_PORT", "on")];
    let proxy = start_logging_to(&log, &redis, &strace, &variables);
    wait_for("a value", || (proxy.get("/key/a").status == 200).then_some(()));
    for path in ["/", "/metrics", "/stats", "/healthz"] {
        assert_eq!(proxy.get(path).status, 200, "{path}");
    }
    // Each loop connects for itself.
    wait_for("it is ready", || (proxy.get("/readyz").status == 200).then_some(()));
    std::fs::rename(&log, folder.0.join("old")).expect("it is ours");
    assert!(run(Command::new("sh").arg("-c").arg(format!("kill -HUP {}", proxy.pid()))).0);
    wait_for("a new log", || log.exists().then_some(()));
    assert_eq!(proxy.stop("TERM"), Some(0));
    let called = strace::read_counts(&summary);
    // The limit of open files was low enough to be raised.
    assert!(
        ["epoll_wait", "prlimit64"].iter().all(|&name| called.contains_key(name)),
        "strace has not seen all: {called:?}"
    );
    let allowed = allowed(&file("scripts/segment-redis-proxy.service"));
    let refused: Vec<_> = called.keys().filter(|&name| !allowed.contains(name)).collect();
    assert!(refused.is_empty(), "refused: {refused:?}");
}

/// Cargo takes no manifest whose benchmarks are not there, and the image is built without their sources.
#[test]
fn the_image_has_a_stand_in_for_every_benchmark() {
    let dockerfile = file("Dockerfile");
    let benches = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/benches")).expect("benchmarks");
    let names = benches.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"));
    for name in names.filter(|name| name.ends_with(".rs")) {
        assert!(dockerfile.contains(&format!(" benches/{name} ")), "{name} has none");
    }
}
