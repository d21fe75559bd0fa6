//! Operation of client authentication (`CLIENT_PASSWORD`): start, rotation, logs, metrics, check.

use super::logs::{read_log, start_with_log_file};
use crate::common::admin::run_healthcheck;
use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, Redis, Response, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Password that must appear nowhere.
const SECRET: &str = "topsecret";

fn read_document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a document")
}

/// Returns the path of a new file with passwords.
fn password_file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("segment-passwords-{}-{name}", std::process::id()));
    std::fs::write(&path, text).expect("a file in the temporary directory");
    path
}

fn get(client: &mut HttpClient, path: &str, password: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {password}\r\n\r\n"));
    client.read_response()
}

fn status(proxy: &Proxy, password: &str) -> u16 {
    get(&mut proxy.connect(), "/stats", password).status
}

/// SIGHUP reads the file again. Connections stay open and authenticated, and an unusable file
/// leaves the passwords as they are.
#[test]
fn sighup_rotates_passwords() {
    let redis = Redis::start();
    redis.set("a", "1");
    let path = password_file("rotation", "old\n");
    let variables = [("CLIENT_PASSWORD_FILE", path.to_str().expect("UTF-8")), ("WORKERS", "2")];
    let proxy = Proxy::start(&redis, &variables);
    let mut authenticated = RespClient::connect(proxy.address);
    assert_eq!(authenticated.call_text("AUTH old"), "+OK\r\n");
    let mut kept = proxy.connect();
    assert_eq!((get(&mut kept, "/raw/a", "old").status, status(&proxy, "new")), (200, 401));
    let reload = |text: Option<&str>, line: &str| {
        match text {
            Some(text) => std::fs::write(&path, text).expect("a writable file"),
            None => std::fs::remove_file(&path).expect("the file"),
        }
        proxy.signal("HUP");
        proxy.wait_for_log(line);
    };
    reload(Some("old\nnew\n"), "CLIENT_PASSWORD_FILE was read again: 2 valid password(s)");
    for password in ["old", "new"] {
        // Either worker may get a connection.
        (0..10).for_each(|_| assert_eq!(status(&proxy, password), 200, "{password}"));
    }
    reload(Some("new\napp:topsecret"), "2 valid password(s), 1 of them for one user (user:password)");
    (0..10).for_each(|_| assert_eq!((status(&proxy, "old"), status(&proxy, "new")), (401, 200)));
    assert_eq!((get(&mut kept, "/raw/a", "old").status, get(&mut kept, "/raw/a", "new").status), (401, 200));
    assert_eq!(authenticated.call_text("GET a"), "$1\r\n1\r\n");
    let kept_line = "the old passwords stay in force, send SIGHUP again";
    reload(
        Some("\n\n"),
        "has no password; write one into each line; the old passwords stay in force, send SIGHUP again",
    );
    reload(Some(":topsecret"), "line 1 has no user before its first colon, or no password after it");
    reload(None, "cannot be read: No such file or directory");
    assert_eq!(status(&proxy, "new"), 200);
    assert_eq!(proxy.log().matches(kept_line).count(), 3, "{}", proxy.log());
    assert!(!proxy.log().contains(SECRET), "{}", proxy.log());
    assert_eq!(
        authenticated.call_text("AUTH old"),
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    );
    assert_eq!(authenticated.call_text("GET a"), "$1\r\n1\r\n");
}

/// No password appears in a log, on the page, in the metrics or in an error, at any log level.
#[test]
fn password_appears_nowhere() {
    let redis = Redis::start();
    let variables = [("CLIENT_PASSWORD", "topsecret\napp:topsecret2"), ("RUST_LOG", "trace")];
    let (proxy, path) = start_with_log_file(&redis, "client-secrets", &variables);
    let mut texts = vec![format!("{:?}", proxy.get("/healthz")), format!("{:?}", proxy.get("/readyz"))];
    for password in [SECRET, "guess-topsecret"] {
        for path in ["/", "/stats", "/metrics", "/raw/a", "/key/%"] {
            let response = get(&mut proxy.connect(), path, password);
            let expected = if password == SECRET { path != "/raw/a" && path != "/key/%" } else { false };
            assert_eq!(response.status == 200, expected, "{path} {response:?}");
            texts.push(format!("{response:?}"));
        }
        for command in ["AUTH topsecret", "AUTH app topsecret2", "HELLO 3 AUTH app guess-topsecret", "RESET"] {
            let mut client = RespClient::connect(proxy.address);
            client.send(crate::common::resp::encode_words(command));
            client.send(crate::common::resp::encode_words("QUIT"));
            texts.push(client.read_to_close());
        }
        let mut client = RespClient::connect(proxy.address);
        client.send(format!("AUTH {password}\r\nAUTH \"{password}\r\n"));
        texts.push(client.read_to_close());
        let mut client = RespClient::connect(proxy.address);
        client.send(format!("GET /raw/a HTTP/1.1\r\nAuthorization: Bearer {password}\r\n\r\n"));
        texts.push(client.read_to_close());
    }
    let figures = get(&mut proxy.connect(), "/stats", SECRET).text();
    assert!(figures.contains("\"CLIENT_PASSWORD\":\"(set)\""), "{figures}");
    assert!(
        figures.contains("\"auth_failures\":{\"http\":{\"wrong\":5,\"throttled\":0},\"resp\":{\"wrong\":"),
        "{figures}"
    );
    assert_eq!(proxy.stop("TERM"), Some(0));
    texts.push(read_log(&path));
    let log = texts.last().expect("the log");
    assert!(log.contains("auth RESP2") && log.contains("GET /stats HTTP/1.1") && log.contains("TRACE"), "{log}");
    for text in texts {
        assert!(!text.contains(SECRET), "{text}");
        assert!(!text.contains("dG9wc2VjcmV0"), "in base64: {text}");
    }
}

