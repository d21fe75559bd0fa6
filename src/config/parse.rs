//! Parsers of values: numbers, durations, sizes, switches and log filters.
//!
//! They return the problem as a phrase that follows the value, such as "is not a number".

use super::variables::{DURATION_UNITS, Kind, MAX_SOCKET_PATH_BYTES, SIZE_UNITS, SWITCH_WORDS};
use core::net::Ipv6Addr;
use std::time::Duration;

/// Most decimals that count. Further ones are below any unit.
const MAX_DECIMALS: usize = 12;

/// Levels of `env_logger`.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Names of levels in other programs.
const FOREIGN_LOG_LEVELS: [(&str, &str); 6] = [
    ("warning", "warn"),
    ("err", "error"),
    ("fatal", "error"),
    ("critical", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
];

/// Parses digits. Signs, spaces and underscores are invalid.
pub(super) fn integer(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("is not a whole number".into());
    }
    text.parse().map_err(|_| "is out of range".into())
}

/// Parses a duration. `bare_ms` is the unit of a number without one, in milliseconds. Digits below
/// a millisecond are cut.
pub(super) fn duration(text: &str, bare_ms: u64) -> Result<Duration, String> {
    scaled(text, bare_ms, &DURATION_UNITS).map(Duration::from_millis)
}

/// Parses a size in bytes. Units may be in upper case.
pub(super) fn size(text: &str) -> Result<u64, String> {
    scaled(&text.to_ascii_lowercase(), 1, &SIZE_UNITS)
}

/// Parses a number with optional decimals and an optional unit. The result counts the unit with
/// scale 1, and that unit takes no decimals.
fn scaled(text: &str, bare_scale: u64, units: &[(&str, u64)]) -> Result<u64, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(decimals) {
        return Err("is not a number".into());
    }
    let scale = match unit {
        "" => bare_scale,
        _ => units.iter().find(|(name, _)| *name == unit).map(|&(_, scale)| scale).ok_or("has an unknown unit")?,
    };
    if scale == 1 && number.contains('.') {
        return Err("has decimals".into());
    }
    let decimals = &decimals[..decimals.len().min(MAX_DECIMALS)];
    // At most 12 digits, and a scale below 2^41: the product fits into 128 bits.
    let fraction = decimals.parse::<u128>().unwrap_or_default() * u128::from(scale) / 10u128.pow(decimals.len() as u32);
    let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(scale));
    whole.and_then(|whole| whole.checked_add(fraction as u64)).ok_or_else(|| "is out of range".into())
}

/// Parses a switch. Case is ignored.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    let word = SWITCH_WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    word.map(|&(_, value)| value).ok_or_else(|| if text.is_empty() { "is empty" } else { "is neither" }.into())
}

/// Parses a port to listen on. Returns `None` for `off`. Case is ignored.
pub(super) fn port(text: &str) -> Result<Option<u16>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    u16::try_from(integer(text)?).map(Some).map_err(|_| "is out of range".into())
}

/// Parses the permissions of a socket. Without both of the owner's no health check would work.
pub(super) fn file_mode(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    match mode.ok_or("is not an octal number")? {
        mode @ 0..=0o777 if mode & 0o600 == 0o600 => Ok(mode),
        _ => Err("is out of range".into()),
    }
}

/// Checks the path of a Unix socket. A relative one would depend on the directory in which a health
/// check or a client runs.
pub(super) fn socket_path(text: &str) -> Result<(), String> {
    match text {
        _ if !text.starts_with('/') => Err("is not an absolute path".into()),
        _ if text.len() > MAX_SOCKET_PATH_BYTES => Err(format!("has {} bytes", text.len())),
        _ if text.ends_with('/') => Err("is a directory".into()),
        _ => Ok(()),
    }
}

