//! Tests of `segment-redis-proxy check`. docs/troubleshooting.md quotes each message.

use crate::common::cluster::{self, Cluster};
use crate::common::sentinel::{self, Sentinels};
use crate::common::{Proxy, Redis};
use segment_redis_proxy::config::VARIABLES;
use std::process::{Command, Output};

/// Runs the check with a loopback address and `variables`. Returns the exit code and all output.
fn check(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"))
        .arg("check")
        .env_clear()
        .envs([("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", "0"), ("REDIS_HOST", "127.0.0.1"), ("CACHE_SIZE", "1000")])
        .envs(variables.iter().copied())
        .output()
        .expect("the binary runs");
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Variables, the exit code, and a line of the output.
type Case = (&'static [(&'static str, &'static str)], i32, &'static str);

/// Wrong configurations. The line ends before what
/// depends on the machine. The port 6379 stands for that of a Redis with a password.
const WRONG: [Case; 15] = [
    (
        &[("CACHE_TLL", "60")],
        0,
        "warning  configuration: CACHE_TLL is not a known variable and has no effect; did you mean CACHE_TTL?",
    ),
    (
        &[("CACHE_TTL", "soon")],
        2,
        "segment-redis-proxy: CACHE_TTL=\"soon\" is not a number; allowed: 0.001 to 315360000 seconds, or with a unit such \
         as 500ms, 60s, 15m or 2h; for example CACHE_TTL=15",
    ),
    (
        &[("CACHE_BYTES", "256m")],
        2,
        "segment-redis-proxy: CACHE_BYTES=\"256m\" has an unknown unit; allowed: 0 to 1000000000000000 bytes, or with a unit \
         such as 64kb, 256mb or 1gib; the unit may be a power of 1000 or of 1024: write CACHE_BYTES=256mb for 1024",
    ),
    (
        &[("CACHE_SIZE", "256mb")],
        2,
        "segment-redis-proxy: CACHE_SIZE=\"256mb\" is not a whole number; allowed: 1 to 2000000000 keys; CACHE_SIZE counts keys: \
         for a limit in bytes set CACHE_BYTES=256mb",
    ),
    (
        &[("REDIS_HOST", "redis.internal:6380")],
        2,
        "segment-redis-proxy: REDIS_HOST=\"redis.internal:6380\" has a port; allowed: a host name or an IP address, without \
         a port; write REDIS_HOST=redis.internal and REDIS_PORT=6380",
    ),
    (
        &[("REDIS_HOST", "redis://:secret@redis.internal:6380/0")],
        2,
        "segment-redis-proxy: REDIS_HOST=\"redis://...\" is a URL; allowed: a host name or an IP \
         address, without a port; set REDIS_URL to it, and leave REDIS_HOST unset",
    ),
    (
        &[("REDIS_PORT", "tcp://10.0.0.11:6379")],
        2,
        "segment-redis-proxy: REDIS_PORT=\"tcp://10.0.0.11:6379\" is not a whole number; allowed: 1 to 65535; Kubernetes \
         sets this variable for a Service of that name: set enableServiceLinks: false in the pod, or set REDIS_PORT in its \
         env",
    ),
    (
        &[("RUST_LOG", "warning")],
        2,
        "segment-redis-proxy: RUST_LOG=\"warning\" is not a log level; allowed: off, error, warn, info, debug or trace; \
         write RUST_LOG=warn",
    ),
    (
        &[("REDIS_USERNAME", "app")],
        2,
        "segment-redis-proxy: REDIS_USERNAME=\"app\" has no password; allowed: both or only a password; set REDIS_PASSWORD or \
         REDIS_PASSWORD_FILE too",
    ),
    (
        &[("REDIS_MODE", "sentinel"), ("REDIS_MASTER", "mymaster")],
        2,
        "segment-redis-proxy: REDIS_URL is not set, but REDIS_MODE=sentinel needs it; allowed: the hosts of the sentinels, \
         which REDIS_HOST and REDIS_PORT cannot name; for example REDIS_URL=redis://sentinel-1,sentinel-2,sentinel-3",
    ),
    (&[("PROXY_HOST", "no-such-name.invalid")], 1, "failed   PROXY_HOST: no-such-name.invalid does not resolve"),
    (
        &[("PROXY_HOST", "192.0.2.1"), ("PROXY_PORT", "8080")],
        1,
        "failed   PROXY_HOST: cannot listen on 192.0.2.1:8080: Cannot assign requested address (os error 99); check \
         PROXY_HOST=192.0.2.1 and PROXY_PORT=8080",
    ),
    (
        &[("LOG_FILE", "/no/such/directory/proxy.log")],
        1,
        "failed   LOG_FILE: the directory of /no/such/directory/proxy.log does not exist; create it",
    ),
    (
        &[("REDIS_PORT", "1")],
        1,
        "failed   Redis: 127.0.0.1:1: Connection refused (os error 111); check that Redis listens there (REDIS_HOST \
         and REDIS_PORT, or REDIS_URL)",
    ),
    (
        &[("REDIS_PORT", "6379"), ("REDIS_PASSWORD", "wrong")],
        1,
        "failed   Redis: 127.0.0.1:6379: Redis rejected AUTH - AuthenticationFailed: WRONGPASS invalid username-password \
         pair or user is disabled.; check the user and the password of Redis",
    ),
];

/// Each kind of wrong configuration has its exit code, and a message that docs/troubleshooting.md
/// quotes.
#[test]
fn check_explains_each_wrong_configuration() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md");
    let document = std::fs::read_to_string(path).expect("a file of the repository");
    let (open, secured) = (Redis::start(), Redis::start_with(&["--requirepass", "right"]));
    for (variables, code, line) in WRONG {
        let port = if variables.contains(&("REDIS_PORT", "6379")) { secured.port } else { open.port };
        let (port, name) = (port.to_string(), ("REDIS_PORT", "6379"));
        let mut set = vec![("REDIS_PORT", port.as_str())];
        set.extend(variables.iter().filter(|pair| **pair != name));
        let (found_code, output) = check(&set);
        let output = output.replace(&format!(":{port}:"), ":6379:");
        assert!(output.lines().any(|found| found.starts_with(line)), "{variables:?}: no {line:?} in {output}");
        assert_eq!(found_code, Some(code), "{variables:?}: {output}");
        assert!(!output.contains("secret"), "{output}");
        assert!(document.contains(line), "docs/troubleshooting.md does not quote {line:?}");
    }
}

