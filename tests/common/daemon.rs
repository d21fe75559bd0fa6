//! Helpers for real daemons that tests start: their command, and a directory for all their files.

use super::TEST_TIMEOUT;
use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Returns a command with the directories of daemons in its PATH, which not every user has.
pub fn command(program: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(":/usr/sbin:/sbin"));
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// Returns the command of an nginx with all its files in `dir`, and these lines in its `http`
/// context.
pub fn nginx(dir: &Path, lines: &str) -> Command {
    let (path, log) = (dir.join("main.conf"), dir.join("error.log"));
    let names = ["client_body", "fastcgi", "uwsgi", "scgi", "proxy"];
    let temporary = names.map(|name| format!("{name}_temp_path {}/{name};", dir.display())).join("\n");
    let text = format!(
        "daemon off;\npid {dir}/pid;\nerror_log {log};\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}\n{lines}\n}}\n",
        dir = dir.display(),
        log = log.display(),
    );
    std::fs::write(&path, text).expect("a writable directory");
    let mut command = command("nginx");
    // Without -e it would open its default log before it has read the configuration.
    command.arg("-p").arg(dir).arg("-e").arg(log).arg("-c").arg(path);
    command
}

/// Creates a directory that any user may write to. nginx and Squid become another user if started
/// by root, and that user may have no access to the build directory.
pub fn create_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("segment-daemon-{}-{number}", std::process::id()));
    std::fs::create_dir(&dir).expect("a new name");
    std::fs::set_permissions(&dir, Permissions::from_mode(0o777)).expect("a directory of this test");
    dir
}

/// Asks a daemon to end with `signal`, such as `TERM`, and waits. Kills it if it takes too long.
pub fn stop(daemon: &mut Child, signal: &str) {
    let kill = format!("kill -{signal} {}", daemon.id());
    // The process may have exited already.
    let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    let deadline = Instant::now() + TEST_TIMEOUT;
    while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
}