/// Checks a host name or an IP address.
pub(super) fn host(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.contains("://") {
        return Err("is a URL".into());
    }
    if text.contains('@') {
        return Err("has credentials".into());
    }
    if host_and_port(text).is_some() {
        return Err("has a port".into());
    }
    let is_name = |text: &str| text.chars().all(|c| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.".contains(c));
    let (address, zone) = text.split_once('%').unwrap_or((text, ""));
    let is_address = address.parse::<Ipv6Addr>().is_ok() && is_name(zone);
    if is_address || (is_name(text) && !text.contains(|c: char| c.is_whitespace() || c.is_control())) {
        return Ok(());
    }
    Err("is not a host".into())
}

/// Splits `host:port` and `[address]:port`. Returns `None` for a bare IPv6 address.
pub(super) fn host_and_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => Some((address, port)).filter(|_| is_port),
        None => Some((host, port)).filter(|_| is_port && !host.contains(':')),
    }
}

/// Checks a filter of `env_logger`: levels and `target=level`, separated by commas.
///
/// `env_logger` takes a word that is no level for the name of a module, and logs only that one.
/// With `RUST_LOG=warning` it would log nothing.
pub(super) fn log_filter(text: &str) -> Result<(), String> {
    let directives = || text.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    if directives().next().is_none() && !text.is_empty() {
        return Err("has no log level".into());
    }
    for directive in directives() {
        let (target, level) = directive.split_once('=').unwrap_or(("", directive));
        if target.contains(char::is_whitespace) {
            return Err("has a space in the name of a module".into());
        }
        let level = level.trim();
        if !LOG_LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            return Err(match directive == text {
                true => "is not a log level".into(),
                false => "has a part that is not a log level".into(),
            });
        }
    }
    Ok(())
}

/// Returns true if two values mean the same.
pub(super) fn is_equal(kind: Kind, one: &str, other: &str) -> bool {
    one == other
        || match kind {
            Kind::Seconds(..) => duration(one, 1000).is_ok_and(|time| Ok(time) == duration(other, 1000)),
            Kind::Milliseconds(..) => duration(one, 1).is_ok_and(|time| Ok(time) == duration(other, 1)),
            Kind::Bytes(..) => size(one).is_ok_and(|bytes| Ok(bytes) == size(other)),
            Kind::Number(..) | Kind::Keys(..) => integer(one).is_ok_and(|number| Ok(number) == integer(other)),
            Kind::Port => port(one).is_ok_and(|value| Ok(value) == port(other)),
            Kind::FileMode => file_mode(one).is_ok_and(|mode| Ok(mode) == file_mode(other)),
            Kind::Switch => switch(one).is_ok_and(|value| Ok(value) == switch(other)),
            _ => false,
        }
}

