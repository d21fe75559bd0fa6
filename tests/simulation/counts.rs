//! Numbers of events, which show that the simulation produces what it is meant to produce.

use crate::client::{Cause, Content, KeyReply, Kind, Request};

/// Defines [`EventCounts`] with one counter for each name.
macro_rules! event_counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Number of events of each kind that the simulation is meant to produce.
        #[derive(Clone, Debug, Default)]
        pub struct EventCounts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl EventCounts {
            pub fn add(&mut self, other: &EventCounts) {
                $(self.$name += other.$name;)*
            }

            /// Panics unless each kind of event occurred more than 100 times.
            pub fn assert_all_occurred(&self) {
                $(assert!(self.$name > 100, "{} hardly ever occurs: {self:?}", stringify!($name));)*
            }
        }
    };
}

event_counts! {
    replies,
    hits,
    /// Hits in clusters while tracking is active.
    tracked_cluster_hits,
    stale,
    collapsed,
    errors,
    wait_timeouts,
    /// Replies to clients that were reset.
    orphans,
    /// Results of reads in transit when an invalidation of their key arrived.
    overtaken,
    resets,
    invalidations,
    /// Invalidations that clients with a local cache have received.
    pushes,
    /// Values in local caches when they were checked.
    local_values,
    cuts,
    /// Replies for several keys, with hits and keys that had to wait.
    partly_deferred,
    /// Values read before a write and combined with the lifetime after it.
    mixed_reads,
    /// Empty values, which a second read tells from missing keys.
    empty,
    /// Requests without the password that they need.
    denied,
    /// Reads that `no-cache` forced.
    reloads,
    /// Conditional requests for a value that the client has.
    not_modified,
    /// Requests for cached values only, without one.
    uncached,
    /// Lists with values and errors.
    partly_failed,
    /// Events and new values that watchers received.
    events,
    /// Long polls that ended without a change.
    unchanged_polls,
    /// Connections of watchers that were replaced.
    watcher_resets,
    /// Reads that `MOVED` sent to another node.
    moved,
    /// Reads that `ASK` sent to another node.
    asked,
    /// Reads redirected between their two commands.
    moved_within_read,
    /// Jobs parked, because no known node serves their key.
    parked,
    /// Jobs routed again, because their node was removed.
    rerouted,
    /// Values that the backend reported as not cacheable.
    uncacheable,
    /// Slots moved to another node with all their keys.
    migrations,
    /// Slots that got another owner without their keys.
    takeovers,
    failovers,
    /// Writes that a failover lost.
    lost_writes,
    /// Reads answered by a node that did not know yet that it had lost the key.
    former_owner_reads,
    /// Maps installed after the first one.
    map_changes,
    /// Tracking lost because one node was not watched any more, while others were.
    node_losses,
    /// Tracking lost because the topology was not known any more.
    topology_losses,
}

impl EventCounts {
    pub fn count_reply(&mut self, request: &Request, content: &Content, is_cluster: bool) {
        let is_error = matches!(content, Content::Error { .. });
        self.replies += 1;
        self.errors += u64::from(is_error);
        self.denied += u64::from(matches!(request.kind, Kind::Denied(_)));
        self.reloads += u64::from(matches!(request.kind, Kind::Reload(_)) && !is_error);
        self.uncached += u64::from(matches!(content, Content::NotCached));
        if let (Kind::Validate(_, text), Content::Keys(replies)) = (&request.kind, content) {
            self.not_modified += u64::from(replies[0] == KeyReply::Value(text.clone()));
        }
        if let Content::Elements(replies) = content {
            self.partly_failed += u64::from(replies.contains(&None) && replies.iter().any(Option::is_some));
        }
        for part in &request.parts {
            let status = part.status();
            self.hits += u64::from(status.starts_with("hit"));
            let is_tracked_hit = status.starts_with("hit") && part.floor.is_tracked;
            self.tracked_cluster_hits += u64::from(is_cluster && is_tracked_hit);
            self.stale += u64::from(status.starts_with("fwd=stale"));
            self.collapsed += u64::from(status.contains("collapsed"));
            self.wait_timeouts += u64::from(part.cause == Some(Cause::WaitTimeout));
        }
        let deferred = request.parts.iter().filter(|part| part.cause.is_some()).count();
        self.partly_deferred += u64::from(deferred > 0 && deferred < request.parts.len() && !is_error);
    }
}
