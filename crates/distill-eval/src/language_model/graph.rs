//! What trains, through the graph.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill_data::TextTokenizer;
use distill_models::quantized::quantize;
use distill_models::{ActivationGrid, LlamaForCausalLM, WeightGrid, WeightGrids, parameters};

use super::{LanguageModel, TILE};
use crate::EvalError;

/// A model of the training graph. It has no cache: each text is computed from its first token, and
/// the final hidden states of the last one are kept.
pub struct GraphModel {
    graph: LlamaForCausalLM,
    grids: WeightGrids,
    tokenizer: TextTokenizer,
    /// The tokenizer as [`TextTokenizer::plain`] makes it.
    plain: TextTokenizer,
    device: Device,
    /// The text computed last, and its final hidden states `[1, tokens, hidden]`.
    last: Option<(Vec<u32>, Tensor<3>)>,
}

impl GraphModel {
    /// A model whose weights and activations are rounded to `grids`, as it ships;
    /// [`WeightGrids::default`] rounds nothing.
    ///
    /// # Errors
    /// [`EvalError::Model`] if a matrix has no whole blocks,
    /// [`EvalError::TokensWithoutLogits`] if the tokenizer is of another model.
    pub fn new(
        masters: &LlamaForCausalLM,
        grids: WeightGrids,
        tokenizer: TextTokenizer,
        device: &Device,
    ) -> Result<Self, EvalError> {
        grids.check(&masters.config)?;
        let (tokens, logits) = (tokenizer.vocab_size(), masters.config.vocab_size);
        if tokens > logits {
            return Err(EvalError::TokensWithoutLogits { tokens, logits });
        }
        let graph = match grids == WeightGrids::default() {
            true => masters.clone(),
            false => quantize(masters, &grids),
        };
        let (plain, device) = (tokenizer.plain(), device.clone());
        Ok(Self { graph, grids, tokenizer, plain, device, last: None })
    }

    fn hidden(&mut self, tokens: &[u32]) -> Tensor<3> {
        if let Some((last, hidden)) = &self.last
            && last == tokens
        {
            return hidden.clone();
        }
        let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
        let ids = TensorData::new(ids, [1, tokens.len()]);
        let ids = Tensor::<2, Int>::from_data(ids, &self.device);
        let hidden = self.graph.hidden(ids, &self.graph.config.document(tokens.len()));
        self.last = Some((tokens.to_vec(), hidden.clone()));
        hidden
    }
}

impl LanguageModel for GraphModel {
    fn through(&self) -> String {
        let weights = |grid| match grid {
            WeightGrid::Float => "float",
            WeightGrid::Q4_0 => "Q4_0",
            WeightGrid::Q8_0 => "Q8_0",
        };
        let activations = match self.grids.activations {
            ActivationGrid::Float => "float",
            ActivationGrid::Q8_0 => "Q8_0",
        };
        let (linears, embeddings) = (weights(self.grids.linears), weights(self.grids.embeddings));
        format!("graph, {linears} linears, {embeddings} embeddings, {activations} activations")
    }

    fn vocab_size(&self) -> usize {
        self.graph.config.vocab_size
    }

    fn context(&self) -> usize {
        self.graph.config.max_position_embeddings
    }

    fn begin(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
    }

    fn prefix(&self) -> Option<u32> {
        self.tokenizer.bos().or(self.tokenizer.eos())
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.plain.encode(text, false)?)
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EvalError> {
        if positions.is_empty() {
            return Ok(());
        }
        let (end, context) = (positions.end, self.context());
        if end > context {
            return Err(EvalError::Context { tokens: end, context });
        }
        let hidden = self.hidden(tokens);
        for start in positions.step_by(TILE) {
            let rows = TILE.min(end - start);
            let logits = self.graph.logits(hidden.clone().narrow(1, start, rows));
            each(start, &parameters::values(logits));
        }
        Ok(())
    }
}
