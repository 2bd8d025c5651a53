//! How much memory a file may make the runtime take.
//!
//! Loading is bounded by the file: no count of a file is believed before so many bytes were found
//! behind it, and tensors do not overlap. What the parts of a file cost at their worst, a byte of
//! the file:
//!
//! | part of the file | what is made of it | bytes a byte |
//! |---|---|---|
//! | a metadata key, from 14 bytes | entry of 64, slot of 33, name, each grown by doubling | 25 |
//! | an array in an array, from 12 | 32, claimed anew on each of 4 levels | 11 |
//! | a tensor's record, from 33 | record, checked record, slot, names, a share of its layer | 15 |
//! | an empty token, 8, with its score or type, 4 | 2 texts of 12, 2 slots of 12, 24 of the list of merges, 168 of the special tokens | 20 |
//! | a byte of a token with a score | a pair that spells it: 12 in a list that doubles, 24 in the merge table | 48 |
//! | a kind in `model.edge`, 1, with its end, 4 | 168 of the special tokens | 34 |
//! | a row of Q4_0 or Q8_0 | a group of 16 rows | 16 |
//!
//! A byte is in one of these parts. Its text may stand in memory six times more (key, error, token,
//! its two spellings, special token), hence [`LOAD_FACTOR`].
//!
//! A session is bounded by `Session::bytes`, which a caller can read before it opens one. Of its
//! sizes only the context is not some tensor's dimension; with a context of at most a chunk (256),
//! one thread and float activations the dimensions cost, at their worst:
//!
//! | dimension | bytes of the session | bytes of the file |
//! |---|---|---|
//! | query heads of 2 elements on one kv head, hidden size 1 | 10 200 an element | 4, F16 |
//! | feed-forward, hidden size 1 | 1 100 | 6, F16 |
//! | hidden size | 1 600 | 30 |
//! | vocabulary | 64 | 10 |
//!
//! and hence [`SESSION_FACTOR`]; a model with a hidden size of 64 or more has sessions smaller than
//! itself times 40.

/// Bytes that loading may allocate at a time for each byte of the file.
pub const LOAD_FACTOR: usize = 96;
/// Bytes that loading may allocate besides.
pub const LOAD_CONSTANT: usize = 64 << 10;
/// Bytes that a session with a context of at most 256 on one thread may need for each byte of the
/// file.
pub const SESSION_FACTOR: usize = 2_600;
/// Bytes that it may need besides: a thread's panels, and the smallest of everything else.
pub const SESSION_CONSTANT: usize = 256 << 10;
/// Bytes that encoding or decoding may allocate for each byte of the text: symbols, ids and the
/// candidates of a heap, each grown by doubling.
pub const TEXT_FACTOR: usize = 512;
/// Bytes that it may allocate besides.
pub const TEXT_CONSTANT: usize = 16 << 10;

/// Panics if more was allocated than a bound.
#[track_caller]
pub fn assert_within(what: &str, allocated: usize, factor: usize, size: usize, constant: usize) {
    let bound = factor * size + constant;
    assert!(allocated <= bound, "{what}: {allocated} bytes for {size}, at most {bound} expected");
}
