//! What a sound recipe becomes.

use std::path::{Path, PathBuf};

use distill_recipe::*;

const MINIMAL: &str = r#"
name = "tiny"
[student]
from = "models/student"
[data]
sources = ["text.txt"]
[train]
steps = 100
learning_rate = 1e-3
"#;

fn resolve(text: &str, overrides: &[&str]) -> Recipe {
    let document = Document { path: PathBuf::from("tiny.toml"), text: text.to_owned() };
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    Recipe::from_document(&document, &overrides).unwrap_or_else(|error| panic!("{error:?}"))
}

fn assert_resolved_toml_is_the_same_recipe(recipe: &Recipe) {
    let text = recipe.to_toml().expect("TOML");
    assert_eq!(&resolve(&text, &[]), recipe, "as a recipe:\n{text}");
    let plain: Recipe = toml::from_str(&text).expect("the resolved types");
    assert_eq!(&plain, recipe, "as resolved types:\n{text}");
    let json = serde_json::to_string(recipe).expect("JSON");
    let plain: Recipe = serde_json::from_str(&json).expect("the resolved types");
    assert_eq!(&plain, recipe, "through JSON:\n{json}");
}

#[test]
fn every_default_of_a_minimal_recipe_is_visible() {
    let recipe = resolve(MINIMAL, &[]);
    insta::assert_snapshot!(recipe.to_toml().expect("TOML"));
    assert_eq!(recipe.student.tokenizer, TokenizerChoice::Student);
    assert_eq!((recipe.teacher.as_ref(), recipe.distill.as_ref()), (None, None));
    assert_resolved_toml_is_the_same_recipe(&recipe);
}

#[test]
fn a_teacher_without_a_distill_table_distills_with_the_defaults() {
    let recipe = resolve(MINIMAL, &["teacher.local.from=models/teacher"]);
    let distill = recipe.distill.clone().expect("a distillation");
    assert_eq!(distill.loss, DivergenceKind::ForwardKl);
    assert_eq!(distill.temperature, 1.0);
    assert_resolved_toml_is_the_same_recipe(&recipe);
}

#[test]
fn resolved_toml_of_every_kind_of_recipe_is_the_same_recipe() {
    let teacher = "teacher.local={ from = \"owner/name\", revision = \"v1\" }";
    let config = "student={ config = { hidden_size = 96, intermediate_size = 64, \
                  num_hidden_layers = 1, num_attention_heads = 3, head_dim = 64 } }";
    for overrides in [
        vec![teacher, config],
        vec![teacher, "student={ keep_layers = [0, 3] }", "distill.loss=jsd", "distill.beta=0.1"],
        vec![
            "teacher.remote={ protocol = \"vllm\", endpoints = [\"http://h:1\"], model = \"m\" }",
            "teacher.remote.max_cost=1.5",
            "teacher.remote.price_per_million_tokens=0.1",
            "teacher.cache.path=\"signals\"",
        ],
        vec![teacher, "teacher.signal.draws=50", "teacher.signal.power=0.8"],
        vec![config, "student.train_tokenizer=512", "train.schedule=wsd"],
        vec![config, "student.tokenizer=owner/name", "data.document_separator=\"\\n\\n\""],
        vec!["quantize={ linears = \"q4_0\", embeddings = \"none\", activations = \"q8_0\" }"],
        vec!["train.lora={ rank = 8, targets = [\"v_proj\", \"q_proj\"] }"],
        vec!["train.lora={}", "train.optimizer_state=8bit", "train.schedule=wsd"],
        vec!["train.epsilon=1e-300", "seed=9223372036854775807", "backend=wgpu"],
        vec!["device={ bandwidth_gbps = 17, ram_mb = 512, kv_cache = \"q8_0\" }"],
        vec!["device={ bandwidth_gbps = 1.5, first_token_ms = 800, context_length = 64 }"],
        vec![
            "data.sources=[\"a\", \"b\"]",
            "data.weights=[1, 0.5]",
            "data.generate={ tokens = 9 }",
        ],
        vec![
            "data={ generate = { tokens = 9, from = \"a/b\", begin = [\"<s>\"], end = [\"</s>\"] } }",
            "data.generate.prompts=[\"p.txt\"]",
            "data.generate.weight=3",
            "data.generate.min_log_prob=-7",
        ],
        vec!["eval.prompts=[]", "export.gguf=false", "train.min_learning_rate=0"],
    ] {
        assert_resolved_toml_is_the_same_recipe(&resolve(MINIMAL, &overrides));
    }
}

