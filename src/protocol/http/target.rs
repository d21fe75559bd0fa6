//! What a method and a request target ask for (RFC 9110, section 9; RFC 9112, section 3.2).

use super::host::host_of;
use super::{Command, Refusal, Status, View, bad_request};

const OFFERED: [&str; 3] = ["GET", "HEAD", "OPTIONS"];

/// Methods that this program knows and does not offer: those of RFC 9110, and PATCH (RFC 5789). All others it does not know.
const NOT_OFFERED: [&str; 6] = ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"];

/// Whether a method is offered, or one of those.
pub fn is_known(method: &str) -> bool {
    OFFERED.contains(&method) || NOT_OFFERED.contains(&method)
}

/// A request target, taken apart.
pub struct Target<'a> {
    /// The host in it, which goes before the Host field.
    pub host: Option<&'a [u8]>,
    path: Path<'a>,
}

enum Path<'a> {
    /// This path, without its query.
    Resource(&'a str),
    /// The server as a whole: `OPTIONS *`.
    Server,
    /// The other end of a tunnel: `CONNECT host:port`.
    Elsewhere,
    /// Something that is to be had only over a connection with TLS.
    Secured,
}

impl<'a> Target<'a> {
    /// Takes a target apart. `None` where it is none, or none for that method.
    pub fn parse(method: &str, target: &'a str) -> Option<Target<'a>> {
        // No byte that RFC 3986 knows is outside of these; '#' would begin what a client must not send.
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return None;
        }
        if method == "CONNECT" {
            let host = host_of(target.as_bytes()).filter(|host| !host.is_empty())?;
            return Some(Target { host: Some(host), path: Path::Elsewhere });
        }
        if target == "*" {
            return (method == "OPTIONS").then_some(Target { host: None, path: Path::Server });
        }
        if target.starts_with('/') {
            return Some(Target { host: None, path: Path::Resource(without_query(target)) });
        }
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host = host_of(authority.as_bytes()).filter(|host| !host.is_empty())?;
        let path = match without_query(rest) {
            _ if scheme.eq_ignore_ascii_case("https") => Path::Secured,
            "" if method == "OPTIONS" => Path::Server,
            "" => Path::Resource("/"),
            path => Path::Resource(path),
        };
        Some(Target { host: Some(host), path })
    }

    /// What is asked for. A key with percent-escapes is decoded into `key_scratch`.
    pub fn interpret(&self, method: &str, key_scratch: &'a mut Vec<u8>) -> (View, Command<'a>) {
        let (view, resource) = match self.path {
            Path::Resource(path) => match (path.strip_prefix("/key/"), path.strip_prefix("/raw/")) {
                (Some(key), _) => (View::Json, Some(key)),
                (_, Some(key)) => (View::Raw, Some(key)),
                _ => (View::Json, None),
            },
            Path::Server | Path::Elsewhere | Path::Secured => (View::Json, None),
        };
        let command = match (method, resource, &self.path) {
            (_, _, Path::Secured) => Command::Refuse(NOT_SECURED),
            ("GET" | "HEAD", Some(key), _) => match decode_percent(key.as_bytes(), key_scratch) {
                Some(key) => Command::Get(key),
                None => Command::Refuse(bad_request("a % in the key must be followed by two hexadecimal digits")),
            },
            ("OPTIONS", Some(_), _) | ("OPTIONS", _, Path::Server) => Command::Options,
            ("GET" | "HEAD" | "OPTIONS", None, _) => Command::Refuse(NO_SUCH_PATH),
            (method, None, Path::Resource(_)) if NOT_OFFERED.contains(&method) => Command::Refuse(NO_SUCH_PATH),
            (method, ..) if NOT_OFFERED.contains(&method) => Command::Refuse(Refusal {
                status: Status::MethodNotAllowed,
                message: "keys can only be read here; use GET or HEAD",
            }),
            _ => Command::Refuse(Refusal {
                status: Status::NotImplemented,
                message: "this method is not known here; use GET or HEAD",
            }),
        };
        (view, command)
    }
}

/// RFC 9110, section 7.4.
const NOT_SECURED: Refusal =
    Refusal { status: Status::MisdirectedRequest, message: "there is no TLS here; ask for an http URL, or a path" };

const NO_SUCH_PATH: Refusal =
    Refusal { status: Status::NotFound, message: "no such path; ask for /key/{key} or /raw/{key}" };

fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// Decodes percent-escapes (RFC 3986, section 2.1). A plus is a plus. `None` where an escape is malformed, because
/// guessing would make two names for one key.
fn decode_percent<'a>(encoded: &'a [u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    if !encoded.contains(&b'%') {
        return Some(encoded);
    }
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
        let parsed = Target::parse(method, target).ok_or(Status::BadRequest)?;
        match parsed.interpret(method, &mut scratch) {
            (view, Command::Get(key)) => Ok(format!("{view:?} {}", String::from_utf8_lossy(key))),
            (_, Command::Options) => Ok("options".into()),
            (_, Command::Refuse(refusal)) => Err(refusal.status),
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
            ("OPTIONS", "/", Err(Status::NotFound)),
            ("GET", "/", Err(Status::NotFound)),
            ("GET", "/key", Err(Status::NotFound)),
            ("GET", "/Key/a", Err(Status::NotFound)),
            ("GET", "//key/a", Err(Status::NotFound)),
            ("GET", "/./key/a", Err(Status::NotFound)),
            ("GET", "http://a", Err(Status::NotFound)),
            ("GET", "http://a?x/key/b", Err(Status::NotFound)),
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
    fn the_host_in_the_target_is_found() {
        let host = |target| Target::parse("GET", target).and_then(|target| target.host.map(<[u8]>::to_vec));
        assert_eq!(host("http://One:80/key/a"), Some(b"One".to_vec()));
        assert_eq!(host("https://[::1]?x"), Some(b"[::1]".to_vec()));
        assert_eq!(host("/key/http://a/"), None);
    }
}
