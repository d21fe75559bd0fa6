//! Unit tests of the configuration.

use super::*;
use crate::upstream::{SentinelSettings, UpstreamAddress, UpstreamMode};

fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
    let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    Config::read(find).map_err(|error| error.to_string())
}

fn tcp(host: &str, port: u16) -> UpstreamAddress {
    UpstreamAddress::Tcp(host.into(), port)
}

/// The defaults are those of the compose file.
#[test]
fn defaults_match_compose_file() {
    let config = read(&[]).expect("the defaults are allowed");
    assert_eq!(config.redis, Upstream::single(tcp("redis", 6379)));
    assert_eq!((&config.redis.mode, config.redis.topology_interval), (&UpstreamMode::Single, Duration::from_secs(1)));
    assert_eq!((config.proxy_host.as_str(), config.proxy_port), ("segment", Some(8080)));
    assert_eq!((config.cache_ttl, config.cache_size, config.workers), (Duration::from_secs(15), 3, 1));
    assert_eq!((config.redis_connections, config.redis_timeout), (4, Duration::from_secs(1)));
    assert_eq!((config.cache_bytes, config.max_value_bytes), (None, 8 * 1024 * 1024));
    assert_eq!((config.redis_tracking, config.stale_if_error), (false, Duration::ZERO));
    assert_eq!((config.allowed_hosts, config.max_connections), (AllowedHosts::default(), 10_000));
    let socket = (config.proxy_socket, config.proxy_socket_mode, config.admin_port, config.admin_host);
    assert_eq!(socket, (None, 0o660, None, None));
    assert_eq!(config.client_bytes, 256 * 1024 * 1024);
    let timeouts = (config.client_timeout, config.client_idle_timeout);
    assert_eq!(timeouts, (Duration::from_secs(10), Duration::from_secs(60)));
    let log = (config.log_filter.as_str(), config.log_file, config.log_format);
    assert_eq!(log, ("info", None, LogFormat::Text));
}

