//! Entity tags of values (RFC 9110, section 8.8.3).
//!
//! The opaque part of a tag is the digest of the value in hexadecimal. So a value has the same tag
//! from each worker, from each proxy and after each restart. The tag of `/raw` is strong. That of
//! `/key` is weak, because its body also has `fromCache`.

use super::View;

/// Hexadecimal digits of a digest.
const DIGITS: usize = 16;

/// Bytes before the digits in the field of a weak tag, and in that of a strong one.
const WEAK_START: usize = b"ETag: W/\"".len();
const STRONG_START: usize = b"ETag: \"".len();

/// Entity tag with the form of this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag {
    digest: u64,
    is_weak: bool,
}

impl EntityTag {
    /// Returns the tag of a value with this digest.
    pub fn new(digest: u64, view: View) -> EntityTag {
        EntityTag { digest, is_weak: view == View::Json }
    }

    /// Parses a single tag. Returns `None` if it is malformed, or of another server.
    pub fn parse(text: &[u8]) -> Option<EntityTag> {
        match split_tag(text)? {
            (tag, b"") => tag,
            _ => None,
        }
    }

    /// Returns the digest of the value.
    pub fn digest(self) -> u64 {
        self.digest
    }

    /// Appends the tag.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.is_weak { b"W/\"" } else { &b"\""[..] });
        out.extend_from_slice(&to_hex(self.digest));
        out.push(b'"');
    }

    /// Returns true if both tags are strong and equal (section 8.8.3.2).
    pub fn equals_strongly(self, other: EntityTag) -> bool {
        self == other && !self.is_weak
    }

    /// Appends the field `ETag`.
    pub fn write_field(self, out: &mut Vec<u8>) {
        let mut field = *b"ETag: W/\"0123456789abcdef\"\r\n";
        field[WEAK_START..][..DIGITS].copy_from_slice(&to_hex(self.digest));
        if self.is_weak {
            out.extend_from_slice(&field);
        } else {
            // Overwrites the mark of a weak tag.
            let start = WEAK_START - STRONG_START;
            field.copy_within(..STRONG_START - 1, start);
            out.extend_from_slice(&field[start..]);
        }
    }
}

/// Entity tags that `If-Match` or `If-None-Match` lists.
///
/// A tag of another server matches no value, so it is dropped. The length of a request head bounds
/// the number of tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagList {
    /// True for `*`, which matches each existing value.
    matches_any: bool,
    tags: Vec<EntityTag>,
}

impl TagList {
    /// Adds a field line: `*`, or a list of tags up to the first malformed one.
    pub fn add_line(&mut self, line: &[u8]) {
        self.matches_any |= line == b"*";
        let mut rest = line;
        while let Some((tag, after)) = split_tag(skip_separators(rest)) {
            self.tags.extend(tag);
            match after.trim_ascii_start() {
                after @ [b',', ..] => rest = after,
                _ => break,
            }
        }
    }

    /// Returns the bytes of the tags in memory.
    pub fn held_bytes(&self) -> usize {
        self.tags.capacity() * size_of::<EntityTag>()
    }

    /// Returns true if the list has `tag` by strong comparison, or `*`.
    pub fn matches_strongly(&self, tag: Option<EntityTag>) -> bool {
        self.matches(tag, |listed, tag| listed.equals_strongly(tag))
    }

    /// Returns true if the list has `tag` by weak comparison, or `*`.
    pub fn matches_weakly(&self, tag: Option<EntityTag>) -> bool {
        self.matches(tag, |listed, tag| listed.digest == tag.digest)
    }

    fn matches(&self, tag: Option<EntityTag>, is_equal: impl Fn(EntityTag, EntityTag) -> bool) -> bool {
        self.matches_any || tag.is_some_and(|tag| self.tags.iter().any(|&listed| is_equal(listed, tag)))
    }
}

/// Skips white space and empty list elements (RFC 9110, section 5.6.1.2).
fn skip_separators(text: &[u8]) -> &[u8] {
    let is_separator = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
    &text[text.iter().take_while(|byte| is_separator(byte)).count()..]
}

/// Splits `text` behind the entity tag at its start. The tag is `None` if it has another form than
/// those of this proxy. Returns `None` if `text` does not start with a tag.
fn split_tag(text: &[u8]) -> Option<(Option<EntityTag>, &[u8])> {
    let (is_weak, quoted) = match text.strip_prefix(b"W/") {
        Some(quoted) => (true, quoted),
        None => (false, text),
    };
    let opaque = quoted.strip_prefix(b"\"")?;
    let (opaque, rest) = opaque.split_at(opaque.iter().position(|&byte| byte == b'"')?);
    let is_valid = opaque.iter().all(|&byte| byte > b' ' && byte != 0x7f);
    is_valid.then(|| (parse_hex(opaque).map(|digest| EntityTag { digest, is_weak }), &rest[1..]))
}

