//! What a user sees when a recipe is wrong. Each message is a snapshot: read it as a reader who
//! does not know this code, before accepting a change.

use std::path::PathBuf;

use distill_recipe::{Document, Recipe, RecipeError};
use miette::{GraphicalReportHandler, GraphicalTheme};

/// A recipe without fault, to break in one place.
const SOUND: &str = r#"name = "tiny"

[student]
config = { hidden_size = 64, intermediate_size = 128, num_hidden_layers = 2, num_attention_heads = 2 }

[teacher.local]
from = "checkpoints/teacher"

[data]
sources = ["datasets/text.txt"]

[quantize]
linears = "q4_0"
embeddings = "q8_0"

[train]
steps = 100
learning_rate = 1e-3
"#;

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let document = Document { path: PathBuf::from("recipes/tiny.toml"), text: text.to_owned() };
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    Recipe::from_document(&document, &overrides)
}

fn render(error: &RecipeError) -> String {
    let mut message = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .with_links(false)
        .render_report(&mut message, error)
        .expect("writing to a string");
    let lines: Vec<&str> = message.lines().map(str::trim_end).collect();
    lines.join("\n")
}

fn message(text: &str, overrides: &[&str]) -> String {
    match parse(text, overrides) {
        Ok(recipe) => panic!("the recipe is accepted: {recipe:?}"),
        Err(error) => render(&error),
    }
}

/// [`SOUND`] with one text replaced.
fn broken(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "{from}");
    message(&SOUND.replace(from, to), &[])
}

