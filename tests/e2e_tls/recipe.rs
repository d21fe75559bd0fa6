//! Test of the recipe in docs/operations.md.

use crate::certificates::{Certificates, to_text};
use crate::common::Redis;
use std::process::Command;

/// The commands make an authority and a certificate that curl accepts.
#[test]
fn documented_certificate_works() {
    let document = include_str!("../../docs/operations.md");
    let (_, rest) = document
        .split_once("<!-- not run: tests/e2e_tls/recipe.rs reads and runs it -->\n```sh\n")
        .expect("the recipe");
    let (script, _) = rest.split_once("```").expect("its end");
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("key", "value");
    // It overwrites the authority and the certificate of the test.
    let output = Command::new("sh").args(["-euc", script]).current_dir(certificates.path("")).output();
    let output = output.expect("sh is installed");
    assert!(output.status.success(), "{}", to_text(&output));
    let proxy = certificates.start_proxy(redis.port, &[]);
    let url = format!("https://localhost:{}/raw/key", proxy.address.port());
    assert_eq!(certificates.curl(&[&url]), "value");
}