/// The error of an invalid value has the variable, the value, the problem and what is allowed.
#[test]
fn invalid_value_names_allowed_values() {
    for (name, value, problem) in [
        ("REDIS_HOST", "", "is empty"),
        ("REDIS_HOST", "a b", "is not a host"),
        ("REDIS_PORT", "0", "is out of range"),
        ("REDIS_PORT", "65536", "is out of range"),
        ("REDIS_PORT", "http", "is not a whole number"),
        ("REDIS_MODE", "", "is not a mode"),
        ("REDIS_MODE", "Cluster", "is not a mode"),
        ("REDIS_DB", "-1", "is not a whole number"),
        ("REDIS_CONNECTIONS", "0", "is out of range"),
        ("REDIS_TIMEOUT", "0", "is out of range"),
        ("REDIS_TIMEOUT", "11m", "is out of range"),
        ("REDIS_TIMEOUT", "1.5", "has decimals"),
        ("REDIS_TOPOLOGY_INTERVAL", "99", "is out of range"),
        ("REDIS_TOPOLOGY_INTERVAL", "60001", "is out of range"),
        ("REDIS_TOPOLOGY_INTERVAL", "", "is empty"),
        ("CACHE_TTL", "0", "is out of range"),
        ("CACHE_TTL", "-1", "is not a number"),
        ("CACHE_TTL", "nan", "is not a number"),
        ("CACHE_TTL", "1e3", "has an unknown unit"),
        ("CACHE_TTL", "1.", "is not a number"),
        ("CACHE_TTL", ".5", "is not a number"),
        ("CACHE_TTL", "0.0009", "is out of range"),
        ("CACHE_TTL", "99999999999999999999", "is out of range"),
        ("CACHE_SIZE", "0", "is out of range"),
        ("CACHE_SIZE", "+3", "is not a whole number"),
        ("CACHE_SIZE", "3\n", "is not a whole number"),
        ("CACHE_SIZE", "2000000001", "is out of range"),
        ("CACHE_BYTES", "1k", "has an unknown unit"),
        ("CACHE_BYTES", "1000000000000001", "is out of range"),
        ("MAX_VALUE_BYTES", "0", "is out of range"),
        ("MAX_VALUE_BYTES", "513mb", "is out of range"),
        ("REDIS_TRACKING", "", "is empty"),
        ("REDIS_TRACKING", "maybe", "is neither"),
        ("STALE_IF_ERROR", "-1", "is not a number"),
        ("STALE_IF_ERROR", "315360000.001", "is out of range"),
        ("PROXY_HOST", "", "is empty"),
        ("PROXY_PORT", "65536", "is out of range"),
        ("PROXY_PORT", "", "is empty"),
        ("PROXY_SOCKET", "run/proxy.sock", "is not an absolute path"),
        ("PROXY_SOCKET", "/run/", "is a directory"),
        ("PROXY_SOCKET_MODE", "rw", "is not an octal number"),
        ("PROXY_SOCKET_MODE", "440", "is out of range"),
        ("ADMIN_PORT", "none", "is not a whole number"),
        ("ADMIN_HOST", "a:80", "has a port"),
        ("ALLOWED_HOSTS", "a:80", "is not a list of host names"),
        ("ALLOWED_HOSTS", "a,,b", "is not a list of host names"),
        ("MAX_CONNECTIONS", "0", "is out of range"),
        ("MAX_CONNECTIONS", "1000001", "is out of range"),
        ("CLIENT_BYTES", "0", "is out of range"),
        ("CLIENT_TIMEOUT", "0", "is out of range"),
        ("CLIENT_TIMEOUT", "99ms", "is out of range"),
        ("CLIENT_TIMEOUT", "86400.001", "is out of range"),
        ("CLIENT_IDLE_TIMEOUT", "0", "is out of range"),
        ("SHARE_PORT", "2", "is neither"),
        ("SHUTDOWN_GRACE", "-1", "is not a number"),
        ("ADMIN", "", "is empty"),
        ("ACCESS_LOG", "enabled", "is neither"),
        ("LOG_FORMAT", "", "is not a log format"),
        ("LOG_FORMAT", "xml", "is not a log format"),
        ("RUST_LOG", "loud", "is not a log level"),
        ("WORKERS", "0", "is out of range"),
        ("WORKERS", "", "is empty"),
    ] {
        let text = read(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value:?} was accepted"));
        let allowed = Variable::find(name).expect("a variable").kind.allowed();
        let expected = format!("{name}={value:?} {problem}; allowed: {allowed}; ");
        assert!(text.starts_with(&expected) && text.lines().count() == 1, "{text:?}, not {expected:?}");
    }
}

