//! A read-through cache in front of Redis: one server, a primary that sentinels name, or a cluster.
//! It serves `GET` from memory, over HTTP and over the Redis protocol, and reads missing keys from
//! Redis. A node is a server that keys are read from: the only one, or one of several primaries.
//!
//! # Threads
//!
//! | thread | number | runs |
//! |---|---|---|
//! | `main` | 1 | `main.rs`: starts the others, then supervises. Pings the workers once a second ([`server::Watchdog`]). |
//! | `signals` | 1 | `main.rs`: waits for SIGTERM, SIGINT and SIGHUP |
//! | `loop-N` | `WORKERS` | [`server::Worker::run`]: one event loop with [`dispatch`], [`connection`], [`protocol`], [`read_through`], [`inflight`], [`cache`] and [`admin`] |
//! | `redis-N` | `REDIS_CONNECTIONS` for each node of each worker | `backend/fetcher.rs`: takes jobs of its node and reads them over one blocking connection |
//! | `redis-tracking` | 1 for each node of each worker if `REDIS_TRACKING=on` | `backend/tracking.rs`: receives the invalidations of its node |
//! | `redis-lookup` | at most 1 of each worker, for one search, only with `REDIS_MODE=single` | `backend/role_watch.rs`: looks for the primary after it became a replica |
//! | `redis-successor` | at most 1 for each tracking thread, for one connect | `backend/tracking.rs`: connects a replacement for the tracking connection |
//! | `redis-finder` | 1, except with `REDIS_MODE=single` | `backend/topology.rs`: asks nodes or sentinels, and may wait for the network |
//! | `redis-topology` | 1, except with `REDIS_MODE=single` | `backend/topology.rs`: finds the nodes, and installs each new map in all workers |
//! | `redis-sentinel` | 1 for each sentinel with `REDIS_MODE=sentinel` | `backend/sentinel.rs`: asks the sentinel for the primary, and receives its announcements |
//! | `log` | 1 of each log target | [`log_writer`]: writes the lines of all threads |
//!
//! They communicate as follows. No lock is held during I/O.
//!
//! | from | to | by |
//! |---|---|---|
//! | `loop-N` | `redis-N` | the job queue of each node: a mutex and condition variables. The worker takes each of these locks at most once a tick |
//! | `redis-N` | other `redis-N`, `redis-topology` | redirected jobs in the queue of another node, or parked until the next map |
//! | `redis-N`, `redis-tracking`, `redis-sentinel` | `redis-topology` | a request for a new map: a flag and a condition variable |
//! | `redis-topology` | `redis-finder` | a channel with a request, and one back with the result |
//! | `redis-sentinel` | `redis-finder` | the last answer of each sentinel, behind a lock |
//! | `redis-topology` | `redis-N`, `redis-tracking` | starts those of new nodes, and closes nodes that left the map |
//! | `redis-N`, `redis-tracking`, `redis-topology` | `loop-N` | completions and invalidations in the inbox of the pool, and a wakeup (eventfd) |
//! | `redis-successor`, `redis-lookup` | `redis-tracking` | a channel with the new connection, or the result of the search |
//! | `loop-N` | `main` | a channel: the worker has returned, and why |
//! | `signals` | `main` | the same channel: the signal |
//! | `signals` | `log` | on SIGHUP, the request to reopen the file |
//! | `signals` | `loop-N`, all threads `redis-...` | on SIGHUP, passwords and certificates, each behind a lock that is held only to swap them ([`client_auth::SharedPasswords`], [`tls_server::TlsServer`], [`backend::RedisAccess`]) |
//! | `main` | `loop-N` | [`server::WorkerHandle`]: an atomic shutdown grace, and a wakeup; pings in [`metrics::WorkerSlot`] |
//! | `loop-N`, `redis-N`, `redis-tracking`, `redis-topology` | all `loop-N`, `main` | [`metrics::MetricsRegistry`]: a copy of the worker's metrics, the state of its nodes |
//! | all | `log` | the bounded buffer of [`log_writer::LogWriter`]; a full buffer drops lines and never blocks |
//!
//! Each worker owns its clients, its cache and its nodes with their fetchers. Workers share the
//! registry, passwords, certificates and the map of the nodes. They also share process-wide
//! counters: open connections, connection ids, and the output budgets.
//!
//! # Path of a request
//!
//! ```text
//! socket -> server -> connection decodes -> read_through looks up
//!             hit:  connection encodes -> server -> socket
//!             miss: backend reads Redis, wakes the loop; read_through stores the value and
//!                   replies to all waiters
//! ```
//!
//! # Modules
//!
//! From the inside out: [`types`] defines the data that all modules share. [`cache`] and
//! [`inflight`] keep state, [`read_through`] decides. [`protocol`] turns bytes into requests and
//! replies into bytes, [`connection`] does so for one client, [`dispatch`] joins the two.
//! [`backend`] alone calls Redis. [`server`] alone has the sockets of clients and the clock of the
//! event loop. [`metrics`] counts, and [`admin`] renders the counts. `tests/model/layering.rs`
//! checks which module may import which; ARCHITECTURE.md has that table, and docs/decisions.md the
//! reasons.

pub mod admin;
pub mod backend;
pub mod bounded_file;
pub mod cache;
pub mod client_auth;
pub mod config;
pub mod connection;
pub mod dispatch;
pub mod inflight;
pub mod log_format;
pub mod log_throttle;
pub mod log_writer;
pub mod metrics;
pub mod protocol;
pub mod read_through;
pub mod secret;
pub mod server;
#[cfg(feature = "tls")]
pub mod tls_files;
#[cfg(feature = "tls")]
pub mod tls_server;
#[cfg(not(feature = "tls"))]
#[path = "tls_server/absent.rs"]
pub mod tls_server;
pub mod types;
pub mod upstream;
pub mod value;
