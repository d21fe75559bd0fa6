//! Conditions of a request: preconditions on the entity tag of a value (RFC 9110, section 13), a
//! range of its bytes (section 14), and preferences about its changes.

use super::View;
use super::entity_tag::{EntityTag, TagList};
use super::push_fields::PushFields;
use super::range::ByteRange;
use std::ops::Range;

/// Conditions of a request. Most requests have none.
///
/// Conditions on dates have no effect, because responses have no `Last-Modified` (sections 13.1.3
/// and 13.1.4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<TagList>,
    if_none_match: Option<TagList>,
    range: RangeField,
    if_range: IfRange,
    /// Preferences about changes of the key.
    pub push: PushFields,
}

/// `Range` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum RangeField {
    #[default]
    Absent,
    One(ByteRange),
    /// The request has several fields, or one that is ignored.
    Ignored,
}

/// `If-Range` of a request (RFC 9110, section 13.1.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum IfRange {
    #[default]
    Absent,
    Tag(EntityTag),
    /// No value meets the condition: a date, a tag of another server, or several fields.
    Unmet,
}

/// Existing representation that conditions are evaluated against.
#[derive(Clone, Copy, Debug)]
pub struct Representation {
    /// `None` for one that has no entity tag.
    pub tag: Option<EntityTag>,
    /// Length of the value in bytes. `None` if ranges do not apply.
    pub ranged_length: Option<usize>,
}

impl Representation {
    /// Representation without an entity tag, such as an admin page.
    pub const UNTAGGED: Representation = Representation { tag: None, ranged_length: None };

    /// Returns the representation of a value of `length` bytes. Ranges apply to `GET` (RFC 9110,
    /// section 14.2), and here only to `/raw`.
    pub fn of_value(tag: Option<EntityTag>, length: usize, view: View, head_only: bool) -> Representation {
        let has_ranges = view == View::Raw && !head_only;
        Representation { tag, ranged_length: has_ranges.then_some(length) }
    }
}

/// Response to a request for an existing representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// 200, with all of it.
    Whole,
    /// 206, with these bytes of the value.
    Part(Range<usize>),
    /// 304: the client has it.
    NotModified,
    /// 412: `If-Match` is not met.
    PreconditionFailed,
    /// 416: the range has no byte of it.
    RangeNotSatisfiable,
}

impl Conditions {
    /// Returns the bytes in memory.
    pub fn held_bytes(&self) -> usize {
        let lists = self.if_match.iter().chain(&self.if_none_match);
        size_of::<Conditions>() + lists.map(TagList::held_bytes).sum::<usize>()
    }

    /// Adds a line of `If-Match`.
    pub fn add_if_match(&mut self, line: &[u8]) {
        self.if_match.get_or_insert_default().add_line(line);
    }

    /// Adds a line of `If-None-Match`.
    pub fn add_if_none_match(&mut self, line: &[u8]) {
        self.if_none_match.get_or_insert_default().add_line(line);
    }

    /// Adds a `Range` field.
    pub fn add_range(&mut self, field: &[u8]) {
        self.range = match (self.range, ByteRange::parse(field)) {
            (RangeField::Absent, Some(range)) => RangeField::One(range),
            _ => RangeField::Ignored,
        };
    }

    /// Adds an `If-Range` field.
    pub fn add_if_range(&mut self, field: &[u8]) {
        self.if_range = match (self.if_range, EntityTag::parse(field)) {
            (IfRange::Absent, Some(tag)) => IfRange::Tag(tag),
            _ => IfRange::Unmet,
        };
    }

    /// Returns the seconds that a client is willing to wait for another value. `None` unless it has
    /// named the value that it has.
    pub fn wait_seconds(&self) -> Option<u16> {
        self.push.wait.filter(|&seconds| seconds > 0 && self.if_none_match.is_some())
    }

