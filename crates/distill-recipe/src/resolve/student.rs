//! `[student]`.

use std::ops::Range;

use super::{BLOCK, Resolver, model_ref, or, place};
use crate::defaults;
use crate::problem::{ProblemKind, TeacherProblem};
use crate::raw::{self, Written};
use crate::resolved::{
    ActivationGrid, NewModel, Quantize, Student, StudentInit, TokenizerChoice, WeightGrid,
};

fn remote(recipe: &raw::Recipe) -> Option<&Written<raw::RemoteTeacher>> {
    recipe.teacher.as_ref()?.value().remote.as_ref()
}

impl Resolver<'_> {
    pub(super) fn student(
        &mut self,
        recipe: &raw::Recipe,
        quantize: Option<&Quantize>,
    ) -> Option<Student> {
        let student = recipe.student.value();
        let teacher = recipe.teacher.is_some();
        if let (Some(revision), None) = (&student.revision, &student.from) {
            self.push(ProblemKind::RevisionWithoutFrom, revision.span(), &[]);
        }
        let init = self.student_init(recipe, quantize)?;
        let inherited = match (&init, teacher) {
            (StudentInit::From(_), _) => Some(TokenizerChoice::Student),
            (_, true) => Some(TokenizerChoice::Teacher),
            (_, false) => None,
        };
        let tokenizer = match (&student.tokenizer, &student.train_tokenizer) {
            (Some(tokenizer), None) => TokenizerChoice::From(tokenizer.value().clone()),
            (None, Some(size)) => TokenizerChoice::Train { vocab_size: *size.value() },
            (None, None) => match inherited {
                Some(tokenizer) => tokenizer,
                None => {
                    // Without a teacher to cut from, that is the problem already pushed.
                    if matches!(init, StudentInit::Config(_)) {
                        self.push(ProblemKind::NoTokenizer, recipe.student.span(), &[]);
                    }
                    return None;
                }
            },
            (Some(tokenizer), Some(size)) => {
                let others = [(tokenizer.span(), "one tokenizer")];
                self.push(ProblemKind::TwoTokenizers, size.span(), &others);
                return None;
            }
        };
        let remote = remote(recipe);
        if let (TokenizerChoice::Teacher, Some(remote)) = (&tokenizer, remote)
            && remote.value().tokenizer.is_none()
        {
            let kind = ProblemKind::Teacher(TeacherProblem::NoTokenizer);
            self.push(kind, remote.span(), &[]);
        }
        Some(Student { init, tokenizer })
    }

    /// Refuses what only a teacher of which there are weights can do.
    pub(super) fn needs_weights(
        &mut self,
        recipe: &raw::Recipe,
        span: Range<usize>,
        what: &'static str,
    ) {
        if let Some(remote) = remote(recipe) {
            let kind = ProblemKind::Teacher(TeacherProblem::NoWeights { what });
            self.push(kind, span, &[(remote.span(), "remote")]);
        }
    }

    pub(super) fn student_init(
        &mut self,
        recipe: &raw::Recipe,
        quantize: Option<&Quantize>,
    ) -> Option<StudentInit> {
        let student = recipe.student.value();
        match (&student.from, &student.config, &student.keep_layers) {
            (Some(from), None, None) => Some(StudentInit::From(model_ref(from, &student.revision))),
            (None, Some(config), None) => {
                Some(StudentInit::Config(self.new_model(config, recipe, quantize)?))
            }
            (None, None, Some(layers)) => {
                if recipe.teacher.is_none() {
                    self.push(ProblemKind::KeepLayersWithoutTeacher, layers.span(), &[]);
                }
                let disorder = layers.value().windows(2).find(|pair| pair[0] >= pair[1]);
                if let Some(&[previous, next]) = disorder {
                    let kind = ProblemKind::KeepLayersOrder { previous, next };
                    self.push(kind, layers.span(), &[]);
                }
                self.needs_weights(recipe, layers.span(), "`keep_layers`");
                Some(StudentInit::KeepLayers(layers.value().clone()))
            }
            (from, config, layers) => {
                let mut given = Vec::new();
                let mut spans = Vec::new();
                let written = [
                    ("from", from.as_ref().map(Written::span)),
                    ("config", config.as_ref().map(Written::span)),
                    ("keep_layers", layers.as_ref().map(Written::span)),
                ];
                for (key, span) in written {
                    if let Some(span) = span {
                        given.push(key);
                        spans.push((span, "one place"));
                    }
                }
                let (primary, others) = match spans.split_last() {
                    Some(((span, _), others)) => (span.clone(), others),
                    None => (recipe.student.span(), [].as_slice()),
                };
                self.push(ProblemKind::StudentInit { given }, primary, others);
                None
            }
        }
    }

    pub(super) fn new_model(
        &mut self,
        config: &Written<raw::NewModel>,
        recipe: &raw::Recipe,
        quantize: Option<&Quantize>,
    ) -> Option<NewModel> {
        let written = config.value();
        let hidden_size = *written.hidden_size.value();
        let heads = *written.num_attention_heads.value();
        let kv_heads = or(&written.num_key_value_heads, heads);
        let intermediate_size = *written.intermediate_size.value();
        let positions = or(&written.max_position_embeddings, defaults::MAX_POSITION_EMBEDDINGS);

        if let Some(kv) = &written.num_key_value_heads
            && !heads.is_multiple_of(kv_heads)
        {
            let others = [(written.num_attention_heads.span(), "query heads")];
            self.push(ProblemKind::KeyValueHeads { heads, kv_heads }, kv.span(), &others);
        }
        let head_dim = match &written.head_dim {
            Some(head_dim) => {
                if !head_dim.value().is_multiple_of(2) {
                    let kind = ProblemKind::OddHeadDim { head_dim: *head_dim.value() };
                    self.push(kind, head_dim.span(), &[]);
                }
                *head_dim.value()
            }
            None if !hidden_size.is_multiple_of(heads) => {
                let others = [(written.num_attention_heads.span(), "heads")];
                let kind = ProblemKind::HeadDim { hidden_size, heads };
                self.push(kind, written.hidden_size.span(), &others);
                return None;
            }
            None => {
                let head_dim = hidden_size / heads;
                if !head_dim.is_multiple_of(2) {
                    let others = [(written.num_attention_heads.span(), "heads")];
                    let kind = ProblemKind::OddHeadDim { head_dim };
                    self.push(kind, written.hidden_size.span(), &others);
                }
                head_dim
            }
        };

        let linears = quantize.is_some_and(|grid| grid.linears != WeightGrid::None);
        let embeddings = quantize.is_some_and(|grid| grid.embeddings != WeightGrid::None);
        let activations = quantize.is_some_and(|grid| grid.activations != ActivationGrid::Float);
        let rows = [
            (
                linears || embeddings || activations,
                "`hidden_size`",
                hidden_size,
                written.hidden_size.span(),
            ),
            (
                linears || activations,
                "`intermediate_size`",
                intermediate_size,
                written.intermediate_size.span(),
            ),
            (
                linears || activations,
                "`num_attention_heads` · `head_dim`",
                heads * head_dim,
                written.num_attention_heads.span(),
            ),
        ];
        for (quantized, what, value, span) in rows {
            // The product is the hidden size again where `head_dim` is left out.
            let repeated = written.head_dim.is_none() && value == hidden_size && what.contains('·');
            if quantized && !value.is_multiple_of(BLOCK) && !repeated {
                self.push(ProblemKind::NotBlocks { what, value }, span, &[]);
            }
        }

        let sequence_length = or(&recipe.data.value().sequence_length, defaults::SEQUENCE_LENGTH);
        if sequence_length > positions {
            let kind = ProblemKind::SequenceTooLong { sequence_length, positions };
            match (&recipe.data.value().sequence_length, &written.max_position_embeddings) {
                (Some(length), limit) => {
                    let others = place(limit, "positions");
                    self.push(kind, length.span(), &others);
                }
                (None, Some(limit)) => self.push(kind, limit.span(), &[]),
                (None, None) => self.push(kind, config.span(), &[]),
            }
        }

        Some(NewModel {
            hidden_size,
            intermediate_size,
            num_hidden_layers: *written.num_hidden_layers.value(),
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rope_theta: or(&written.rope_theta, defaults::ROPE_THETA),
            rms_norm_eps: or(&written.rms_norm_eps, defaults::RMS_NORM_EPS),
            max_position_embeddings: positions,
            tie_word_embeddings: or(&written.tie_word_embeddings, defaults::TIE_WORD_EMBEDDINGS),
        })
    }
}
