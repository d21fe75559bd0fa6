//! Host of a request: syntax of an authority, and the list of allowed hosts (RFC 3986, section 3.2;
//! RFC 9110, section 7.2).

use core::net::Ipv6Addr;

/// Maximum number of digits of a port.
const MAX_PORT_DIGITS: usize = 5;

/// Hosts that requests may be addressed to.
///
/// The list prevents DNS rebinding. A web page can make its own name resolve to this proxy and read
/// values as its own origin. It cannot choose the `Host` field that the browser sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Vec<u8>>);

impl AllowedHosts {
    /// Parses a comma-separated list of hosts, without ports or wildcards.
    ///
    /// Spaces around a host are ignored. An empty list allows any host. Returns `None` if a host is
    /// neither a DNS name nor an IPv6 address in brackets.
    pub fn parse(list: &str) -> Option<AllowedHosts> {
        if list.trim().is_empty() {
            return Some(AllowedHosts::default());
        }
        let names = list.split(',').map(|name| name.trim().as_bytes());
        names
            .map(|name| (is_dns_name_or_ipv6(name) && parse_authority(name) == Some(name)).then(|| name.to_vec()))
            .collect::<Option<_>>()
            .map(AllowedHosts)
    }

    /// Returns true if requests for `host` are answered. Ignores case and the final dot of a fully
    /// qualified name. Compares IPv6 addresses as text.
    pub fn allows(&self, host: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| strip_final_dot(name).eq_ignore_ascii_case(strip_final_dot(host)))
    }
}

/// Returns the host of `host [":" port]`, or `None` if the authority is malformed.
///
/// An empty authority has an empty host: a client without a host sends an empty `Host` field (RFC
/// 9112, section 3.2). Userinfo is refused because it serves to deceive users (RFC 9110, section
/// 4.2.4).
pub fn parse_authority(authority: &[u8]) -> Option<&[u8]> {
    let end = match authority.first() {
        None => return Some(authority),
        Some(b'[') => authority.iter().position(|&byte| byte == b']')? + 1,
        Some(_) => authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let has_valid_host = match host {
        [b'[', address @ .., b']'] => is_ipv6(address) || is_ipvfuture(address),
        name => !name.is_empty() && is_reg_name(name),
    };
    let has_valid_port = match rest {
        [] => true,
        [b':', port @ ..] if port.len() <= MAX_PORT_DIGITS && port.iter().all(u8::is_ascii_digit) => {
            port.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
        }
        _ => false,
    };
    (has_valid_host && has_valid_port).then_some(host)
}

/// Returns `name` without the final dot of a fully qualified name.
fn strip_final_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// Returns true for a name that the DNS allows, and for any host in brackets.
fn is_dns_name_or_ipv6(name: &[u8]) -> bool {
    let labels = strip_final_dot(name).split(|&byte| byte == b'.');
    let is_label_byte = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
    name.starts_with(b"[") || labels.into_iter().all(|label| !label.is_empty() && label.iter().all(is_label_byte))
}

/// Returns true for an `IPv6address` (RFC 3986, section 3.2.2).
fn is_ipv6(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Returns true for an `IPvFuture` (RFC 3986, section 3.2.2): `v`, a version, a full stop, and an
/// address in any format.
fn is_ipvfuture(address: &[u8]) -> bool {
    let [b'v' | b'V', rest @ ..] = address else { return false };
    let Some(dot) = rest.iter().position(|&byte| byte == b'.') else { return false };
    let (version, address) = (&rest[..dot], &rest[dot + 1..]);
    let is_version = !version.is_empty() && version.iter().all(u8::is_ascii_hexdigit);
    is_version && !address.is_empty() && address.iter().all(|&byte| IS_REG_NAME_BYTE[usize::from(byte)] || byte == b':')
}

/// True for each byte that a `reg-name` may have without percent-encoding: `unreserved` and
/// `sub-delims` (RFC 3986, sections 2.2 and 2.3). A table, because each request uses it.
const IS_REG_NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'-' | b'.' | b'_' | b'~' => true,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => true,
            byte => byte.is_ascii_alphanumeric(),
        };
        byte += 1;
    }
    table
};

/// Returns true for a `reg-name` (RFC 3986, section 3.2.2): unreserved bytes, sub-delims and
/// percent-encoded bytes.
fn is_reg_name(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        let mut is_percent_encoded = || byte == b'%' && (0..2).all(|_| bytes.next().is_some_and(u8::is_ascii_hexdigit));
        if !IS_REG_NAME_BYTE[usize::from(byte)] && !is_percent_encoded() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority is a host and an optional port; anything else is refused.
    #[test]
    fn parse_authority_accepts_host_and_port() {
        for (authority, host) in [
            ("", ""),
            ("a", "a"),
            ("Example.org:8080", "Example.org"),
            ("under_score.example:", "under_score.example"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[fe80::1:192.0.2.1]:65535", "[fe80::1:192.0.2.1]"),
            ("a%20b", "a%20b"),
            ("[v1.a:b]:1", "[v1.a:b]"),
        ] {
            assert_eq!(parse_authority(authority.as_bytes()), Some(host.as_bytes()), "{authority}");
        }
        for authority in [
            ":80",
            "a:b",
            "a:1:2",
            "a:123456",
            "a:65536",
            "a:-1",
            "user@a",
            "a b",
            "a/b",
            "a\\b",
            "a?b",
            "a#b",
            "[",
            "[]",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[g::1]",
            "[a]",
            "[v1.]",
            "[v.x]",
            "[vg.x]",
            "[v1x]",
            "[v1.x@]",
            "[:::]",
            "[1:2:3:4:5:6:7:8:9]",
            "[12345::1]",
            "[1::2::3]",
            "[fe80::1%25eth0]",
            "a[",
            "a%",
            "a%2",
            "a%zz",
            "a\tb",
            "a\u{7f}",
            "é",
            "a\"",
            "<a>",
            "http://a",
        ] {
            assert_eq!(parse_authority(authority.as_bytes()), None, "{authority}");
        }
    }

    /// A list of hosts allows the hosts in it; an empty list allows any host.
    #[test]
    fn allowed_hosts_match_listed_names() {
        let hosts = AllowedHosts::parse("one.example, TWO ,[::1],three.").expect("a list");
        for host in ["one.example", "ONE.example", "one.example.", "two", "[::1]", "three", "three."] {
            assert!(hosts.allows(host.as_bytes()), "{host}");
        }
        for host in ["", ".", "example", "one.example.org", "xone.example", "one.example..", "[::2]", "::1"] {
            assert!(!hosts.allows(host.as_bytes()), "{host}");
        }
        assert!(AllowedHosts::parse("").is_some_and(|any| any.allows(b"any.example") && any.allows(b"")));
        assert_eq!(AllowedHosts::parse(" "), Some(AllowedHosts::default()));
        for list in
            [",", "a,", "a,,b", "a:80", "a b", "http://a", "*", "*.a", "a;b", "'a'", ".", "a..b", "é", "[a", "[::1]:80"]
        {
            assert_eq!(AllowedHosts::parse(list), None, "{list}");
        }
    }
}
