//! State of the certificate that clients see. The thread that loads certificates writes it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of the certificate for clients. All are 0 without TLS.
#[derive(Debug, Default)]
pub struct TlsStatus {
    /// End of the certificate's validity in seconds since the Unix epoch, 0 if unknown.
    not_after: AtomicU64,
    /// Loads that succeeded and that failed.
    loads: [AtomicU64; 2],
}

impl TlsStatus {
    /// Records a load, with the end of the certificate's validity in seconds since the Unix epoch.
    pub fn record_load(&self, not_after: Option<u64>) {
        self.not_after.store(not_after.unwrap_or(0), Ordering::Relaxed);
        self.loads[0].fetch_add(1, Ordering::Relaxed);
    }

    /// Records a load that failed. The certificate before it stays in use.
    pub fn record_failure(&self) {
        self.loads[1].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the end of the certificate's validity in seconds since the Unix epoch, if known.
    pub fn not_after(&self) -> Option<u64> {
        Some(self.not_after.load(Ordering::Relaxed)).filter(|&time| time > 0)
    }

    /// Returns the number of loads: succeeded, failed.
    pub fn loads(&self) -> [u64; 2] {
        [0, 1].map(|index| self.loads[index].load(Ordering::Relaxed))
    }
}
