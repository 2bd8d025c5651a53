//! The ways in which a recipe can be wrong, in words.

mod teacher;

pub use teacher::TeacherProblem;

/// What is wrong with a recipe in one place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The text is not TOML.
    #[error("not TOML: {message}")]
    Syntax {
        /// What the parser expected.
        message: String,
    },
    /// A `--set` without `=`.
    #[error("`--set {text}` has no `=`")]
    OverrideWithoutValue {
        /// The text given.
        text: String,
    },
    /// The key of a `--set` is no TOML key.
    #[error("the key of `--set {text}` is not a TOML key: {message}")]
    OverrideKey {
        /// The text given.
        text: String,
        /// What the parser expected.
        message: String,
    },

    /// A key that a recipe does not have.
    #[error("`{key}` is not a key of {table}")]
    UnknownKey {
        /// The key written.
        key: String,
        /// Its table, in words.
        table: String,
        /// The most similar key of the table.
        similar: Option<String>,
        /// Where the key does stand, in words.
        elsewhere: Option<String>,
        /// All keys of the table.
        known: Vec<String>,
    },
    /// A key or table that every recipe needs.
    #[error("{table} has no `{key}`")]
    MissingKey {
        /// The key.
        key: String,
        /// Its table, in words.
        table: String,
        /// What to write, with a line break where it is a table.
        example: String,
        /// What the key means.
        about: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` must be {expected}, and is {found}")]
    WrongType {
        /// The key.
        key: String,
        /// The type it has.
        expected: &'static str,
        /// The type written.
        found: &'static str,
        /// What to write instead, where that can be told.
        instead: Option<String>,
    },
    /// A value that is not among those possible.
    #[error("`{key}` cannot be \"{value}\"")]
    UnknownValue {
        /// The key.
        key: String,
        /// The value written.
        value: String,
        /// The most similar value.
        similar: Option<String>,
        /// All values possible.
        known: Vec<String>,
    },
    /// A number outside its bounds.
    #[error("`{key}` is {value}, and must be {bound}")]
    OutOfRange {
        /// The key.
        key: String,
        /// The number written.
        value: String,
        /// The bound, in words.
        bound: String,
        /// What the key means.
        about: String,
    },
    /// An empty string or list.
    #[error("`{key}` is empty")]
    Empty {
        /// The key.
        key: String,
        /// What the key means.
        about: String,
    },
    /// The types of the recipe refuse what its schema accepts: a defect of this crate.
    #[error("{message}")]
    Refused {
        /// What the deserializer said.
        message: String,
    },

    /// A name that cannot name a directory.
    #[error("`name` is {name:?}, which cannot name a directory everywhere")]
    Name {
        /// The name written.
        name: String,
    },
    /// None, or more than one, of the ways to make a student.
    #[error("{}", student_init(given))]
    StudentInit {
        /// Those written.
        given: Vec<&'static str>,
    },
    /// A revision of something that has none.
    #[error("`student.revision` is the revision of `student.from`, which is not there")]
    RevisionWithoutFrom,
    /// Two tokenizers.
    #[error("[student] has both `tokenizer` and `train_tokenizer`")]
    TwoTokenizers,
    /// No tokenizer.
    #[error("a new student without a teacher needs a tokenizer")]
    NoTokenizer,
    /// Layers of a teacher that is not there.
    #[error("`student.keep_layers` cuts the student from the teacher, and there is no teacher")]
    KeepLayersWithoutTeacher,
    /// Layers out of order.
    #[error("`student.keep_layers` has {next} after {previous}: the numbers must increase")]
    KeepLayersOrder {
        /// A layer.
        previous: usize,
        /// The one written after it.
        next: usize,
    },
    /// A hidden size that its heads cannot share.
    #[error("`hidden_size` {hidden_size} does not divide among {heads} heads")]
    HeadDim {
        /// The hidden size.
        hidden_size: usize,
        /// The number of query heads.
        heads: usize,
    },
    /// A head without halves.
    #[error("the heads are {head_dim} wide, and rotary embeddings need an even width")]
    OddHeadDim {
        /// The width of a head.
        head_dim: usize,
    },
    /// Query heads that cannot be shared out among the key and value heads.
    #[error("{heads} query heads do not divide among {kv_heads} key and value heads")]
    KeyValueHeads {
        /// The number of query heads.
        heads: usize,
        /// The number of key and value heads.
        kv_heads: usize,
    },
    /// A row that does not end with a block.
    #[error("{what} is {value}, and a quantized row must be a multiple of 32 wide")]
    NotBlocks {
        /// The key or product, in words.
        what: &'static str,
        /// Its value.
        value: usize,
    },
    /// Sequences longer than the new model is meant for.
    #[error(
        "`data.sequence_length` is {sequence_length}, and the student is made for {positions} positions"
    )]
    SequenceTooLong {
        /// Tokens per sequence.
        sequence_length: usize,
        /// `max_position_embeddings`.
        positions: usize,
    },
    /// No text at all.
    #[error("[data] names no text")]
    NoText,
    /// Weights for other sources.
    #[error("`data.weights` has length {weights}, and `data.sources` has length {sources}")]
    Weights {
        /// Numbers.
        weights: usize,
        /// Sources.
        sources: usize,
    },
    /// Benchmarks of nothing.
    #[error("[eval.tasks] names no file")]
    NoTask,
    /// Benchmarks of a file that is not written.
    #[error("[eval.tasks] measures the exported file, and `export.gguf` is false")]
    TasksWithoutExport,
    /// Ways to a grid that is not there.
    #[error("`eval.tasks.baselines` are ways to the grid, and there is no [quantize]")]
    BaselinesWithoutGrid,
    /// Text from nobody.
    #[error("[data.generate] does not say which model writes, and there is no teacher")]
    GenerateFromNobody,
    /// A revision of something that has none.
    #[error("`data.generate.revision` is the revision of `data.generate.from`, which is not there")]
    GenerateRevisionWithoutFrom,
    /// Text in the tokens of one model for the tokenizer of another.
    #[error(
        "`student.train_tokenizer` makes new tokens, and generated text is in those of its model"
    )]
    GenerateForNewTokenizer,
    /// No text can pass.
    #[error(
        "`data.generate.min_tokens` is {min_tokens}, and texts have {max_tokens} with their beginning"
    )]
    GenerateLengths {
        /// Fewest tokens of a text.
        min_tokens: usize,
        /// Most.
        max_tokens: usize,
    },
    /// Likewise.
    #[error("`data.generate.min_log_prob` is {min}, and `max_log_prob` {max}")]
    GenerateLogProbs {
        /// Least mean log-probability.
        min: f64,
        /// Greatest.
        max: f64,
    },
    /// Distillation from nobody.
    #[error("[distill] needs a teacher, and the recipe has none")]
    DistillWithoutTeacher,
    /// Something is wrong with the teacher.
    #[error(transparent)]
    Teacher(TeacherProblem),
    /// The runtime was asked for a model that it does not read.
    #[error("`teacher.local.engine = \"runtime\"` reads `.gguf` files, and `from` is none")]
    EngineNeedsGguf,
    /// A precision that is for other runs.
    #[error("`train.precision = \"bf16\"` does not go with {with}")]
    Bf16 {
        /// What it does not go with.
        with: &'static str,
    },
    /// Scales of blocks where low-rank factors are trained.
    #[error("scales of blocks that are found or trained do not go with [train.lora]")]
    ScalesWithLora,
    /// Training that ends before the weights have come to the grid.
    #[error(
        "the ramp of {ramp_steps} steps from step {start_step} on does not end within the {steps} steps of training"
    )]
    Ramp {
        /// `quantize.ramp_steps`.
        ramp_steps: usize,
        /// `quantize.start_step`.
        start_step: usize,
        /// `train.steps`.
        steps: usize,
    },
    /// Weights on their way to the grid, where the linear itself rounds the sum.
    #[error(
        "with LoRA the merged weights are on the grid from `start_step` on, and clamped ones get no gradient"
    )]
    ApproachWithLora,
    /// Scales that would be found and then not used.
    #[error("`quantize.scales = \"weights\"` throws away what `quantize.method` has found")]
    ScalesThrownAway,
    /// A `beta` that would do nothing.
    #[error("`distill.beta` belongs to `loss = \"jsd\"`, and the loss is \"{loss}\"")]
    BetaWithoutJsd {
        /// The loss of the recipe.
        loss: &'static str,
    },
    /// A grid that training would never see.
    #[error("`quantize.start_step` is {start_step}, and training ends at step {steps}")]
    StartStep {
        /// The first quantized step.
        start_step: usize,
        /// The number of steps.
        steps: usize,
    },
    /// Quantized inputs of layers that are not.
    #[error("`quantize.activations` is \"q8_0\", and `quantize.linears` is \"none\"")]
    ActivationsWithoutLinears,
    /// A prompt that the context cannot hold.
    #[error(
        "`device.prompt_tokens` is {prompt_tokens}, and `device.context_length` {context_length}"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of prompt and answer.
        context_length: usize,
    },
    /// A device that cannot do what is asked of it. Whoever knows the student's size finds this.
    #[error("`device.{key}` is {limit}, and {predicted}")]
    Budget {
        /// The key of `[device]`.
        key: &'static str,
        /// Its value, with the unit.
        limit: String,
        /// What is predicted instead, a clause.
        predicted: String,
        /// What would help.
        help: String,
    },
    /// A warm-up beyond the end.
    #[error("`train.warmup_steps` is {warmup_steps}, and there are {steps} steps")]
    Warmup {
        /// The warm-up.
        warmup_steps: usize,
        /// The number of steps.
        steps: usize,
    },
    /// A fall that begins before the rise has ended.
    #[error("{warmup_steps} steps of warm-up and {decay_steps} of decay exceed {steps} steps")]
    Decay {
        /// The warm-up.
        warmup_steps: usize,
        /// The fall.
        decay_steps: usize,
        /// The number of steps.
        steps: usize,
    },
    /// A `decay_steps` that would do nothing.
    #[error("`train.decay_steps` belongs to `schedule = \"wsd\"`, and the schedule is \"cosine\"")]
    DecayWithoutWsd,
    /// A learning rate that rises at the end.
    #[error("`train.min_learning_rate` is {min}, above `train.learning_rate` {max}")]
    MinLearningRate {
        /// The lowest.
        min: f64,
        /// The highest.
        max: f64,
    },
    /// A linear that would get factors twice.
    #[error("`train.lora.targets` names `{target}` twice")]
    LoraTargetTwice {
        /// The linear.
        target: &'static str,
    },
    /// Factors that are no smaller than the matrix.
    #[error("`train.lora.rank` is {rank}, and `{target}` has rank {limit} at most")]
    LoraRank {
        /// The rank.
        rank: usize,
        /// The lesser dimension of the matrix.
        limit: usize,
        /// The linear.
        target: &'static str,
    },
}

