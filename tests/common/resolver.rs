//! Host name for Redis with an address and a lookup delay that a test controls.
//!
//! `LD_PRELOAD` replaces `getaddrinfo`. This needs no namespaces, no /etc/hosts and no privileges.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Host name of Redis in the tests.
const NAME: &str = "redis.test";

/// Controlled result of the name lookup of one proxy.
pub struct Resolver {
    file: PathBuf,
}

impl Resolver {
    /// Creates a resolver that returns `address` without delay.
    pub fn start(address: &str) -> Resolver {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let resolver = Resolver { file: own_path(&format!("name-{}", COUNT.fetch_add(1, Ordering::Relaxed))) };
        resolver.set_result(0, address);
        resolver
    }

    /// Makes later lookups take `delay_ms` and return `address`.
    ///
    /// `address` is a comma-separated list, or "nowhere" for a lookup that fails.
    pub fn set_result(&self, delay_ms: u32, address: &str) {
        // The rename is atomic: the proxy never reads a partial file.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{delay_ms} {address}\n")).expect("a file can be written");
        std::fs::rename(&new, &self.file).expect("a file can be renamed");
    }

    /// Returns true if the name resolves to `address`.
    pub fn resolves_to(&self, address: &str) -> bool {
        std::fs::read_to_string(&self.file).is_ok_and(|text| text.trim_end().ends_with(address))
    }

    /// Returns the environment variables that make a proxy use this resolver.
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

/// Returns a path that no other process uses.
fn own_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

/// Compiles `resolver.c` once per process and returns the path of the library.
fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/resolver.c");
        let (ours, library) = (own_path("resolver.so"), PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("resolver.so"));
        let options = ["-shared", "-fPIC", "-Wall", "-Werror", "-o"];
        let status = Command::new("cc").args(options).arg(&ours).args([source, "-ldl"]).status();
        assert!(status.expect("cc is installed").success(), "resolver.c does not compile");
        // Other test processes may compile it too. Each replaces the file by an identical one.
        std::fs::rename(&ours, &library).expect("a file can be renamed");
        library
    })
}
