//! Tests of the files in `deploy/` and `.github/` that other programs read: Kubernetes, Prometheus,
//! Grafana and GitHub. `deploy.py` checks them, and promtool the rules.
//!
//! Each check is also run on files with a mistake, which it must find.

use crate::common::certificates::Authority;
use crate::common::{Proxy, Redis};
use segment_redis_proxy::config::{Config, VARIABLES};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

const MANIFESTS: [&str; 2] = ["deploy/kubernetes/deployment.yaml", "deploy/kubernetes/sidecar.yaml"];
const ALERTS: &str = "deploy/prometheus/alerts.yml";
const ALERT_TESTS: &str = "deploy/prometheus/alerts-test.yml";
const DASHBOARD: &str = "deploy/grafana/dashboard.json";
const WORKFLOWS: [&str; 2] = [".github/workflows/test.yml", ".github/workflows/release.yml"];

/// Runs a command in the repository. Returns true as the first part if it succeeded, then standard
/// output and standard error.
fn run(command: &mut Command) -> (bool, String, String) {
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("the program is installed");
    let Output { status, stdout, stderr } = output;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.success(), text(stdout), text(stderr))
}

/// Runs `deploy.py` and returns like [`run`].
fn check(arguments: &[&str]) -> (bool, String, String) {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python").join("bin/python");
    assert!(python.exists(), "Python packages are missing: scripts/test.sh installs them");
    run(Command::new(python).arg("tests/e2e_ops/deploy.py").args(arguments))
}

fn promtool(arguments: &[&str]) -> (bool, String, String) {
    run(Command::new("promtool").args(arguments))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the repository")
}

/// File of one test, removed when dropped.
struct TempFile(PathBuf);

impl TempFile {
    fn write(text: &str) -> TempFile {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // The schema checker reads the format from the ending.
        let name = format!("{}-deploy-{number}.yml", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).expect("a writable directory");
        TempFile(path)
    }