/// Returns the level of `env_logger` that another program calls `text`.
pub(super) fn foreign_log_level(text: &str) -> Option<&'static str> {
    FOREIGN_LOG_LEVELS.iter().find(|(foreign, _)| foreign.eq_ignore_ascii_case(text)).map(|&(_, level)| level)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Durations have decimals and units. A bare number counts the unit of the variable.
    #[test]
    fn durations_accept_units_and_decimals() {
        for (text, bare_ms, expected) in [
            ("15", 1000, Ok(15_000)),
            ("0.5", 1000, Ok(500)),
            ("2.9999", 1000, Ok(2999)),
            ("1.25", 1000, Ok(1250)),
            ("60s", 1, Ok(60_000)),
            ("1500ms", 1000, Ok(1500)),
            ("1.5s", 1, Ok(1500)),
            ("15m", 1, Ok(900_000)),
            ("15min", 1, Ok(900_000)),
            ("2h", 1, Ok(7_200_000)),
            ("1d", 1, Ok(86_400_000)),
            ("0.1234567890123456789s", 1, Ok(123)),
            ("1.5", 1, Err("has decimals")),
            ("1.5ms", 1000, Err("has decimals")),
            ("1.", 1000, Err("is not a number")),
            (".5", 1000, Err("is not a number")),
            ("1.2.3", 1000, Err("is not a number")),
            ("-1", 1000, Err("is not a number")),
            ("s", 1000, Err("is not a number")),
            ("", 1000, Err("is empty")),
            ("1e3", 1000, Err("has an unknown unit")),
            ("60 s", 1000, Err("has an unknown unit")),
            ("1M", 1000, Err("has an unknown unit")),
            ("99999999999999999999", 1000, Err("is out of range")),
            ("18446744073709551615", 1000, Err("is out of range")),
        ] {
            let expected = expected.map(Duration::from_millis).map_err(str::to_owned);
            assert_eq!(duration(text, bare_ms), expected, "{text}");
        }
    }

    /// Sizes have units with powers of 1024 in any case. A single letter is ambiguous.
    #[test]
    fn sizes_accept_unambiguous_units() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("1000", Ok(1000)),
            ("64kb", Ok(65_536)),
            ("256mb", Ok(268_435_456)),
            ("256MB", Ok(268_435_456)),
            ("256Mi", Ok(268_435_456)),
            ("1gib", Ok(1_073_741_824)),
            ("1.5gb", Ok(1_610_612_736)),
            ("1k", Err("has an unknown unit")),
            ("256m", Err("has an unknown unit")),
            ("1.5", Err("has decimals")),
            ("99999999tb", Err("is out of range")),
        ] {
            assert_eq!(size(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    /// A port to listen on may be off, and a mode is octal.
    #[test]
    fn ports_modes_and_socket_paths() {
        for (text, expected) in
            [("0", Ok(Some(0))), ("65535", Ok(Some(65535))), ("off", Ok(None)), ("OFF", Ok(None)), ("no", Err(()))]
        {
            assert_eq!(port(text).map_err(drop), expected, "{text}");
        }
        for (text, expected) in [("660", Some(0o660)), ("0600", Some(0o600)), ("777", Some(0o777))] {
            assert_eq!(file_mode(text).ok(), expected, "{text}");
        }
        for text in ["", "+660", "1777", "060", "400", "200", "0o660", "888", "rw-rw----"] {
            assert!(file_mode(text).is_err(), "{text}");
        }
        let longest = format!("/{}", "x".repeat(MAX_SOCKET_PATH_BYTES - 1));
        for (text, is_valid) in [
            ("/a", true),
            (&longest, true),
            (&format!("{longest}x"), false),
            ("a", false),
            ("@a", false),
            ("/a/", false),
        ] {
            assert_eq!(socket_path(text).is_ok(), is_valid, "{text}");
        }
    }

    /// A port is recognised behind a name and behind brackets, but not in an IPv6 address.
    #[test]
    fn port_after_host_is_recognised() {
        assert_eq!(host_and_port("redis:6379"), Some(("redis", "6379")));
        assert_eq!(host_and_port("[::1]:6379"), Some(("::1", "6379")));
        for text in ["redis", "::1", "fe80::1:6379", "redis:http"] {
            assert_eq!(host_and_port(text), None, "{text}");
        }
        for text in ["::1", "fe80::1%eth0", "10.0.0.1", "redis_1.internal"] {
            assert_eq!(host(text), Ok(()), "{text}");
        }
        for text in [
            "[::1]",
            ":6379",
            "user:secret@redis",
            ":secret@redis:6379",
            "h?password=x",
            "h#x",
            "h,password=x",
            "::1%a b",
            "fe80::1%e:1",
            "a:b",
            "a b",
            "a/b",
            "",
        ] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    /// Each part of a log filter ends with a level.
    #[test]
    fn log_filter_needs_levels() {
        for text in
            ["info", "WARN", "", "info,", "segment_redis_proxy=debug", "warn,segment_redis_proxy::backend=trace"]
        {
            assert_eq!(log_filter(text), Ok(()), "{text}");
        }
        for text in
            ["warning", "segment_redis_proxy", "info,backend", "backend=loud", "2", " ", ",", "a=b=info", "a =info"]
        {
            assert!(log_filter(text).is_err(), "{text}");
        }
        assert_eq!(foreign_log_level("Warning"), Some("warn"));
    }
}