/// The error of a usual mistake says what to write instead.
#[test]
fn usual_mistakes_have_remedies() {
    for (name, value, remedy) in [
        ("REDIS_HOST", "cache.internal:6380", "write REDIS_HOST=cache.internal and REDIS_PORT=6380"),
        ("REDIS_HOST", "[::1]:6379", "write REDIS_HOST=::1 and REDIS_PORT=6379"),
        ("REDIS_HOST", "redis://:pw/with@slash@h:1", "set REDIS_URL to it, and leave REDIS_HOST unset"),
        ("REDIS_HOST", "http://:pw@h:1", "write REDIS_HOST=h and REDIS_PORT=1, and REDIS_PASSWORD"),
        ("REDIS_HOST", "user:pw@h:1", "write REDIS_HOST=h and REDIS_PORT=1, and REDIS_PASSWORD"),
        ("REDIS_HOST", ":pw@h", "write REDIS_HOST=h, and REDIS_PASSWORD"),
        ("REDIS_HOST", "h:1,password=pw,ssl=True", "write REDIS_HOST=h and REDIS_PORT=1"),
        (
            "REDIS_HOST",
            "a:1,[::1]:2,c",
            "name several hosts in REDIS_URL, with REDIS_MODE=sentinel or REDIS_MODE=cluster",
        ),
        ("REDIS_HOST", "user:p://pw@h", "write REDIS_HOST=h, and REDIS_PASSWORD"),
        ("REDIS_HOST", "h?password=pw", "write REDIS_HOST=h"),
        ("REDIS_HOST", "[::1]", "write REDIS_HOST=::1"),
        ("REDIS_PORT", "redis://:pw@h", "write the number alone, not a URL"),
        ("REDIS_HOST", "rediss://h", "set REDIS_URL to it, and leave REDIS_HOST unset"),
        ("REDIS_HOST", "unix:///run/redis.sock", "set REDIS_URL to it, and leave REDIS_HOST unset"),
        ("REDIS_URL", "h:pw", "for example REDIS_URL=rediss://user:password@redis.internal:6379/0"),
        ("REDIS_MODE", "standalone", "for example REDIS_MODE=single"),
        ("PROXY_HOST", "0.0.0.0:80", "write PROXY_HOST=0.0.0.0 and PROXY_PORT=80"),
        (
            "REDIS_PORT",
            "tcp://10.0.0.11:6379",
            "Kubernetes sets this variable for a Service of that name: set enableServiceLinks: false in the pod, or \
             set REDIS_PORT in its env",
        ),
        ("CACHE_SIZE", "256mb", "CACHE_SIZE counts keys: for a limit in bytes set CACHE_BYTES=256mb"),
        ("CACHE_SIZE", "10k", "write the number without a unit"),
        ("CACHE_BYTES", "256m", "the unit may be a power of 1000 or of 1024: write CACHE_BYTES=256mb for 1024"),
        ("RUST_LOG", "warning", "write RUST_LOG=warn"),
        ("CACHE_TTL", "soon", "for example CACHE_TTL=15"),
        ("ALLOWED_HOSTS", "a b", "unset ALLOWED_HOSTS if it is not needed"),
    ] {
        let text = read(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value:?} was accepted"));
        assert!(text.ends_with(&format!("; {remedy}")), "{text:?}");
        assert!(!text.contains("pw"), "the password of a URL is shown: {text}");
    }
}

/// URL, credentials and TLS settings describe one server together.
#[cfg(feature = "tls")]
#[test]
fn url_and_variables_describe_one_server() {
    use crate::upstream::UpstreamTls;
    let file = |path: &str| SecretSource::File { variable: "REDIS_PASSWORD_FILE", path: path.into() };
    let read = |variables: &[(&str, &str)]| read(variables).expect("allowed").redis;
    // A compose file sets variables to their defaults, and Kubernetes sets the port.
    let injected = [("REDIS_HOST", "redis"), ("REDIS_PORT", "tcp://10.0.0.1:6379"), ("REDIS_DB", "0")];
    let url = ("REDIS_URL", "rediss://app:word@h/2");
    let expected = Upstream {
        username: Some("app".into()),
        password: Some(SecretSource::Value("word".into())),
        database: 2,
        tls: Some(UpstreamTls::default()),
        ..Upstream::single(tcp("h", 6379))
    };
    assert_eq!(read(&[&injected[..], &[url]].concat()), expected);
    let upstream =
        read(&[("REDIS_URL", "unix:///run/r"), ("REDIS_USERNAME", "app"), ("REDIS_PASSWORD_FILE", "/run/password")]);
    assert_eq!((upstream.username.as_deref(), upstream.password), (Some("app"), Some(file("/run/password"))));
    let tls = [
        ("REDIS_TLS", "on"),
        ("REDIS_TLS_CA", "ca"),
        ("REDIS_TLS_CERT", "cert"),
        ("REDIS_TLS_KEY", "key"),
        ("REDIS_TLS_NAME", "name"),
    ];
    let identity = Some(("cert".into(), "key".into()));
    let expected = UpstreamTls { ca: Some("ca".into()), identity, name: Some("name".into()) };
    assert_eq!(read(&tls).tls, Some(expected));
}

