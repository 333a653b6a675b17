//! Who reads and writes which slots' bytes: a cell of the checker's for each
//! slot, which finds accesses that nothing orders.

use std::cell::RefCell;
use std::rc::Rc;

use vm_memory::VolatileSlice;

use crate::checker::Access;
use crate::sizing::SLOT_SIZE;

struct Watched {
    start: usize,
    slots: Rc<[Access]>,
}

thread_local! {
    static WATCHED: RefCell<Vec<Watched>> = const { RefCell::new(Vec::new()) };
}

/// Slots of a pool that are watched; no test comes further.
const MOST: usize = 256;

/// Watches the slots of a pool's memory from now on.
pub fn watch(memory: &VolatileSlice<'_>) {
    let count = memory.len().div_ceil(SLOT_SIZE as usize).min(MOST);
    let start = memory.ptr_guard().as_ptr() as usize;
    let slots = (0..count).map(|_| Access::default()).collect();
    WATCHED.with_borrow_mut(|all| all.push(Watched { start, slots }));
}

/// Forgets everything: the start of an execution.
pub fn reset() {
    WATCHED.with_borrow_mut(Vec::clear);
}

/// The bytes are read.
pub fn read(slice: &VolatileSlice<'_>) {
    each(slice, Access::read);
}

/// The bytes are written.
pub fn write(slice: &VolatileSlice<'_>) {
    each(slice, Access::write);
}

fn each(slice: &VolatileSlice<'_>, access: impl Fn(&Access)) {
    let start = slice.ptr_guard().as_ptr() as usize;
    // newest first: a freed pool's addresses may come again
    let found = WATCHED.with_borrow(|all| {
        all.iter().rev().find_map(|one| {
            let first = start.checked_sub(one.start)? / SLOT_SIZE as usize;
            let last = (start + slice.len() - 1 - one.start) / SLOT_SIZE as usize;
            (last < one.slots.len()).then(|| (Rc::clone(&one.slots), first..=last))
        })
    });
    let (slots, range) = found.expect("bytes of a pool");
    slots[range].iter().for_each(access);
}
