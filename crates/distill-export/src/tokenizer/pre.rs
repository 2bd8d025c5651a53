//! Which of the known ways to split words a `tokenizer.json` uses.

use serde_json::Value;

/// Llama 3's words: contractions in any case, digits by threes, punctuation with its newlines.
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's words: as Llama 3's, each digit alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A part that none of the known ways has.
#[derive(Debug)]
pub(super) struct Unknown {
    pub part: &'static str,
    pub found: String,
    pub supported: &'static str,
}

/// GGUF's name, `tokenizer.ggml.pre`, of how the tokenizer splits words.
pub(super) fn recognise(tokenizer: &Value) -> Result<&'static str, Unknown> {
    let pre_tokenizer = &tokenizer["pre_tokenizer"];
    let pre = match steps(pre_tokenizer).as_slice() {
        [bytes] if byte_level(bytes, true) => "gpt-2",
        [digits, bytes] if single_digits(digits) && byte_level(bytes, true) => "smollm",
        [split, bytes] if byte_level(bytes, false) => match words(split) {
            Some(LLAMA_BPE) => "llama-bpe",
            Some(QWEN2) => "qwen2",
            _ => return Err(unknown_pre(pre_tokenizer)),
        },
        _ => return Err(unknown_pre(pre_tokenizer)),
    };
    let normalizer = &tokenizer["normalizer"];
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Ok(pre),
        Some("NFC") if pre == "qwen2" => Ok(pre),
        _ => Err(Unknown {
            part: "`normalizer`",
            found: normalizer.to_string(),
            supported: "none (and NFC for qwen2)",
        }),
    }
}

fn unknown_pre(found: &Value) -> Unknown {
    Unknown {
        part: "`pre_tokenizer`",
        found: found.to_string(),
        supported: "those of gpt-2, smollm, llama-bpe (Llama 3) and qwen2, without a prefix space",
    }
}

/// The steps of a sequence, or the one step.
fn steps(pre_tokenizer: &Value) -> Vec<&Value> {
    match pre_tokenizer["type"].as_str() {
        Some("Sequence") => {
            pre_tokenizer["pretokenizers"].as_array().into_iter().flatten().collect()
        }
        _ => vec![pre_tokenizer],
    }
}

fn byte_level(step: &Value, regex: bool) -> bool {
    step["type"] == "ByteLevel"
        && step["add_prefix_space"] == false
        && step.get("use_regex").and_then(Value::as_bool).unwrap_or(true) == regex
}

fn single_digits(step: &Value) -> bool {
    step["type"] == "Digits" && step["individual_digits"] == true
}

fn words(step: &Value) -> Option<&str> {
    let whole = step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] != true;
    step["pattern"]["Regex"].as_str().filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
    }

    fn sequence(steps: &[Value]) -> Value {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    fn split(regex: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    fn recognised(pre: Value, normalizer: Value) -> Result<&'static str, String> {
        let tokenizer = json!({"pre_tokenizer": pre, "normalizer": normalizer});
        recognise(&tokenizer).map_err(|unknown| format!("{} {}", unknown.part, unknown.found))
    }

    #[test]
    fn the_four_known_ways_are_recognised() {
        let digits = json!({"type": "Digits", "individual_digits": true});
        for (pre, expected) in [
            (bytes(true), "gpt-2"),
            (json!({"type": "ByteLevel", "add_prefix_space": false}), "gpt-2"),
            (sequence(&[bytes(true)]), "gpt-2"),
            (sequence(&[digits, bytes(true)]), "smollm"),
            (sequence(&[split(LLAMA_BPE), bytes(false)]), "llama-bpe"),
            (sequence(&[split(QWEN2), bytes(false)]), "qwen2"),
        ] {
            assert_eq!(recognised(pre, Value::Null), Ok(expected));
        }
        let qwen = sequence(&[split(QWEN2), bytes(false)]);
        assert_eq!(recognised(qwen, json!({"type": "NFC"})), Ok("qwen2"));
    }

    #[test]
    fn everything_else_is_refused_with_what_it_is() {
        let digits = json!({"type": "Digits", "individual_digits": false});
        let prefix = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
        for pre in [
            Value::Null,
            json!({"type": "Whitespace"}),
            prefix,
            sequence(&[digits, bytes(true)]),
            sequence(&[split(r"\p{L}+"), bytes(false)]),
            sequence(&[split(QWEN2), bytes(true)]),
            sequence(&[]),
        ] {
            let text = pre.to_string();
            assert_eq!(recognised(pre, Value::Null), Err(format!("`pre_tokenizer` {text}")));
        }
        let nfkc = json!({"type": "NFKC"});
        let text = format!("`normalizer` {nfkc}");
        assert_eq!(recognised(bytes(true), nfkc), Err(text));
    }
}
