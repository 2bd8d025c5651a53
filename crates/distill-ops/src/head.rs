//! The head and the loss together, in tiles of tokens: logits of a whole batch never exist.

use burn::backend::Flex;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::loss::{self, Options, Row, Sums, Target};
use crate::cpu::product::{Matrix, Output, Threads, multiply};
use crate::flex::{contiguous, tensor, values};
use crate::is_fused;

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
    /// The teacher's final hidden states `[tokens, width]` and head `[vocabulary, width]`.
    pub teacher: Option<(Tensor<2>, Tensor<2>)>,
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
        let teacher = self.teacher.map(|(hidden, head)| {
            let width = hidden.dims()[1];
            (host(hidden), host(head), width)
        });
        let (hidden, head) = (values(&hidden), Matrix::new(values(&head), vocabulary, width));
        let mut hidden_gradient = vec![0.0; tokens * width];
        let mut head_gradient = (!self.frozen).then(|| vec![0.0; rows * width]);
        let tile = TILE.min(tokens);
        let mut student = vec![0.0; tile * vocabulary];
        let mut theirs = vec![0.0; if teacher.is_some() { tile * vocabulary } else { 0 }];
        let mut sums = Sums::default();
        for start in (0..tokens).step_by(TILE) {
            let count = TILE.min(tokens - start);
            let x = Matrix::new(&hidden[start * width..], count, width);
            let student = &mut student[..count * vocabulary];
            multiply(x, head.transposed(), 1.0, Output::Replace, student, Threads::All);
            let row = |(i, logits, target)| Row {
                logits,
                target,
                label: self.labels[start + i] as usize,
                share: self.shares[start + i],
            };
            let logits = student.par_chunks_mut(vocabulary).enumerate();
            let found = match &teacher {
                None => loss::rows(logits.map(|(i, z)| row((i, z, Target::None))), self.options),
                Some((hidden, head, width)) => {
                    let x = Matrix::new(&values(hidden)[start * width..], count, *width);
                    let head = Matrix::new(values(head), vocabulary, *width);
                    let theirs = &mut theirs[..count * vocabulary];
                    multiply(x, head.transposed(), 1.0, Output::Replace, theirs, Threads::All);
                    let both = logits.zip(theirs.par_chunks_mut(vocabulary));
                    let rows = both.map(|((i, z), y)| row((i, z, Target::Logits(y))));
                    loss::rows(rows, self.options)
                }
            };
            sums.divergence += found.divergence;
            sums.cross_entropy += found.cross_entropy;
            let slopes = Matrix::new(student, count, vocabulary);
            let out = &mut hidden_gradient[start * width..(start + count) * width];
            multiply(slopes, head, 1.0, Output::Replace, out, Threads::All);
            if let Some(sum) = &mut head_gradient {
                multiply(slopes.transposed(), x, 1.0, Output::Add, sum, Threads::All);
            }
        }
        Some(HeadLoss {
            sums,
            hidden_gradient: device(hidden_gradient, [tokens, width]),
            head_gradient: head_gradient.map(|sum| device(sum, [rows, width])),
        })
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> burn::backend::flex::FlexTensor {
    contiguous(tensor.try_into_primitive::<Flex>().expect("asked before"))
}

fn device(values: Vec<f32>, dims: [usize; 2]) -> Tensor<2> {
    Tensor::from_primitive::<Flex>(tensor(values, Shape::new(dims)))
}