    /// Returns a copy of a file in the repository, with all of `good` replaced.
    fn with_mistake(path: &str, good: &str, bad: &str) -> TempFile {
        let text = read(path);
        assert!(text.contains(good), "{path} has no {good}");
        TempFile::write(&text.replace(good, bad))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a name in UTF-8")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns the metrics of a new proxy in a file.
fn read_metrics() -> TempFile {
    let (redis, authority) = (Redis::start(), Authority::create());
    let identity = authority.issue("server", "IP:127.0.0.1");
    // Some metrics exist only with TLS.
    let tls = [("TLS_CERT", identity.certificate.as_str()), ("TLS_KEY", &identity.key), ("TLS_REQUIRED", "off")];
    TempFile::write(&Proxy::start(&redis, &tls).get("/metrics").text())
}

/// Kubernetes accepts the manifests with no unknown field, and the proxy accepts their variables.
#[test]
fn manifests_are_valid_and_safe() {
    for manifest in MANIFESTS {
        let (is_valid, variables, problems) = check(&["manifests", manifest]);
        assert!(is_valid, "{problems}");
        let set: Vec<_> = variables.lines().filter_map(|line| line.split_once('=')).collect();
        assert!(set.len() > 8, "{variables}");
        let unknown: Vec<_> =
            set.iter().filter(|(name, _)| VARIABLES.iter().all(|variable| variable.name != *name)).collect();
        assert!(unknown.is_empty(), "{manifest}: {unknown:?}");
        let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        if let Err(error) = Config::read(find) {
            panic!("{manifest}: {error}");
        }
    }
}

/// A misspelt field or a value that does not fit the others is an error in a manifest.
#[test]
fn manifest_mistake_is_found() {
    for (good, bad, problem) in [
        ("readOnlyRootFilesystem:", "readonlyRootFilesystem:", "readonlyRootFilesystem"),
        ("enableServiceLinks:", "enableServiceLink:", "enableServiceLink"),
        ("periodSeconds:", "periodSecond:", "periodSecond"),
        ("containerPort: 8080", "containerPort: eighty", "eighty"),
        ("drop: [ALL]", "drop: [NET_RAW]", "capabilities"),
        ("memory: 1536Mi", "memory: 1Gi", "cache and clients need"),
        ("terminationGracePeriodSeconds: 20", "terminationGracePeriodSeconds: 15", "preStop and SHUTDOWN_GRACE"),
        ("seconds: 5", "seconds: 0", "without preStop"),
        ("sleep:", "wait:", "wait"),
        ("targetPort: proxy", "targetPort: http", "the Service has no port"),
        ("maxUnavailable: 1", "maxUnavailable: 2", "a drain would end all replicas"),
        ("- port: proxy", "- port: http", "does not allow the port of the proxy"),
        ("- port: 6379", "- port: 6380", "does not allow DNS and Redis"),
        ("podSelector:\n    matchLabels:", "podSelector:\n    matchLabels:\n      other: label", "selects no pod"),
        ("runAsUser: 65534", "runAsUser: 0", "runAsUser"),
        ("runAsUser: 65534", "runAsUser: 65534\n        runAsUser: 65534", "a key occurs twice"),
    ] {
        let file = TempFile::with_mistake(MANIFESTS[0], good, bad);
        let (is_valid, _, problems) = check(&["manifests", file.path()]);
        assert!(!is_valid && problems.contains(problem), "{bad}: {problems}");
    }
}

/// Each alert has a silent and a firing case, and uses metrics that the proxy has.
#[test]
fn alerts_pass_their_tests() {
    let (is_valid, output, problems) = promtool(&["check", "rules", ALERTS]);
    assert!(is_valid, "{output}{problems}");
    let (is_valid, output, problems) = promtool(&["test", "rules", ALERT_TESTS]);
    assert!(is_valid, "{output}{problems}");
    let metrics = read_metrics();
    let (is_valid, _, problems) = check(&["alerts", ALERTS, ALERT_TESTS, metrics.path()]);
    assert!(is_valid, "{problems}");
    for (good, bad, problem) in [
        ("expr: segment_workers_stuck", "expr: segment_worker_stuck", "/metrics has no segment_worker_stuck"),
        ("outcome=\"failed\"", "outcome=\"fail\"", "no sample has segment_requests_total{outcome=\"fail\"}"),
        ("{outcome!=\"other\"}", "", "the total has health checks"),
        ("on (job, instance)", "on (job, host)", "no metric of the query has the label host"),
        ("- alert: SegmentRestarts", "- alert: SegmentRestarted", "SegmentRestarted: needs a silent and a firing case"),
    ] {
        let file = TempFile::with_mistake(ALERTS, good, bad);
        let (is_valid, _, problems) = check(&["alerts", file.path(), ALERT_TESTS, metrics.path()]);
        assert!(!is_valid && problems.contains(problem), "{bad}: {problems}");
    }
}

/// Each query of the dashboard parses and uses metrics and labels that the proxy has.
#[test]
fn dashboard_queries_match_metrics() {
    let metrics = read_metrics();
    let (is_valid, rules, problems) = check(&["dashboard", DASHBOARD, metrics.path()]);
    assert!(is_valid, "{problems}");
    let rules = TempFile::write(&rules);
    let (is_valid, output, problems) = promtool(&["check", "rules", rules.path()]);
    assert!(is_valid && output.contains(" rules found"), "{output}{problems}");
    for (good, bad, problem) in [
        ("segment_evictions_total{", "segment_evicted_total{", "/metrics has no segment_evicted_total"),
        ("result=\\\"failed\\\"", "result=\\\"error\\\"", "no sample has segment_redis_connects_total"),
        (", outcome!=\\\"other\\\"", "", "the total has health checks"),
        ("{{outcome}}", "{{result}}", "an unknown label result"),
        ("$__rate_interval", "$interval", "an unknown variable"),
        ("\"unit\": \"bytes\"", "\"units\": \"bytes\"", "no unit"),
        ("\"x\": 8,", "\"x\": 4,", "overlaps"),
        ("\"id\": 3,", "\"id\": 2,", "two panels have one id"),
    ] {
        let file = TempFile::with_mistake(DASHBOARD, good, bad);
        let (is_valid, _, problems) = check(&["dashboard", file.path(), metrics.path()]);
        assert!(!is_valid && problems.contains(problem), "{bad}: {problems}");
    }
}

/// GitHub accepts the workflows, and the scripts that they run exist.
#[test]
fn workflows_are_valid() {
    let (is_valid, _, problems) = check(&[&["workflows"][..], &WORKFLOWS].concat());
    assert!(is_valid, "{problems}");
    for (good, bad, problem) in [
        ("timeout-minutes:", "timeout-minute:", "timeout-minute"),
        ("scripts/test.sh", "scripts/tests.sh", "scripts/tests.sh does not exist"),
        (
            "actions/upload-artifact@v4",
            "example/upload-artifact@v4",
            "example/upload-artifact@v4 is not one of GitHub's",
        ),
        ("\npermissions:\n  contents: read", "", "the token has the permissions"),
    ] {
        let file = TempFile::with_mistake(WORKFLOWS[0], good, bad);
        let (is_valid, _, problems) = check(&["workflows", file.path()]);
        assert!(!is_valid && problems.contains(problem), "{bad}: {problems}");
    }
}