    /// Returns the response to a `GET` or `HEAD` request, if it would be 200 without conditions.
    /// Evaluates them in the order of RFC 9110, section 13.2.2.
    pub fn select(&self, representation: Representation) -> Selection {
        let Representation { tag, ranged_length } = representation;
        if self.if_match.as_ref().is_some_and(|list| !list.matches_strongly(tag)) {
            return Selection::PreconditionFailed;
        }
        if self.if_none_match.as_ref().is_some_and(|list| list.matches_weakly(tag)) {
            return Selection::NotModified;
        }
        let is_current = match (self.if_range, tag) {
            (IfRange::Absent, _) => true,
            (IfRange::Tag(listed), Some(tag)) => listed.equals_strongly(tag),
            (IfRange::Tag(_), None) | (IfRange::Unmet, _) => false,
        };
        match (self.range, ranged_length) {
            // An empty value has no range, and `Content-Range` cannot say so.
            (RangeField::One(ByteRange::Last(1..)), Some(0)) => Selection::Whole,
            (RangeField::One(range), Some(length)) if is_current => {
                range.part_of(length).map_or(Selection::RangeNotSatisfiable, Selection::Part)
            }
            _ => Selection::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: u64 = 0x0123_4567_89ab_cdef;
    const TAG: &[u8] = b"\"0123456789abcdef\"";

    /// `If-Match` precedes `If-None-Match`, and both precede ranges.
    #[test]
    fn conditions_are_evaluated_in_order() {
        let tag = Some(EntityTag::new(DIGEST, View::Raw));
        let raw = Representation::of_value(tag, 10, View::Raw, false);
        let mut conditions = Conditions::default();
        assert_eq!(conditions.select(raw), Selection::Whole);
        conditions.add_range(b"bytes=20-");
        assert_eq!(conditions.select(raw), Selection::RangeNotSatisfiable);
        conditions.add_if_range(b"\"other\"");
        assert_eq!(conditions.select(raw), Selection::Whole);
        conditions.add_if_none_match(TAG);
        assert_eq!(conditions.select(raw), Selection::NotModified);
        conditions.add_if_match(b"\"other\"");
        assert_eq!(conditions.select(raw), Selection::PreconditionFailed);
        assert_eq!(conditions.select(Representation::UNTAGGED), Selection::PreconditionFailed);
    }

    /// A range applies to `GET` of `/raw` only, and with `If-Range` only to the same value.
    #[test]
    fn range_needs_raw_and_current_value() {
        let ranged = |if_range: &[&[u8]]| {
            let mut conditions = Conditions::default();
            conditions.add_range(b"bytes=2-5");
            if_range.iter().for_each(|field| conditions.add_if_range(field));
            conditions
        };
        let select = |conditions: &Conditions, digest, view, head_only| {
            conditions.select(Representation::of_value(Some(EntityTag::new(digest, view)), 10, view, head_only))
        };
        for if_range in [&[][..], &[TAG]] {
            assert_eq!(select(&ranged(if_range), DIGEST, View::Raw, false), Selection::Part(2..6));
            assert_eq!(select(&ranged(if_range), DIGEST, View::Raw, true), Selection::Whole);
            assert_eq!(select(&ranged(if_range), DIGEST, View::Json, false), Selection::Whole);
        }
        let weak = [b"W/", TAG].concat();
        for if_range in [&[&weak[..]][..], &[b"Sun, 06 Nov 1994 08:49:37 GMT"], &[b"\"other\""], &[b""], &[TAG, TAG]] {
            assert_eq!(select(&ranged(if_range), DIGEST, View::Raw, false), Selection::Whole, "{if_range:?}");
        }
        assert_eq!(select(&ranged(&[TAG]), DIGEST + 1, View::Raw, false), Selection::Whole);
        let mut repeated = ranged(&[]);
        repeated.add_range(b"bytes=2-5");
        assert_eq!(select(&repeated, DIGEST, View::Raw, false), Selection::Whole);
    }
}