/// Returns the number that [`to_hex`] renders as `text`.
pub(super) fn parse_hex(text: &[u8]) -> Option<u64> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == DIGITS && text.iter().all(is_digit)).then_some(())?;
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

/// Returns a number in hexadecimal, with all digits and in lower case. Runs for each response, so
/// it converts eight digits at a time.
pub(super) fn to_hex(number: u64) -> [u8; DIGITS] {
    let mut digits = [0; DIGITS];
    for (half, out) in [number >> 32, number & 0xffff_ffff].into_iter().zip(digits.as_chunks_mut::<8>().0) {
        // Moves each four bits into a byte of their own.
        let spread = (half | half << 16) & 0x0000_ffff_0000_ffff;
        let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
        let nibbles = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        // 1 in each byte above 9.
        let letters = (nibbles + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
        let text = nibbles + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10);
        *out = text.to_be_bytes();
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: u64 = 0x0123_4567_89ab_cdef;

    fn list_of(lines: &[&str]) -> TagList {
        let mut list = TagList::default();
        lines.iter().for_each(|line| list.add_line(line.as_bytes()));
        list
    }

    /// A tag is parsed from the text that it is written as.
    #[test]
    fn written_tag_is_parsed() {
        for digest in [0, 9, 10, 15, 16, DIGEST, u64::MAX, 0xa000_0000_0000_0000, 0x9999_9999_ffff_ffff] {
            for (view, prefix) in [(View::Json, "W/"), (View::Raw, "")] {
                let (tag, mut field) = (EntityTag::new(digest, view), Vec::new());
                tag.write_field(&mut field);
                assert_eq!(String::from_utf8_lossy(&field), format!("ETag: {prefix}\"{digest:016x}\"\r\n"));
                assert_eq!(EntityTag::parse(&field["ETag: ".len()..field.len() - 2]), Some(tag));
            }
        }
    }

    /// Lists are split at commas outside of quotes, and end at the first malformed tag.
    #[test]
    fn list_has_well_formed_tags() {
        let tag = Some(EntityTag::new(DIGEST, View::Raw));
        for lines in [
            &["\"0123456789abcdef\""][..],
            &["W/\"0123456789abcdef\""],
            &["\"a\",\"0123456789abcdef\""],
            &[" , ,\t\"a,b\" ,\t\"0123456789abcdef\", \"c\""],
            &["\"a\"", "\"0123456789abcdef\""],
            &["\"\", \"\\\", \"0123456789abcdef\""],
            &["\"\u{e9}\", \"0123456789abcdef\""],
            &["*"],
            &["\"a\"", "*"],
        ] {
            assert!(list_of(lines).matches_weakly(tag), "{lines:?}");
        }
        for lines in [
            &[""][..],
            &["0123456789abcdef"],
            &["\"0123456789ABCDEF\""],
            &["\"0123456789abcde\""],
            &["\"0123456789abcdef0\""],
            &["\"+123456789abcdef\""],
            &["\"0123456789abcdef"],
            &["w/\"0123456789abcdef\""],
            &["W/ \"0123456789abcdef\""],
            &["a, \"0123456789abcdef\""],
            &["\"a\" \"0123456789abcdef\""],
            &["\"a b\", \"0123456789abcdef\""],
            &["\"0123456789abcdee\""],
            &["\"*\""],
            &["**"],
        ] {
            assert!(!list_of(lines).matches_weakly(tag), "{lines:?}");
        }
    }

    /// A weak tag never matches strongly. Only `*` matches without a tag.
    #[test]
    fn strong_comparison_needs_strong_tags() {
        let [strong, weak] = [View::Raw, View::Json].map(|view| Some(EntityTag::new(DIGEST, view)));
        let list = list_of(&["\"0123456789abcdef\""]);
        assert!(list.matches_strongly(strong) && !list.matches_strongly(weak));
        let list = list_of(&["W/\"0123456789abcdef\""]);
        assert!(!list.matches_strongly(strong) && !list.matches_strongly(weak));
        assert!(list.matches_weakly(strong) && list.matches_weakly(weak));
        assert!(!list.matches_weakly(None) && list_of(&["*"]).matches_strongly(None));
    }
}
