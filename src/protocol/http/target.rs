//! What a method and a request target ask for (RFC 9110, section 9; RFC 9112, section 3.2).

use super::host::parse_authority;
use super::{AdminEndpoint, HttpOperation, HttpRefusal, Status, View, bad_request};

/// Methods that this program knows and does not offer: those of RFC 9110, and PATCH (RFC 5789). All others it does not know.
const UNSUPPORTED_METHODS: [&str; 6] = ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"];

/// Whether a method is offered, or one of those.
pub fn is_known_method(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS") || UNSUPPORTED_METHODS.contains(&method)
}

/// A request target, taken apart.
pub struct RequestTarget<'a> {
    /// The host in it, which goes before the Host field.
    pub host: Option<&'a [u8]>,
    path: Path<'a>,
    /// Whether there are percent-escapes in it.
    escaped: bool,
}

/// What there is in a target, as bits.
const NEVER: u8 = 1;
const QUERY: u8 = 2;
const ESCAPE: u8 = 4;

/// What each byte of a target tells. No byte that RFC 3986 knows is outside of the graphic ones of ASCII; '#' would begin what a
/// client must not send. A table, and all of its bits found at once: it is asked with every request.
const TARGET_BYTE_CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'#' => NEVER,
            b'?' => QUERY,
            b'%' => ESCAPE,
            byte if byte.is_ascii_graphic() => 0,
            _ => NEVER,
        };
        byte += 1;
    }
    table
};

enum Path<'a> {
    /// This path, without its query.
    Resource(&'a [u8]),
    /// The server as a whole: `OPTIONS *`.
    Server,
    /// The other end of a tunnel: `CONNECT host:port`.
    Tunnel,
    /// Something that is to be had only over a connection with TLS.
    HttpsScheme,
}

/// Whether `input`, the beginning of a request, may yet turn out to ask for something of the proxy itself. With its request
/// line whole, it is certain.
pub fn may_be_admin_request(input: &[u8]) -> bool {
    let may_begin = |method: &str, path: &str| {
        let line = format!("{method} {path}");
        let line = line.as_bytes();
        // Behind the path there is a version, or a query.
        line.starts_with(input) || (input.starts_with(line) && matches!(input[line.len()], b' ' | b'?'))
    };
    ADMIN_PATHS.iter().any(|(path, _)| may_begin("GET", path) || may_begin("HEAD", path))
}

/// What there is to know of the proxy, and where. Health is always there.
const ADMIN_PATHS: [(&str, AdminEndpoint); 5] = [
    ("/healthz", AdminEndpoint::Healthz),
    ("/readyz", AdminEndpoint::Readyz),
    ("/metrics", AdminEndpoint::Metrics),
    ("/stats", AdminEndpoint::Stats),
    ("/", AdminEndpoint::Dashboard),
];

impl AdminEndpoint {
    /// What a path is about, where figures are shown (`admin`) or where only health is.
    fn of(path: &[u8], admin: bool) -> Option<AdminEndpoint> {
        let (_, topic) = ADMIN_PATHS.into_iter().find(|(known, _)| known.as_bytes() == path)?;
        (admin || matches!(topic, AdminEndpoint::Healthz | AdminEndpoint::Readyz)).then_some(topic)
    }
}

