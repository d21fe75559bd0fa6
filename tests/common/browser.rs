//! Headless Chromium: it opens a page for ten seconds of virtual time, or a page that a test uses.
//!
//! A test uses an open page by the DevTools protocol, whose messages are JSON texts that end with a
//! zero byte. They go through a pipe, so that no port is necessary.

use super::{TEST_TIMEOUT, wait_for};
use base64::prelude::*;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Arguments of each browser.
const ARGUMENTS: [&str; 4] = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"];

/// Headless browser with its own profile.
pub struct Browser {
    profile: PathBuf,
}

impl Browser {
    pub fn new(name: &str) -> Browser {
        let profile = std::env::temp_dir().join(format!("segment-page-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&profile).expect("a new directory");
        Browser { profile }
    }

    /// Returns the directory of the profile.
    pub fn profile(&self) -> &Path {
        &self.profile
    }

    fn profile_argument(&self) -> String {
        format!("--user-data-dir={}", self.profile.display())
    }

    /// Opens a page for ten seconds of virtual time. Returns the browser's output and its log.
    pub fn visit(&self, url: &str, arguments: &[&str]) -> (String, String) {
        // On a busy machine the browser may not end in time. It is started again then.
        wait_for("the browser exits", || {
            let output = Command::new("timeout")
                .args(["60", "chromium", "--enable-logging=stderr", "--virtual-time-budget=10000"])
                .args(ARGUMENTS)
                .arg(self.profile_argument())
                .args(arguments)
                .arg(url)
                .output()
                .expect("chromium is installed");
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            output.status.success().then(|| (text(&output.stdout), text(&output.stderr)))
        })
    }

    /// Returns the document after ten seconds. The console must be empty.
    pub fn dump_page(&self, url: &str) -> String {
        let (page, errors) = self.visit(url, &["--dump-dom"]);
        let console: Vec<&str> = errors.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert_eq!(console, [""; 0]);
        page
    }

    /// Takes a screenshot and returns the bytes of the PNG file.
    pub fn screenshot(&self, url: &str, scheme: &str, size: &str, path: &Path) -> Vec<u8> {
        let size = format!("--window-size={size}");
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        self.visit(url, &[&size, &scheme, &format!("--screenshot={}", path.display())]);
        std::fs::read(path).expect("a screenshot")
    }

    /// Opens a page that stays open, and waits until it is loaded.
    pub fn open(&self, url: &str) -> Page<'_> {
        let mut page = Page::launch(self);
        page.attach();
        page.navigate(url);
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// Page in a browser of its own, which ends when dropped.
pub struct Page<'a> {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<String>,
    last_id: u32,
    /// Members of a command that name the page.
    session: String,
    /// The profile must outlive the browser.
    _browser: &'a Browser,
}

impl<'a> Page<'a> {
    fn launch(browser: &'a Browser) -> Page<'a> {
        // The browser reads commands from descriptor 3 and writes messages to 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh", "--remote-debugging-pipe"])
            .args(ARGUMENTS)
            .args([&browser.profile_argument(), "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh is installed");
        let commands = child.stdin.take().expect("a pipe");
        let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while reader.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                // The test may have ended.
                let _ = sender.send(String::from_utf8_lossy(&message).into_owned());
                message.clear();
            }
        });
        Page { child, commands, messages, last_id: 0, session: String::new(), _browser: browser }
    }

    /// Sends a command and returns the reply. `parameters` is a JSON object.
    fn call(&mut self, method: &str, parameters: &str) -> String {
        self.last_id += 1;
        let (id, session) = (self.last_id, &self.session);
        write!(self.commands, "{{\"id\":{id},{session}\"method\":\"{method}\",\"params\":{parameters}}}\0")
            .expect("the browser reads");
        let begin = format!("{{\"id\":{id},");
        loop {
            let message = self.messages.recv_timeout(TEST_TIMEOUT).expect("the browser replies in time");
            assert!(!message.starts_with("{\"error\""), "{method}: {message}");
            if message.starts_with(&begin) {
                assert!(message.contains("\"result\":"), "{method}: {message}");
                return message;
            }
        }
    }

    /// Attaches to the page that the browser shows.
    fn attach(&mut self) {
        let target = self.call("Target.createTarget", "{\"url\":\"about:blank\"}");
        let target = member(&target, "targetId");
        let parameters = format!("{{\"targetId\":\"{target}\",\"flatten\":true}}");
        let session = self.call("Target.attachToTarget", &parameters);
        self.session = format!("\"sessionId\":\"{}\",", member(&session, "sessionId"));
    }

    fn navigate(&mut self, url: &str) {
        let reply = self.call("Page.navigate", &format!("{{\"url\":{}}}", quote(url)));
        assert!(!reply.contains("errorText"), "{url}: {reply}");
        self.wait_until("document.readyState === \"complete\" && location.href !== \"about:blank\"");
    }

    /// Runs an expression of JavaScript, and returns its value as text.
    pub fn run(&mut self, expression: &str) -> String {
        // Base64 needs no parser of JSON strings.
        let wrapped = format!("btoa(unescape(encodeURIComponent(String({expression}))))");
        let reply = self.call("Runtime.evaluate", &format!("{{\"expression\":{}}}", quote(&wrapped)));
        assert!(!reply.contains("\"exceptionDetails\""), "{expression}: {reply}");
        let bytes = BASE64_STANDARD.decode(member(&reply, "value")).expect("base64");
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Waits until an expression is true.
    pub fn wait_until(&mut self, expression: &str) {
        let mut last = String::new();
        wait_for(expression, || {
            last = self.run(expression);
            (last == "true").then_some(())
        });
    }

    /// Returns the text of the element with this id.
    pub fn text_of(&mut self, id: &str) -> String {
        self.run(&format!("document.getElementById({}).textContent", quote(id)))
    }

    /// Waits until the text of an element contains `part`, and returns it.
    pub fn wait_for_text(&mut self, id: &str, part: &str) -> String {
        let mut text = String::new();
        wait_for(&format!("{id} shows {part:?}"), || {
            text = self.text_of(id);
            text.contains(part).then(|| text.clone())
        })
    }

    /// Types text into the element that has the focus.
    pub fn insert_text(&mut self, text: &str) {
        self.call("Input.insertText", &format!("{{\"text\":{}}}", quote(text)));
    }

    /// Presses and releases a key of the keyboard, such as `Tab`. `text` is what it types.
    pub fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" && !text.is_empty() {
                format!(",\"text\":{}", quote(text))
            } else {
                String::new()
            };
            let event = format!(
                "{{\"type\":\"{kind}\",\"key\":\"{key}\",\"code\":\"{key}\",\"windowsVirtualKeyCode\":{code}{text}}}"
            );
            self.call("Input.dispatchKeyEvent", &event);
        }
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        // All processes at once: one that outlives the others would write to the profile.
        super::program::kill_group(&mut self.child);
    }
}

/// Returns a JSON string, which is an expression of JavaScript too.
pub fn quote(text: impl Display) -> String {
    let mut quoted = String::from("\"");
    for char in text.to_string().chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            _ if char < ' ' => quoted += &format!("\\u{:04x}", u32::from(char)),
            _ => quoted.push(char),
        }
    }
    quoted + "\""
}

/// Returns the value of a member that is a string without escapes.
fn member<'a>(message: &'a str, name: &str) -> &'a str {
    let (_, rest) = message.split_once(&format!("\"{name}\":\"")).unwrap_or_else(|| panic!("no {name} in {message}"));
    rest.split_once('"').expect("the end of a string").0
}
