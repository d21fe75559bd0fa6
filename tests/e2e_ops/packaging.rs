//! Tests of the files for operators with the tools that read them: the systemd unit with
//! systemd-analyze, the logrotate configuration with logrotate.

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

/// Paths of the program and its logs in the unit and the logrotate configuration.
const INSTALLED: &str = "/usr/bin/segment-redis-proxy";
const LOGS: &str = "/var/log/segment-redis-proxy/";

/// Limit of systemd's exposure score for the unit, in tenths; 100 means no protection.
///
/// The score is 11, nearly all of it for network access. The margin is for checks of later versions
/// of systemd. Without any one of the lines that matter the score exceeds the limit.
const MAX_EXPOSURE: u32 = 14;

/// Seconds that a shutdown may take beyond SHUTDOWN_GRACE: `main.rs` flushes two logs, and the
/// machine may be busy.
const SHUTDOWN_MARGIN_SECONDS: f64 = 3.0;

/// Shell script that executes the command in its arguments. In the background it copies the line
/// "listening on" from the log file to standard error, where the test expects it.
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

fn read_repository_file(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a file of the repository")
}

/// Directory of one test, removed when dropped. Only its owner may write to it: logrotate checks
/// that.
struct TempDir(PathBuf);

impl TempDir {
    fn create(name: &str) -> TempDir {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a new name");
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("a file of this test");
        TempDir(path)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a writable directory");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a file of this test");
        path
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a name in UTF-8")
    }

    /// Returns its files that start with a prefix.
    fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let entries =
            std::fs::read_dir(&self.0).expect("a directory").map(|entry| entry.expect("a directory entry").path());
        entries.filter(|path| file_name(path).starts_with(prefix)).collect()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8")
}

/// Returns PATH with `first` at its start and the directories of administration tools at its end.
fn search_path(first: &str) -> OsString {
    let mut path = OsString::from(format!("{first}:"));
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    path
}

/// Runs a command to its end. Returns true as the first part if it succeeded, and all its output.
fn run(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program is installed");
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Starts the proxy with a log file and access log, through a command that runs it.
fn start_logging_to(log: &Path, redis: &Redis, command: &[&str], variables: &[(&str, &str)]) -> Proxy {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(LOG_TO_FILE).arg("sh").args(command);
    let log = log.to_str().expect("a name in UTF-8");
    Proxy::start_command(shell, redis.port, &[variables, &[("LOG_FILE", log), ("ACCESS_LOG", "on")]].concat())
}

// ---- Rotation ----

/// Proxy with a log file that logrotate rotates by the configuration in the repository.
struct Rotation {
    dir: TempDir,
    log: PathBuf,
    proxy: Proxy,
}

impl Rotation {
    fn start(redis: &Redis) -> Rotation {
        let dir = TempDir::create("rotation");
        let log = dir.0.join("proxy.log");
        let proxy = start_logging_to(&log, redis, &[PROXY], &[]);
        let configuration = read_repository_file("deploy/logrotate/segment-redis-proxy");
        assert!(configuration.contains(LOGS), "the configuration is for other logs");
        let local = configuration.replace(LOGS, &format!("{}/", dir.path()));
        dir.write("logrotate.conf", &local, 0o600);
        // This systemctl supports only what the configuration may use: whether the unit is active,
        // and its reload.
        let systemctl = format!(
            "#!/bin/sh\ncase \"$*\" in\n'--quiet is-active segment-redis-proxy.service') ;;\n\
             'reload segment-redis-proxy.service') kill -HUP {} ;;\n*) exit 1 ;;\nesac\n",
            proxy.pid()
        );
        dir.write("systemctl", &systemctl, 0o700);
        Rotation { dir, log, proxy }
    }

    /// Runs logrotate once the log has lines. Returns like [`run`].
    fn logrotate(&self) -> (bool, String) {
        let has_lines = || std::fs::metadata(&self.log).is_ok_and(|metadata| metadata.len() > 0);
        wait_for("the log has lines", || has_lines().then_some(()));
        let dir = self.dir.path();
        let (state, configuration) = (format!("{dir}/state"), format!("{dir}/logrotate.conf"));
        let mut command = Command::new("logrotate");
        run(command.env("PATH", search_path(dir)).args(["--force", "--state", &state, &configuration]))
    }

    /// Rotates the log and waits until the proxy writes to the new file only.
    fn rotate(&self) {
        let (is_success, output) = self.logrotate();
        assert!(is_success && output.is_empty(), "logrotate: {output}");
        wait_for("only the new log is open", || (self.open_files() == [self.log.clone()]).then_some(()));
    }

    /// Returns the files in the directory that the proxy has open. The kernel adds a suffix to the
    /// name of a removed file.
    fn open_files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.proxy.pid())).expect("a running proxy");
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(&self.dir.0)).collect()
    }

    /// Returns the lines of all logs, with the compressed ones. Each log ends with a whole line.
    fn read_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for path in self.dir.files("proxy.log") {
            let reader = if path.extension().is_some_and(|extension| extension == "gz") { "zcat" } else { "cat" };
            let (is_success, text) = run(Command::new(reader).arg(&path));
            assert!(is_success, "{text}");
            assert!(text.is_empty() || text.ends_with('\n'), "{} ends with a partial line", path.display());
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    }
}

