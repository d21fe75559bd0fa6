//! Unix socket to listen on (`PROXY_SOCKET`): creation, takeover from an earlier proxy, removal.
//!
//! The file gets its permissions before the socket listens, so no client connects under others. A
//! file that a stopped proxy left is replaced. With `SHARE_PORT` a new proxy replaces the file of a
//! running one by an atomic rename. Clients find one of the two proxies at any time. The earlier
//! one serves the clients that it has, and leaves the new file alone.

use super::listen::{BACKLOG, Listener};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, FileType, Metadata, Permissions};
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
    path: PathBuf,
    /// Device and inode. A listening socket keeps its inode, so no other file gets the same.
    identity: (u64, u64),
    is_removed: bool,
}

impl SocketFile {
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

/// Creates a listening socket at `path` with permissions `mode`. With `takes_over` it replaces the
/// socket of a running process of the same user.
///
/// # Errors
///
/// The path is in use or not available.
pub fn bind_unix(path: &Path, mode: u32, takes_over: bool) -> Result<(Listener, SocketFile), UnixSocketError> {
    let Some(owner) = live_owner(path)? else { return create(path, mode) };
    if !takes_over {
        return Err(UnixSocketError::InUse);
    }
    let temporary = temporary_path(path);
    live_owner(&temporary)?.map_or(Ok(()), |_| Err(UnixSocketError::InUse))?;
    let (listener, mut file) = create(&temporary, mode)?;
    if fs::symlink_metadata(&temporary)?.uid() != owner {
        return Err(UnixSocketError::OtherUser);
    }
    fs::rename(&temporary, path)?;
    file.path = path.to_owned();
    log::info!("took PROXY_SOCKET={path:?} over: new clients reach this process");
    Ok((listener, file))
}

/// Checks that a socket can be created at `path`, and leaves no file. A socket that no process
/// listens on may be removed.
///
/// # Errors
///
/// The path is in use or not available.
pub fn check_unix_socket(path: &Path) -> Result<(), UnixSocketError> {
    if live_owner(path)?.is_some() {
        return Err(UnixSocketError::InUse);
    }
    bind_file(path).map(drop)
}

/// Returns the owner of the socket that a process listens on at `path`, `None` if the path is free.
/// Removes a socket that no process listens on.
fn live_owner(path: &Path) -> Result<Option<u32>, UnixSocketError> {
    match path_state(path)? {
        PathState::Live(owner) => return Ok(Some(owner)),
        PathState::Stale => fs::remove_file(path)?,
        PathState::Free => {}
    }
    Ok(None)
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

/// Creates a socket at a path that is free. It does not listen yet, so the kernel refuses clients.
fn bind_file(path: &Path) -> Result<(Socket, SocketFile), UnixSocketError> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let identity = identity(&fs::symlink_metadata(path)?);
    Ok((socket, SocketFile { path: path.to_owned(), identity, is_removed: false }))
}

/// Creates a listening socket at a path that is free.
fn create(path: &Path, mode: u32) -> Result<(Listener, SocketFile), UnixSocketError> {
    let (socket, file) = bind_file(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok((Listener::Unix(socket.into()), file))
}

/// Returns a path beside `path`, for a socket that is to replace it. The name is short, because the
/// kernel limits the length of the path.
fn temporary_path(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}", std::process::id()))
}
