//! Log writer: a bounded queue of log lines, and the thread that writes them to one target.
//!
//! A thread that logs only appends to the queue, so a full disk or a slow reader never blocks it. A
//! full queue drops lines and counts them. A file is reopened on request, after `logrotate` has
//! renamed the old one.

use crate::log_format::{LogFormat, event_line};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Most bytes in the queue: tens of thousands of lines, one second of a busy access log.
const MAX_BUFFERED_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of the queue that access log lines must leave free for events, if both go to one target: a
/// thousand lines.
///
/// A burst of requests often comes with the event that explains it.
const RESERVED_FOR_EVENTS: usize = 256 * 1024;

/// Destination of log lines.
#[derive(Clone, Debug)]
pub enum LogTarget {
    /// Standard error.
    Error,
    /// Standard output.
    Output,
    /// A file. Lines are appended.
    File(PathBuf),
}

/// Handle to the queue of one target. Clones share the queue.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<WriterShared>);

#[derive(Debug)]
struct WriterShared {
    format: LogFormat,
    state: Mutex<WriterState>,
    /// The queue has lines, or a reopen was requested.
    work: Condvar,
    /// The queue is empty and nothing is being written.
    done: Condvar,
}

#[derive(Debug, Default)]
struct WriterState {
    buffer: Vec<u8>,
    /// The thread is writing lines that it took from the buffer.
    writing: bool,
    reopen: bool,
    /// Lines lost so far.
    dropped: u64,
    /// Lost lines that were already reported.
    reported: u64,
}

