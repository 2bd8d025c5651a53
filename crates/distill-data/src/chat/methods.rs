//! The methods of Python's strings, lists and dictionaries that chat templates call.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// `value.method(args)`.
pub(super) fn call(_: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return string(text, method, args);
    }
    match value.kind() {
        ValueKind::Map => dictionary(value, method, args),
        ValueKind::Seq | ValueKind::Iterable => list(value, method, args),
        _ => Err(unknown()),
    }
}

fn unknown() -> Error {
    Error::from(ErrorKind::UnknownMethod)
}

fn string(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "strip" => strip(text, args, true, true)?.into(),
        "lstrip" => strip(text, args, true, false)?.into(),
        "rstrip" => strip(text, args, false, true)?.into(),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "split" => split(text, args)?,
        "rsplit" => rsplit(text, args)?,
        "splitlines" => text.lines().map(Value::from).collect(),
        "startswith" => any_of(args, |affix| text.starts_with(affix))?,
        "endswith" => any_of(args, |affix| text.ends_with(affix))?,
        "upper" => no_arguments(args, || text.to_uppercase().into())?,
        "lower" => no_arguments(args, || text.to_lowercase().into())?,
        "title" => no_arguments(args, || title(text).into())?,
        "capitalize" => no_arguments(args, || capitalize(text).into())?,
        "isdigit" | "isdecimal" | "isnumeric" => all(args, text, char::is_numeric)?,
        "isalpha" => all(args, text, char::is_alphabetic)?,
        "isalnum" => all(args, text, char::is_alphanumeric)?,
        "isspace" => all(args, text, char::is_whitespace)?,
        "isupper" => no_arguments(args, || {
            (text != text.to_lowercase() && text == text.to_uppercase()).into()
        })?,
        "islower" => no_arguments(args, || {
            (text != text.to_uppercase() && text == text.to_lowercase()).into()
        })?,
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            match count.and_then(|count| usize::try_from(count).ok()) {
                Some(count) => text.replacen(old, new, count).into(),
                None => text.replace(old, new).into(),
            }
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let items: Vec<String> = items.try_iter()?.map(|item| item.to_string()).collect();
            items.join(text).into()
        }
        "find" => {
            let (needle,): (&str,) = from_args(args)?;
            characters_before(text, text.find(needle)).into()
        }
        "rfind" => {
            let (needle,): (&str,) = from_args(args)?;
            characters_before(text, text.rfind(needle)).into()
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            text.matches(needle).count().into()
        }
        _ => return Err(unknown()),
    })
}

/// A byte offset as Python counts, -1 for none.
fn characters_before(text: &str, offset: Option<usize>) -> i64 {
    offset.map_or(-1, |offset| text[..offset].chars().count() as i64)
}

fn strip<'a>(text: &'a str, args: &[Value], start: bool, end: bool) -> Result<&'a str, Error> {
    let (set,): (Option<&str>,) = from_args(args)?;
    let unwanted = |c: char| set.map_or_else(|| c.is_whitespace(), |set| set.contains(c));
    let text = if start { text.trim_start_matches(unwanted) } else { text };
    Ok(if end { text.trim_end_matches(unwanted) } else { text })
}

/// Separator and the largest number of cuts.
fn cuts(args: &[Value]) -> Result<(Option<&str>, usize), Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
    if separator == Some("") {
        return Err(Error::new(ErrorKind::InvalidOperation, "split: the separator is empty"));
    }
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    Ok((separator, limit.unwrap_or(usize::MAX)))
}

fn split(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit) = cuts(args)?;
    let Some(separator) = separator else {
        // Without a separator, runs of white space separate and never leave an empty part.
        let mut parts = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() && parts.len() < limit {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            parts.push(Value::from(&rest[..end]));
            rest = rest[end..].trim_start();
        }
        if !rest.is_empty() {
            parts.push(Value::from(rest));
        }
        return Ok(parts.into());
    };
    Ok(text.splitn(limit.saturating_add(1), separator).map(Value::from).collect())
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit) = cuts(args)?;
    let Some(separator) = separator else {
        let mut parts = Vec::new();
        let mut rest = text.trim_end();
        while !rest.is_empty() && parts.len() < limit {
            let start = rest
                .char_indices()
                .rev()
                .find(|(_, c)| c.is_whitespace())
                .map_or(0, |(at, c)| at + c.len_utf8());
            parts.push(Value::from(&rest[start..]));
            rest = rest[..start].trim_end();
        }
        if !rest.is_empty() {
            parts.push(Value::from(rest));
        }
        parts.reverse();
        return Ok(parts.into());
    };
    let mut parts: Vec<Value> =
        text.rsplitn(limit.saturating_add(1), separator).map(Value::from).collect();
    parts.reverse();
    Ok(parts.into())
}

/// A method that takes one affix or a tuple of them.
fn any_of(args: &[Value], test: impl Fn(&str) -> bool) -> Result<Value, Error> {
    let (affixes,): (Value,) = from_args(args)?;
    if let Some(affix) = affixes.as_str() {
        return Ok(test(affix).into());
    }
    let mut affixes = affixes.try_iter()?;
    Ok(affixes.any(|affix| affix.as_str().is_some_and(&test)).into())
}

fn all(args: &[Value], text: &str, test: impl Fn(char) -> bool) -> Result<Value, Error> {
    no_arguments(args, || (!text.is_empty() && text.chars().all(test)).into())
}

fn no_arguments(args: &[Value], value: impl FnOnce() -> Value) -> Result<Value, Error> {
    let () = from_args(args)?;
    Ok(value())
}

fn capitalize(text: &str) -> String {
    let mut rest = text.chars();
    let first: String = rest.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &rest.as_str().to_lowercase()
}

/// Every letter behind a letter is small, every other large.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::new();
    for c in text.chars() {
        if inside {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    titled
}

fn dictionary(map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let value = map.get_item(&key)?;
            if value.is_undefined() { default.unwrap_or_else(|| Value::from(())) } else { value }
        }
        "keys" => no_arguments(args, || map.clone())?.try_iter()?.collect(),
        "values" => {
            let () = from_args(args)?;
            let values: Result<Vec<Value>, Error> =
                map.try_iter()?.map(|key| map.get_item(&key)).collect();
            values?.into()
        }
        "items" => {
            let () = from_args(args)?;
            let pairs: Result<Vec<Value>, Error> = map
                .try_iter()?
                .map(|key| Ok(Value::from(vec![key.clone(), map.get_item(&key)?])))
                .collect();
            pairs?.into()
        }
        _ => return Err(unknown()),
    })
}

fn list(list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (Value,) = from_args(args)?;
    Ok(match method {
        "count" => list.try_iter()?.filter(|item| *item == wanted).count().into(),
        "index" => {
            let position = list.try_iter()?.position(|item| item == wanted);
            let missing = || Error::new(ErrorKind::InvalidOperation, "index: not in the list");
            position.ok_or_else(missing)?.into()
        }
        _ => return Err(unknown()),
    })
}