fn student_init(given: &[&str]) -> String {
    match given {
        [] => "[student] does not say where the student comes from".to_owned(),
        _ => format!(
            "[student] has {}: the student can come from one place only",
            quoted(given, " and ")
        ),
    }
}

/// `` `a`, `b` and `c` ``, with the last separator given.
pub(crate) fn quoted<S: AsRef<str>>(words: &[S], last: &str) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{}`", word.as_ref())).collect();
    match words.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [init @ .., end] => format!("{}{last}{end}", init.join(", ")),
    }
}

impl ProblemKind {
    /// The way out.
    pub(crate) fn help(&self) -> Option<String> {
        Some(match self {
            Self::Syntax { .. } => {
                "TOML is lines of `key = value` under `[table]` headers; text stands in quotes"
                    .to_owned()
            }
            Self::OverrideWithoutValue { .. } => {
                "write --set table.key=value, for example --set train.steps=100".to_owned()
            }
            Self::OverrideKey { .. } => "a key is dotted names, for example train.steps".to_owned(),
            Self::UnknownKey { similar: Some(similar), .. } => format!("did you mean `{similar}`?"),
            Self::UnknownKey { elsewhere: Some(elsewhere), key, .. } => {
                format!("`{key}` belongs {elsewhere}")
            }
            Self::UnknownKey { table, known, .. } => {
                format!("the keys of {table} are {}", quoted(known, " and "))
            }
            Self::MissingKey { example, about, .. } => format!("add {example}: {about}"),
            Self::WrongType { instead, .. } => instead.clone()?,
            Self::UnknownValue { similar: Some(similar), known, .. } => {
                format!("did you mean `{similar}`? It can be {}", quoted(known, " or "))
            }
            Self::UnknownValue { known, .. } => format!("it can be {}", quoted(known, " or ")),
            Self::OutOfRange { about, .. } | Self::Empty { about, .. } if about.is_empty() => {
                return None;
            }
            Self::OutOfRange { about, .. } | Self::Empty { about, .. } => about.clone(),
            Self::Refused { .. } => return None,
            Self::Name { .. } => {
                "use letters, digits, `-`, `_` and `.`, and begin with a letter or a digit"
                    .to_owned()
            }
            Self::StudentInit { given } if given.is_empty() => {
                "add `from` (an existing model), `config` (a new one) or `keep_layers` (layers of \
                 the teacher)"
                    .to_owned()
            }
            Self::StudentInit { given } => format!("keep one of {}", quoted(given, " and ")),
            Self::RevisionWithoutFrom => {
                "remove it; a teacher's revision is `teacher.local.revision`".to_owned()
            }
            Self::TwoTokenizers => {
                "keep `tokenizer` to take one, or `train_tokenizer` to make one".to_owned()
            }
            Self::NoTokenizer => {
                "add `train_tokenizer = 2048` to make one from the data, or `tokenizer = \"…\"` to \
                 take that of a model"
                    .to_owned()
            }
            Self::KeepLayersWithoutTeacher => {
                "add [teacher.local] with `from`, or make the student from `from` or `config`"
                    .to_owned()
            }
            Self::KeepLayersOrder { .. } => {
                "sort the numbers and name each layer once, for example [0, 2, 4]".to_owned()
            }
            Self::HeadDim { hidden_size, heads } => format!(
                "choose a multiple of {heads}, such as {}, or give `head_dim`",
                hidden_size.next_multiple_of(*heads)
            ),
            Self::OddHeadDim { head_dim } => {
                format!("set `head_dim` to an even number, such as {}", head_dim + 1)
            }
            Self::KeyValueHeads { heads, .. } => {
                format!("choose a divisor of {heads}; {heads} itself is plain attention")
            }
            Self::NotBlocks { value, .. } => {
                let next = value.next_multiple_of(32);
                if next > 32 {
                    format!("the nearest are {} and {next}", next - 32)
                } else {
                    format!("the nearest is {next}")
                }
            }
            Self::SequenceTooLong { .. } => {
                "shorten the sequences, or raise `student.config.max_position_embeddings`"
                    .to_owned()
            }
            Self::NoText => "add `sources = [\"text.txt\"]`, or [data.generate] for text that a model \
                 makes up"
                .to_owned(),
            Self::Weights { sources, .. } => format!(
                "write one number a source, for example [{}], or remove `weights`",
                vec!["1"; *sources].join(", ")
            ),
            Self::NoTask => "name one: `perplexity = [\"text.txt\"]`, `choice` or `last_word`; or \
                 remove [eval.tasks]"
                .to_owned(),
            Self::TasksWithoutExport => {
                "remove `gguf = false`, or measure another way, with `distill eval`".to_owned()
            }
            Self::BaselinesWithoutGrid => {
                "remove `baselines`, or add [quantize] with the grid that ships".to_owned()
            }
            Self::GenerateFromNobody => {
                "add `from`, or [teacher.local] with `from`, whose text it then is".to_owned()
            }
            Self::GenerateRevisionWithoutFrom => {
                "remove it; a teacher's revision is `teacher.local.revision`".to_owned()
            }
            Self::GenerateForNewTokenizer => {
                "remove `train_tokenizer`, and the student speaks the teacher's tokens".to_owned()
            }
            Self::GenerateLengths { .. } => {
                "raise `max_tokens` (`data.sequence_length` is its default), or lower `min_tokens`"
                    .to_owned()
            }
            Self::GenerateLogProbs { .. } => {
                "they are logarithms of probabilities: -6 is less likely than -1".to_owned()
            }
            Self::Teacher(problem) => problem.help().to_owned(),
            Self::DistillWithoutTeacher => "add [teacher.local] with `from = \"…\"`, or remove \
                 [distill] to train on the text alone"
                .to_owned(),
            Self::EngineNeedsGguf => "name a `.gguf` file (of a hub repository: \
                 `owner/name/file.gguf`), or remove `engine` to compute the teacher in the training \
                 graph"
                .to_owned(),
            Self::Bf16 { .. } => "set `backend` to \"cuda\", with all weights trained and none on a \
                 grid, whose values bf16 would round again; or remove `precision`"
                .to_owned(),
            Self::Ramp { start_step, steps, .. } => format!(
                "at most {} steps are left for it",
                steps - start_step
            ),
            Self::ApproachWithLora => "remove the key, or train all weights: remove [train.lora]".to_owned(),
            Self::ScalesWithLora => "train all weights: remove [train.lora]; or keep `method = \"round\"` \
                 and `scales = \"weights\"`"
                .to_owned(),
            Self::ScalesThrownAway => "set `scales` to \"learned\" or \"fixed\", or set `method = \
                 \"round\"`"
                .to_owned(),
            Self::BetaWithoutJsd { .. } => "set `loss = \"jsd\"`, or remove `beta`".to_owned(),
            Self::StartStep { steps, .. } => {
                format!("choose a step below {steps}; half of it is a good start")
            }
            Self::ActivationsWithoutLinears => {
                "quantize the linears too, or set `activations = \"float\"`".to_owned()
            }
            Self::Budget { help, .. } => help.clone(),
            Self::PromptTooLong { .. } => {
                "the context holds prompt and answer: raise it, or shorten the prompt".to_owned()
            }
            Self::Warmup { .. } => "a tenth of `train.steps` is a good start".to_owned(),
            Self::Decay { .. } => "shorten one of them, or train longer".to_owned(),
            Self::DecayWithoutWsd => "set `schedule = \"wsd\"`, or remove `decay_steps`".to_owned(),
            Self::MinLearningRate { .. } => {
                "it is the rate at the last step; a tenth of `learning_rate` is the default"
                    .to_owned()
            }
            Self::LoraTargetTwice { .. } => "name each linear once".to_owned(),
            Self::LoraRank { limit, target, .. } => format!(
                "choose {limit} or less, far less as a rule, or take `{target}` out of \
                 `train.lora.targets`"
            ),
        })
    }

    /// The words beside the caret.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "here",
            Self::OverrideWithoutValue { .. } => "no `=`",
            Self::OverrideKey { .. } => "not a key",
            Self::UnknownKey { .. } => "unknown key",
            Self::MissingKey { .. } => "incomplete",
            Self::WrongType { expected, .. } => expected_label(expected),
            Self::UnknownValue { .. } => "unknown value",
            Self::OutOfRange { .. } => "out of range",
            Self::Empty { .. } => "empty",
            Self::Refused { .. } => "refused",
            Self::Name { .. } => "not a directory name",
            Self::StudentInit { given } if given.is_empty() => "incomplete",
            Self::StudentInit { .. } | Self::TwoTokenizers => "one too many",
            Self::RevisionWithoutFrom => "revision of what?",
            Self::NoTokenizer => "no tokenizer",
            Self::Budget { .. } => "out of reach",
            Self::NoText => "incomplete",
            Self::Weights { .. } => "not one a source",
            Self::NoTask => "measures nothing",
            Self::TasksWithoutExport => "of which file?",
            Self::BaselinesWithoutGrid => "ways to which grid?",
            Self::GenerateFromNobody => "by which model?",
            Self::GenerateRevisionWithoutFrom => "revision of what?",
            Self::GenerateForNewTokenizer => "other tokens",
            Self::GenerateLengths { .. } => "too many",
            Self::GenerateLogProbs { .. } => "nothing in between",
            Self::KeepLayersWithoutTeacher | Self::DistillWithoutTeacher => "no teacher",
            Self::Teacher(problem) => problem.label(),
            Self::EngineNeedsGguf => "reads GGUF alone",
            Self::Bf16 { .. } => "for CUDA, all weights, no grid",
            Self::ScalesWithLora | Self::ApproachWithLora => "all weights only",
            Self::ScalesThrownAway => "not used",
            Self::KeepLayersOrder { .. } => "not increasing",
            Self::HeadDim { .. } | Self::KeyValueHeads { .. } => "does not divide",
            Self::OddHeadDim { .. } => "odd",
            Self::NotBlocks { .. } => "not a multiple of 32",
            Self::SequenceTooLong { .. } | Self::PromptTooLong { .. } => "too long",
            Self::BetaWithoutJsd { .. } | Self::DecayWithoutWsd => "would do nothing",
            Self::StartStep { .. } | Self::Ramp { .. } => "after the end",
            Self::ActivationsWithoutLinears => "needs quantized linears",
            Self::Warmup { .. } | Self::Decay { .. } => "too long",
            Self::MinLearningRate { .. } | Self::LoraRank { .. } => "too high",
            Self::LoraTargetTwice { .. } => "once more",
        }
    }
}

fn expected_label(expected: &'static str) -> &'static str {
    match expected {
        "a table" => "expected a table",
        "a list" => "expected a list",
        "a string" => "expected a string",
        "a whole number" => "expected a whole number",
        "a number" => "expected a number",
        _ => "expected true or false",
    }
}
