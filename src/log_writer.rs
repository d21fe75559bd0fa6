//! The log's way out. Whoever logs leaves lines in a queue; a thread writes them. So nobody waits for a disk that is full or
//! for a reader that has stopped reading, the loop least of all.
//!
//! The queue is bounded: lines beyond it are dropped, and counted. A file is opened anew when somebody asks for it, after
//! `logrotate` has given the old one another name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait to be written: some ten thousand lines, a second of a busy access log.
const MAX_BUFFERED_BYTES: usize = 4 * 1024 * 1024;

/// What of that lines about requests leave to events, where both go to one target: a thousand lines. Requests come by the thousands
/// just when an event may tell why.
const RESERVED_FOR_EVENTS: usize = 256 * 1024;

/// Where lines go.
#[derive(Clone, Debug)]
pub enum LogTarget {
    /// Standard error.
    Error,
    /// Standard output.
    Output,
    /// A file, to whose end they are appended.
    File(PathBuf),
}

/// Lines on their way out. Clones write to the same target. See the top of the file.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<WriterShared>);

#[derive(Debug)]
struct WriterShared {
    state: Mutex<WriterState>,
    /// There is something to do for the thread.
    work: Condvar,
    /// All is written.
    done: Condvar,
}

#[derive(Debug, Default)]
struct WriterState {
    buffer: Vec<u8>,
    /// The thread is writing what it has taken.
    writing: bool,
    reopen: bool,
    dropped: u64,
    /// How many of the dropped lines the log has told of.
    reported: u64,
}

impl LogWriter {
    /// Opens the target and starts the thread.
    pub fn start(target: LogTarget) -> io::Result<LogWriter> {
        let sink = open(&target)?;
        let shared = WriterShared { state: Mutex::default(), work: Condvar::new(), done: Condvar::new() };
        let log_writer = LogWriter(Arc::new(shared));
        let writer = log_writer.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || writer.write_all(sink, &target))?;
        Ok(log_writer)
    }

    /// Adds whole lines about requests, or drops them.
    pub fn write_access_lines(&self, lines: &[u8]) {
        self.enqueue(lines, MAX_BUFFERED_BYTES - RESERVED_FOR_EVENTS);
    }

    /// Adds whole lines as long as no more than so many bytes wait, and drops the rest.
    fn enqueue(&self, lines: &[u8], most: usize) {
        let mut state = self.state();
        let room = most.saturating_sub(state.buffer.len());
        let fits = match lines.len() <= room {
            true => lines.len(),
            // As many whole lines as there is room for.
            false => lines[..room].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1),
        };
        state.buffer.extend_from_slice(&lines[..fits]);
        state.dropped += count_lines(&lines[fits..]);
        drop(state);
        self.0.work.notify_one();
    }

    /// Has a file opened anew.
    pub fn reopen(&self) {
        self.state().reopen = true;
        self.0.work.notify_one();
    }

    /// Whether it is a clone of this one.
    pub fn ptr_eq(&self, other: &LogWriter) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Lines that were dropped for want of room, or could not be written.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Waits until all is written, and opened anew if that was asked for, but no longer than this.
    pub fn flush(&self, timer: Duration) {
        let unwritten = |state: &mut WriterState| state.writing || state.reopen || !state.buffer.is_empty();
        // Who cannot write by then never will.
        drop(self.0.done.wait_timeout_while(self.state(), timer, unwritten));
    }

    fn state(&self) -> MutexGuard<'_, WriterState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut sink: Box<dyn Write + Send>, target: &LogTarget) {
        let (mut lines, mut broken) = (Vec::new(), SinkState::default());
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
            // First what was said before the file was given another name.
            let lost_now = broken.write(&mut sink, &lines);
            if lost_now > 0 {
                let mut state = self.state();
                state.dropped += lost_now;
                // To say so in the same place would fail, too.
                state.reported += lost_now;
            }
            lines.clear();
            if reopen {
                match open(target) {
                    Ok(opened) => (sink, broken) = (opened, SinkState::default()),
                    Err(error) => log::error!("cannot reopen LOG_FILE, still writing to the old file: {error}"),
                }
            }
            if lost > 0 {
                log::warn!("log buffer overflow: {lost} log lines lost; the log target is too slow");
            }
        }
    }
}

