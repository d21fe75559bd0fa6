//! Parser of `REDIS_URL` (the URI schemes `redis` and `rediss` of IANA, and `valkey`, `valkeys`,
//! `unix` of client libraries).
//!
//! A problem never quotes the URL, which may hold a password.

use super::parse;
use crate::protocol::http::percent_decode;
use crate::upstream::UpstreamAddress;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Highest database number.
pub(super) const MAX_DATABASE: u64 = 2_147_483_647;

/// Most hosts in a URL. The proxy may wait for each of them in turn, and a few suffice: sentinels
/// are usually three or five, and one node of a cluster names all others.
pub(super) const MAX_ADDRESSES: usize = 64;

/// Parts of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RedisUrl {
    /// Addresses as written: one Unix socket, or one or more hosts.
    pub(super) addresses: Vec<UrlAddress>,
    pub(super) tls: bool,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    /// Database number, 0 if the URL names none.
    pub(super) database: u32,
}

/// Address in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UrlAddress {
    /// Host, and the port if the URL names one.
    Tcp(String, Option<u16>),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl RedisUrl {
    /// Returns the addresses in their order, without duplicates. A host without a port gets
    /// `default_port`.
    pub(super) fn resolve(&self, default_port: u16) -> Vec<UpstreamAddress> {
        let mut resolved = Vec::with_capacity(self.addresses.len());
        for address in &self.addresses {
            let address = match address {
                UrlAddress::Tcp(host, port) => UpstreamAddress::Tcp(host.clone(), port.unwrap_or(default_port)),
                UrlAddress::Unix(path) => UpstreamAddress::Unix(path.clone()),
            };
            if !resolved.contains(&address) {
                resolved.push(address);
            }
        }
        resolved
    }

    /// Returns true if the address is a Unix socket.
    pub(super) fn is_unix_socket(&self) -> bool {
        self.addresses.iter().any(|address| matches!(address, UrlAddress::Unix(_)))
    }

    /// Returns the URL without user and password. A host without a port gets `default_port`.
    pub(super) fn redacted(&self, default_port: u16) -> String {
        let database = self.database;
        if let [UrlAddress::Unix(path)] = self.addresses.as_slice() {
            return format!("unix://{}?db={database}", path.display());
        }
        let hosts = self.resolve(default_port).iter().map(UpstreamAddress::to_string).collect::<Vec<_>>().join(",");
        format!("{}://{hosts}/{database}", if self.tls { "rediss" } else { "redis" })
    }
}

/// Parses `scheme://[[user][:password]@]host[:port][,host[:port]...][/database]` and
/// `unix://[[user][:password]@]/path[?db=database]`. The problem is a phrase that follows the name
/// of the variable.
pub(super) fn parse(text: &str) -> Result<RedisUrl, String> {
    let (scheme, rest) = text.split_once("://").ok_or("is not a URL")?;
    if text.contains('#') {
        return Err("has a fragment; write # as %23 in a password".into());
    }
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        "unix" => return parse_unix(rest, query),
        "http" | "https" => return Err("is a URL of HTTP, not of Redis".into()),
        // Such as redis-sentinel:// and redis+cluster:// of other programs.
        scheme if scheme.contains("sentinel") || scheme.contains("cluster") => {
            return Err("has a scheme with the mode; write redis:// or rediss://, and set REDIS_MODE".into());
        }
        _ => return Err("has an unknown scheme".into()),
    };
    if let Some(query) = query {
        return Err(unknown_query(query));
    }
    let (authority, database) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let (credentials, hosts) = split_credentials(authority);
    // `user:password@a,user:password@b` would otherwise be one host and a long password.
    if credentials.and_then(|text| text.split_once('@')).is_some_and(|(_, rest)| rest.contains(',')) {
        return Err("has several @; write user and password once, percent-encoded, before the first host".into());
    }
    let (username, password) = parse_credentials(credentials)?;
    let addresses = parse_hosts(hosts)?;
    let database = database.filter(|text| !text.is_empty()).map_or(Ok(0), database_number)?;
    Ok(RedisUrl { addresses, tls, username, password, database })
}

/// Parses hosts that commas separate.
fn parse_hosts(text: &str) -> Result<Vec<UrlAddress>, String> {
    if text.is_empty() {
        return Err("has no host".into());
    }
    let hosts: Vec<&str> = text.split(',').collect();
    match hosts.len() {
        count if count > MAX_ADDRESSES => Err(format!("has {count} hosts, more than {MAX_ADDRESSES}")),
        count if count > 1 && hosts.contains(&"") => Err("has a comma without a host beside it".into()),
        _ => hosts.into_iter().map(parse_host).collect(),
    }
}

