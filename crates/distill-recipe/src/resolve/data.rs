//! `[data]`.

use super::{Resolver, model_ref, or, place, strings};
use crate::defaults;
use crate::problem::ProblemKind;
use crate::raw::{self, Written};
use crate::resolved::{Data, Generate};

impl Resolver<'_> {
    pub(super) fn data(&mut self, recipe: &raw::Recipe) -> Option<Data> {
        let written = recipe.data.value();
        let sources = written.sources.as_ref().map(|sources| strings(sources.value()));
        if sources.is_none() && written.generate.is_none() {
            self.push(ProblemKind::NoText, recipe.data.span(), &[]);
            return None;
        }
        let sources = sources.unwrap_or_default();
        let weights = written.weights.as_ref().map(|weights| {
            let values: Vec<f64> = weights.value().iter().map(|weight| *weight.value()).collect();
            if values.len() != sources.len() {
                let kind = ProblemKind::Weights { weights: values.len(), sources: sources.len() };
                let others = place(&written.sources, "the sources");
                self.push(kind, weights.span(), &others);
            }
            values
        });
        let sequence_length = or(&written.sequence_length, defaults::SEQUENCE_LENGTH);
        let generate = match &written.generate {
            Some(generate) => {
                let weighed = weights.is_some() && !sources.is_empty();
                Some(self.generate(recipe, generate, weighed, sequence_length)?)
            }
            None => None,
        };
        Some(Data {
            sources,
            weights,
            text_field: or(&written.text_field, defaults::TEXT_FIELD.to_owned()),
            document_separator: written.document_separator.as_ref().map(|t| t.value().clone()),
            sequence_length,
            held_out: or(&written.held_out, defaults::HELD_OUT),
            generate,
        })
    }

    pub(super) fn generate(
        &mut self,
        recipe: &raw::Recipe,
        table: &Written<raw::Generate>,
        weighed: bool,
        sequence_length: usize,
    ) -> Option<Generate> {
        let written = table.value();
        if let (Some(revision), None) = (&written.revision, &written.from) {
            self.push(ProblemKind::GenerateRevisionWithoutFrom, revision.span(), &[]);
        }
        if let Some(size) = &recipe.student.value().train_tokenizer {
            let others = [(table.span(), "writes in its own tokens")];
            self.push(ProblemKind::GenerateForNewTokenizer, size.span(), &others);
        }
        let max_tokens = or(&written.max_tokens, sequence_length);
        let min_tokens = or(&written.min_tokens, defaults::GENERATE_MIN_TOKENS.min(max_tokens - 1));
        if let Some(place) = &written.min_tokens
            && min_tokens >= max_tokens
        {
            let others = super::place(&written.max_tokens, "the longest");
            self.push(
                ProblemKind::GenerateLengths { min_tokens, max_tokens },
                place.span(),
                &others,
            );
        }
        let log_prob =
            |written: &Option<Written<f64>>| written.as_ref().map(|value| *value.value());
        let (min_log_prob, max_log_prob) =
            (log_prob(&written.min_log_prob), log_prob(&written.max_log_prob));
        if let (Some(min), Some(max), Some(place)) =
            (min_log_prob, max_log_prob, &written.min_log_prob)
            && min >= max
        {
            let others = super::place(&written.max_log_prob, "the greatest");
            self.push(ProblemKind::GenerateLogProbs { min, max }, place.span(), &others);
        }
        let teacher = recipe.teacher.as_ref().and_then(|teacher| teacher.value().local.as_ref());
        let teacher = teacher.map(Written::value);
        let student = recipe.student.value();
        if let (None, None) = (&written.from, &student.from) {
            self.needs_weights(recipe, table.span(), "[data.generate] without `from`");
        }
        let model = match (&written.from, teacher, &student.from) {
            (Some(from), _, _) => model_ref(from, &written.revision),
            (None, Some(teacher), _) => model_ref(&teacher.from, &teacher.revision),
            (None, None, Some(from)) => model_ref(from, &student.revision),
            (None, None, None) => {
                self.push(ProblemKind::GenerateFromNobody, table.span(), &[]);
                return None;
            }
        };
        let list = |written: &Option<Written<Vec<Written<String>>>>| {
            written.as_ref().map(|texts| strings(texts.value())).unwrap_or_default()
        };
        let weight = written.weight.as_ref().map(|weight| *weight.value());
        Some(Generate {
            model,
            tokens: *written.tokens.value(),
            weight: weight.or(weighed.then_some(defaults::GENERATE_WEIGHT)),
            begin: list(&written.begin),
            prompts: list(&written.prompts),
            end: list(&written.end),
            max_tokens,
            temperature: or(&written.temperature, defaults::GENERATE_TEMPERATURE),
            top_p: or(&written.top_p, defaults::GENERATE_TOP_P),
            min_tokens,
            max_repetition: or(&written.max_repetition, defaults::GENERATE_MAX_REPETITION),
            min_log_prob,
            max_log_prob,
        })
    }
}
