//! Whom a request is addressed to: the syntax of an authority (RFC 3986, section 3.2; RFC 9110, section 7.2), and
//! which names this program answers to.

use core::net::Ipv6Addr;

/// Longest port in digits.
const PORT_DIGITS: usize = 5;

/// The names that requests may be addressed to. A page in a browser can have its own name lead to this program's address
/// and then read what is here as its own; it cannot choose what the browser says in Host (DNS rebinding).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Vec<u8>>);

impl AllowedHosts {
    /// Reads a list with commas between the names, without ports or wildcards; spaces around them are of no matter. An empty list
    /// means that any name will do. `None` where one of them is neither a name of the DNS nor an address in brackets.
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

    /// Whether requests for that host are answered. Case is of no matter, nor is the dot that ends a full name. IPv6 addresses are
    /// compared as they are written.
    pub fn allow(&self, host: &[u8]) -> bool {
        let plain = |name: &[u8]| name.strip_suffix(b".").map_or(name.len(), <[u8]>::len);
        self.0.is_empty() || self.0.iter().any(|name| name[..plain(name)].eq_ignore_ascii_case(&host[..plain(host)]))
    }
}

/// The host in `host [":" port]`; `None` where it is malformed. An empty authority has an empty host: a client that has
/// none says so (RFC 9112, section 3.2). A user in front of it is malformed: it only serves to deceive (RFC 9110, section
/// 4.2.4).
pub fn parse_authority(authority: &[u8]) -> Option<&[u8]> {
    let end = match authority.first() {
        None => return Some(authority),
        Some(b'[') => authority.iter().position(|&byte| byte == b']')? + 1,
        Some(_) => authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let named = match host {
        [b'[', address @ .., b']'] => is_ipv6(address) || is_ip_future(address),
        name => !name.is_empty() && is_name(name),
    };
    let ends = match rest {
        [] => true,
        [b':', port @ ..] if port.len() <= PORT_DIGITS && port.iter().all(u8::is_ascii_digit) => {
            port.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
        }
        _ => false,
    };
    (named && ends).then_some(host)
}

/// Whether it is a name as it stands in the DNS, or in brackets.
fn is_dns_name_or_ipv6(name: &[u8]) -> bool {
    let labels = name.strip_suffix(b".").unwrap_or(name).split(|&byte| byte == b'.');
    let in_label = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
    name.starts_with(b"[") || labels.into_iter().all(|label| !label.is_empty() && label.iter().all(in_label))
}

/// Returns true for `IPv6address` of RFC 3986, section 3.2.2.
fn is_ipv6(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Returns true for `IPvFuture` of the same section: `v`, a version, a full stop, and an address of any form.
fn is_ip_future(address: &[u8]) -> bool {
    let [b'v' | b'V', rest @ ..] = address else { return false };
    let Some(stop) = rest.iter().position(|&byte| byte == b'.') else { return false };
    let (version, form) = (&rest[..stop], &rest[stop + 1..]);
    let is_version = !version.is_empty() && version.iter().all(u8::is_ascii_hexdigit);
    is_version && !form.is_empty() && form.iter().all(|&byte| IN_NAME[usize::from(byte)] || byte == b':')
}

/// Which bytes a name may have as they are: unreserved and sub-delims of RFC 3986. A table: it is asked with every request.
const IN_NAME: [bool; 256] = {
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

/// `reg-name` of RFC 3986: such bytes, and percent-escapes.
fn is_name(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        let mut is_escape = || byte == b'%' && (0..2).all(|_| bytes.next().is_some_and(u8::is_ascii_hexdigit));
        if !IN_NAME[usize::from(byte)] && !is_escape() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
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

    #[test]
    fn a_list_of_hosts_allows_what_is_in_it() {
        let hosts = AllowedHosts::parse("one.example, TWO ,[::1],three.").expect("a list");
        for host in ["one.example", "ONE.example", "one.example.", "two", "[::1]", "three", "three."] {
            assert!(hosts.allow(host.as_bytes()), "{host}");
        }
        for host in ["", ".", "example", "one.example.org", "xone.example", "one.example..", "[::2]", "::1"] {
            assert!(!hosts.allow(host.as_bytes()), "{host}");
        }
        assert!(AllowedHosts::parse("").is_some_and(|any| any.allow(b"whoever") && any.allow(b"")));
        assert_eq!(AllowedHosts::parse(" "), Some(AllowedHosts::default()));
        for list in
            [",", "a,", "a,,b", "a:80", "a b", "http://a", "*", "*.a", "a;b", "'a'", ".", "a..b", "é", "[a", "[::1]:80"]
        {
            assert_eq!(AllowedHosts::parse(list), None, "{list}");
        }
    }
}