/// Variables that contradict each other are errors, which never show a password.
#[test]
fn contradictory_redis_variables_are_refused() {
    let url = ("REDIS_URL", "redis://app:pw@h");
    for (variables, expected) in [
        (&[url, ("REDIS_HOST", "other")][..], "REDIS_URL and REDIS_HOST are both set"),
        (&[url, ("REDIS_PORT", "6380")], "REDIS_URL and REDIS_PORT are both set"),
        (&[url, ("REDIS_DB", "1")], "REDIS_URL and REDIS_DB are both set"),
        (&[url, ("REDIS_USERNAME", "app")], "REDIS_URL and REDIS_USERNAME are both set"),
        (&[url, ("REDIS_PASSWORD", "pw2")], "REDIS_URL and REDIS_PASSWORD are both set"),
        (&[url, ("REDIS_PASSWORD_FILE", "f")], "REDIS_URL and REDIS_PASSWORD_FILE are both set"),
        (
            &[("REDIS_PASSWORD", "pw"), ("REDIS_PASSWORD_FILE", "f")],
            "REDIS_PASSWORD and REDIS_PASSWORD_FILE are both set",
        ),
        (&[("REDIS_URL", "redis://pw@h")], "REDIS_URL has a user without a password"),
        (&[("REDIS_USERNAME", "app")], "REDIS_USERNAME=\"app\" has no password"),
        (
            &[("REDIS_USERNAME", "app"), ("REDIS_PASSWORD", "pw"), ("REDIS_PASSWORD_FILE", "f")],
            "REDIS_PASSWORD and REDIS_PASSWORD_FILE are both set",
        ),
        (&[("REDIS_URL", "unix:///r"), ("REDIS_TLS", "on")], "REDIS_URL and REDIS_TLS are both set"),
        (&[("REDIS_TLS_CA", "ca")], "REDIS_TLS_CA is set without REDIS_TLS=on or a rediss:// URL"),
        (&[("REDIS_TLS", "on"), ("REDIS_TLS_CERT", "c")], "REDIS_TLS_CERT is set without REDIS_TLS_KEY"),
        (&[("REDIS_TLS", "on"), ("REDIS_TLS_KEY", "k")], "REDIS_TLS_KEY is set without REDIS_TLS_CERT"),
    ] {
        let text = read(variables).err().unwrap_or_else(|| panic!("{variables:?} was accepted"));
        assert!(text.contains(expected) && !text.contains("pw"), "{variables:?}: {text}");
        // A build without TLS also says so.
        assert!(text.lines().count() == 1 || !cfg!(feature = "tls"), "{variables:?}: {text}");
    }
}

/// Sentinels are found by a URL, at their own port, and have credentials of their own.
#[test]
fn sentinel_mode_reads_sentinel_settings() {
    let set = [
        ("REDIS_MODE", "sentinel"),
        ("REDIS_URL", "redis://app:word@a,[::1]:7,a:26379,c/3"),
        ("REDIS_MASTER", "mymaster"),
        ("REDIS_SENTINEL_USERNAME", "watcher"),
        ("REDIS_SENTINEL_PASSWORD_FILE", "/run/sentinel"),
        ("REDIS_TOPOLOGY_INTERVAL", "2s"),
    ];
    let password = SecretSource::File { variable: "REDIS_SENTINEL_PASSWORD_FILE", path: "/run/sentinel".into() };
    let (master, username) = ("mymaster".to_owned(), Some("watcher".to_owned()));
    let settings = SentinelSettings { master: master.clone(), username, password: Some(password) };
    let expected = Upstream {
        mode: UpstreamMode::Sentinel(settings),
        addresses: vec![tcp("a", 26379), tcp("::1", 7), tcp("c", 26379)],
        topology_interval: Duration::from_secs(2),
        username: Some("app".into()),
        password: Some(SecretSource::Value("word".into())),
        database: 3,
        tls: None,
    };
    assert_eq!(read(&set).expect("allowed").redis, expected);
    let set = [
        ("REDIS_MODE", "sentinel"),
        ("REDIS_URL", "redis://a"),
        ("REDIS_MASTER", "mymaster"),
        ("REDIS_SENTINEL_PASSWORD", "secret"),
    ];
    let upstream = read(&set).expect("allowed").redis;
    assert!(!format!("{upstream:?} {upstream}").contains("secret"), "{upstream:?}");
    let settings = SentinelSettings { master, username: None, password: Some(SecretSource::Value("secret".into())) };
    assert_eq!(upstream.mode, UpstreamMode::Sentinel(settings));
}

