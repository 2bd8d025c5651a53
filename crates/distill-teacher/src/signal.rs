//! What a teacher says of a text, where it does not say everything.

use serde::{Deserialize, Serialize};

/// How tokens are chosen that a teacher speaks of, and what it says of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The most likely tokens, descending, with ln p of each. What is left of probability 1 is the
    /// bucket of all others.
    TopK,
    /// Tokens that were drawn, ascending, with unbiased estimates of p; all others have none.
    Sampled,
}

/// What a teacher says after each token of a text: some tokens and a value of each.
///
/// A position that nobody asked about has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    kind: Kind,
    /// Where each position begins in the others, `[positions + 1]`.
    starts: Vec<usize>,
    tokens: Vec<u32>,
    values: Vec<f32>,
}

impl Signal {
    /// Of no positions yet.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, starts: vec![0], tokens: Vec::new(), values: Vec::new() }
    }

    /// Adds a position.
    pub fn push(&mut self, entries: impl IntoIterator<Item = (u32, f32)>) {
        let (tokens, values): (Vec<u32>, Vec<f32>) = entries.into_iter().unzip();
        self.tokens.extend(tokens);
        self.values.extend(values);
        self.starts.push(self.tokens.len());
    }

    /// Adds the positions of another.
    ///
    /// # Panics
    /// If that is of another kind.
    pub fn extend(&mut self, other: &Self) {
        assert_eq!(self.kind, other.kind, "signals of one kind");
        let before = self.tokens.len();
        self.starts.extend(other.starts[1..].iter().map(|start| before + start));
        self.tokens.extend(&other.tokens);
        self.values.extend(&other.values);
    }

    /// How its tokens were chosen.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.starts.len() - 1
    }

    /// Tokens spoken of, over all positions.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens after a position and their values; both empty where nobody asked.
    ///
    /// # Panics
    /// If there is no such position.
    #[must_use]
    pub fn at(&self, position: usize) -> (&[u32], &[f32]) {
        let range = self.starts[position]..self.starts[position + 1];
        (&self.tokens[range.clone()], &self.values[range])
    }

    /// Where each position begins in the others, `[positions + 1]`; the tokens; their values.
    #[must_use]
    pub fn parts(&self) -> (&[usize], &[u32], &[f32]) {
        (&self.starts, &self.tokens, &self.values)
    }

    /// The largest token spoken of.
    #[must_use]
    pub fn largest_token(&self) -> Option<u32> {
        self.tokens.iter().copied().max()
    }
}

/// What is asked of a teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Which tokens.
    #[serde(flatten)]
    pub choice: Choice,
    /// Probabilities are softmax(z / T).
    pub temperature: f64,
}

/// Which tokens a teacher is to speak of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Choice {
    /// The `k` most likely ones.
    TopK {
        /// At least 1.
        k: usize,
    },
    /// So many draws from q ∝ p^t.
    Sampled {
        /// At least 1.
        draws: u32,
        /// t; 1 draws from the teacher itself.
        power: f64,
    },
}

impl Choice {
    /// What sampled values are shares of; 1 where nothing is drawn.
    #[must_use]
    pub fn draws(&self) -> u32 {
        match self {
            Self::TopK { .. } => 1,
            Self::Sampled { draws, .. } => *draws,
        }
    }

    /// The kind of signal that this gives.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::TopK { .. } => Kind::TopK,
            Self::Sampled { .. } => Kind::Sampled,
        }
    }
}