/// Returns the path in a line of the access log, or `None` for a partial line.
fn parse_path(line: &str) -> Option<&str> {
    let (client, rest) = line.strip_suffix(|last: char| last.is_ascii_digit())?.split_once(" - - [")?;
    let (_, rest) = rest.split_once("] \"GET ")?;
    let (path, rest) = rest.split_once(" HTTP/1.1\" 404 ")?;
    (client == "127.0.0.1" && rest.split(' ').count() == 3).then_some(path)
}

/// Requests one unique key after another until `stop` is set, and returns their paths.
fn request_until(stop: &AtomicBool, proxy: std::net::SocketAddr, number: usize) -> Vec<String> {
    let mut client = crate::common::HttpClient::connect(proxy);
    let paths = (0..).map(|count| format!("/key/{number}-{count}")).take_while(|_| !stop.load(Ordering::Relaxed));
    paths.inspect(|path| assert_eq!(client.get(path).status, 404)).collect()
}

/// Rotation under load loses and splits no line, and 14 old logs are kept.
#[test]
fn rotation_under_load_keeps_every_line() {
    // So few that no log is removed before its lines are counted.
    const COUNTED_ROTATIONS: usize = 12;
    const ALL_ROTATIONS: usize = 17;
    const CLIENTS: usize = 4;
    let redis = Redis::start();
    let rotation = Rotation::start(&redis);
    let stop = Arc::new(AtomicBool::new(false));
    let address = rotation.proxy.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| (number, Arc::clone(&stop)))
        .map(|(number, stop)| std::thread::spawn(move || request_until(&stop, address, number)))
        .collect();
    (0..COUNTED_ROTATIONS).for_each(|_| rotation.rotate());
    stop.store(true, Ordering::Relaxed);
    let requested: Vec<String> =
        clients.into_iter().flat_map(|client| client.join().expect("a response to each request")).collect();
    // Events start with a bracket. The unit tests of `log_writer.rs` cover them.
    let read_access_lines =
        || rotation.read_lines().into_iter().filter(|line| !line.starts_with('[')).collect::<Vec<_>>();
    wait_for("as many lines as requests", || (read_access_lines().len() >= requested.len()).then_some(()));
    let lines = read_access_lines();
    let partial: Vec<_> = lines.iter().filter(|line| parse_path(line).is_none()).collect();
    assert!(partial.is_empty(), "partial lines: {partial:#?}");
    assert_eq!(lines.len(), requested.len());
    let (logged, requested): (HashSet<_>, HashSet<_>) =
        (lines.iter().filter_map(|line| parse_path(line)).collect(), requested.iter().map(String::as_str).collect());
    assert_eq!(logged.symmetric_difference(&requested).count(), 0);

    for _ in COUNTED_ROTATIONS..ALL_ROTATIONS {
        assert_eq!(rotation.proxy.get("/key/one-more").status, 404);
        rotation.rotate();
    }
    let kept: BTreeSet<String> =
        rotation.dir.files("proxy.log").iter().map(|path| file_name(path).to_owned()).collect();
    let compressed = (2..=14).map(|number| format!("proxy.log.{number}.gz"));
    assert_eq!(kept, ["proxy.log".to_owned(), "proxy.log.1".to_owned()].into_iter().chain(compressed).collect());

    // logrotate reports that no unit received SIGHUP: the proxy would write to the renamed file for
    // ever.
    assert_eq!(rotation.proxy.get("/key/one-more").status, 404);
    for (systemctl, is_expected) in [
        // An inactive unit; an unknown unit; no systemd.
        ("#!/bin/sh\n[ \"$1\" = cat ] || exit 3\n", true),
        ("#!/bin/sh\n[ \"$1\" = cat ] && exit 1\nexit 4\n", false),
        ("#!/bin/sh\nexit 1\n", false),
    ] {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(&rotation.log);
        log.expect("a file of this test").write_all(b"a line\n").expect("space on the disk");
        rotation.dir.write("systemctl", systemctl, 0o700);
        let (is_success, output) = rotation.logrotate();
        let has_advice = output.contains("have postrotate send it SIGHUP");
        assert_eq!((is_success, has_advice), (is_expected, !is_expected), "{output}");
    }
}