/// The first nodes of a cluster are those of a URL, or one host and port.
#[test]
fn cluster_mode_reads_seeds() {
    let mode = ("REDIS_MODE", "cluster");
    for (variables, expected) in [
        (&[("REDIS_URL", "redis://a,b:7/0")][..], vec![tcp("a", 6379), tcp("b", 7)]),
        (&[("REDIS_HOST", "a"), ("REDIS_PORT", "7")], vec![tcp("a", 7)]),
        // A compose file sets variables to their defaults.
        (&[("REDIS_HOST", "a"), ("REDIS_DB", "0"), ("REDIS_MASTER", "")], vec![tcp("a", 6379)]),
    ] {
        let upstream = read(&[&[mode][..], variables].concat()).expect("allowed").redis;
        assert_eq!((upstream.mode, upstream.addresses), (UpstreamMode::Cluster, expected), "{variables:?}");
    }
}

/// The interval is checked in each mode, and has no effect in single mode.
#[test]
fn topology_interval_is_allowed_in_single_mode() {
    for (value, expected) in [("100", 100), ("60s", 60_000)] {
        let upstream = read(&[("REDIS_TOPOLOGY_INTERVAL", value)]).expect("allowed").redis;
        assert_eq!(upstream.topology_interval, Duration::from_millis(expected), "{value}");
    }
}

/// A variable that does not fit `REDIS_MODE` is one error with a remedy, which never shows a
/// password.
#[test]
fn variables_must_fit_redis_mode() {
    let (sentinel, cluster, master) = (("REDIS_MODE", "sentinel"), ("REDIS_MODE", "cluster"), ("REDIS_MASTER", "m"));
    let url = |url| ("REDIS_URL", url);
    for (variables, problem, remedy) in [
        (
            &[url("redis://u:pw@a,b")][..],
            "REDIS_URL has several hosts, but REDIS_MODE=single has one",
            "set REDIS_MODE=sentinel or REDIS_MODE=cluster, or name one host",
        ),
        (&[sentinel, url("redis://a")], "REDIS_MASTER is not set", "for example REDIS_MASTER=mymaster"),
        (&[sentinel, url("redis://a"), ("REDIS_MASTER", "")], "REDIS_MASTER is not set", ""),
        (
            &[sentinel, master],
            "REDIS_URL is not set, but REDIS_MODE=sentinel needs it; allowed: the hosts of the sentinels, which REDIS_HOST \
             and REDIS_PORT cannot name",
            "for example REDIS_URL=redis://sentinel-1,sentinel-2,sentinel-3",
        ),
        (&[sentinel, master, ("REDIS_HOST", "a"), ("REDIS_PORT", "26379")], "REDIS_URL is not set", ""),
        (&[sentinel, master, url("redis://u:pw@a,")], "REDIS_URL has a comma without a host", ""),
        (
            &[sentinel, master, url("unix://:pw@/r")],
            "REDIS_URL names a Unix socket, but REDIS_MODE=sentinel needs hosts",
            "name hosts, or set REDIS_MODE=single",
        ),
        (
            &[sentinel, master, url("redis://a"), ("REDIS_SENTINEL_USERNAME", "app")],
            "REDIS_SENTINEL_USERNAME=\"app\" has no password",
            "set REDIS_SENTINEL_PASSWORD or REDIS_SENTINEL_PASSWORD_FILE too",
        ),
        (
            &[
                sentinel,
                master,
                url("redis://a"),
                ("REDIS_SENTINEL_USERNAME", "app"),
                ("REDIS_SENTINEL_PASSWORD", "pw"),
                ("REDIS_SENTINEL_PASSWORD_FILE", "f"),
            ],
            "REDIS_SENTINEL_PASSWORD and REDIS_SENTINEL_PASSWORD_FILE are both set",
            "",
        ),
        (&[cluster, url("unix:///r")], "REDIS_URL names a Unix socket, but REDIS_MODE=cluster needs hosts", ""),
        (
            &[cluster, url("redis://:pw@a/3")],
            "REDIS_URL names database 3, but REDIS_MODE=cluster has only database 0",
            "remove the number from REDIS_URL, or set REDIS_MODE=single",
        ),
        (&[cluster, ("REDIS_DB", "1")], "REDIS_DB names database 1", ""),
        (&[cluster, url("redis://a"), ("REDIS_HOST", "b")], "REDIS_URL and REDIS_HOST are both set", ""),
        (
            &[master],
            "REDIS_MASTER is set without REDIS_MODE=sentinel",
            "set REDIS_MODE=sentinel too, or unset REDIS_MASTER",
        ),
        (&[cluster, master], "REDIS_MASTER is set without REDIS_MODE=sentinel", ""),
        (&[cluster, ("REDIS_SENTINEL_USERNAME", "a")], "REDIS_SENTINEL_USERNAME is set without REDIS_MODE", ""),
        (&[("REDIS_SENTINEL_PASSWORD", "pw")], "REDIS_SENTINEL_PASSWORD is set without REDIS_MODE", ""),
        (&[("REDIS_SENTINEL_PASSWORD_FILE", "f")], "REDIS_SENTINEL_PASSWORD_FILE is set without REDIS_MODE", ""),
        // The variables are not judged by an invalid mode.
        (&[("REDIS_MODE", "x"), master, url("redis://a,b/1")], "REDIS_MODE=\"x\" is not a mode", ""),
    ] {
        let text = read(variables).err().unwrap_or_else(|| panic!("{variables:?} was accepted"));
        assert!(text.starts_with(problem) && text.ends_with(remedy), "{variables:?}: {text}");
        assert!(text.lines().count() == 1 && !text.contains("pw"), "{variables:?}: {text}");
    }
}

