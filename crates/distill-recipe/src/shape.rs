//! The document against the schema: keys, types, values and bounds, one key at a time. All
//! problems are found in one walk, each with its place.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::document::{Sources, Tree};
use crate::error::Problem;
use crate::problem::ProblemKind;
use crate::schema::SCHEMA;

/// All that is wrong with single keys.
pub(crate) fn check(tree: &Tree<'_>) -> Vec<Problem> {
    let mut walk = Walk { sources: &tree.sources, problems: Vec::new() };
    // The document's own span is all of it; what is missing at the top is shown on line 1.
    walk.table("", 0..0, tree.root.get_ref(), &SCHEMA);
    walk.problems
}

struct Walk<'a> {
    sources: &'a Sources,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn push(&mut self, kind: ProblemKind, span: Range<usize>) {
        self.problems.push(self.sources.problem(kind, span, &[]));
    }

    /// `path` is the dotted key of the table, empty for the document.
    fn table(&mut self, path: &str, span: Range<usize>, table: &DeTable<'_>, schema: &Value) {
        let properties = &schema["properties"];
        // Keys that an unknown one was probably meant to be, or to stand in: they are not
        // reported as missing too.
        let mut meant = Vec::new();
        for (key, value) in table {
            match properties.get(key.get_ref().as_ref()) {
                Some(property) => self.value(&dotted(path, key.get_ref()), value, property),
                None => {
                    let (kind, instead) = unknown_key(path, key.get_ref(), schema);
                    meant.extend(instead);
                    self.push(kind, key.span());
                }
            }
        }
        let required = schema["required"].as_array().into_iter().flatten();
        for key in required.filter_map(Value::as_str) {
            if !table.contains_key(key) && !meant.iter().any(|meant| meant == key) {
                self.push(missing_key(path, key, &properties[key]), span.clone());
            }
        }
    }

    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>, schema: &Value) {
        let span = value.span();
        if let Some(choices) = schema["oneOf"].as_array() {
            return self.choice(path, value, choices);
        }
        match (schema["type"].as_str().unwrap_or_default(), value.get_ref()) {
            ("object", DeValue::Table(table)) => self.table(path, span, table, schema),
            ("array", DeValue::Array(items)) => {
                if (items.len() as u64) < schema["minItems"].as_u64().unwrap_or(0) {
                    self.push(empty(path, schema), span);
                }
                for (index, item) in items.iter().enumerate() {
                    self.value(&format!("{path}[{index}]"), item, &schema["items"]);
                }
            }
            ("string", DeValue::String(text)) => {
                if text.is_empty() && schema["minLength"].as_u64().is_some() {
                    self.push(empty(path, schema), span);
                }
            }
            ("boolean", DeValue::Boolean(_)) => {}
            ("integer" | "number", DeValue::Integer(written)) => {
                match i64::from_str_radix(written.as_str(), written.radix()) {
                    Ok(number) => {
                        self.bounds(path, number as f64, &written.to_string(), span, schema)
                    }
                    Err(_) => self.push(
                        out_of_range(path, &written.to_string(), "below 2^63".to_owned(), schema),
                        span,
                    ),
                }
            }
            ("number", DeValue::Float(written)) => match written.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => {
                    self.bounds(path, number, written.as_str(), span, schema);
                }
                _ => self.push(
                    out_of_range(path, written.as_str(), "a finite number".to_owned(), schema),
                    span,
                ),
            },
            (expected, found) => self.push(wrong_type(path, expected, found), span),
        }
    }

    /// One of a few words.
    fn choice(&mut self, path: &str, value: &Spanned<DeValue<'_>>, choices: &[Value]) {
        let known: Vec<String> = choices
            .iter()
            .filter_map(|choice| Some(choice["const"].as_str()?.to_owned()))
            .collect();
        let kind = match value.get_ref() {
            DeValue::String(word) if known.iter().any(|known| known == word) => return,
            DeValue::String(word) => ProblemKind::UnknownValue {
                key: path.to_owned(),
                value: word.to_string(),
                similar: similar(word, &known),
                known,
            },
            other => ProblemKind::WrongType {
                key: path.to_owned(),
                expected: "a string",
                found: found(other),
                instead: Some(format!("write one of \"{}\"", known.join("\", \""))),
            },
        };
        self.push(kind, value.span());
    }

    fn bounds(
        &mut self,
        path: &str,
        number: f64,
        written: &str,
        span: Range<usize>,
        schema: &Value,
    ) {
        let bound = |key: &str| schema[key].as_f64();
        let broken = [
            ("at least", bound("minimum").filter(|min| number < *min)),
            ("above", bound("exclusiveMinimum").filter(|min| number <= *min)),
            ("at most", bound("maximum").filter(|max| number > *max)),
            ("below", bound("exclusiveMaximum").filter(|max| number >= *max)),
        ];
        if let Some((words, Some(limit))) = broken.into_iter().find(|(_, limit)| limit.is_some()) {
            self.push(out_of_range(path, written, format!("{words} {limit}"), schema), span);
        }
    }
}