// ---- Unit ----

/// Returns the values of a name in the lines `name=value` or `name: value` of a file.
fn values_of<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix(['=', ':'])).map(str::trim).collect()
}

/// Runs systemd-analyze and returns like [`run`].
fn systemd_analyze(arguments: &[&str]) -> (bool, String) {
    run(Command::new("systemd-analyze").env("PATH", search_path("/usr/bin")).arg("--no-pager").args(arguments))
}

/// systemd accepts the unit and rates it as safe.
#[test]
fn unit_is_valid_and_safe() {
    let dir = TempDir::create("unit");
    let unit = read_repository_file("deploy/systemd/segment-redis-proxy.service");
    assert!(unit.contains(&format!("ExecStart={INSTALLED}\n")));
    let path = dir.write("segment-redis-proxy.service", &unit.replace(INSTALLED, PROXY), 0o644);
    let path = path.to_str().expect("a name in UTF-8");
    let (is_success, output) = systemd_analyze(&["verify", "--recursive-errors=no", path]);
    // The output may have lines about other units of this machine.
    let complaints: Vec<_> = output.lines().filter(|line| line.contains("segment-redis-proxy")).collect();
    assert!(is_success && complaints.is_empty(), "{output}");
    let threshold = format!("--threshold={MAX_EXPOSURE}");
    let (is_success, output) = systemd_analyze(&["security", "--offline=true", &threshold, path]);
    assert!(is_success && output.contains("Overall exposure level"), "{output}");
}

/// Unit, compose file and logrotate configuration agree with the defaults of the program.
#[test]
fn operator_files_match_program() {
    let (unit, compose) = (
        read_repository_file("deploy/systemd/segment-redis-proxy.service"),
        read_repository_file("docker-compose.yml"),
    );
    let grace = segment_redis_proxy::config::VARIABLES.iter().find(|variable| variable.name == "SHUTDOWN_GRACE");
    let grace: f64 = grace.expect("a variable").default.parse().expect("seconds");
    let seconds = |text: &str| text.trim_end_matches('s').parse::<f64>().expect("seconds");
    for (limits, text) in
        [(values_of(&unit, "TimeoutStopSec"), &unit), (values_of(&compose, "stop_grace_period"), &compose)]
    {
        assert_eq!(limits.len(), 1, "one limit is expected in {text}");
        assert!(
            seconds(limits[0]) >= grace + SHUTDOWN_MARGIN_SECONDS,
            "{limits:?} ends a shutdown that takes {grace} s"
        );
    }
    let folders = values_of(&unit, "LogsDirectory");
    assert_eq!(folders.iter().map(|folder| format!("/var/log/{folder}/")).collect::<Vec<_>>(), [LOGS]);
    assert!(
        unit.contains(&format!("LOG_FILE={LOGS}proxy.log")),
        "the unit recommends a log that logrotate does not rotate"
    );
    // The program has the variables of the unit, and accepts their values.
    let set: Vec<_> = values_of(&unit, "Environment")
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|pair| pair.split_once('=').expect("a name and a value"))
        .collect();
    let known = |name: &str| segment_redis_proxy::config::VARIABLES.iter().any(|variable| variable.name == name);
    assert!(!set.is_empty() && set.iter().all(|(name, _)| known(name)), "{set:?}");
    let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    assert!(segment_redis_proxy::config::Config::read(find).is_ok(), "{set:?}");
}

