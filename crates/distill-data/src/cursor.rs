//! Where training stands in its data: small enough to save with every checkpoint.

use serde::{Deserialize, Serialize};

/// A place in the endless, seeded walk over a [`Split`](crate::Split).
///
/// Made by [`Split::cursor`](crate::Split::cursor), moved by
/// [`Split::next_batch`](crate::Split::next_batch), serialised as it is, and checked against the
/// data by [`Split::resume`](crate::Split::resume). A cursor that was saved and restored gives
/// the very batches that the uninterrupted one gives.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The seed of the order.
    pub(crate) seed: u64,
    /// Walks over the whole split that are complete.
    pub(crate) epoch: u64,
    /// Sequences of this epoch that were handed out.
    pub(crate) index: u64,
    /// The fingerprint of the split that this cursor walks.
    pub(crate) split: String,
    /// The order of the epoch, computed when first needed.
    #[serde(skip)]
    pub(crate) order: Option<Order>,
}

/// One epoch's permutation.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) epoch: u64,
    pub(crate) sequences: Vec<u32>,
}

impl Cursor {
    /// The seed of the order.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Complete walks over the split.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Sequences of the current epoch that were handed out.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }
}

impl PartialEq for Cursor {
    /// Equal when they stand at the same place; the cached order follows from it.
    fn eq(&self, other: &Self) -> bool {
        (self.seed, self.epoch, self.index, &self.split)
            == (other.seed, other.epoch, other.index, &other.split)
    }
}

impl Eq for Cursor {}
