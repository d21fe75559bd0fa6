//! A name for Redis that leads where a test says, and takes as long as it says: no namespaces, no /etc/hosts, no rights.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the tests call Redis.
const NAME: &str = "redis.test";

/// The name, for one proxy.
pub struct Resolver {
    file: PathBuf,
}

impl Resolver {
    /// The name leads to an address, at once.
    pub fn start(address: &str) -> Resolver {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let resolver = Resolver { file: own_path(&format!("name-{}", COUNT.fetch_add(1, Ordering::Relaxed))) };
        resolver.set_result(0, address);
        resolver
    }

    /// From now on a lookup takes so many milliseconds and finds `address`, of which there may be several with commas between
    /// them, or nothing if that is "nowhere".
    pub fn set_result(&self, milliseconds: u32, address: &str) {
        // Renamed, so that nobody reads half of it.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{milliseconds} {address}\n")).expect("a file can be written");
        std::fs::rename(&new, &self.file).expect("a file can be renamed");
    }

    pub fn resolves_to(&self, address: &str) -> bool {
        std::fs::read_to_string(&self.file).is_ok_and(|text| text.trim_end().ends_with(address))
    }

    /// What makes the proxy ask here.
    pub fn env(&self) -> [(&str, &str); 4] {
        let text = |path: &'static PathBuf| path.to_str().expect("a path that is text");
        let file = self.file.to_str().expect("a path that is text");
        [("LD_PRELOAD", text(library())), ("RESOLVER_NAME", NAME), ("RESOLVER_FILE", file), ("REDIS_HOST", NAME)]
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A path of this process' own.
fn own_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

/// `resolver.c`, compiled once for all processes that test.
fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/resolver.c");
        let (ours, library) = (own_path("resolver.so"), PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("resolver.so"));
        let options = ["-shared", "-fPIC", "-Wall", "-Werror", "-o"];
        let status = Command::new("cc").args(options).arg(&ours).args([source, "-ldl"]).status();
        assert!(status.expect("cc is installed").success(), "resolver.c does not compile");
        // Other processes may compile it too: whoever is last replaces it by the same.
        std::fs::rename(&ours, &library).expect("a file can be renamed");
        library
    })
}
