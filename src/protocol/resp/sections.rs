//! Which parts of its reply an `INFO` asks for.

/// Which sections are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoSections(u16);

/// Their names, in the order in which they are told.
const SECTIONS: [&str; 9] =
    ["server", "clients", "memory", "persistence", "stats", "replication", "cpu", "cluster", "keyspace"];

impl InfoSections {
    /// Those that are named, in whatever case; all, where none is. A name that is not known stands for nothing.
    pub fn named<'a>(names: impl Iterator<Item = &'a [u8]>) -> InfoSections {
        const ALL: u16 = (1 << SECTIONS.len()) - 1;
        let mut named = None;
        for name in names {
            let all = ["all", "default", "everything"].iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
            let place = SECTIONS.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name));
            *named.get_or_insert(0) |= if all { ALL } else { place.map_or(0, |place| 1 << place) };
        }
        InfoSections(named.unwrap_or(ALL))
    }

    /// The names of those that are asked for, in order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        SECTIONS.into_iter().enumerate().filter(move |(number, _)| self.0 & (1 << number) != 0).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_those_that_are_named() {
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
