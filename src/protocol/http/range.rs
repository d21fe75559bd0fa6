//! Byte ranges of `/raw` (RFC 9110, section 14).

use std::ops::Range;

/// Range of bytes that a request asks for (RFC 9110, section 14.1.2). Positions beyond 2^64 count
/// as the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first position to the last one, or to the end of the value.
    Between(u64, u64),
    /// Number of bytes at the end of the value.
    Last(u64),
}

impl ByteRange {
    /// Parses a `Range` field. Returns `None` if the field must or may be ignored: it is malformed,
    /// has another unit, or asks for several ranges (sections 14.1.1 and 14.2).
    pub fn parse(field: &[u8]) -> Option<ByteRange> {
        let (unit, ranges) = field.split_at_checked("bytes=".len())?;
        if !unit.eq_ignore_ascii_case(b"bytes=") {
            return None;
        }
        let mut ranges = ranges.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|range| !range.is_empty());
        let (range, None) = (ranges.next()?, ranges.next()) else { return None };
        let (first, last) = range.split_at(range.iter().position(|&byte| byte == b'-')?);
        match (first, &last[1..]) {
            (b"", length) => Some(ByteRange::Last(parse_position(length)?)),
            (first, b"") => Some(ByteRange::Between(parse_position(first)?, u64::MAX)),
            (first, last) => {
                let (first, last) = (parse_position(first)?, parse_position(last)?);
                (first <= last).then_some(ByteRange::Between(first, last))
            }
        }
    }

    /// Returns the part of a value of `length` bytes, `None` if there is no such part.
    pub fn part_of(self, length: usize) -> Option<Range<usize>> {
        let clamp = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(length);
        let part = match self {
            ByteRange::Between(first, last) => clamp(first)..clamp(last.saturating_add(1)),
            ByteRange::Last(count) => length - clamp(count)..length,
        };
        (!part.is_empty()).then_some(part)
    }
}

/// Parses `1*DIGIT`.
fn parse_position(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let append = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    is_number.then(|| text.iter().fold(0, append))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range is one pair of positions, a first position, or a number of last bytes.
    #[test]
    fn single_range_is_parsed() {
        for (field, range) in [
            ("bytes=0-0", ByteRange::Between(0, 0)),
            ("bytes=5-17", ByteRange::Between(5, 17)),
            ("BYTES=5-17", ByteRange::Between(5, 17)),
            ("bytes=005-0017", ByteRange::Between(5, 17)),
            ("bytes=7-", ByteRange::Between(7, u64::MAX)),
            ("bytes=-7", ByteRange::Last(7)),
            ("bytes=-0", ByteRange::Last(0)),
            ("bytes= ,\t5-17 ,", ByteRange::Between(5, 17)),
            ("bytes=0-99999999999999999999999", ByteRange::Between(0, u64::MAX)),
        ] {
            assert_eq!(ByteRange::parse(field.as_bytes()), Some(range), "{field}");
        }
        for field in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=5",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=+5-6",
            "bytes=5--6",
            "bytes=5 - 6",
            "bytes =5-6",
            "byte=5-6",
            "items=5-6",
            "bytes:5-6",
            "bytes=5-6-7",
            "bytes=0-1,3-4",
            "bytes=0x1-2",
        ] {
            assert_eq!(ByteRange::parse(field.as_bytes()), None, "{field}");
        }
    }

    /// A range ends with the value, and none is outside of it.
    #[test]
    fn part_is_within_value() {
        for (range, length, part) in [
            (ByteRange::Between(0, 0), 10, Some(0..1)),
            (ByteRange::Between(3, 5), 10, Some(3..6)),
            (ByteRange::Between(3, 9), 10, Some(3..10)),
            (ByteRange::Between(3, 10), 10, Some(3..10)),
            (ByteRange::Between(9, u64::MAX), 10, Some(9..10)),
            (ByteRange::Between(10, 10), 10, None),
            (ByteRange::Between(u64::MAX, u64::MAX), 10, None),
            (ByteRange::Between(0, u64::MAX), 0, None),
            (ByteRange::Last(0), 10, None),
            (ByteRange::Last(3), 10, Some(7..10)),
            (ByteRange::Last(11), 10, Some(0..10)),
            (ByteRange::Last(3), 0, None),
        ] {
            assert_eq!(range.part_of(length), part, "{range:?} of {length}");
        }
    }
}