#[test]
fn generated_text_is_the_teachers_or_else_the_students_and_its_weight_is_relative() {
    let generate = |overrides: &[&str]| {
        let recipe = resolve(MINIMAL, &[overrides, &["data.generate.tokens=100"]].concat());
        recipe.data.generate.expect("a table")
    };
    let plain = generate(&[]);
    assert_eq!((plain.model.from.as_str(), plain.weight), ("models/student", None));
    assert_eq!((plain.max_tokens, plain.min_tokens, plain.temperature), (512, 16, 1.0));
    let teacher = "teacher.local={ from = \"owner/name\", revision = \"v1\" }";
    let taught = generate(&[teacher, "data.weights=[2]", "data.sequence_length=8"]);
    assert_eq!((taught.model.from.as_str(), &taught.model.revision[..]), ("owner/name", "v1"));
    assert_eq!((taught.weight, taught.max_tokens, taught.min_tokens), (Some(1.0), 8, 7));
    assert_eq!(generate(&[teacher, "data.generate.from=other"]).model.from, "other");
    assert_eq!(generate(&["data.generate.weight=0.25"]).weight, Some(0.25));
}

#[test]
fn an_override_wins_over_the_file_and_the_last_over_the_first() {
    let recipe = resolve(MINIMAL, &["train.steps=7", "train.steps = 9", "name=other"]);
    assert_eq!(recipe.train.steps, 9);
    assert_eq!(recipe.name, "other");
}

#[test]
fn an_override_that_is_not_toml_is_a_string() {
    let path = "/models/a b#c=d";
    let recipe = resolve(MINIMAL, &[&format!("student.from={path}")]);
    let expected = ModelRef { from: path.to_owned(), revision: "main".to_owned() };
    assert_eq!(recipe.student.init, StudentInit::From(expected));
}

#[test]
fn an_override_reaches_into_an_inline_table() {
    let text = MINIMAL.replace(
        "from = \"models/student\"",
        "train_tokenizer = 300\nconfig = { hidden_size = 64, intermediate_size = 64, \
         num_hidden_layers = 1, num_attention_heads = 2 }",
    );
    let recipe = resolve(&text, &["student.config.num_hidden_layers=5"]);
    match recipe.student.init {
        StudentInit::Config(config) => {
            assert_eq!((config.num_hidden_layers, config.head_dim), (5, 32));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn derived_defaults_follow_the_steps() {
    let train = resolve(MINIMAL, &["train.schedule=wsd", "train.warmup_steps=90"]).train;
    assert_eq!(train.schedule, Schedule::Wsd { decay_steps: 10 });
    assert_eq!((train.eval_every, train.checkpoint_every), (20, 20));
    let short = resolve(MINIMAL, &["train.steps=3"]).train;
    assert_eq!((short.eval_every, short.checkpoint_every), (1, 1));
    assert!((short.min_learning_rate - 1e-4).abs() < 1e-18);
}

#[test]
fn lora_without_keys_adapts_all_linears_by_a_factor_of_one() {
    assert_eq!(resolve(MINIMAL, &[]).train.lora, None);
    let lora = resolve(MINIMAL, &["train.lora.rank=8"]).train.lora.expect("a table");
    assert_eq!((lora.rank, lora.alpha, lora.targets), (8, 8.0, LoraTarget::ALL.to_vec()));
    for target in LoraTarget::ALL {
        assert_eq!(serde_json::to_value(target).expect("JSON"), target.name());
    }
}

#[test]
fn the_document_is_returned_as_it_was_written() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("r.toml");
    std::fs::write(&path, MINIMAL).expect("a file");
    let (document, recipe) = Recipe::from_path(&path, &["seed=3".to_owned()]).expect("a recipe");
    assert_eq!(document.text, MINIMAL);
    assert_eq!(recipe.seed, 3);
}

/// Every recipe in `recipes/` is sound, names its schema, and survives being resolved.
#[test]
fn every_committed_recipe_is_sound() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).expect("recipes/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let (document, recipe) =
            Recipe::from_path(&path, &[]).unwrap_or_else(|error| panic!("{error:?}"));
        assert!(
            document.text.starts_with("#:schema recipe.schema.json\n"),
            "{} does not begin with its schema",
            path.display()
        );
        assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(recipe.name.as_str()));
        assert_resolved_toml_is_the_same_recipe(&recipe);
        seen += 1;
    }
    assert!(seen >= 3, "found {seen} recipes");
}
