//! Parser of request targets: maps a method and a target to an operation (RFC 9110, section 9; RFC
//! 9112, section 3.2).

use super::host::parse_authority;
use super::{AdminEndpoint, HttpOperation, HttpRefusal, Resources, Status, View, bad_request};

/// Methods that the proxy knows and does not support: those of RFC 9110, and PATCH (RFC 5789). Any
/// other method is unknown.
const UNSUPPORTED_METHODS: [&str; 6] = ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"];

/// Returns true if the proxy knows `method`, supported or not.
pub fn is_known_method(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS") || UNSUPPORTED_METHODS.contains(&method)
}

/// Parsed request target.
pub struct RequestTarget<'a> {
    /// Host of an absolute-form or authority-form target. It takes precedence over the `Host` field
    /// (RFC 9112, section 3.2.2).
    pub host: Option<&'a [u8]>,
    path: Path<'a>,
    /// Query without its question mark, empty without one.
    query: &'a [u8],
    /// True if the target contains percent-escapes.
    has_escapes: bool,
}

// Classes of bytes in a target, as bits.

/// Byte that no target may contain.
const FORBIDDEN: u8 = 1;
/// `?`, which starts the query (RFC 3986, section 3.4).
const QUERY_MARK: u8 = 2;
/// `%`, which starts a percent-escape (RFC 3986, section 2.1).
const PERCENT_SIGN: u8 = 4;

/// Class of each byte of a target.
///
/// RFC 3986 allows only graphic ASCII bytes. `#` starts a fragment, which a client must not send. A
/// table and an OR over all bytes, because each request uses it.
const TARGET_BYTE_CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'#' => FORBIDDEN,
            b'?' => QUERY_MARK,
            b'%' => PERCENT_SIGN,
            byte if byte.is_ascii_graphic() => 0,
            _ => FORBIDDEN,
        };
        byte += 1;
    }
    table
};

/// Resource that a target identifies.
enum Path<'a> {
    /// Path without its query.
    Resource(&'a [u8]),
    /// The server as a whole: `OPTIONS *` (RFC 9112, section 3.2.4).
    ServerWide,
    /// The other end of a tunnel: `CONNECT host:port` (RFC 9112, section 3.2.3).
    Tunnel,
    /// An `https` URL on a connection without TLS.
    HttpsScheme,
}

/// Path of a request for several keys. They are in its query.
const KEYS_PATH: &[u8] = b"/keys";

/// Path of a stream of the changes of several keys. They are in its query.
const WATCH_PATH: &[u8] = b"/watch";

/// Resource that a path identifies.
enum Resource<'a> {
    /// A key, still with its percent-escapes.
    Key(&'a [u8]),
    /// Several keys.
    Keys,
    /// Changes of several keys.
    Watch,
    Admin(AdminEndpoint),
}

/// Returns true if `input`, the start of a request, may become a request for an admin endpoint.
///
/// The answer is final once the request line is complete.
pub fn may_be_admin_request(input: &[u8]) -> bool {
    let may_match = |method: &str, path: &str| {
        let line = format!("{method} {path}");
        let line = line.as_bytes();
        // The version or a query follows the path.
        line.starts_with(input) || (input.starts_with(line) && matches!(input[line.len()], b' ' | b'?'))
    };
    ADMIN_PATHS.iter().any(|(path, _)| may_match("GET", path) || may_match("HEAD", path))
}

/// Paths of the admin endpoints. The health endpoints are always served.
const ADMIN_PATHS: [(&str, AdminEndpoint); 5] = [
    ("/healthz", AdminEndpoint::Healthz),
    ("/readyz", AdminEndpoint::Readyz),
    ("/metrics", AdminEndpoint::Metrics),
    ("/stats", AdminEndpoint::Stats),
    ("/", AdminEndpoint::Dashboard),
];