/// Listeners that exclude each other are errors with a remedy.
#[test]
fn conflicting_listeners_are_errors() {
    let socket = ("PROXY_SOCKET", "/run/a.sock");
    for (variables, error) in [
        (&[("PROXY_PORT", "off")][..], Some("set PROXY_SOCKET, or a PROXY_PORT such as 8080")),
        (&[("PROXY_PORT", "off"), socket][..], None),
        (&[("ADMIN", "off"), ("ADMIN_PORT", "9090")][..], Some("set ADMIN=on or ADMIN_PORT=off")),
        (&[("ADMIN_PORT", "8080")][..], Some("set another ADMIN_PORT")),
        (&[("ADMIN_PORT", "8080"), ("PROXY_PORT", "off"), socket][..], None),
        (&[("ADMIN_PORT", "0"), ("PROXY_PORT", "0")][..], None),
        (&[("ADMIN_HOST", "::1")][..], Some("set ADMIN_PORT too, or unset ADMIN_HOST")),
        (&[("ADMIN_HOST", "::1"), ("ADMIN_PORT", "9090")][..], None),
    ] {
        let text = read(variables).err();
        assert_eq!(text.is_some(), error.is_some(), "{variables:?}: {text:?}");
        assert!(text.unwrap_or_default().ends_with(error.unwrap_or_default()), "{variables:?}");
    }
}

/// The errors of all variables are reported together, one in each line.
#[test]
fn all_errors_are_reported() {
    let variables =
        [("CACHE_TTL", "soon"), ("REDIS_PORT", "0"), ("REDIS_USERNAME", "app"), ("WORKERS", "many"), ("ADMIN", "on")];
    let text = read(&variables).err().expect("four errors");
    let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names, ["REDIS_PORT", "REDIS_USERNAME", "CACHE_TTL", "WORKERS"]);
}

/// Certificate and key belong together. A build without TLS accepts neither.
#[test]
fn tls_files_belong_together() {
    let (certificate, key, ca) = (("TLS_CERT", "c"), ("TLS_KEY", "k"), ("TLS_CLIENT_CA", "a"));
    for (variables, problem) in [
        (&[certificate][..], "TLS_CERT=\"c\" has no TLS_KEY"),
        (&[key], "TLS_KEY=\"k\" has no TLS_CERT"),
        (&[ca], "TLS_CLIENT_CA=\"a\" has no TLS_CERT"),
        (&[ca, certificate], "TLS_CERT=\"c\" has no TLS_KEY"),
    ] {
        let problem = if cfg!(feature = "tls") { problem } else { "needs TLS, which this build does not have" };
        let text = read(variables).err().unwrap_or_else(|| panic!("{variables:?} was accepted"));
        assert!(text.contains(problem) && text.lines().count() == 1, "{text}");
    }
    assert_eq!(read(&[certificate, key, ca]).is_ok(), cfg!(feature = "tls"));
    let is_required = |variables| read(variables).is_ok_and(|config| config.tls_required);
    assert!(is_required(&[]) && !is_required(&[("TLS_REQUIRED", "off")]));
}

