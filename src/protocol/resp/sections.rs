//! Sections of the reply to `INFO`, and the names that select them.

/// Set of sections that one `INFO` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoSections(u16);

/// Names of the sections, in the order of the reply.
const SECTIONS: [&str; 9] =
    ["server", "clients", "memory", "persistence", "stats", "replication", "cpu", "cluster", "keyspace"];

impl InfoSections {
    /// Returns the sections that `names` select, in any case; all of them without a name. Unknown
    /// names select nothing.
    pub fn named<'a>(names: impl Iterator<Item = &'a [u8]>) -> InfoSections {
        const ALL: u16 = (1 << SECTIONS.len()) - 1;
        let mut named = None;
        for name in names {
            let is_all =
                ["all", "default", "everything"].iter().any(|section| section.as_bytes().eq_ignore_ascii_case(name));
            let index = SECTIONS.iter().position(|section| section.as_bytes().eq_ignore_ascii_case(name));
            *named.get_or_insert(0) |= if is_all { ALL } else { index.map_or(0, |index| 1 << index) };
        }
        InfoSections(named.unwrap_or(ALL))
    }

    /// Returns the names of the selected sections, in order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        SECTIONS.into_iter().enumerate().filter(move |(number, _)| self.0 & (1 << number) != 0).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in any case select sections, in fixed order. Unknown names select none.
    #[test]
    fn names_select_sections() {
        let named =
            |names: &[&str]| InfoSections::named(names.iter().map(|name| name.as_bytes())).names().collect::<Vec<_>>();
        assert_eq!(named(&["Clients"]), ["clients"]);
        assert_eq!(named(&["keyspace", "SERVER", "nothing"]), ["server", "keyspace"]);
        assert_eq!(named(&["cluster", "Memory", "CPU", "persistence"]), ["memory", "persistence", "cpu", "cluster"]);
        assert_eq!(named(&["nothing"]), [""; 0]);
        for all in [&[][..], &["all"], &["stats", "EVERYTHING"], &["default"]] {
            assert_eq!(named(all), SECTIONS);
        }
    }
}
