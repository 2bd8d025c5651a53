//! Memory to work in, kept by each thread from call to call.

use std::cell::RefCell;
use std::mem::MaybeUninit;

/// A cache line; buffers begin at one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Hands out that many elements, whatever they hold.
pub fn with<T>(elements: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = elements.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    let result = work(&mut floats(&mut buffer)[..elements]);
    BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}

#[allow(unsafe_code)]
fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen f32 and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), 16 * lines.len()) }
}

/// A vector of which `fill` writes every element: memory that was never zeroed.
///
/// # Safety
/// `fill` does write every element.
#[allow(unsafe_code)]
pub unsafe fn filled(elements: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut vector = Vec::with_capacity(elements);
    fill(&mut vector.spare_capacity_mut()[..elements]);
    // SAFETY: the caller's contract.
    unsafe { vector.set_len(elements) };
    vector
}
