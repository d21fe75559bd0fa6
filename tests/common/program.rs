//! Program that prints what it receives, line by line.

use super::TEST_TIMEOUT;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

/// Running program. Killed when dropped, with all processes that it started.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    pub fn start(mut command: Command) -> Program {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.expect("the program is installed");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // The test may have ended.
            output.lines().map_while(Result::ok).for_each(|line| _ = sender.send(line));
        });
        Program { child, lines }
    }

    /// Starts curl without a buffer, for the event stream of a path.
    pub fn curl(address: SocketAddr, path: &str) -> Program {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--no-buffer", "--header", "Accept: text/event-stream"]);
        command.arg(format!("http://{address}{path}"));
        Program::start(command)
    }

    /// Returns the next line of the output.
    pub fn next_line(&self) -> String {
        self.lines.recv_timeout(TEST_TIMEOUT).expect("a line in time")
    }

    /// Returns the next line that begins with `prefix`, without the prefix.
    pub fn next_with(&self, prefix: &str) -> String {
        // Heartbeats are lines too.
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            assert!(Instant::now() < deadline, "no line with {prefix:?} within {TEST_TIMEOUT:?}");
            if let Some(rest) = self.next_line().strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
    }

    /// Returns true if there is no further line yet.
    pub fn is_silent(&self) -> bool {
        self.lines.try_recv().is_err()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}

/// Kills the process group that a child leads.
pub fn kill_group(child: &mut Child) {
    let kill = format!("kill -KILL -{}", child.id());
    // The processes may have exited already.
    let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    let _ = child.wait();
}