/// A working configuration is reported in full, also beside a running proxy, whose port is in use.
#[test]
fn check_of_working_configuration_succeeds() {
    let redis = Redis::start();
    let port = redis.port.to_string();
    let (code, output) = check(&[("REDIS_PORT", &port), ("REDIS_TRACKING", "on")]);
    assert_eq!(code, Some(0), "{output}");
    let version = format!("ok       Redis: 127.0.0.1:{port}: Redis ");
    let set = format!("ok       configuration: 6 of {} variables set", VARIABLES.len());
    for line in [
        &set,
        "ok       PROXY_HOST: 127.0.0.1:0 can be bound",
        &version,
        "ok       read: works",
        "ok       tracking: works, changes are visible at once",
        "the proxy can work; 0 warning(s)",
    ] {
        assert!(output.lines().any(|found| found.starts_with(line)), "no {line:?} in {output}");
    }
    let proxy = Proxy::start(&redis, &[]);
    let (code, output) = check(&[("REDIS_PORT", &port), ("PROXY_PORT", &proxy.address.port().to_string())]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("is in use: a proxy runs already, or another program has the port"), "{output}");
}

/// Permissions that the Redis user lacks are warnings if the proxy works without them.
#[test]
fn check_reports_missing_permissions() {
    let redis = Redis::start();
    for (rules, code, line) in [
        ("~* +get +strlen +auth +ping +select", 0, "warning  expirations: not read, keys may outlive their expiration"),
        ("~app:* +@read +ping", 0, "warning  read: the user may not read the key segment-redis-proxy:check"),
        ("~* +@read +ping", 0, "warning  tracking: inactive, changes are visible within CACHE_TTL: "),
        ("~* +ping", 1, "failed   read: "),
        ("~* +ping +info", 1, "ok       Redis: 127.0.0.1:"),
    ] {
        redis.run(&["ACL", "DELUSER", "app"]);
        redis.run(&[&["ACL", "SETUSER", "app", "on", ">word"][..], &rules.split(' ').collect::<Vec<_>>()].concat());
        let port = redis.port.to_string();
        let user = [("REDIS_USERNAME", "app"), ("REDIS_PASSWORD", "word"), ("REDIS_PORT", port.as_str())];
        let (found, output) = check(&[&user[..], &[("REDIS_TRACKING", "on")]].concat());
        assert!(output.lines().any(|found| found.starts_with(line)), "{rules}: no {line:?} in {output}");
        assert_eq!(found, Some(code), "{rules}: {output}");
    }
}

