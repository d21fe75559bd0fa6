//! A vector that never moves its elements: it grows by whole pages.
//!
//! A plain vector doubles by moving everything; with ten million entries that held the loop up for 40 milliseconds
//! at a time (measured, `cargo bench`). The price is one more load for each access, from a list that stays in the
//! first-level cache.

use std::ops::{Index, IndexMut};

/// Elements of a page: 64 Ki, so that a page of nodes takes 1.25 MiB and ten million entries take 153 pages.
const PAGE_BITS: u32 = 16;
const PAGE: usize = 1 << PAGE_BITS;

/// The vector. See the top of the file.
#[derive(Debug)]
pub(super) struct PagedVec<T> {
    pages: Vec<Vec<T>>,
    len: usize,
}

impl<T> PagedVec<T> {
    pub(super) fn new() -> PagedVec<T> {
        PagedVec { pages: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an element. The first page grows by doubling, so that a small cache stays small; later ones come whole,
    /// and the kernel lends their memory as it is touched.
    pub(super) fn push(&mut self, element: T) {
        let page = self.len >> PAGE_BITS;
        if page == self.pages.len() {
            self.pages.push(Vec::with_capacity(if page == 0 { 16 } else { PAGE }));
        }
        self.pages[page].push(element);
        self.len += 1;
    }

    /// Takes the last element off and gives it back. An empty page but the first is freed once the one before it
    /// begins to empty too, so that a length that swings around a page's edge does not allocate each time.
    pub(super) fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        let page = last >> PAGE_BITS;
        if self.pages.len() > page + 1 && last & (PAGE - 1) < PAGE / 2 {
            self.pages.truncate(page + 1);
        }
        self.pages[page].pop()
    }

    /// Drops the last page with all that is in it.
    pub(super) fn drop_page(&mut self) {
        if let Some(page) = self.pages.pop() {
            self.len -= page.len();
        }
    }

    /// All elements in order.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten()
    }
}

impl<T> Index<usize> for PagedVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.pages[index >> PAGE_BITS][index & (PAGE - 1)]
    }
}

impl<T> IndexMut<usize> for PagedVec<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.pages[index >> PAGE_BITS][index & (PAGE - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stay_where_they_are_and_come_off_in_reverse() {
        let mut pages = PagedVec::new();
        for number in 0..PAGE * 2 + 10 {
            pages.push(number);
        }
        let address = &raw const pages[PAGE + 5];
        for number in PAGE * 2 + 10..PAGE * 3 + 1 {
            pages.push(number);
        }
        assert_eq!(&raw const pages[PAGE + 5], address);
        assert!(pages.iter().copied().eq(0..PAGE * 3 + 1));
        for number in (0..PAGE * 3 + 1).rev() {
            assert_eq!(pages[number], number);
            assert_eq!(pages.pop(), Some(number));
        }
        assert_eq!((pages.pop(), pages.len()), (None, 0));
        assert_eq!(pages.pages.len(), 1, "emptied pages are kept");
        pages.push(7);
        assert_eq!((pages[0], pages.len()), (7, 1));
        (1..PAGE + 3).for_each(|number| pages.push(number));
        for left in [PAGE, 0, 0] {
            pages.drop_page();
            assert_eq!(pages.len(), left);
        }
    }
}