/// Parses `host[:port]`. An IPv6 address stands in brackets, as RFC 3986 demands: a colon behind it
/// would otherwise be ambiguous.
fn parse_host(text: &str) -> Result<UrlAddress, String> {
    let (host, port) = match parse::host_and_port(text) {
        Some((host, port)) => (host, Some(port_number(port)?)),
        None => (text, None),
    };
    if host.is_empty() {
        return Err("has no host before a port".into());
    }
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    parse::host(host).map_err(|_| "has an invalid host or port; percent-encode the user and the password")?;
    match (text.starts_with('['), host.contains(':')) {
        (false, true) => Err("has an IPv6 address without brackets".into()),
        (true, false) => Err("has brackets around a host that is no IPv6 address".into()),
        _ => Ok(UrlAddress::Tcp(host.to_owned(), port)),
    }
}

fn parse_unix(rest: &str, query: Option<&str>) -> Result<RedisUrl, String> {
    let start = rest.find('/').ok_or("has no path")?;
    let (credentials, host) = split_credentials(&rest[..start]);
    if !host.is_empty() {
        return Err("has a host beside the path of a socket; write unix:///path".into());
    }
    let (username, password) = parse_credentials(credentials)?;
    let mut path = Vec::new();
    percent_decode(&rest.as_bytes()[start..], &mut path).ok_or("has a malformed percent-escape")?;
    let database = match query.map(|query| query.strip_prefix("db=").ok_or(query)) {
        None => 0,
        Some(Ok(number)) => database_number(number)?,
        Some(Err(query)) => return Err(unknown_query(query)),
    };
    if path.contains(&0) {
        return Err("has a NUL in the path".into());
    }
    let addresses = vec![UrlAddress::Unix(OsString::from_vec(path).into())];
    Ok(RedisUrl { addresses, tls: false, username, password, database })
}

/// Splits the part before a path at the last `@`.
fn split_credentials(authority: &str) -> (Option<&str>, &str) {
    authority.rsplit_once('@').map_or((None, authority), |(credentials, host)| (Some(credentials), host))
}

/// Parses user and password. An empty one counts as none.
fn parse_credentials(credentials: Option<&str>) -> Result<(Option<String>, Option<String>), String> {
    let Some(credentials) = credentials else { return Ok((None, None)) };
    let (username, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        percent_decode(text.as_bytes(), &mut bytes).ok_or("has a malformed percent-escape")?;
        let text = String::from_utf8(bytes).map_err(|_| "has a user or a password that is not UTF-8")?;
        Ok::<_, String>(Some(text).filter(|text| !text.is_empty()))
    };
    Ok((decode(username)?, decode(password)?))
}

fn port_number(text: &str) -> Result<u16, String> {
    let port = parse::integer(text).ok().and_then(|port| u16::try_from(port).ok());
    port.filter(|&port| port > 0).ok_or_else(|| "has an invalid port".into())
}

fn database_number(text: &str) -> Result<u32, String> {
    match parse::integer(text) {
        Ok(number) if number <= MAX_DATABASE => Ok(number as u32),
        _ => Err("has an invalid database number".into()),
    }
}

