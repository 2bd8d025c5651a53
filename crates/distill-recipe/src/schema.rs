//! The JSON schema of a recipe: what editors complete and explain, and what `shape` checks.

use std::sync::LazyLock;

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::{Value, json};

use crate::raw;

/// The JSON schema (draft 7) of a recipe, with the text, the default and the bounds of every key.
///
/// It is committed as `recipes/recipe.schema.json`; a recipe whose first line is
/// `#:schema recipe.schema.json` is completed and explained by editors that know the directive
/// (Taplo, Even Better TOML).
pub fn schema() -> Value {
    SCHEMA.clone()
}

/// [`schema`], generated once.
pub(crate) static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<raw::Recipe>();
    RecursiveTransform(without_null_and_format).transform(&mut schema);
    schema.insert("title".to_owned(), json!("distill recipe"));
    schema.to_value()
});

/// TOML has no null, and the formats (`uint`, `double`) say nothing that the bounds do not.
fn without_null_and_format(schema: &mut Schema) {
    schema.remove("format");
    let types = schema.get("type").and_then(Value::as_array).cloned();
    if let Some([kind, Value::String(null)]) = types.as_deref()
        && null == "null"
    {
        let kind = kind.clone();
        schema.insert("type".to_owned(), kind);
    }
    let alternatives = schema.get("anyOf").and_then(Value::as_array).cloned();
    if let Some([Value::Object(inner), null]) = alternatives.as_deref()
        && null["type"] == "null"
    {
        schema.remove("anyOf");
        for (key, value) in inner {
            // The text of the key is nearer to the reader than the text of its type.
            if schema.get(key).is_none() {
                schema.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_of_an_optional_key_has_no_null() {
        let text = serde_json::to_string(&schema()).unwrap();
        assert!(!text.contains("null"), "{text}");
        assert!(!text.contains("\"format\""));
        assert!(!text.contains("$ref"));
    }

    #[test]
    fn committed_schema_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/recipe.schema.json");
        let mut generated = serde_json::to_string_pretty(&schema()).unwrap();
        generated.push('\n');
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == generated,
            "recipes/recipe.schema.json has drifted: run this test once with UPDATE_SCHEMA=1"
        );
    }
}
