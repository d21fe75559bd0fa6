//! Unix socket to listen on (`PROXY_SOCKET`): creation, takeover from an earlier proxy, removal.
//!
//! A socket is created under a temporary name in the same directory. It gets its permissions,
//! listens, and only then its path. So no client connects under other permissions, and a socket at
//! the path that refuses connections is one that a stopped proxy left. That one is replaced.
//!
//! With `SHARE_PORT` a new proxy replaces the file of a running one by an atomic rename. Clients
//! find one of the two proxies at any time. The earlier one serves the clients that it has, and
//! leaves the new file alone.

use super::listen::{BACKLOG, Listener};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, FileType, Metadata, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Error: a Unix socket cannot be created.
#[derive(Debug)]
pub enum UnixSocketError {
    /// Another process listens at the path.
    InUse,
    /// The path is that of a socket without connections, such as a datagram socket.
    OtherType,
    /// A process of another user listens at the path.
    OtherUser,
    /// The path is that of a file, a directory or a link.
    NotSocket(FileType),
    /// The directory of the path does not exist.
    NoDirectory,
    /// The system refuses.
    System(io::Error),
}

impl std::fmt::Display for UnixSocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            UnixSocketError::InUse => f.write_str(
                "another process listens there; stop it, or take its place without downtime with SHARE_PORT=on",
            ),
            UnixSocketError::OtherType => {
                f.write_str("a socket of another type is there, which is no proxy's; set another PROXY_SOCKET")
            }
            UnixSocketError::OtherUser => {
                f.write_str("a process of another user listens there; set another PROXY_SOCKET")
            }
            UnixSocketError::NotSocket(kind) => {
                let kind = match kind {
                    kind if kind.is_symlink() => "symbolic link",
                    kind if kind.is_dir() => "directory",
                    _ => "file",
                };
                write!(f, "a {kind} is there, which the proxy does not replace; remove it, or set another PROXY_SOCKET")
            }
            UnixSocketError::NoDirectory => {
                f.write_str("its directory does not exist; create it (with systemd: RuntimeDirectory=)")
            }
            UnixSocketError::System(error) => {
                write!(
                    f,
                    "{error}; the user of the proxy needs write permission for the directory and the socket in it"
                )
            }
        }
    }
}

impl std::error::Error for UnixSocketError {}

impl From<io::Error> for UnixSocketError {
    fn from(error: io::Error) -> UnixSocketError {
        match error.kind() {
            io::ErrorKind::AddrInUse => UnixSocketError::InUse,
            io::ErrorKind::NotFound => UnixSocketError::NoDirectory,
            _ => UnixSocketError::System(error),
        }
    }
}

/// File of a Unix socket that this process listens on. Removed when dropped, unless another process
/// has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    /// Present path: a temporary one until [`SocketFile::publish`].
    path: PathBuf,
    /// Device and inode. A listening socket keeps its inode, so no other file gets the same.
    identity: (u64, u64),
    is_removed: bool,
}

impl SocketFile {
    /// Gives the file its final path, so that clients reach this process. Replaces a socket that no
    /// process listens on. With `takes_over` it replaces that of a running process of the same
    /// user.
    ///
    /// # Errors
    ///
    /// The path is in use or not available. The file keeps its temporary path.
    pub fn publish(&mut self, path: &Path, takes_over: bool) -> Result<(), UnixSocketError> {
        match path_state(path)? {
            PathState::Live(_) if !takes_over => return Err(UnixSocketError::InUse),
            PathState::Live(owner) if owner != fs::symlink_metadata(&self.path)?.uid() => {
                return Err(UnixSocketError::OtherUser);
            }
            PathState::Live(_) => {
                fs::rename(&self.path, path)?;
                log::info!("took PROXY_SOCKET={path:?} over: new clients reach this process");
            }
            state => {
                if let PathState::Stale = state {
                    fs::remove_file(path)?;
                }
                self.link(path)?;
            }
        }
        self.path = path.to_owned();
        Ok(())
    }

    /// Moves the file to a free path. Unlike a rename, a link replaces no file that another process
    /// creates at the same time.
    fn link(&self, path: &Path) -> io::Result<()> {
        match fs::hard_link(&self.path, path) {
            Ok(()) => fs::remove_file(&self.path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::AddrInUse.into()),
            // A file system without links.
            Err(_) => fs::rename(&self.path, path),
        }
    }

