//! Runs the recipes of docs/feature-flags.md as they are written there. Only addresses are
//! replaced.

use crate::common::browser::{Browser, Page};
use crate::common::freshness::start_tracking_proxy;
use crate::common::program::Program;
use crate::common::{Proxy, Redis, stable_port, wait_for, wait_until_idle};
use crate::document::{PROXY, block, replace};
use crate::fronts::{Front, NGINX};
use std::process::Command;

/// Lines of a recipe, as the title of the document promises.
const MAX_LINES: usize = 10;

const FLAG: &str = "flag:checkout";

/// Returns the recipe in a language, for the proxy at this port.
fn recipe(language: &str, port: &str) -> String {
    let text = block(language);
    assert!(text.lines().count() <= MAX_LINES, "{language}: {} lines", text.lines().count());
    replace(text, PROXY, &format!("127.0.0.1:{port}"))
}

/// The recipes for programs print the flag at start and at each change, also after a restart of the
/// proxy.
#[test]
fn programs_print_each_change() {
    for (language, program) in [("sh", "sh"), ("python", "python3")] {
        let redis = Redis::start();
        let port = stable_port().to_string();
        let start = || start_tracking_proxy(redis.port, &[("PROXY_PORT", &port), ("SHUTDOWN_GRACE", "1")]);
        let proxy = start();
        let mut command = Command::new(program);
        command.args(["-c", &recipe(language, &port)]);
        let program = Program::start(command);
        assert_eq!(program.next_line(), "checkout: off", "a missing flag");
        for value in ["on", "off", "on"] {
            redis.set(FLAG, value);
            assert_eq!(program.next_line(), format!("checkout: {value}"));
        }
        redis.run(&["DEL", FLAG]);
        assert_eq!(program.next_line(), "checkout: off");
        redis.set(FLAG, "on");
        assert_eq!(program.next_line(), "checkout: on");
        restart(&redis, proxy, start, &program);
    }
}

/// Changes the flag while the proxy is away.
fn restart(redis: &Redis, proxy: Proxy, start: impl Fn() -> Proxy, program: &Program) {
    assert_eq!(proxy.stop("TERM"), Some(0));
    redis.set(FLAG, "off");
    let proxy = start();
    assert_eq!(program.next_line(), "checkout: off");
    // Writing the same value is no change.
    redis.set(FLAG, "off");
    wait_until_idle(redis, &proxy);
    assert!(program.is_silent());
    redis.set(FLAG, "on");
    assert_eq!(program.next_line(), "checkout: on");
}

/// The page of the recipe shows the flag, served by nginx as the document configures it, which
/// passes on no other key.
#[test]
fn page_shows_each_change() {
    let redis = Redis::start();
    let port = stable_port().to_string();
    let start = || start_tracking_proxy(redis.port, &[("PROXY_PORT", &port), ("SHUTDOWN_GRACE", "1")]);
    let proxy = start();
    redis.set("secret", "word");
    let front = Front::start(&NGINX, &proxy, &[]);
    assert!(block("html").lines().count() <= MAX_LINES);
    std::fs::write(front.dir.join("index.html"), block("html")).expect("a writable directory");
    for path in ["/key/secret", "/raw/secret", "/key/flag:/../secret", "/key/flag:%2F..%2Fsecret", "/watch?key=secret"]
    {
        assert_eq!(front.connect().get(path).status, 404, "{path}");
    }
    let browser = Browser::new("recipe");
    let mut page = browser.open(&format!("http://{}/", front.address));
    page.wait_for_text("flag", "off");
    for value in ["on", "off", "on"] {
        redis.set(FLAG, value);
        wait_for_flag(&mut page, value);
    }
    redis.run(&["DEL", FLAG]);
    wait_for_flag(&mut page, "off");
    // A browser gives up after the error of nginx. The page does not.
    assert_eq!(proxy.stop("TERM"), Some(0));
    redis.set(FLAG, "on");
    wait_for("nginx cannot reach the proxy", || front.log().contains("Connection refused").then_some(()));
    let _proxy = start();
    wait_for_flag(&mut page, "on");
}

fn wait_for_flag(page: &mut Page<'_>, value: &str) {
    page.wait_until(&format!("document.getElementById(\"flag\").value === \"{value}\""));
}