impl LogWriter {
    /// Opens the target and starts the writer thread. The lines are in `format`.
    pub fn start(target: LogTarget, format: LogFormat) -> io::Result<LogWriter> {
        let sink = open(&target)?;
        let log_writer = LogWriter::new(format);
        let writer = log_writer.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run(sink, &target))?;
        Ok(log_writer)
    }

    fn new(format: LogFormat) -> LogWriter {
        let shared = WriterShared { format, state: Mutex::default(), work: Condvar::new(), done: Condvar::new() };
        LogWriter(Arc::new(shared))
    }

    /// Returns the format of the lines.
    pub fn format(&self) -> LogFormat {
        self.0.format
    }

    /// Queues whole lines of the access log. Lines that do not fit are dropped.
    pub fn write_access_lines(&self, lines: &[u8]) {
        self.enqueue(lines, MAX_BUFFERED_BYTES - RESERVED_FOR_EVENTS);
    }

    /// Queues whole lines up to `max_bytes` in the queue, and drops the rest.
    fn enqueue(&self, lines: &[u8], max_bytes: usize) {
        let mut state = self.state();
        let space = max_bytes.saturating_sub(state.buffer.len());
        let fits = match lines.len() <= space {
            true => lines.len(),
            // As many whole lines as fit.
            false => lines[..space].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1),
        };
        state.buffer.extend_from_slice(&lines[..fits]);
        state.dropped += count_lines(&lines[fits..]);
        drop(state);
        self.0.work.notify_one();
    }

    /// Asks the thread to reopen the file. Lines queued before go to the old file.
    pub fn reopen(&self) {
        self.state().reopen = true;
        self.0.work.notify_one();
    }

    /// Returns true if both write to the same queue.
    pub fn ptr_eq(&self, other: &LogWriter) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the number of lines lost because the queue was full or a write failed.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Waits until all lines are written and a requested reopen is done, at most for `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut WriterState| state.writing || state.reopen || !state.buffer.is_empty();
        // A timeout is ignored: a target this slow will not take the rest either.
        drop(self.0.done.wait_timeout_while(self.state(), timeout, is_busy));
    }

    fn state(&self) -> MutexGuard<'_, WriterState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the writer thread.
    fn run(&self, mut sink: Box<dyn Write + Send>, target: &LogTarget) {
        let (mut lines, mut sink_state) = (Vec::new(), SinkState::default());
        loop {
            let mut state = self.state();
            state.writing = false;
            if state.buffer.is_empty() {
                self.0.done.notify_all();
            }
            while state.buffer.is_empty() && !state.reopen {
                state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut lines, &mut state.buffer);
            state.writing = true;
            let reopen = std::mem::take(&mut state.reopen);
            let dropped = state.dropped;
            let lost = dropped - std::mem::replace(&mut state.reported, dropped);
            drop(state);
            // Lines queued before the reopen request belong to the old file.
            let failed = sink_state.write(&mut sink, &lines, self.0.format);
            if failed > 0 {
                let mut state = self.state();
                state.dropped += failed;
                // Not reported here: that line would fail too.
                state.reported += failed;
            }
            lines.clear();
            if reopen {
                match open(target) {
                    Ok(opened) => (sink, sink_state) = (opened, SinkState::default()),
                    Err(error) => log::error!("cannot reopen LOG_FILE, still writing to the old file: {error}"),
                }
            }
            if lost > 0 {
                log::warn!("log buffer overflow: {lost} log lines lost; the log target is too slow");
            }
        }
    }
}

/// State of a target after failed or partial writes.
#[derive(Debug, Default)]
struct SinkState {
    /// The last write failed. This is reported once, until a write succeeds.
    failing: bool,
    /// The target ends with an incomplete line.
    torn: bool,
}

impl SinkState {
    /// Writes as much as the target takes. Returns the number of lines not written whole.
    fn write(&mut self, sink: &mut impl Write, lines: &[u8], format: LogFormat) -> u64 {
        let mut rest = lines;
        let mut result = if self.torn && !lines.is_empty() { sink.write_all(b"\n") } else { Ok(()) };
        self.torn &= result.is_err();
        while result.is_ok() && !rest.is_empty() {
            match sink.write(rest) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => result = Err(error),
            }
        }
        let written = &lines[..lines.len() - rest.len()];
        self.torn |= !rest.is_empty() && written.last().is_some_and(|&last| last != b'\n');
        match result.and_then(|()| sink.flush()) {
            Ok(()) => self.failing = false,
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                let message = format!("cannot write to the log, log lines are lost: {error}");
                let line = match format {
                    LogFormat::Text => format!("segment-redis-proxy: {message}\n").into_bytes(),
                    LogFormat::Json => event_line(SystemTime::now(), log::Level::Error, module_path!(), &message),
                };
                let _ = io::stderr().write_all(&line);
            }
            Err(_) => {}
        }
        count_lines(rest)
    }
}

/// Used by `env_logger`, which writes each record as one whole line.
impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.enqueue(line, MAX_BUFFERED_BYTES);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(target: &LogTarget) -> io::Result<Box<dyn Write + Send>> {
    Ok(match target {
        LogTarget::Error => Box::new(io::stderr()),
        LogTarget::Output => Box::new(io::stdout()),
        LogTarget::File(path) => Box::<File>::new(OpenOptions::new().create(true).append(true).open(path)?),
    })
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Lines queued before a reopen go to the old file, later lines to the new one.
    #[test]
    fn reopen_separates_old_and_new_lines() {
        let folder = std::env::temp_dir().join(format!("segment-log-writer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the folder is created");
        let (path, old) = (folder.join("log"), folder.join("log.1"));
        let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let log_writer = LogWriter::start(LogTarget::File(path.clone()), LogFormat::Text).expect("the file is opened");
        log_writer.write_access_lines(b"one\n");
        log_writer.flush(TIMEOUT);
        std::fs::rename(&path, &old).expect("the file is renamed");
        log_writer.write_access_lines(b"two\n");
        log_writer.reopen();
        log_writer.flush(TIMEOUT);
        log_writer.write_access_lines(b"three\n");
        log_writer.flush(TIMEOUT);
        assert_eq!((read(&old), read(&path)), ("one\ntwo\n".into(), "three\n".into()));
        std::fs::remove_dir_all(&folder).expect("the test owns the folder");
        assert!(LogWriter::start(LogTarget::File(path), LogFormat::Text).is_err(), "there is no such folder");
    }

    /// Disk that takes a limited number of bytes.
    struct Full(Vec<u8>, usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.1 - self.0.len());
            self.0.extend_from_slice(&bytes[..length]);
            if length > 0 { Ok(length) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A full disk leaves one incomplete line. Later lines start on a line of their own.
    #[test]
    fn full_disk_tears_one_line() {
        let (mut disk, mut sink_state) = (Full(Vec::new(), 7), SinkState::default());
        assert_eq!(sink_state.write(&mut disk, b"one\ntwo two\nthree\n", LogFormat::Text), 2);
        assert_eq!(sink_state.write(&mut disk, b"four\n", LogFormat::Text), 1);
        disk.1 = 100;
        assert_eq!(sink_state.write(&mut disk, b"five\nsix\n", LogFormat::Text), 0);
        assert_eq!(String::from_utf8_lossy(&disk.0), "one\ntwo\nfive\nsix\n");
        assert!(!sink_state.failing && !sink_state.torn);
    }

    /// Access log lines beyond the bound are dropped. An event still fits.
    #[test]
    fn full_queue_drops_access_lines() {
        let log_writer = LogWriter::new(LogFormat::Text);
        let max = MAX_BUFFERED_BYTES - RESERVED_FOR_EVENTS;
        log_writer.write_access_lines(&b"0123456\n".repeat(max / 8 + 3));
        assert_eq!((log_writer.dropped(), log_writer.state().buffer.len()), (3, max));
        assert_eq!(log_writer.clone().write(b"what is the matter\n").expect("no error"), 19);
        assert_eq!((log_writer.dropped(), log_writer.state().buffer.len()), (3, max + 19));
    }

    /// A target that takes no lines blocks no caller. Lines are dropped and counted.
    #[test]
    fn blocked_target_blocks_no_caller() {
        // A pipe without a reader takes 64 KiB.
        let (reader, writer) = io::pipe().expect("a pipe");
        let log_writer = LogWriter::new(LogFormat::Text);
        let thread = log_writer.clone();
        std::thread::spawn(move || thread.run(Box::new(writer), &LogTarget::Error));
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        for _ in 0..12 * 1024 {
            log_writer.write_access_lines(&line);
        }
        assert!(log_writer.dropped() > 1024 && log_writer.dropped() < 12 * 1024, "{}", log_writer.dropped());
        assert!(log_writer.state().buffer.len() <= MAX_BUFFERED_BYTES);
        log_writer.flush(Duration::from_millis(10));
        drop(reader);
    }
}