    /// Removes the file, unless another process has replaced it. Clients that connect later get an
    /// error at once, or reach the process that has replaced it.
    pub fn remove(&mut self) {
        if std::mem::replace(&mut self.is_removed, true) {
            return;
        }
        let is_own = fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity);
        if is_own && let Err(error) = fs::remove_file(&self.path) {
            log::warn!(
                "cannot remove PROXY_SOCKET={:?}: {error}; the next proxy replaces it, if it may write to the directory",
                self.path
            );
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// State of the path of a socket.
enum PathState {
    /// Nothing is there.
    Free,
    /// A socket is there that no process listens on.
    Stale,
    /// A process listens there. The number is the user id of the file's owner.
    Live(u32),
}

/// Creates a listening socket with permissions `mode`, for [`SocketFile::publish`] at `path`. Fails
/// early if that would: with `takes_over` a running process at the path is no obstacle.
///
/// # Errors
///
/// The path is in use or not available.
pub fn bind_unix(path: &Path, mode: u32, takes_over: bool) -> Result<(Listener, SocketFile), UnixSocketError> {
    if matches!(path_state(path)?, PathState::Live(_)) && !takes_over {
        return Err(UnixSocketError::InUse);
    }
    let (socket, file) = bind_temporary(path)?;
    fs::set_permissions(&file.path, Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok((Listener::Unix(socket.into()), file))
}

/// Checks that a socket can be created at `path`. Removes no file and leaves none.
///
/// # Errors
///
/// The path is in use or not available.
pub fn check_unix_socket(path: &Path) -> Result<(), UnixSocketError> {
    match path_state(path)? {
        PathState::Live(_) => Err(UnixSocketError::InUse),
        PathState::Stale | PathState::Free => bind_temporary(path).map(drop),
    }
}

fn path_state(path: &Path) -> Result<PathState, UnixSocketError> {
    let metadata = match fs::symlink_metadata(path) {
        // A missing directory has the same error, and shows when the socket is created.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PathState::Free),
        result => result?,
    };
    if !metadata.file_type().is_socket() {
        return Err(UnixSocketError::NotSocket(metadata.file_type()));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Otherwise a full backlog would block.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(PathState::Stale),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PathState::Free),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error.into()),
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => Err(UnixSocketError::OtherType),
        // A full backlog is an error as well.
        Ok(()) | Err(_) => Ok(PathState::Live(metadata.uid())),
    }
}

/// Creates a socket beside `path`, under a temporary name. It does not listen yet, so the kernel
/// refuses clients.
///
/// The name is random, because two containers with one directory may have the same process id. It
/// is short, because the kernel limits the length of the path.
fn bind_temporary(path: &Path) -> Result<(Socket, SocketFile), UnixSocketError> {
    let random = RandomState::new().hash_one(std::process::id()) as u32;
    let temporary = path.with_file_name(format!(".{random:08x}"));
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&temporary)?)?;
    let identity = identity(&fs::symlink_metadata(&temporary)?);
    Ok((socket, SocketFile { path: temporary, identity, is_removed: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// Creates an empty directory, and returns the path of a socket in it.
    fn socket_path(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("segment-unit-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).expect("a directory");
        directory.join("a")
    }

    fn files_beside(path: &Path) -> usize {
        fs::read_dir(path.parent().expect("a directory")).expect("a directory").count()
    }

    fn inode(path: &Path) -> u64 {
        fs::symlink_metadata(path).expect("a file").ino()
    }

    /// A socket listens before it is at its path. Of two proxies that start together one gets the
    /// path, and the other changes nothing.
    #[test]
    fn simultaneous_starts_have_one_winner() {
        let path = socket_path("together");
        let (_first, mut first_file) = bind_unix(&path, 0o600, false).expect("a free path");
        let (_second, mut second_file) = bind_unix(&path, 0o600, false).expect("a free path");
        assert!(matches!(path_state(&path), Ok(PathState::Free)));
        first_file.publish(&path, false).expect("a free path");
        assert!(UnixStream::connect(&path).is_ok());
        assert!(matches!(second_file.link(&path), Err(error) if error.kind() == io::ErrorKind::AddrInUse));
        assert!(matches!(second_file.publish(&path, false), Err(UnixSocketError::InUse)));
        assert!(matches!(bind_unix(&path, 0o600, false), Err(UnixSocketError::InUse)));
        drop(second_file);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(files_beside(&path), 1);
        drop(first_file);
        assert_eq!(files_beside(&path), 0);
        fs::remove_dir(path.parent().expect("a directory")).expect("it is empty");
    }

    /// A proxy that fails before it takes the path over leaves the running one alone. The earlier
    /// one does not remove the file of one that took it over.
    #[test]
    fn failed_takeover_leaves_running_proxy() {
        let path = socket_path("takeover");
        let (_old, mut old_file) = bind_unix(&path, 0o600, true).expect("a free path");
        old_file.publish(&path, true).expect("a free path");
        let before = inode(&path);
        drop(bind_unix(&path, 0o600, true).expect("a path to take over"));
        assert_eq!((inode(&path), files_beside(&path)), (before, 1));
        let (_new, mut new_file) = bind_unix(&path, 0o600, true).expect("a path to take over");
        new_file.publish(&path, true).expect("a path to take over");
        drop(old_file);
        assert_ne!(inode(&path), before);
        assert!(UnixStream::connect(&path).is_ok());
        drop(new_file);
        fs::remove_dir(path.parent().expect("a directory")).expect("it is empty");
    }

    /// A check leaves the socket that a stopped proxy left, and a start replaces it.
    #[test]
    fn check_leaves_stale_socket() {
        let path = socket_path("stale");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a free path"));
        let before = inode(&path);
        check_unix_socket(&path).expect("a path to replace");
        assert_eq!((inode(&path), files_beside(&path)), (before, 1));
        let (_listener, mut file) = bind_unix(&path, 0o640, false).expect("a path to replace");
        file.publish(&path, false).expect("a path to replace");
        assert_eq!(fs::symlink_metadata(&path).expect("a file").permissions().mode() & 0o777, 0o640);
        assert!(UnixStream::connect(&path).is_ok());
        drop(file);
        fs::remove_dir(path.parent().expect("a directory")).expect("it is empty");
    }
}