/// The file of settings sets what the unit sets, and mentions only variables of the program, with
/// valid values.
#[test]
fn default_file_matches_unit() {
    let unit = read_repository_file("deploy/systemd/segment-redis-proxy.service");
    let settings = read_repository_file("deploy/debian/segment-redis-proxy.default");
    let in_unit: BTreeSet<_> = values_of(&unit, "Environment").into_iter().flat_map(str::split_whitespace).collect();
    let (mentioned, set): (Vec<_>, Vec<_>) = settings
        .lines()
        .filter(|line| line.contains('=') && !line.contains(' '))
        .partition(|line| line.starts_with('#'));
    assert_eq!(set.iter().copied().collect::<BTreeSet<_>>(), in_unit);
    let known = |name: &str| segment_redis_proxy::config::VARIABLES.iter().any(|variable| variable.name == name);
    for line in mentioned.iter().chain(&set) {
        let (name, _) = line.trim_start_matches('#').split_once('=').expect("a name and a value");
        assert!(known(name), "{name} is no variable");
    }
    let example = |name: &str| {
        let value = mentioned.iter().find_map(|line| line.strip_prefix('#')?.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty()).map(Into::into)
    };
    if let Err(error) = segment_redis_proxy::config::Config::read(example) {
        panic!("an example in the file is invalid: {error}");
    }
    assert!(settings.contains(&format!("LOG_FILE={LOGS}")), "the file recommends a log that logrotate does not rotate");
}

/// Returns the system calls in one of systemd's sets, or the single one with this name.
fn members_of(set: &str) -> Vec<String> {
    if !set.starts_with('@') {
        return vec![set.to_owned()];
    }
    let (is_success, output) = systemd_analyze(&["syscall-filter", set]);
    assert!(is_success, "{output}");
    let lines =
        output.lines().filter(|line| line.starts_with(' ')).map(str::trim).filter(|line| !line.starts_with('#'));
    lines.flat_map(members_of).collect()
}

/// Returns the system calls that the unit allows. Each line of its filter adds calls or removes
/// some.
fn allowed_calls(unit: &str) -> HashSet<String> {
    // systemd adds this set to every filter.
    let mut allowed: HashSet<String> = members_of("@default").into_iter().collect();
    for line in values_of(unit, "SystemCallFilter") {
        let removed = line.strip_prefix('~');
        for name in removed.unwrap_or(line).split_whitespace().flat_map(members_of) {
            if removed.is_some() {
                allowed.remove(&name)
            } else {
                allowed.insert(name)
            };
        }
    }
    allowed
}

/// The unit allows every system call that the program uses.
#[test]
fn unit_allows_every_system_call() {
    let redis = Redis::start();
    redis.set("a", "1");
    let dir = TempDir::create("calls");
    let (log, summary) = (dir.0.join("proxy.log"), dir.0.join("calls"));
    let strace = strace::wrap_command(PROXY, &summary);
    let variables = [("REDIS_HOST", "localhost"), ("REDIS_TRACKING", "on"), ("WORKERS", "2"), ("SHARE_PORT", "on")];
    let proxy = start_logging_to(&log, &redis, &strace, &variables);
    wait_for("a value", || (proxy.get("/key/a").status == 200).then_some(()));
    for path in ["/", "/metrics", "/stats", "/healthz"] {
        assert_eq!(proxy.get(path).status, 200, "{path}");
    }
    // Each worker has its own connections.
    wait_for("the proxy is ready", || (proxy.get("/readyz").status == 200).then_some(()));
    std::fs::rename(&log, dir.0.join("old")).expect("a file of this test");
    assert!(run(Command::new("sh").arg("-c").arg(format!("kill -HUP {}", proxy.pid()))).0);
    wait_for("a new log", || log.exists().then_some(()));
    assert_eq!(proxy.stop("TERM"), Some(0));
    let called = strace::read_counts(&summary);
    // `prlimit64` occurs because the script lowers the limit of open files, which the proxy raises.
    assert!(
        ["epoll_wait", "prlimit64"].iter().all(|&name| called.contains_key(name)),
        "strace did not count all calls: {called:?}"
    );
    let allowed = allowed_calls(&read_repository_file("deploy/systemd/segment-redis-proxy.service"));
    let refused: Vec<_> = called.keys().filter(|&name| !allowed.contains(name)).collect();
    assert!(refused.is_empty(), "refused: {refused:?}");
}

/// The Dockerfile creates an empty file for every benchmark.
///
/// Cargo refuses a manifest with missing benchmarks, and the image is built without their sources.
#[test]
fn dockerfile_has_every_benchmark() {
    let dockerfile = read_repository_file("Dockerfile");
    let benches = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/benches")).expect("benchmarks");
    let names =
        benches.map(|entry| entry.expect("a directory entry").file_name().into_string().expect("a name in UTF-8"));
    for name in names.filter(|name| name.ends_with(".rs")) {
        assert!(dockerfile.contains(&format!(" benches/{name} ")), "no stand-in for {name}");
    }
}
