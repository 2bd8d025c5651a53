//! Recipes: spanned TOML, checked, resolved