/// Describes a query. Names the first parameter if it is a plain word, and never shows a value.
fn unknown_query(query: &str) -> String {
    let name = query.split(['=', '&']).next().unwrap_or_default();
    let is_word = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    match is_word && query.contains('=') {
        true => format!("has an unknown query parameter {name:?}"),
        false => "has an unknown query parameter".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: impl Into<Option<u16>>) -> UrlAddress {
        UrlAddress::Tcp(host.into(), port.into())
    }

    /// Each part of a URL is optional but the host, and user and password are percent-decoded.
    #[test]
    fn parts_of_url_are_parsed() {
        let none = || (None, None);
        let both = |user: &str, password: &str| (Some(user.to_owned()), Some(password.to_owned()));
        for (url, address, tls, (username, password), database) in [
            ("redis://h", tcp("h", None), false, none(), 0),
            ("valkey://h:1/", tcp("h", 1), false, none(), 0),
            ("REDISS://h:6380/2", tcp("h", 6380), true, none(), 2),
            ("valkeys://[::1]:7/15", tcp("::1", 7), true, none(), 15),
            ("redis://[::1]", tcp("::1", None), false, none(), 0),
            ("redis://:p@h", tcp("h", None), false, (None, Some("p".into())), 0),
            ("redis://u@h", tcp("h", None), false, (Some("u".into()), None), 0),
            ("redis://u:@h", tcp("h", None), false, (Some("u".into()), None), 0),
            ("redis://u%3A:p%40%2f:x@h", tcp("h", None), false, both("u:", "p@/:x"), 0),
            ("redis://u:a@b@h", tcp("h", None), false, both("u", "a@b"), 0),
            ("redis://u:a,b@c@h", tcp("h", None), false, both("u", "a,b@c"), 0),
            ("unix:///run/a%20b.sock", UrlAddress::Unix("/run/a b.sock".into()), false, none(), 0),
            ("unix:///run/a,b", UrlAddress::Unix("/run/a,b".into()), false, none(), 0),
            ("unix://u:p@/r?db=3", UrlAddress::Unix("/r".into()), false, both("u", "p"), 3),
        ] {
            let expected = RedisUrl { addresses: vec![address], tls, username, password, database };
            assert_eq!(parse(url), Ok(expected), "{url}");
        }
    }

    /// Hosts are separated by commas. A host without a port gets the default of the mode, and the
    /// same address counts once.
    #[test]
    fn hosts_of_url_are_resolved() {
        for (url, expected) in [
            ("redis://a,b:1,[::1],[fe80::1]:2", &[("a", 26379), ("b", 1), ("::1", 26379), ("fe80::1", 2)][..]),
            ("rediss://u:p,w@a:1,b:2/3", &[("a", 1), ("b", 2)]),
            ("redis://a,b,a:26379,a:1,b", &[("a", 26379), ("b", 26379), ("a", 1)]),
        ] {
            let addresses = parse(url).expect(url).resolve(26379);
            let expected: Vec<_> =
                expected.iter().map(|&(host, port)| UpstreamAddress::Tcp(host.into(), port)).collect();
            assert_eq!(addresses, expected, "{url}");
        }
        let longest = format!("redis://{}", vec!["h"; MAX_ADDRESSES].join(","));
        assert_eq!(parse(&longest).map(|url| url.resolve(1).len()), Ok(1));
        assert_eq!(parse(&format!("{longest},h")), Err("has 65 hosts, more than 64".into()));
    }

    /// A URL that is not understood whole is an error, which never shows the password.
    #[test]
    fn malformed_url_is_refused() {
        for (url, problem) in [
            ("", "is not a URL"),
            ("h:6379", "is not a URL"),
            ("http://h", "is a URL of HTTP"),
            ("redis+tls://h", "has an unknown scheme"),
            ("redis+sentinel://h", "has a scheme with the mode"),
            ("redis-cluster://h", "has a scheme with the mode"),
            ("redis://", "has no host"),
            ("redis://:pw@/1", "has no host"),
            ("redis://:6379", "has no host before a port"),
            ("redis://a,:6379", "has no host before a port"),
            ("redis://a,,b", "has a comma without a host"),
            ("redis://a,", "has a comma without a host"),
            ("redis://,a", "has a comma without a host"),
            ("redis://:pw@,", "has a comma without a host"),
            ("redis://a,b:0", "has an invalid port"),
            ("redis://a, b", "has an invalid host or port"),
            ("redis://::1", "has an IPv6 address without brackets"),
            ("redis://a,fe80::1:6379", "has an IPv6 address without brackets"),
            ("redis://[h]", "has brackets around a host that is no IPv6 address"),
            ("redis://[h]:1", "has brackets around a host that is no IPv6 address"),
            ("redis://[::1", "has an invalid host or port"),
            ("redis://u:pw@a,u:pw@b", "has several @"),
            ("redis://u:pw@a:1,b,u:pw@c:1", "has several @"),
            ("redis://a b", "has an invalid host or port"),
            ("redis://h:0", "has an invalid port"),
            ("redis://h:65536", "has an invalid port"),
            ("redis://h:x", "has an invalid host or port"),
            ("redis://:pw/x@h", "has an invalid host or port"),
            ("redis://h/x", "has an invalid database number"),
            ("redis://h/1/2", "has an invalid database number"),
            ("redis://h/2147483648", "has an invalid database number"),
            ("redis://h#1", "has a fragment"),
            ("redis://h?db=1", "has an unknown query parameter \"db\""),
            ("rediss://h/0?ssl_cert_reqs=none", "has an unknown query parameter \"ssl_cert_reqs\""),
            ("redis://:p?pw@h", "has an unknown query parameter"),
            ("redis://:%zz@h", "has a malformed percent-escape"),
            ("redis://:%ff@h", "has a user or a password that is not UTF-8"),
            ("unix://run/redis.sock", "has a host beside the path"),
            ("unix://", "has no path"),
            ("unix:///r?x=pw", "has an unknown query parameter \"x\""),
            ("unix:///r?db=1&x=1", "has an invalid database number"),
            ("unix:///r%00", "has a NUL"),
        ] {
            let text = parse(url).expect_err(url);
            assert!(text.starts_with(problem) && !text.contains("pw"), "{url}: {text}");
        }
    }

    /// The shown form has all hosts, and neither user nor password.
    #[test]
    fn redacted_url_has_no_credentials() {
        for (url, shown) in [
            ("valkeys://u:p@h", "rediss://h:6379/0"),
            ("redis://u:p@[::1]:1/2", "redis://[::1]:1/2"),
            ("redis://u:p@a,[::1]:1,a/2", "redis://a:6379,[::1]:1/2"),
            ("unix://u:p@/run/r.sock", "unix:///run/r.sock?db=0"),
        ] {
            assert_eq!(parse(url).map(|url| url.redacted(6379)).as_deref(), Ok(shown));
        }
    }
}