/// Durations, sizes and switches are understood in the forms that operators write.
#[test]
fn units_and_switch_words_are_understood() {
    let set = [
        ("CACHE_TTL", "1.25"),
        ("STALE_IF_ERROR", "15m"),
        ("REDIS_TIMEOUT", "2s"),
        ("CLIENT_TIMEOUT", "1500ms"),
        ("CACHE_BYTES", "256mb"),
        ("MAX_VALUE_BYTES", "1MiB"),
        ("REDIS_TRACKING", "true"),
        ("ACCESS_LOG", "Yes"),
        ("ADMIN", "0"),
    ];
    let config = read(&set).expect("allowed");
    assert_eq!((config.cache_ttl, config.stale_if_error), (Duration::from_millis(1250), Duration::from_secs(900)));
    let timeouts = (config.redis_timeout, config.client_timeout);
    assert_eq!(timeouts, (Duration::from_secs(2), Duration::from_millis(1500)));
    assert_eq!((config.cache_bytes, config.max_value_bytes), (Some(268_435_456), 1_048_576));
    assert_eq!((config.redis_tracking, config.access_log, config.admin), (true, true, false));
}

/// Values are shown, except the password.
#[test]
fn password_is_redacted() {
    let set = [
        ("REDIS_PASSWORD", "secret"),
        ("REDIS_URL", "rediss://secret:secret@h"),
        ("CACHE_TTL", "7"),
        ("STALE_IF_ERROR", "5m"),
        ("SHUTDOWN_GRACE", "10s"),
        ("RUST_LOG", "debug"),
    ];
    let values = redacted_values(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()));
    let find = |name: &str| values.iter().find(|shown| shown.name == name);
    let value = |name: &str| find(name).map(|shown| shown.value.as_str());
    assert_eq!((value("CACHE_TTL"), value("RUST_LOG"), value("CACHE_SIZE")), (Some("7"), Some("debug"), Some("3")));
    assert_eq!((value("REDIS_PASSWORD"), value("REDIS_URL")), (Some("(set)"), Some("rediss://h:6379/0")));
    let note = |name: &str| find(name).map(|shown| (shown.unit, shown.is_changed));
    assert_eq!((note("CACHE_TTL"), note("CACHE_SIZE")), (Some(("s", true)), Some(("keys", false))));
    assert_eq!(note("STALE_IF_ERROR"), Some(("", true)), "the value has its own unit");
    assert_eq!(note("SHUTDOWN_GRACE"), Some(("", false)), "10s is the default of 10 seconds");
    assert!(!format!("{values:?}").contains("secret"));
    let sentinel = |url: &str| {
        let lookup = |name: &str| match name {
            "REDIS_URL" => Some(url.into()),
            "REDIS_MODE" => Some("sentinel".into()),
            "REDIS_SENTINEL_PASSWORD" => Some("secret".into()),
            _ => None,
        };
        let values = redacted_values(lookup);
        assert!(!format!("{values:?}").contains("secret"));
        values.into_iter().find(|shown| shown.name == "REDIS_URL").map(|shown| shown.value)
    };
    let shown = sentinel("redis://secret:secret@a,b:7/1");
    assert_eq!(shown.as_deref(), Some("redis://a:26379,b:7/1"));
    assert_eq!(sentinel("redis://:secret@a,").as_deref(), Some("(set)"), "a URL that is not understood");
}

/// `--help` names each variable.
#[test]
fn help_names_every_variable() {
    assert!(VARIABLES.iter().all(|variable| help().contains(variable.name)));
}