/// One test a group; its snapshot is a catalogue of the group's messages under their titles.
macro_rules! messages {
    ($(#[$doc:meta])* fn $group:ident; $($title:ident => $message:expr;)*) => {
        $(#[$doc])*
        #[test]
        fn $group() {
            let mut catalogue = String::new();
            $(
                catalogue += &format!("## {}\n\n", stringify!($title).replace('_', " "));
                catalogue += $message.trim_matches('\n');
                catalogue += "\n\n";
            )*
            insta::assert_snapshot!(catalogue);
        }
    };
}

messages! {
    fn text_that_is_not_toml_is_shown_where_it_breaks;
    text_that_is_not_toml => broken("steps = 100", "steps: 100");
    a_string_without_its_end => broken("\"checkpoints/teacher\"", "\"checkpoints/teacher");
    a_key_written_twice => broken("steps = 100", "steps = 100\nsteps = 200");
    a_table_written_twice => message(&format!("{SOUND}\n[data]\n"), &[]);
    an_empty_file => message("", &[]);
}

messages! {
    fn unknown_and_missing_keys_are_named_with_their_table;
    a_misspelt_key => broken("learning_rate", "learning_rat");
    a_key_with_a_dash => broken("learning_rate", "learning-rate");
    a_misspelt_table => broken("[quantize]", "[quantise]");
    a_key_of_another_table => broken("steps = 100", "steps = 100\ntemperature = 2.0");
    a_top_level_key_below_a_table => message(&format!("{SOUND}seed = 7\n"), &[]);
    a_key_like_no_other => broken("steps = 100", "steps = 100\nzzz = 1");
    a_teacher_without_local => broken("[teacher.local]", "[teacher]");
    a_missing_key => broken("learning_rate = 1e-3\n", "");
    a_missing_table => broken("[data]\nsources = [\"datasets/text.txt\"]\n", "");
    a_missing_choice => broken("linears = \"q4_0\"\n", "");
}

/// A recipe whose teacher is remote, with these lines below `[teacher.remote]`.
fn remote(lines: &str) -> String {
    let address = "endpoints = [\"http://127.0.0.1:8000\"]\nmodel = \"m\"\ntokenizer = \"t\"\n";
    let table = format!("[teacher.remote]\nprotocol = \"vllm\"\n{address}{lines}");
    SOUND.replace("[teacher.local]\nfrom = \"checkpoints/teacher\"\n", &table)
}

messages! {
    fn a_teacher_is_asked_in_a_way_that_it_can_answer;
    a_teacher_of_nothing => broken("[teacher.local]\nfrom = \"checkpoints/teacher\"", "[teacher]");
    two_teachers => message(
        &remote("[teacher.local]\nfrom = \"checkpoints/teacher\""),
        &[],
    );
    no_tokenizer => message(&remote("").replace("tokenizer = \"t\"\n", ""), &[]);
    layers_of_a_remote_teacher => message(
        &remote("").replace("config = {", "keep_layers = [0]\n#"),
        &[],
    );
    no_address => message(&remote(""), &["teacher.remote.endpoints=[\"localhost:8000\"]"]);
    an_unknown_protocol => message(&remote(""), &["teacher.remote.protocol=vlm"]);
    two_signals => message(&remote("[teacher.signal]\ntop_k = 5\ndraws = 50"), &[]);
    no_signal => message(&remote("[teacher.signal]"), &[]);
    power_without_draws => message(&remote("[teacher.signal]\ntop_k = 5\npower = 0.5"), &[]);
    samples_from_a_server_that_gives_none => message(&remote("[teacher.signal]\ndraws = 50"), &[]);
    samples_for_another_loss => message(
        &format!("{SOUND}\n[teacher.signal]\ndraws = 50\n[distill]\nloss = \"jsd\"\n"),
        &[],
    );
    a_temperature_that_servers_do_not_know => message(
        &remote("[distill]\ntemperature = 2.0"),
        &[],
    );
    a_cache_of_everything => message(&format!("{SOUND}\n[teacher.cache]\npath = \"x\"\n"), &[]);
    a_cost_without_a_price => message(&remote("max_cost = 10.0"), &[]);
}

messages! {
    fn wrong_values_say_what_is_possible;
    a_number_in_quotes => broken("steps = 100", "steps = \"100\"");
    a_decimal_number_of_steps => broken("steps = 100", "steps = 1e2");
    a_string_instead_of_a_list => broken("[\"datasets/text.txt\"]", "\"datasets/text.txt\"");
    a_number_in_a_list_of_strings => broken("[\"datasets/text.txt\"]", "[\"datasets/text.txt\", 3]");
    a_value_instead_of_a_table => broken("[teacher.local]", "[[teacher]]");
    a_misspelt_value => broken("\"q4_0\"", "\"q4\"");
    a_value_in_capitals => broken("\"q4_0\"", "\"Q4_0\"");
    a_value_like_no_other => broken("\"q4_0\"", "\"int3\"");
    an_unknown_backend => broken("name = \"tiny\"", "name = \"tiny\"\nbackend = \"vulkan\"");
    a_choice_that_is_no_string => broken("\"q4_0\"", "4");
    no_steps => broken("steps = 100", "steps = 0");
    negative_steps => broken("steps = 100", "steps = -5");
    more_steps_than_fit => broken("steps = 100", "steps = 100_000_000_000_000_000_000");
    a_learning_rate_that_is_not_a_number => broken("1e-3", "nan");
    a_learning_rate_of_zero => broken("1e-3", "0");
    all_of_the_text_held_out => broken("[data]", "[data]\nheld_out = 1.0");
    none_of_the_text_held_out => broken("[data]", "[data]\nheld_out = 0.0");
    no_sources => broken("[\"datasets/text.txt\"]", "[]");
    an_empty_source => broken("\"datasets/text.txt\"", "\"\"");
    a_weight_of_zero => broken("[data]", "[data]\nweights = [0]");
    no_tokens_to_generate => message(&format!("{SOUND}[data.generate]\ntokens = 0\n"), &[]);
    texts_without_a_number_of_tokens => message(&format!("{SOUND}[data.generate]\ntop_p = 0.9\n"), &[]);
    a_positive_log_probability =>
        message(&format!("{SOUND}[data.generate]\ntokens = 9\nmin_log_prob = 6\n"), &[]);
    a_temperature_of_zero => message(&format!("{SOUND}[distill]\ntemperature = 0.0\n"), &[]);
    a_beta_of_one => message(&format!("{SOUND}[distill]\nloss = \"jsd\"\nbeta = 1.0\n"), &[]);
    an_unknown_loss => message(&format!("{SOUND}[distill]\nloss = \"forward-kl\"\n"), &[]);
    a_misspelt_lora_target => broken("1e-3\n", "1e-3\nlora = { targets = [\"q_proj\", \"gate_porj\"] }\n");
    no_lora_targets => broken("1e-3\n", "1e-3\nlora = { targets = [] }\n");
    a_lora_rank_of_zero => broken("1e-3\n", "1e-3\nlora = { rank = 0 }\n");
    an_unknown_optimizer_state => broken("1e-3\n", "1e-3\noptimizer_state = \"int8\"\n");
    a_name_that_leaves_the_directory => broken("\"tiny\"", "\"../tiny\"");
}

messages! {
    fn keys_that_contradict_each_other_are_shown_together;
    a_student_from_two_places => broken("[student]", "[student]\nfrom = \"a/b\"");
    a_student_from_nowhere => broken("config = {", "# config = {");
    a_revision_of_nothing => broken("[student]", "[student]\nrevision = \"main\"");
    two_tokenizers => broken("[student]", "[student]\ntokenizer = \"a/b\"\ntrain_tokenizer = 2048");
    a_new_student_without_any_tokenizer =>
        broken("[teacher.local]\nfrom = \"checkpoints/teacher\"\n", "");
    layers_cut_from_no_teacher => message(
        &SOUND
            .replace("[teacher.local]\nfrom = \"checkpoints/teacher\"\n", "")
            .lines()
            .map(|line| if line.starts_with("config") { "keep_layers = [0, 2]" } else { line })
            .collect::<Vec<_>>()
            .join("\n"),
        &[],
    );
    layers_out_of_order => message(SOUND, &["student={ keep_layers = [0, 4, 2] }"]);
    no_layers => message(SOUND, &["student={ keep_layers = [] }"]);
    heads_that_do_not_divide_the_hidden_size => broken("num_attention_heads = 2", "num_attention_heads = 3");
    key_value_heads_that_do_not_divide_the_heads =>
        broken("num_attention_heads = 2", "num_attention_heads = 2, num_key_value_heads = 3");
    a_head_of_odd_width => broken("num_attention_heads = 2", "num_attention_heads = 32, head_dim = 3");
    a_hidden_size_that_does_not_fill_its_blocks => broken("hidden_size = 64", "hidden_size = 72");
    an_intermediate_size_that_does_not_fill_its_blocks =>
        broken("intermediate_size = 128", "intermediate_size = 100");
    sequences_longer_than_the_student => broken("[data]", "[data]\nsequence_length = 4096");
    a_prompt_that_the_device_cannot_hold =>
        broken("[data]", "[device]\nbandwidth_gbps = 10\nprompt_tokens = 4096\n[data]");
    no_text_at_all => broken("sources = [\"datasets/text.txt\"]", "");
    weights_for_other_sources => broken("[data]", "[data]\nweights = [1, 2.5]");
    text_made_by_nobody => message(
        &format!("{SOUND}[data.generate]\ntokens = 1000\n")
            .replace("[teacher.local]\nfrom = \"checkpoints/teacher\"\n", "")
            .replace("[student]", "[student]\ntokenizer = \"a/b\""),
        &[],
    );
    a_revision_of_no_writer =>
        message(&format!("{SOUND}[data.generate]\ntokens = 1000\nrevision = \"v1\"\n"), &[]);
    generated_text_for_a_new_tokenizer => message(
        &format!("{SOUND}[data.generate]\ntokens = 1000\n")
            .replace("[student]", "[student]\ntrain_tokenizer = 512"),
        &[],
    );
    texts_that_are_all_too_short => message(
        &format!("{SOUND}[data.generate]\ntokens = 1000\nmax_tokens = 64\nmin_tokens = 64\n"),
        &[],
    );
    texts_that_are_all_too_unlikely => message(
        &format!("{SOUND}[data.generate]\ntokens = 1000\nmin_log_prob = -1\nmax_log_prob = -6.5\n"),
        &[],
    );
    distillation_without_a_teacher => message(
        &format!("{SOUND}[distill]\nloss = \"reverse_kl\"\n")
            .replace("[teacher.local]\nfrom = \"checkpoints/teacher\"\n", "")
            .replace("[student]", "[student]\ntrain_tokenizer = 512"),
        &[],
    );
    the_runtime_for_what_is_no_gguf => broken("/teacher\"\n", "/teacher\"\nengine = \"runtime\"\n");
    bf16_on_a_cpu => broken("1e-3\n", "1e-3\nprecision = \"bf16\"\n");
    bf16_under_lora => message(
        &format!("backend = \"cuda\"\n{SOUND}precision = \"bf16\"\n[train.lora]\n").replace("[quantize]\nlinears = \"q4_0\"\nembeddings = \"q8_0\"\n", ""), &[]);
    bf16_on_a_grid => message(&format!("backend = \"cuda\"\n{SOUND}precision = \"bf16\"\n"), &[]);
    a_beta_without_jsd => message(&format!("{SOUND}[distill]\nloss = \"reverse_kl\"\nbeta = 0.3\n"), &[]);
    quantization_that_starts_after_the_end => broken("linears", "start_step = 100\nlinears");
    found_scales_under_lora =>
        message(&format!("{SOUND}[train.lora]\n").replace("linears", "method = \"gptq\"\nlinears"), &[]);
    a_ramp_beyond_the_end => broken("linears", "start_step = 60\nramp_steps = 50\nlinears");
    a_ramp_under_lora =>
        message(&format!("{SOUND}[train.lora]\n").replace("linears", "ramp_steps = 9\nlinears"), &[]);
    tasks_without_a_file => message(&format!("{SOUND}[eval.tasks]\nlimit = 10\n"), &[]);
    tasks_on_a_file_that_is_not_written =>
        message(&format!("{SOUND}[eval.tasks]\nperplexity = [\"t.txt\"]\n[export]\ngguf = false\n"), &[]);
    baselines_without_a_grid => message(
        &format!("{SOUND}[eval.tasks]\nperplexity = [\"t.txt\"]\nbaselines = [\"search\"]\n")
            .replace("[quantize]\nlinears = \"q4_0\"\nembeddings = \"q8_0\"\n", ""), &[]);
    found_scales_thrown_away =>
        broken("linears", "method = \"search\"\nscales = \"weights\"\nlinears");
    quantized_activations_of_float_linears =>
        broken("linears = \"q4_0\"", "linears = \"none\"\nactivations = \"q8_0\"");
    a_warm_up_beyond_the_end => broken("steps = 100", "steps = 100\nwarmup_steps = 101");
    a_decay_without_wsd => broken("steps = 100", "steps = 100\ndecay_steps = 10");
    a_warm_up_and_decay_longer_than_training =>
        broken("steps = 100", "steps = 100\nwarmup_steps = 60\nschedule = \"wsd\"\ndecay_steps = 60");
    a_lora_target_named_twice =>
        broken("1e-3\n", "1e-3\nlora = { targets = [\"q_proj\", \"q_proj\"] }\n");
    a_lora_rank_above_the_dimensions => broken("1e-3\n", "1e-3\nlora = { rank = 65 }\n");
    a_learning_rate_that_ends_higher => broken("1e-3", "1e-3\nmin_learning_rate = 1e-2");
}

messages! {
    fn problems_in_overrides_point_into_the_override;
    several_problems_at_once => message(
        &SOUND.replace("steps = 100", "step = 100").replace("\"q8_0\"", "\"q8\"").replace("1e-3", "-1"),
        &[],
    );
    an_override_with_a_misspelt_key => message(SOUND, &["train.step=5"]);
    an_override_with_a_wrong_value => message(SOUND, &["seed=7", "quantize.linears=q5_0"]);
    an_override_of_the_wrong_type => message(SOUND, &["train.steps=many"]);
    an_override_that_contradicts_the_file => message(SOUND, &["train.warmup_steps=200"]);
    an_override_without_a_value => message(SOUND, &["train.steps"]);
    an_override_without_a_key => message(SOUND, &["=5"]);
    an_override_that_is_a_table_header => message(SOUND, &["[train]steps=5"]);
    a_file_and_an_override_that_are_both_wrong =>
        message(&SOUND.replace("1e-3", "0"), &["train.steps=0"]);
}

/// What `Recipe::from_path` says of a path in a directory with two recipes, the directory taken
/// out of the message.
fn file_message(name: &str, content: Option<&[u8]>) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for recipe in ["quickstart.toml", "teacher.toml"] {
        std::fs::write(directory.path().join(recipe), SOUND).expect("a file");
    }
    let path = directory.path().join(name);
    if let Some(content) = content {
        std::fs::write(&path, content).expect("a file");
    }
    let error = Recipe::from_path(&path, &[]).expect_err("an error");
    let directory = directory.path().display().to_string();
    let mut message = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        // The length of the directory must not decide where lines break.
        .with_width(1000)
        .with_links(false)
        .render_report(&mut message, &error)
        .expect("writing to a string");
    message.replace(&directory, "recipes")
}

messages! {
    fn files_that_are_no_recipes_are_told_apart;
    a_missing_file_is_named_with_its_like => file_message("quickstat.toml", None);
    a_missing_file_like_no_other => file_message("zzz.toml", None);
    a_directory_lists_its_recipes => file_message("", None);
    a_file_that_is_not_text => file_message("model.gguf", Some(b"name = 1\nGGUF\xff\xfe"));
    a_file_that_is_far_too_large => file_message("model.gguf", Some(&[b' '; (1 << 20) + 1]));
}

#[test]
fn the_recipe_that_the_messages_break_is_sound() {
    parse(SOUND, &[]).expect("a sound recipe");
}

/// Every prefix of a recipe either resolves or is refused; none panics, and each message renders.
#[test]
fn a_recipe_cut_at_any_byte_never_panics() {
    for end in 0..SOUND.len() {
        if let Err(error) = parse(&SOUND[..end], &[]) {
            assert!(!render(&error).is_empty());
        }
    }
}

proptest::proptest! {
    /// Any character anywhere, and any override: an answer, never a panic, and it renders.
    #[test]
    fn a_mutated_recipe_never_panics(at in 0..SOUND.len(), with in "\\PC{0,3}|[\n=\"\\[\\]#.]", set in "\\PC{0,12}|[a-z.]{1,8}=\\PC{0,8}") {
        let text = format!("{}{with}{}", &SOUND[..at], &SOUND[at + 1..]);
        for overrides in [&[][..], &[set.as_str()][..]] {
            if let Err(error) = parse(&text, overrides) {
                proptest::prop_assert!(!render(&error).is_empty());
            }
        }
    }
}