/// What is the matter with a target that does not take everything.
#[derive(Debug, Default)]
struct SinkState {
    /// It has failed last time. That is told once, until it works again.
    failing: bool,
    /// It ends within a line.
    torn: bool,
}

impl SinkState {
    /// Writes as much as it takes. Says how many lines were not written whole.
    fn write(&mut self, sink: &mut impl Write, lines: &[u8]) -> u64 {
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
                let _ =
                    writeln!(io::stderr(), "segment-redis-proxy: cannot write to the log, log lines are lost: {error}");
            }
            Err(_) => {}
        }
        count_lines(rest)
    }
}

/// As `env_logger` writes: each record at once, a whole line.
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

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_written_after_reopening_is_in_the_new_file_and_all_before_in_the_old() {
        let folder = std::env::temp_dir().join(format!("segment-journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (path, old) = (folder.join("log"), folder.join("log.1"));
        let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let log_writer = LogWriter::start(LogTarget::File(path.clone())).expect("a file");
        log_writer.write_access_lines(b"one\n");
        log_writer.flush(PATIENCE);
        std::fs::rename(&path, &old).expect("another name");
        log_writer.write_access_lines(b"two\n");
        log_writer.reopen();
        log_writer.flush(PATIENCE);
        log_writer.write_access_lines(b"three\n");
        log_writer.flush(PATIENCE);
        assert_eq!((read(&old), read(&path)), ("one\ntwo\n".into(), "three\n".into()));
        std::fs::remove_dir_all(&folder).expect("it is ours");
        assert!(LogWriter::start(LogTarget::File(path)).is_err(), "there is no such folder");
    }

    /// Takes so many bytes, then none.
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

    #[test]
    fn a_disk_that_was_full_leaves_one_line_torn_and_no_two_glued_together() {
        let (mut disk, mut broken) = (Full(Vec::new(), 7), SinkState::default());
        assert_eq!(broken.write(&mut disk, b"one\ntwo two\nthree\n"), 2);
        assert_eq!(broken.write(&mut disk, b"four\n"), 1);
        disk.1 = 100;
        assert_eq!(broken.write(&mut disk, b"five\nsix\n"), 0);
        assert_eq!(String::from_utf8_lossy(&disk.0), "one\ntwo\nfive\nsix\n");
        assert!(!broken.failing && !broken.torn);
    }

    #[test]
    fn of_many_lines_at_once_those_are_taken_that_there_is_room_for() {
        let shared = WriterShared { state: Mutex::default(), work: Condvar::new(), done: Condvar::new() };
        let log_writer = LogWriter(Arc::new(shared));
        let most = MAX_BUFFERED_BYTES - RESERVED_FOR_EVENTS;
        log_writer.write_access_lines(&b"0123456\n".repeat(most / 8 + 3));
        assert_eq!((log_writer.dropped(), log_writer.state().buffer.len()), (3, most));
        // An event among so many requests.
        assert_eq!(log_writer.clone().write(b"what is the matter\n").expect("no error"), 19);
        assert_eq!((log_writer.dropped(), log_writer.state().buffer.len()), (3, most + 19));
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted_and_nobody_waits() {
        // A pipe that nobody reads holds 64 KiB.
        let (reader, writer) = io::pipe().expect("a pipe");
        let shared = WriterShared { state: Mutex::default(), work: Condvar::new(), done: Condvar::new() };
        let log_writer = LogWriter(Arc::new(shared));
        let thread = log_writer.clone();
        std::thread::spawn(move || thread.write_all(Box::new(writer), &LogTarget::Error));
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