impl<'a> RequestTarget<'a> {
    /// Takes a target apart. `None` where it is none, or none for that method.
    pub fn parse(method: &str, target: &'a [u8]) -> Option<RequestTarget<'a>> {
        let has = target.iter().fold(0, |has, &byte| has | TARGET_BYTE_CLASS[usize::from(byte)]);
        if has & NEVER != 0 {
            return None;
        }
        let escaped = has & ESCAPE != 0;
        if method == "CONNECT" {
            let host = parse_authority(target).filter(|host| !host.is_empty())?;
            return Some(RequestTarget { host: Some(host), path: Path::Tunnel, escaped });
        }
        if target == b"*" {
            return (method == "OPTIONS").then_some(RequestTarget { host: None, path: Path::Server, escaped });
        }
        if target.starts_with(b"/") {
            let path = if has & QUERY == 0 { target } else { without_query(target) };
            return Some(RequestTarget { host: None, path: Path::Resource(path), escaped });
        }
        let (scheme, rest) = std::str::from_utf8(target).ok()?.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host = parse_authority(authority.as_bytes()).filter(|host| !host.is_empty())?;
        let path = match without_query(rest.as_bytes()) {
            _ if scheme.eq_ignore_ascii_case("https") => Path::HttpsScheme,
            b"" if method == "OPTIONS" => Path::Server,
            b"" => Path::Resource(b"/"),
            path => Path::Resource(path),
        };
        Some(RequestTarget { host: Some(host), path, escaped })
    }

    /// Whether it is about the proxy's health. Whoever looks after a server asks by its address, whatever its names are.
    pub fn is_health_check(&self) -> bool {
        matches!(self.path, Path::Resource(path) if AdminEndpoint::of(path, false).is_some())
    }

    /// What is asked for, where figures are shown (`admin`) or not. A key with percent-escapes is decoded into `key_scratch`.
    pub fn interpret(&self, method: &str, admin: bool, key_scratch: &'a mut Vec<u8>) -> (View, HttpOperation<'a>) {
        let (view, key, topic) = match self.path {
            Path::Resource(path) => match (path.strip_prefix(b"/key/"), path.strip_prefix(b"/raw/")) {
                (Some(key), _) => (View::Json, Some(key), None),
                (_, Some(key)) => (View::Raw, Some(key), None),
                _ => (View::Json, None, AdminEndpoint::of(path, admin)),
            },
            Path::Server | Path::Tunnel | Path::HttpsScheme => (View::Json, None, None),
        };
        let exists = key.is_some() || topic.is_some();
        let command = match (method, &self.path) {
            (_, Path::HttpsScheme) => HttpOperation::Refuse(NOT_SECURED),
            ("OPTIONS", Path::Server) => HttpOperation::Options,
            ("OPTIONS", _) if exists => HttpOperation::Options,
            ("GET" | "HEAD", _) if exists => match (topic, key.unwrap_or_default()) {
                (Some(topic), _) => HttpOperation::Admin(topic),
                (None, key) if !self.escaped => HttpOperation::Get(key),
                (None, key) => match decode_percent(key, key_scratch) {
                    Some(key) => HttpOperation::Get(key),
                    None => {
                        HttpOperation::Refuse(bad_request("a % in the key must be followed by two hexadecimal digits"))
                    }
                },
            },
            ("GET" | "HEAD" | "OPTIONS", _) => HttpOperation::Refuse(NO_SUCH_PATH),
            (method, Path::Resource(_)) if !exists && UNSUPPORTED_METHODS.contains(&method) => {
                HttpOperation::Refuse(NO_SUCH_PATH)
            }
            (method, _) if UNSUPPORTED_METHODS.contains(&method) => HttpOperation::Refuse(HttpRefusal {
                status: Status::MethodNotAllowed,
                message: "method not allowed, the proxy is read-only; use GET or HEAD",
            }),
            _ => HttpOperation::Refuse(HttpRefusal {
                status: Status::NotImplemented,
                message: "unknown method; use GET or HEAD",
            }),
        };
        (view, command)
    }
}

/// RFC 9110, section 7.4.
const NOT_SECURED: HttpRefusal = HttpRefusal {
    status: Status::MisdirectedRequest,
    message: "the proxy does not serve https URLs; use an http URL or a path",
};

const NO_SUCH_PATH: HttpRefusal =
    HttpRefusal { status: Status::NotFound, message: "no such path; use /key/{key} or /raw/{key}" };

fn without_query(path: &[u8]) -> &[u8] {
    path.iter().position(|&byte| byte == b'?').map_or(path, |query| &path[..query])
}

/// Decodes percent-escapes (RFC 3986, section 2.1). A plus is a plus. `None` where an escape is malformed, because
/// guessing would make two names for one key.
fn decode_percent<'a>(encoded: &[u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    scratch.clear();
    let mut bytes = encoded.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(*bytes.next()?).to_digit(16)?;
            let low = char::from(*bytes.next()?).to_digit(16)?;
            scratch.push((high * 16 + low) as u8);
        } else {
            scratch.push(byte);
        }
    }
    Some(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a request line's method and target: the status, or what a good one would get.
    fn asked(method: &str, target: &str) -> Result<String, Status> {
        let mut scratch = Vec::new();
        let parsed = RequestTarget::parse(method, target.as_bytes()).ok_or(Status::BadRequest)?;
        match parsed.interpret(method, true, &mut scratch) {
            (view, HttpOperation::Get(key)) => Ok(format!("{view:?} {}", String::from_utf8_lossy(key))),
            (_, HttpOperation::Options) => Ok("options".into()),
            (_, HttpOperation::Admin(topic)) => Ok(format!("{topic:?}")),
            (_, HttpOperation::Refuse(refusal)) => Err(refusal.status),
        }
    }

    #[test]
    fn methods_are_offered_known_or_unknown() {
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
            assert_eq!(asked(method, target), outcome.map(str::to_owned), "{method} {target}");
        }
    }

    #[test]
    fn what_may_ask_for_the_proxy_itself_is_known_early() {
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

    #[test]
    fn without_figures_there_is_only_health() {
        for (target, there) in
            [("/", false), ("/metrics", false), ("/stats", false), ("/healthz", true), ("/readyz", true)]
        {
            let parsed = RequestTarget::parse("GET", target.as_bytes()).expect("a target");
            let mut scratch = Vec::new();
            assert_eq!(
                matches!(parsed.interpret("GET", false, &mut scratch).1, HttpOperation::Admin(_)),
                there,
                "{target}"
            );
            assert_eq!(parsed.is_health_check(), there, "{target}");
        }
    }

    #[test]
    fn the_host_in_the_target_is_found() {
        let host = |target: &'static str| {
            RequestTarget::parse("GET", target.as_bytes()).and_then(|target| target.host.map(<[u8]>::to_vec))
        };
        assert_eq!(host("http://One:80/key/a"), Some(b"One".to_vec()));
        assert_eq!(host("https://[::1]?x"), Some(b"[::1]".to_vec()));
        assert_eq!(host("/key/http://a/"), None);
    }
}