impl AdminEndpoint {
    /// Returns the endpoint at `path`, if a listener of `resources` serves it.
    fn from_path(path: &[u8], resources: Resources) -> Option<AdminEndpoint> {
        let (_, endpoint) = ADMIN_PATHS.into_iter().find(|(candidate, _)| candidate.as_bytes() == path)?;
        let is_health = matches!(endpoint, AdminEndpoint::Healthz | AdminEndpoint::Readyz);
        (is_health || resources != Resources::Keys).then_some(endpoint)
    }
}

/// Returns the key that a target in origin-form identifies. `None` if it has percent-escapes, a
/// query or an invalid byte, or identifies no key.
pub fn plain_key(target: &[u8]) -> Option<&[u8]> {
    let (_, key) = key_of_path(target)?;
    key.iter().all(|&byte| TARGET_BYTE_CLASS[usize::from(byte)] == 0).then_some(key)
}

/// Returns the key at a path, still with its percent-escapes, and its representation.
fn key_of_path(path: &[u8]) -> Option<(View, &[u8])> {
    match (path.strip_prefix(b"/key/"), path.strip_prefix(b"/raw/")) {
        (Some(key), _) => Some((View::Json, key)),
        (_, Some(key)) => Some((View::Raw, key)),
        _ => None,
    }
}

