//! Vector that grows by whole pages and never moves its elements.
//!
//! A plain vector moves all elements when it doubles, which blocks the event loop (40 ms at ten
//! million entries, `cargo bench`). Each access costs one more load, from a page list that stays in
//! the first-level cache.

use std::ops::{Index, IndexMut};

/// Binary logarithm of [`PAGE_LEN`].
const PAGE_BITS: u32 = 16;

/// Elements of a page. A page of nodes takes 1.25 MiB, and ten million entries take 153 pages.
const PAGE_LEN: usize = 1 << PAGE_BITS;

/// Vector of pages. All pages before the last one with elements are full.
#[derive(Debug)]
pub struct PagedVec<T> {
    pages: Vec<Vec<T>>,
    len: usize,
}

impl<T> PagedVec<T> {
    /// Creates an empty vector.
    #[allow(clippy::new_without_default, reason = "one constructor is enough")]
    pub fn new() -> PagedVec<T> {
        PagedVec { pages: Vec::new(), len: 0 }
    }

    /// Returns the number of elements.
    #[allow(clippy::len_without_is_empty, reason = "nothing asks for it")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the element at `index`, `None` if there is none.
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index >> PAGE_BITS)?.get(index & (PAGE_LEN - 1))
    }

    /// Appends an element.
    ///
    /// The first page grows by doubling, so that a small cache stays small. Later pages are
    /// allocated whole, and the kernel provides their memory as it is touched.
    pub fn push(&mut self, element: T) {
        let page = self.len >> PAGE_BITS;
        if page == self.pages.len() {
            self.pages.push(Vec::with_capacity(if page == 0 { 16 } else { PAGE_LEN }));
        }
        self.pages[page].push(element);
        self.len += 1;
    }

    /// Removes and returns the last element.
    ///
    /// An empty page is freed only when the page before it is half empty. So a length that swings
    /// around the edge of a page does not allocate each time. The first page is never freed.
    pub(super) fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        let page = last >> PAGE_BITS;
        if self.pages.len() > page + 1 && last & (PAGE_LEN - 1) < PAGE_LEN / 2 {
            self.pages.truncate(page + 1);
        }
        self.pages[page].pop()
    }

    /// Drops the last page with its elements.
    pub fn drop_page(&mut self) {
        if let Some(page) = self.pages.pop() {
            self.len -= page.len();
        }
    }

    /// Returns all elements in order.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten()
    }
}

impl<T> Index<usize> for PagedVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.pages[index >> PAGE_BITS][index & (PAGE_LEN - 1)]
    }
}

impl<T> IndexMut<usize> for PagedVec<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.pages[index >> PAGE_BITS][index & (PAGE_LEN - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements keep their addresses, come off in reverse order, and emptied pages are freed.
    #[test]
    fn paged_vec_growth_moves_no_element() {
        let mut vec = PagedVec::new();
        for number in 0..PAGE_LEN * 2 + 10 {
            vec.push(number);
        }
        let address = &raw const vec[PAGE_LEN + 5];
        for number in PAGE_LEN * 2 + 10..PAGE_LEN * 3 + 1 {
            vec.push(number);
        }
        assert_eq!(&raw const vec[PAGE_LEN + 5], address);
        assert!(vec.iter().copied().eq(0..PAGE_LEN * 3 + 1));
        for number in (0..PAGE_LEN * 3 + 1).rev() {
            assert_eq!(vec[number], number);
            assert_eq!(vec.pop(), Some(number));
        }
        assert_eq!((vec.pop(), vec.len()), (None, 0));
        assert_eq!(vec.pages.len(), 1, "emptied pages are not freed");
        vec.push(7);
        assert_eq!((vec[0], vec.len()), (7, 1));
        (1..PAGE_LEN + 3).for_each(|number| vec.push(number));
        for len in [PAGE_LEN, 0, 0] {
            vec.drop_page();
            assert_eq!(vec.len(), len);
        }
    }
}