/// Failed authentications are logged once in 10 s, with address and protocol.
#[test]
fn failures_are_logged_at_bounded_rate() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", SECRET)]);
    (0..100).for_each(|_| _ = status(&proxy, "guess"));
    let expected = "client authentication failed: 127.0.0.1 sent no valid password over HTTP (0 failures before it since \
                    the last such line); set a password of CLIENT_PASSWORD in that client, or keep it away from the port";
    wait_for("the failure is logged", || proxy.log().contains(expected).then_some(()));
    assert!(proxy.log().matches("client authentication failed").count() <= 2, "{}", proxy.log());
    assert!(!proxy.log().contains("guess"), "{}", proxy.log());
}

/// The health check of the program, and the warning about the port, know the password.
#[test]
fn healthcheck_and_start_line_know_password() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", SECRET), ("PROXY_HOST", "0.0.0.0")]);
    let port = proxy.address.port().to_string();
    let (code, text) =
        run_healthcheck(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port), ("CLIENT_PASSWORD", SECRET)]);
    assert_eq!(code, Some(0), "{text}");
    let warning = format!("passwords and values travel in plain text: each machine on the way to 0.0.0.0:{port}");
    proxy.wait_for_log(&warning);
    assert!(!proxy.log().contains("clients are not authenticated"), "{}", proxy.log());
}

/// Runs the program with `arguments`. Returns the exit code and all output.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"))
        .args(arguments)
        .env_clear()
        .envs([("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", "0"), ("REDIS_HOST", "127.0.0.1"), ("CACHE_SIZE", "9")])
        .envs(variables.iter().copied())
        .output()
        .expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Unusable passwords end the start, and `check` reports them. docs/troubleshooting.md explains
/// each message.
#[test]
fn unusable_passwords_are_reported() {
    let document = read_document("docs/troubleshooting.md");
    let long = SECRET.repeat(100);
    let many = format!("{SECRET}\n").repeat(65);
    for (text, problem) in [
        ("\n", "has no password; write one into each line"),
        (":topsecret", "has no user before its first colon, or no password after it; write user:password, or"),
        (&long, "is longer than 512 bytes; choose a shorter password"),
        (&many, "passwords; remove old ones, the limit is 64"),
    ] {
        assert!(document.contains(problem), "docs/troubleshooting.md has no {problem:?}");
        let path = password_file("unusable", &format!("\n{text}"));
        let name = path.to_str().expect("UTF-8");
        for (variables, prefix) in [
            ([("CLIENT_PASSWORD", text)], "CLIENT_PASSWORD ".to_owned()),
            // The secret of a file that holds only a line break is empty.
            ([("CLIENT_PASSWORD_FILE", name)], format!("CLIENT_PASSWORD_FILE={name:?} ")),
        ] {
            let (code, output) = run(&[], &variables);
            let line = output.lines().find(|line| line.starts_with(&format!("segment-redis-proxy: {prefix}")));
            assert!(line.is_some_and(|line| line.contains(problem)), "{prefix}: no {problem} in {output}");
            assert_eq!(code, Some(2), "{output}");
            let (code, output) = run(&["check"], &variables);
            let line = output.lines().find(|line| line.starts_with(&format!("failed   CLIENT_PASSWORD: {prefix}")));
            assert!(line.is_some_and(|line| line.contains(problem)), "{prefix}: no {problem} in {output}");
            assert_eq!(code, Some(1), "{output}");
            assert!(!output.contains(SECRET), "{output}");
        }
    }
    let both = [("CLIENT_PASSWORD", SECRET), ("CLIENT_PASSWORD_FILE", "/nowhere")];
    let message = "CLIENT_PASSWORD and CLIENT_PASSWORD_FILE are both set; allowed: one of them; unset CLIENT_PASSWORD";
    let (code, output) = run(&[], &both);
    assert!(code == Some(2) && output.contains(message), "{output}");
    assert!(document.contains(message), "docs/troubleshooting.md does not explain {message:?}");
    let (code, output) = run(&["check"], &[("CLIENT_PASSWORD", "a\nb\nc:d")]);
    assert_eq!(code, Some(1), "Redis is not there: {output}");
    let line = "ok       CLIENT_PASSWORD: 3 valid password(s), 1 of them for one user (user:password)";
    assert!(output.contains(line), "{output}");
}