impl<'a> RequestTarget<'a> {
    /// Parses a target. Returns `None` if it is malformed, or if `method` does not allow its form
    /// (RFC 9112, section 3.2). Over TLS (`is_secure`) an `https` URL identifies a resource too.
    pub fn parse(method: &str, target: &'a [u8], is_secure: bool) -> Option<RequestTarget<'a>> {
        let classes = target.iter().fold(0, |classes, &byte| classes | TARGET_BYTE_CLASS[usize::from(byte)]);
        if classes & FORBIDDEN != 0 {
            return None;
        }
        let has_escapes = classes & PERCENT_SIGN != 0;
        if method == "CONNECT" {
            let host = parse_authority(target).filter(|host| !host.is_empty())?;
            return Some(RequestTarget { host: Some(host), path: Path::Tunnel, query: b"", has_escapes });
        }
        if target == b"*" {
            let path = Path::ServerWide;
            return (method == "OPTIONS").then_some(RequestTarget { host: None, path, query: b"", has_escapes });
        }
        if target.starts_with(b"/") {
            let (path, query) = if classes & QUERY_MARK == 0 { (target, &b""[..]) } else { split_query(target) };
            return Some(RequestTarget { host: None, path: Path::Resource(path), query, has_escapes });
        }
        let (scheme, rest) = std::str::from_utf8(target).ok()?.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host = parse_authority(authority.as_bytes()).filter(|host| !host.is_empty())?;
        let (path, query) = split_query(rest.as_bytes());
        let path = match path {
            _ if !is_secure && scheme.eq_ignore_ascii_case("https") => Path::HttpsScheme,
            b"" if method == "OPTIONS" => Path::ServerWide,
            b"" => Path::Resource(b"/"),
            path => Path::Resource(path),
        };
        Some(RequestTarget { host: Some(host), path, query, has_escapes })
    }

    /// Returns true for a health endpoint. Health checkers address a server by its IP address, so
    /// these endpoints answer for any host.
    pub fn is_health_check(&self) -> bool {
        matches!(self.path, Path::Resource(path) if AdminEndpoint::from_path(path, Resources::Keys).is_some())
    }

    /// Returns the operation that `method` requests of a listener of `resources`. A key with
    /// percent-escapes is decoded into `key_scratch`.
    pub fn interpret(
        &self,
        method: &str,
        resources: Resources,
        key_scratch: &'a mut Vec<u8>,
    ) -> (View, HttpOperation<'a>) {
        let (view, resource) = match self.path {
            Path::Resource(path) => match key_of_path(path) {
                Some((view, key)) => (view, Some(Resource::Key(key))),
                None if path == KEYS_PATH => (View::Json, Some(Resource::Keys)),
                None if path == WATCH_PATH => (View::Json, Some(Resource::Watch)),
                None => (View::Json, AdminEndpoint::from_path(path, resources).map(Resource::Admin)),
            },
            Path::ServerWide | Path::Tunnel | Path::HttpsScheme => (View::Json, None),
        };
        let operation = match (method, &self.path, resource) {
            (_, Path::HttpsScheme, _) => HttpOperation::Refuse(HTTPS_NOT_SERVED),
            (_, _, Some(Resource::Key(_) | Resource::Keys | Resource::Watch)) if resources == Resources::Admin => {
                HttpOperation::Refuse(NO_KEYS_ON_ADMIN_PORT)
            }
            ("OPTIONS", Path::ServerWide, _) | ("OPTIONS", _, Some(_)) => HttpOperation::Options,
            ("GET" | "HEAD", _, Some(resource)) => match resource {
                Resource::Admin(endpoint) => HttpOperation::Admin(endpoint),
                Resource::Keys => HttpOperation::GetMany(self.query),
                Resource::Watch => HttpOperation::Watch(self.query),
                Resource::Key(key) if !self.has_escapes => HttpOperation::Get(key),
                Resource::Key(key) => match percent_decode(key, key_scratch) {
                    Some(key) => HttpOperation::Get(key),
                    None => HttpOperation::Refuse(MALFORMED_ESCAPE),
                },
            },
            ("GET" | "HEAD" | "OPTIONS", _, _) => HttpOperation::Refuse(PATH_NOT_FOUND),
            (method, Path::Resource(_), None) if UNSUPPORTED_METHODS.contains(&method) => {
                HttpOperation::Refuse(PATH_NOT_FOUND)
            }
            (method, _, _) if UNSUPPORTED_METHODS.contains(&method) => HttpOperation::Refuse(HttpRefusal {
                status: Status::MethodNotAllowed,
                message: "method not allowed, the proxy is read-only; use GET or HEAD",
            }),
            _ => HttpOperation::Refuse(HttpRefusal {
                status: Status::NotImplemented,
                message: "unknown method; use GET or HEAD",
            }),
        };
        (view, operation)
    }
}

/// An `https` URL on a connection without TLS (RFC 9110, section 7.4).
const HTTPS_NOT_SERVED: HttpRefusal = HttpRefusal {
    status: Status::MisdirectedRequest,
    message: "https URLs are not served without TLS; use TLS, an http URL or a path",
};

const NO_KEYS_ON_ADMIN_PORT: HttpRefusal = HttpRefusal {
    status: Status::NotFound,
    message: "no keys on this port (ADMIN_PORT); request them from PROXY_PORT or PROXY_SOCKET",
};

const PATH_NOT_FOUND: HttpRefusal = HttpRefusal {
    status: Status::NotFound,
    message: "no such path; use /key/{key}, /raw/{key}, /keys?key={key}&key={key} or /watch?key={key}",
};

/// Refusal of an invalid percent-escape: a guess would give a key two names.
pub const MALFORMED_ESCAPE: HttpRefusal = bad_request("a % in the key must be followed by two hexadecimal digits");

/// Splits a target into its path and its query, which is empty without a question mark.
fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    match target.iter().position(|&byte| byte == b'?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, b""),
    }
}

/// Decodes percent-escapes (RFC 3986, section 2.1). A plus sign stays a plus sign.
///
/// Returns `None` if an escape is malformed.
pub fn percent_decode<'a>(encoded: &[u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    scratch.clear();
    append_decoded(encoded, scratch).then_some(scratch)
}

