//! `[teacher]`.

use super::{Resolver, model_ref, or, strings};
use crate::defaults;
use crate::problem::{ProblemKind, TeacherProblem};
use crate::raw::{self, Loss, Written};
use crate::resolved::{
    Engine, LocalTeacher, Protocol, RemoteTeacher, Teacher, TeacherCache, TeacherSignal,
    TeacherSource,
};

impl Resolver<'_> {
    /// `None` where there is none, or a problem was pushed.
    pub(super) fn teacher(&mut self, recipe: &raw::Recipe) -> Option<Teacher> {
        let table = recipe.teacher.as_ref()?;
        let written = table.value();
        let source = match (&written.local, &written.remote) {
            (Some(local), None) => TeacherSource::Local(self.local_teacher(local.value())),
            (None, Some(remote)) => TeacherSource::Remote(self.remote_teacher(remote.value())?),
            (None, None) => {
                self.teacher_problem(TeacherProblem::Nobody, table.span(), &[]);
                return None;
            }
            (Some(local), Some(remote)) => {
                let others = [(local.span(), "local")];
                self.teacher_problem(TeacherProblem::Two, remote.span(), &others);
                return None;
            }
        };
        let protocol = match &source {
            TeacherSource::Local(_) => None,
            TeacherSource::Remote(remote) => Some(remote.protocol),
        };
        let signal = match &written.signal {
            Some(signal) => Some(self.signal(recipe, signal, protocol)?),
            None => protocol.map(|_| TeacherSignal::TopK { top_k: defaults::TOP_K }),
        };
        if let (Some(protocol), Some(distill)) = (protocol, &recipe.distill)
            && let Some(temperature) = &distill.value().temperature
            && *temperature.value() != 1.0
            && protocol != Protocol::Distill
        {
            let problem = TeacherProblem::Temperature {
                protocol: protocol.name(),
                temperature: *temperature.value(),
            };
            self.teacher_problem(problem, temperature.span(), &[]);
        }
        if let (Some(cache), None) = (&written.cache, &signal) {
            self.teacher_problem(TeacherProblem::CacheOfEverything, cache.span(), &[]);
        }
        let path = |cache: &Written<raw::TeacherCache>| cache.value().path.value().into();
        let cache = written.cache.as_ref().map(|cache| TeacherCache { path: path(cache) });
        Some(Teacher { source, signal, cache })
    }

    fn teacher_problem(
        &mut self,
        problem: TeacherProblem,
        span: std::ops::Range<usize>,
        others: &[super::Other<'_>],
    ) {
        self.push(ProblemKind::Teacher(problem), span, others);
    }

    fn local_teacher(&mut self, written: &raw::LocalTeacher) -> LocalTeacher {
        let engine = or(&written.engine, defaults::ENGINE);
        if let (Engine::Runtime, Some(place)) = (engine, &written.engine)
            && !written.from.value().ends_with(".gguf")
        {
            let others = [(written.from.span(), "no `.gguf` file")];
            self.push(ProblemKind::EngineNeedsGguf, place.span(), &others);
        }
        LocalTeacher { model: model_ref(&written.from, &written.revision), engine }
    }

    fn remote_teacher(&mut self, written: &raw::RemoteTeacher) -> Option<RemoteTeacher> {
        let mut sound = true;
        for address in written.endpoints.value() {
            let text = address.value();
            if !text.starts_with("http://") && !text.starts_with("https://") {
                let problem = TeacherProblem::Address { address: text.clone() };
                self.teacher_problem(problem, address.span(), &[]);
                sound = false;
            }
        }
        let number = |written: &Option<Written<f64>>| written.as_ref().map(|n| *n.value());
        let price = number(&written.price_per_million_tokens);
        if let (Some(cost), None) = (&written.max_cost, price) {
            self.teacher_problem(TeacherProblem::CostWithoutPrice, cost.span(), &[]);
            sound = false;
        }
        sound.then(|| RemoteTeacher {
            protocol: *written.protocol.value(),
            endpoints: strings(written.endpoints.value()),
            model: written.model.value().clone(),
            tokenizer: written.tokenizer.as_ref().map(|place| place.value().clone()),
            api_key_env: written.api_key_env.as_ref().map(|name| name.value().clone()),
            concurrency: or(&written.concurrency, defaults::CONCURRENCY),
            timeout_s: or(&written.timeout_s, defaults::TIMEOUT_S),
            attempts: or(&written.attempts, defaults::ATTEMPTS),
            requests_per_minute: number(&written.requests_per_minute),
            tokens_per_minute: number(&written.tokens_per_minute),
            max_tokens: written.max_tokens.as_ref().map(|n| *n.value()),
            price_per_million_tokens: price,
            max_cost: number(&written.max_cost),
        })
    }

    fn signal(
        &mut self,
        recipe: &raw::Recipe,
        table: &Written<raw::TeacherSignal>,
        protocol: Option<Protocol>,
    ) -> Option<TeacherSignal> {
        let written = table.value();
        match (&written.top_k, &written.draws) {
            (Some(k), None) => {
                if let Some(power) = &written.power {
                    self.teacher_problem(TeacherProblem::PowerWithoutDraws, power.span(), &[]);
                }
                Some(TeacherSignal::TopK { top_k: *k.value() })
            }
            (None, Some(draws)) => {
                let loss = recipe.distill.as_ref().and_then(|d| d.value().loss.as_ref());
                if let Some(loss) = loss.filter(|loss| *loss.value() != Loss::ForwardKl) {
                    let others = [(draws.span(), "samples")];
                    let problem = TeacherProblem::SamplesForAnotherLoss;
                    self.teacher_problem(problem, loss.span(), &others);
                }
                if let Some(protocol) = protocol.filter(|p| *p != Protocol::Distill) {
                    let problem = TeacherProblem::SamplesFrom { protocol: protocol.name() };
                    self.teacher_problem(problem, draws.span(), &[]);
                }
                let power = or(&written.power, defaults::POWER);
                Some(TeacherSignal::Sampled { draws: *draws.value(), power })
            }
            (Some(k), Some(draws)) => {
                let others = [(k.span(), "the likeliest")];
                self.teacher_problem(TeacherProblem::TwoSignals, draws.span(), &others);
                None
            }
            (None, None) => {
                self.teacher_problem(TeacherProblem::NoSignal, table.span(), &[]);
                None
            }
        }
    }
}
