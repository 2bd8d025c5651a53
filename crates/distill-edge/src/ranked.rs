//! Tokens in the order of their scores.

use std::cmp::Ordering;

/// A token with a score: of two the greater has the higher score, and of equals the lower id.
///
/// Both the sampler's candidates and a vocabulary's merges are taken from a heap of these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranked {
    pub score: f32,
    pub id: u32,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_is_the_greatest_and_of_equals_the_lowest_id() {
        let token = |score, id| Ranked { score, id };
        assert!(token(1.0, 7) > token(-1.0, 0));
        assert!(token(1.0, 0) > token(1.0, 7));
        assert_eq!(token(1.0, 7), token(1.0, 7));
    }
}
