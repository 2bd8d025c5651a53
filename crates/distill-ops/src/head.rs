//! The head and the loss together, in tiles of tokens: logits of a whole batch never exist.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::loss::{self, Options, Row, Sums, Target};
use crate::cpu::product::{Destination, Matrix, Threads, multiply, product};
use crate::flex::{contiguous, tensor, values};
use crate::is_fused;
use crate::profile::{Work, operator};

/// Tokens a tile.
const TILE: usize = 128;

/// A loss and its gradients.
#[derive(Debug)]
pub struct HeadLoss {
    /// Sums over the tokens with a share, in nats.
    pub sums: Sums,
    /// ∂loss/∂hidden, `[tokens, hidden]`.
    pub hidden_gradient: Tensor<2>,
    /// ∂loss/∂head, `[rows, hidden]`, unless it is frozen.
    pub head_gradient: Option<Tensor<2>>,
}

/// What a teacher says of all tokens of a batch.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Teacher<'a> {
    /// Final hidden states `[tokens, width]` and head `[vocabulary, width]`.
    Dense(Tensor<2>, Tensor<2>),
    /// ln p of some tokens; the others are one bucket.
    Top(Sparse<'a>),
    /// Unbiased estimates of p of some tokens.
    Sampled(Sparse<'a>),
}

/// Some tokens of each row, and a value of each.
#[derive(Clone, Copy, Debug)]
pub struct Sparse<'a> {
    /// Where each row begins in the others, `[rows + 1]`.
    pub starts: &'a [usize],
    /// The tokens, each once a row.
    pub tokens: &'a [u32],
    /// Their values.
    pub values: &'a [f32],
}

impl<'a> Sparse<'a> {
    /// The tokens of a row and their values.
    pub fn row(&self, row: usize) -> (&'a [u32], &'a [f32]) {
        let range = self.starts[row]..self.starts[row + 1];
        (&self.tokens[range.clone()], &self.values[range])
    }
}

/// What the loss is made of; tensors without autodiff.
#[derive(Debug)]
pub struct HeadInput<'a> {
    /// Final hidden states, `[tokens, hidden]`.
    pub hidden: Tensor<2>,
    /// The head, `[rows, hidden]`; rows beyond the vocabulary are padding.
    pub head: Tensor<2>,
    /// Whether the head stays as it is and needs no gradient.
    pub frozen: bool,
    /// Tokens that exist.
    pub vocabulary: usize,
    /// The teacher, if there is one.
    pub teacher: Option<Teacher<'a>>,
    /// The next token of each.
    pub labels: &'a [u32],
    /// What each token's loss is multiplied by, 0 for those that do not count.
    pub shares: &'a [f32],
    /// The loss.
    pub options: Options,
}

