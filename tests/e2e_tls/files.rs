//! Tests of the files of certificates and keys: unusable ones, and new ones on SIGHUP.

use crate::certificates::{Certificates, TlsClient, to_text};
use crate::common::certificates::openssl;
use crate::common::{Redis, wait_for};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Runs the binary with these variables, and returns its exit code and what it prints.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let variables = [&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", "0"), ("REDIS_HOST", "127.0.0.1")], variables];
    let output = command.args(arguments).env_clear().envs(variables.concat()).output().expect("the binary runs");
    (output.status.code(), to_text(&output))
}

/// Unusable files end the start with exit code 2 and one line that has the remedy. `check` reports
/// the same.
#[test]
fn unusable_files_are_named() {
    let certificates = Certificates::make();
    certificates.issue("other", "ca");
    let path = |name: &str| certificates.path(name);
    let (key, encrypted, der) = (path("server-key.pem"), path("encrypted.pem"), path("server.der"));
    openssl(&[&["pkcs8", "-topk8", "-in", &key, "-out", &encrypted, "-passout", "pass:word"]]);
    openssl(&[&["x509", "-in", &path("server.pem"), "-outform", "DER", "-out", &der]]);
    let (certificate, missing, other) = (path("server.pem"), path("missing.pem"), path("other-key.pem"));
    for (variables, expected) in [
        ([("TLS_CERT", &certificate), ("TLS_KEY", &other)], "does not match TLS_CERT="),
        ([("TLS_CERT", &certificate), ("TLS_KEY", &missing)], "cannot be read: No such file or directory"),
        ([("TLS_CERT", &certificate), ("TLS_KEY", &encrypted)], "holds an encrypted private key; decrypt it"),
        ([("TLS_CERT", &certificate), ("TLS_KEY", &certificate)], "holds a certificate and no private key; name"),
        ([("TLS_CERT", &key), ("TLS_KEY", &key)], "holds a private key and no certificate; name"),
        ([("TLS_CERT", &der), ("TLS_KEY", &key)], "is DER, not PEM; convert it"),
    ] {
        let variables = variables.map(|(name, path)| (name, path.as_str()));
        let (code, text) = run(&[], &variables);
        assert!(code == Some(2) && text.contains(expected) && text.lines().count() == 1, "{expected}: {code:?} {text}");
        let (code, text) = run(&["check"], &[&variables[..], &[("REDIS_PORT", "1")]].concat());
        assert!(code == Some(1) && text.contains("failed   TLS_CERT: TLS_"), "{expected}: {code:?} {text}");
        assert!(text.contains(expected), "{text}");
    }
    let pair = [("TLS_CERT", certificate.as_str()), ("TLS_KEY", key.as_str())];
    let (_, text) = run(&["check"], &[&pair[..], &[("REDIS_PORT", "1")]].concat());
    assert!(text.contains("ok       TLS_CERT: certificate and key can be used"), "{text}");
    for variables in [&pair[..1], &pair[1..], &[("TLS_CLIENT_CA", certificate.as_str())]] {
        let (code, text) = run(&[], variables);
        assert!(code == Some(2) && text.contains("allowed: TLS_CERT and TLS_KEY, both or neither"), "{text}");
    }
}

/// SIGHUP under load: new connections get the new certificate, none is dropped or refused. Unusable
/// files change nothing.
#[test]
fn rotation_drops_no_connection() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    certificates.issue("next", "ca");
    let proxy = certificates.start_proxy(redis.port, &[("WORKERS", "2")]);
    let (config, address) = (certificates.client_config(), proxy.address);
    let mut kept: Vec<TlsClient> = (0..10).map(|_| certificates.connect(address)).collect();
    kept.iter_mut().for_each(|client| assert_eq!(client.get_text("/raw/a"), "value"));
    let (is_over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (config, is_over, count) = (Arc::clone(&config), Arc::clone(&is_over), Arc::clone(&count));
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = TlsClient::connect(address, Arc::clone(&config));
                    assert_eq!(client.get_text("/raw/a"), "value");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let wait_for_load = || {
        let before = count.load(Ordering::Relaxed);
        wait_for("new connections", || (count.load(Ordering::Relaxed) > before + 20).then_some(()));
    };
    let shown = || {
        let mut client = certificates.connect(address);
        client.get_text("/raw/a");
        client.stream.conn.peer_certificates().expect("a certificate")[0].clone()
    };
    wait_for_load();
    let (old, new) = (certificates.read("server.pem"), certificates.read("next.pem"));
    assert_eq!(shown(), old);
    // A certificate without its key is not used.
    let replace = |from: &str, to: &str| {
        std::fs::copy(certificates.path(from), certificates.path("temporary")).expect("a file");
        std::fs::rename(certificates.path("temporary"), certificates.path(to)).expect("a file");
    };
    replace("next.pem", "server.pem");
    proxy.signal("HUP");
    certificates.wait_for_metric(&proxy, "segment_tls_certificate_loads_total{result=\"failed\"} 1");
    wait_for("the error", || proxy.log().contains("; until then the old TLS certificate and key stay").then_some(()));
    wait_for_load();
    assert_eq!(shown(), old);
    replace("next-key.pem", "server-key.pem");
    proxy.signal("HUP");
    certificates.wait_for_metric(&proxy, "segment_tls_certificate_loads_total{result=\"ok\"} 2");
    wait_for_load();
    assert_eq!(shown(), new);
    is_over.store(true, Ordering::Relaxed);
    load.into_iter().for_each(|thread| thread.join().expect("a connection failed"));
    kept.iter_mut().for_each(|client| assert_eq!(client.get_text("/raw/a"), "value"));
    proxy.signal("HUP");
    let unchanged = "TLS certificate, key and client authorities are unchanged";
    wait_for(unchanged, || proxy.log().contains(unchanged).then_some(()));
}