fn dotted(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The table as a reader knows it.
fn table_name(path: &str) -> String {
    if path.is_empty() { "the recipe".to_owned() } else { format!("[{path}]") }
}

/// The problem, and the key of this table that was probably meant.
fn unknown_key(path: &str, key: &str, schema: &Value) -> (ProblemKind, Option<String>) {
    let known: Vec<String> = schema["properties"]
        .as_object()
        .map(|properties| properties.keys().cloned().collect())
        .unwrap_or_default();
    // A key of another table, letter for letter, is a likelier slip than a similar one of this;
    // and a table inside this one is likelier than one elsewhere.
    let inside = places_of(key, path, schema);
    let elsewhere =
        if inside.is_empty() { places_of(key, "", &SCHEMA) } else { inside[..1].to_vec() };
    let similar = if elsewhere.is_empty() { similar(key, &known) } else { None };
    let meant = match inside.first() {
        Some(table) => {
            let below = table.strip_prefix(path).unwrap_or(table);
            below.trim_start_matches('.').split('.').next().map(str::to_owned)
        }
        None => similar.clone(),
    };
    let kind = ProblemKind::UnknownKey {
        key: key.to_owned(),
        table: table_name(path),
        similar,
        elsewhere: match elsewhere.as_slice() {
            [] => None,
            [top, ..] if top.is_empty() => {
                Some("at the top of the recipe, above the first [table]".to_owned())
            }
            tables => Some(format!("in [{}]", tables.join("] or ["))),
        },
        known,
    };
    (kind, meant)
}

/// The tables, in the order of the schema, that have the key.
fn places_of(key: &str, path: &str, schema: &Value) -> Vec<String> {
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    if properties.contains_key(key) {
        return vec![path.to_owned()];
    }
    let inner = properties.iter().map(|(name, inner)| places_of(key, &dotted(path, name), inner));
    inner.flatten().collect()
}

fn similar(word: &str, known: &[String]) -> Option<String> {
    let lower = word.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(&lower, known), known))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known.clone())
}

fn missing_key(path: &str, key: &str, schema: &Value) -> ProblemKind {
    let example = match schema["type"].as_str().unwrap_or_default() {
        "object" => format!("a table `[{}]`", dotted(path, key)),
        "array" => format!("`{key} = [\"…\"]`"),
        "string" => format!("`{key} = \"…\"`"),
        "integer" | "number" => format!("`{key} = …`"),
        _ => {
            let first = &schema["oneOf"][0]["const"];
            format!("`{key} = {first}`")
        }
    };
    ProblemKind::MissingKey {
        key: key.to_owned(),
        table: table_name(path),
        example,
        about: about(schema),
    }
}

fn empty(path: &str, schema: &Value) -> ProblemKind {
    ProblemKind::Empty { key: path.to_owned(), about: about(schema) }
}

fn out_of_range(path: &str, value: &str, bound: String, schema: &Value) -> ProblemKind {
    ProblemKind::OutOfRange {
        key: path.to_owned(),
        value: value.to_owned(),
        bound,
        about: about(schema),
    }
}

/// The text of a key, its line breaks taken out.
fn about(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn wrong_type(path: &str, expected: &str, value: &DeValue<'_>) -> ProblemKind {
    let instead = match (expected, value) {
        ("integer" | "number", DeValue::String(text)) if text.parse::<f64>().is_ok() => {
            Some(format!("write {text} without quotes"))
        }
        ("integer", DeValue::Float(number)) => number
            .as_str()
            .parse::<f64>()
            .ok()
            .filter(|number| number.fract() == 0.0)
            .map(|number| format!("write {number:.0}")),
        ("boolean", DeValue::String(text)) if text == "true" || text == "false" => {
            Some(format!("write {text} without quotes"))
        }
        ("string", DeValue::Integer(number)) => Some(format!("write \"{number}\" in quotes")),
        ("string", DeValue::Float(number)) => Some(format!("write \"{number}\" in quotes")),
        ("array", DeValue::String(text)) => Some(format!("write [\"{text}\"]")),
        _ => None,
    };
    ProblemKind::WrongType {
        key: path.to_owned(),
        expected: match expected {
            "object" => "a table",
            "array" => "a list",
            "string" => "a string",
            "integer" => "a whole number",
            "number" => "a number",
            _ => "true or false",
        },
        found: found(value),
        instead,
    }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