/// Runs the check with `variables`. Some line of its output must begin with `line` and contain
/// `quoted`, which docs/troubleshooting.md quotes.
fn assert_reported(variables: &[(&str, &str)], code: i32, line: &str, quoted: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md");
    let document = std::fs::read_to_string(path).expect("a file of the repository");
    let (found, output) = check(variables);
    let is_line = |found: &str| found.starts_with(line) && found.contains(quoted);
    assert!(output.lines().any(is_line), "{variables:?}: no {line:?} with {quoted:?} in {output}");
    assert_eq!(found, Some(code), "{variables:?}: {output}");
    assert!(document.contains(quoted), "docs/troubleshooting.md does not quote {quoted:?}");
}

/// A cluster is found from one node, and each primary is checked. A wrong mode is named.
#[test]
fn check_finds_cluster() {
    // Reads go on while a primary is lost.
    let arguments = vec!["--cluster-require-full-coverage", "no"];
    let mut cluster = Cluster::start_with(cluster::Setup { arguments, ..cluster::Setup::default() });
    let (single, checked) = (Redis::start(), cluster.owner_of("segment-redis-proxy:check"));
    let other = (checked + 1) % 3;
    let port_of = |cluster: &Cluster, index| cluster.port(index).to_string();
    let ports = [port_of(&cluster, checked), port_of(&cluster, other), single.port.to_string()];
    let [checked_port, other_port, single_port] = ports.each_ref().map(|port| ("REDIS_PORT", port.as_str()));
    let (mode, tracking) = (("REDIS_MODE", "cluster"), ("REDIS_TRACKING", "on"));
    for (line, quoted) in [
        ("ok       cluster: has the primaries 127.0.0.1:", "has the primaries "),
        ("ok       read: works", ""),
        ("ok       tracking: works, changes are visible at once", ""),
    ] {
        assert_reported(&[other_port, mode, tracking], 0, line, quoted);
    }
    let quoted = "ms: a primary that hung during a failover may answer with an old value; lower REDIS_TIMEOUT";
    let slow = ("REDIS_TIMEOUT", "60s");
    assert_reported(&[other_port, mode, slow], 0, "warning  REDIS_TIMEOUT: 60000 ms are not less than", quoted);
    let quoted = "cluster support disabled; set REDIS_MODE=single, or name a node of a cluster";
    assert_reported(&[single_port, mode], 1, "failed   cluster: 127.0.0.1:", quoted);
    let quoted = "is a node of a cluster: keys of other nodes cannot be read; set REDIS_MODE=cluster";
    assert_reported(&[checked_port], 0, "warning  cluster: Redis ", quoted);
    let quoted = "another node has this key; set REDIS_MODE=cluster in the proxy";
    assert_reported(&[other_port], 1, "failed   read: ", quoted);
    cluster.kill(other);
    let line = format!("warning  Redis: 127.0.0.1:{}: ", other_port.1);
    let quoted = "check that node, and the address that it announces; its keys cannot be read";
    assert_reported(&[checked_port, mode], 0, &line, quoted);
}

/// The primary that sentinels name is checked. One sentinel is enough.
#[test]
fn check_asks_each_sentinel() {
    let mut all = Sentinels::start_with(sentinel::Setup { replicas: 1, ..sentinel::Setup::default() });
    let (url, primary) = (all.url(), all.primary_port());
    let variables =
        |master| [("REDIS_HOST", ""), ("REDIS_MODE", "sentinel"), ("REDIS_MASTER", master), ("REDIS_URL", &url)];
    let named = format!(": the primary is 127.0.0.1:{primary}");
    let (code, output) = check(&variables(sentinel::MASTER));
    assert_eq!((code, output.matches(&named).count()), (Some(0), 3), "{output}");
    assert!(output.contains(&format!("ok       Redis: 127.0.0.1:{primary}: Redis ")), "{output}");
    let quoted = "; set REDIS_MASTER to a name in its configuration";
    assert_reported(&variables("other"), 1, "failed   sentinel: 127.0.0.1:", quoted);
    all.kill_sentinel(0);
    let line = format!("warning  sentinel: 127.0.0.1:{}: ", all.sentinels[0].port);
    assert_reported(
        &variables(sentinel::MASTER),
        0,
        &line,
        "; check that the sentinel runs, and its address in REDIS_URL",
    );
}