/// Appends `encoded` without its percent-escapes. Returns false if one is malformed.
pub fn append_decoded(encoded: &[u8], out: &mut Vec<u8>) -> bool {
    let mut bytes = encoded.iter();
    let take_digit = |bytes: &mut std::slice::Iter<'_, u8>| char::from(*bytes.next()?).to_digit(16);
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
        } else if let (Some(high), Some(low)) = (take_digit(&mut bytes), take_digit(&mut bytes)) {
            out.push((high * 16 + low) as u8);
        } else {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a description of the operation, or the status of the refusal.
    fn interpret(method: &str, target: &str) -> Result<String, Status> {
        interpret_over(false, method, target)
    }

    fn interpret_over(is_secure: bool, method: &str, target: &str) -> Result<String, Status> {
        let mut scratch = Vec::new();
        let parsed = RequestTarget::parse(method, target.as_bytes(), is_secure).ok_or(Status::BadRequest)?;
        match parsed.interpret(method, Resources::All, &mut scratch) {
            (view, HttpOperation::Get(key)) => Ok(format!("{view:?} {}", String::from_utf8_lossy(key))),
            (_, HttpOperation::GetMany(query)) => Ok(format!("keys {}", String::from_utf8_lossy(query))),
            (_, HttpOperation::Watch(query)) => Ok(format!("watch {}", String::from_utf8_lossy(query))),
            (_, HttpOperation::Options) => Ok("options".into()),
            (_, HttpOperation::Admin(endpoint)) => Ok(format!("{endpoint:?}")),
            (_, HttpOperation::Refuse(refusal)) => Err(refusal.status),
        }
    }

    /// Supported, unsupported and unknown methods get an operation, 405 and 501; bad targets get
    /// 400 or 404.
    #[test]
    fn method_and_target_select_operation() {
        for (method, target, outcome) in [
            ("GET", "/raw/a", Ok("Raw a")),
            ("HEAD", "/key/a", Ok("Json a")),
            ("OPTIONS", "/key/a", Ok("options")),
            ("OPTIONS", "*", Ok("options")),
            ("OPTIONS", "http://a", Ok("options")),
            ("OPTIONS", "http://a?b", Ok("options")),
            ("GET", "https://a/key/a", Err(Status::MisdirectedRequest)),
            ("OPTIONS", "/", Ok("options")),
            ("GET", "/", Ok("Dashboard")),
            ("HEAD", "/metrics?x", Ok("Metrics")),
            ("GET", "http://a/stats", Ok("Stats")),
            ("POST", "/readyz", Err(Status::MethodNotAllowed)),
            ("OPTIONS", "/nothing", Err(Status::NotFound)),
            ("GET", "/stats/", Err(Status::NotFound)),
            ("GET", "/key", Err(Status::NotFound)),
            ("GET", "/Key/a", Err(Status::NotFound)),
            ("GET", "//key/a", Err(Status::NotFound)),
            ("GET", "/./key/a", Err(Status::NotFound)),
            ("GET", "http://a", Ok("Dashboard")),
            ("GET", "http://a?x/key/b", Ok("Dashboard")),
            ("POST", "/nothing", Err(Status::NotFound)),
            ("POST", "/key/a", Err(Status::MethodNotAllowed)),
            ("PUT", "/raw/a", Err(Status::MethodNotAllowed)),
            ("DELETE", "/raw/a", Err(Status::MethodNotAllowed)),
            ("PATCH", "/raw/a", Err(Status::MethodNotAllowed)),
            ("TRACE", "/raw/a", Err(Status::MethodNotAllowed)),
            ("CONNECT", "a:443", Err(Status::MethodNotAllowed)),
            ("get", "/key/a", Err(Status::NotImplemented)),
            ("BREW", "/key/a", Err(Status::NotImplemented)),
            ("BREW", "/nothing", Err(Status::NotImplemented)),
            ("GET", "*", Err(Status::BadRequest)),
            ("TRACE", "*", Err(Status::BadRequest)),
            ("CONNECT", "/key/a", Err(Status::BadRequest)),
            ("GET", "a:443", Err(Status::BadRequest)),
            ("GET", "key/a", Err(Status::BadRequest)),
            ("GET", "ftp://a/key/b", Err(Status::BadRequest)),
            ("GET", "http:///key/b", Err(Status::BadRequest)),
            ("GET", "http://user@a/key/b", Err(Status::BadRequest)),
            ("GET", "http://a\\b/key/b", Err(Status::BadRequest)),
            ("GET", "/key/a#b", Err(Status::BadRequest)),
            ("GET", "/key/é", Err(Status::BadRequest)),
            ("GET", "/key/a\u{7f}", Err(Status::BadRequest)),
            ("GET", "/key/%4", Err(Status::BadRequest)),
            ("GET", "/key/%zz", Err(Status::BadRequest)),
            ("GET", "/key/%+1", Err(Status::BadRequest)),
        ] {
            assert_eq!(interpret(method, target), outcome.map(str::to_owned), "{method} {target}");
        }
    }

    /// An `https` URL is served over TLS alone. An `http` URL and a path are served in both cases.
    #[test]
    fn https_target_needs_tls() {
        for target in ["https://a/raw/b", "HTTPS://a/raw/b?c", "http://a/raw/b", "/raw/b"] {
            assert_eq!(interpret_over(true, "GET", target), Ok("Raw b".into()), "{target}");
            let is_https = target.to_ascii_lowercase().starts_with("https");
            let without = if is_https { Err(Status::MisdirectedRequest) } else { Ok("Raw b".into()) };
            assert_eq!(interpret("GET", target), without, "{target}");
        }
        assert_eq!(interpret_over(true, "OPTIONS", "https://a"), Ok("options".into()));
        assert_eq!(interpret_over(true, "GET", "https://user@a/raw/b"), Err(Status::BadRequest));
    }

    /// The start of a request shows whether it may become an admin request.
    #[test]
    fn admin_request_detected_from_prefix() {
        for input in [
            "",
            "G",
            "HE",
            "GET",
            "GET /",
            "GET /hea",
            "GET /healthz",
            "HEAD /metrics HTTP/1.1\r\n",
            "GET / HTTP",
            "GET /?x",
        ] {
            assert!(may_be_admin_request(input.as_bytes()), "{input}");
        }
        for input in
            ["P", "get /", "GET  /", "GET /k", "GET /healthz2", "GET /raw/healthz", "GET http", "HEAD /key/a HTTP/1.1"]
        {
            assert!(!may_be_admin_request(input.as_bytes()), "{input}");
        }
    }

    /// Each listener serves its own resources, and all serve the health endpoints.
    #[test]
    fn resources_select_paths() {
        for (target, without_admin, is_key) in [
            ("/", false, false),
            ("/metrics", false, false),
            ("/stats", false, false),
            ("/healthz", true, false),
            ("/readyz", true, false),
            ("/key/a", true, true),
            ("/raw/%61", true, true),
        ] {
            let parsed = RequestTarget::parse("GET", target.as_bytes(), false).expect("a target");
            assert_eq!(parsed.is_health_check(), without_admin && !is_key, "{target}");
            for (resources, is_served) in
                [(Resources::Keys, without_admin), (Resources::All, true), (Resources::Admin, !is_key)]
            {
                let mut scratch = Vec::new();
                let (_, operation) = parsed.interpret("GET", resources, &mut scratch);
                assert_eq!(!matches!(operation, HttpOperation::Refuse(_)), is_served, "{target} {resources:?}");
            }
        }
    }

    /// The host of an absolute-form target is found; a path has none.
    #[test]
    fn absolute_target_contains_host() {
        let host = |target: &'static str| {
            RequestTarget::parse("GET", target.as_bytes(), false).and_then(|target| target.host.map(<[u8]>::to_vec))
        };
        assert_eq!(host("http://One:80/key/a"), Some(b"One".to_vec()));
        assert_eq!(host("https://[::1]?x"), Some(b"[::1]".to_vec()));
        assert_eq!(host("/key/http://a/"), None);
    }
}