impl HeadInput<'_> {
    /// Loss and gradients; `None` where the device has no fused operators.
    pub fn loss(self) -> Option<HeadLoss> {
        if !is_fused(&self.hidden.device()) {
            return None;
        }
        let [tokens, width] = self.hidden.dims();
        let rows = self.head.dims()[0];
        let vocabulary = self.vocabulary;
        let (hidden, head) = (host(self.hidden), host(self.head));
        let teacher = self.teacher.map(Told::new);
        let (hidden, head) = (values(&hidden), Matrix::new(values(&head), vocabulary, width));
        let mut hidden_gradient = vec![0.0; tokens * width];
        let mut head_gradient = Vec::new();
        // Of the first tile, which is the longest.
        let (mut student, mut theirs) = (Vec::new(), Vec::new());
        let mut sums = Sums::default();
        for start in (0..tokens).step_by(TILE) {
            let count = TILE.min(tokens - start);
            let x = Matrix::new(&hidden[start * width..], count, width);
            let work = Work::product(count, vocabulary, width);
            let student = operator("head", work, || logits(x, head, &mut student));
            let row = |(i, logits, target)| Row {
                logits,
                target,
                label: self.labels[start + i] as usize,
                share: self.shares[start + i],
            };
            let logits_of = student.par_chunks_mut(vocabulary).enumerate();
            let losses = Work::floats(2 * count * vocabulary);
            let found = match &teacher {
                None => operator("loss", losses, || {
                    loss::rows(logits_of.map(|(i, z)| row((i, z, Target::None))), self.options)
                }),
                Some(Told::Dense(hidden, head, width)) => {
                    let x = Matrix::new(&values(hidden)[start * width..], count, *width);
                    let head = Matrix::new(values(head), vocabulary, *width);
                    let work = Work::product(count, vocabulary, *width);
                    let theirs = operator("teacher's head", work, || logits(x, head, &mut theirs));
                    let both = logits_of.zip(theirs.par_chunks_mut(vocabulary));
                    let rows = both.map(|((i, z), y)| row((i, z, Target::Logits(y))));
                    operator("loss", losses.times(2), || loss::rows(rows, self.options))
                }
                Some(Told::Top(said)) => operator("loss", losses, || {
                    let rows = logits_of.map(|(i, z)| {
                        let (tokens, log_probabilities) = said.row(start + i);
                        row((i, z, Target::Top { tokens, log_probabilities }))
                    });
                    loss::rows(rows, self.options)
                }),
                Some(Told::Sampled(said)) => operator("loss", losses, || {
                    let rows = logits_of.map(|(i, z)| {
                        let (tokens, weights) = said.row(start + i);
                        row((i, z, Target::Sampled { tokens, weights }))
                    });
                    loss::rows(rows, self.options)
                }),
            };
            sums.divergence += found.divergence;
            sums.cross_entropy += found.cross_entropy;
            let slopes = Matrix::new(student, count, vocabulary);
            let out = &mut hidden_gradient[start * width..(start + count) * width];
            let products = if self.frozen { 1 } else { 2 };
            operator("head, backward", work.times(products), || {
                multiply(slopes, head, 1.0, Destination::replace(out, width), Threads::All);
                if self.frozen {
                    return;
                }
                if head_gradient.is_empty() {
                    head_gradient = product(slopes.transposed(), x);
                } else {
                    let out = Destination::add(&mut head_gradient, width);
                    multiply(slopes.transposed(), x, 1.0, out, Threads::All);
                }
            });
        }
        let head_gradient = (!self.frozen).then(|| {
            head_gradient.resize(rows * width, 0.0);
            device(head_gradient, [rows, width])
        });
        Some(HeadLoss {
            sums,
            hidden_gradient: device(hidden_gradient, [tokens, width]),
            head_gradient,
        })
    }
}

/// [`Teacher`] in memory.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Told<'a> {
    Dense(FlexTensor, FlexTensor, usize),
    Top(Sparse<'a>),
    Sampled(Sparse<'a>),
}

impl<'a> Told<'a> {
    fn new(teacher: Teacher<'a>) -> Self {
        match teacher {
            Teacher::Dense(hidden, head) => {
                let width = hidden.dims()[1];
                Self::Dense(host(hidden), host(head), width)
            }
            Teacher::Top(said) => Self::Top(said),
            Teacher::Sampled(said) => Self::Sampled(said),
        }
    }
}

/// Logits of a tile, in memory that the first tile asked for.
fn logits<'a>(x: Matrix<'_>, head: Matrix<'_>, room: &'a mut Vec<f32>) -> &'a mut [f32] {
    if room.is_empty() {
        *room = product(x, head.transposed());
        return room;
    }
    let room = &mut room[..x.height() * head.height()];
    let out = Destination::replace(room, head.height());
    multiply(x, head.transposed(), 1.0, out, Threads::All);
    room
}

fn host<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    contiguous(tensor.try_into_primitive::<Flex>().expect("asked before"))
}

fn device(values: Vec<f32>, dims: [usize; 2]) -> Tensor<2> {
    Tensor::from_primitive::<Flex>(tensor(values, Shape::new(dims)))
}
