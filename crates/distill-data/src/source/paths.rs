//! Files named by a path, a directory or a pattern.

use std::fs;
use std::path::{Path, PathBuf};

use super::Format;
use crate::error::DataError;

/// Directories are followed so deep; links make loops possible.
const MAX_DEPTH: usize = 32;

/// The files that `spec` names, sorted by path and each once.
pub(super) fn expand(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(spec);
    let mut files = if path.is_dir() {
        let files = below(path)?;
        if files.is_empty() {
            return Err(DataError::EmptyDirectory { path: path.to_path_buf() });
        }
        files
    } else if path.exists() {
        vec![path.to_path_buf()]
    } else if spec.contains(['*', '?']) {
        let files = matching(spec)?;
        if files.is_empty() {
            return Err(DataError::NothingMatches { pattern: spec.to_owned() });
        }
        files
    } else {
        return Err(DataError::NotFound { path: path.to_path_buf() });
    };
    files.sort();
    Ok(files)
}

/// All files of data formats below a directory.
fn below(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    walk(directory, MAX_DEPTH, &mut |file| files.push(file))?;
    Ok(files)
}

/// Calls `visit` with each data file below `directory`; names with a leading dot are hidden.
fn walk(directory: &Path, depth: usize, visit: &mut dyn FnMut(PathBuf)) -> Result<(), DataError> {
    if depth == 0 {
        return Err(DataError::TooDeep { path: directory.to_path_buf(), limit: MAX_DEPTH });
    }
    for path in entries(directory)? {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth - 1, visit)?;
        } else if matches!(Format::of(&path), Some(Format::Text | Format::Jsonl | Format::Parquet))
        {
            visit(path);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io = |source| DataError::Io { path: directory.to_path_buf(), action: "list", source };
    let entries = fs::read_dir(directory).map_err(io)?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(io)?;
    paths.sort();
    Ok(paths)
}

/// The data files that a pattern names. Only what stands below the pattern's literal beginning
/// is listed.
fn matching(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let parts: Vec<&str> = pattern.split('/').collect();
    let literal = parts.iter().take_while(|part| !part.contains(['*', '?'])).count();
    let root = match parts[..literal].join("/") {
        root if root.is_empty() && pattern.starts_with('/') => "/".into(),
        root if root.is_empty() => ".".into(),
        root => root,
    };
    let root = PathBuf::from(root);
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let wanted: Vec<Vec<char>> =
        parts[literal..].iter().map(|part| part.chars().collect()).collect();
    let wanted: Vec<&[char]> = wanted.iter().map(Vec::as_slice).collect();
    let mut files = Vec::new();
    walk(&root, MAX_DEPTH, &mut |file| {
        let inside = file.strip_prefix(&root).unwrap_or(&file);
        let names: Vec<Vec<char>> =
            inside.iter().map(|name| name.to_string_lossy().chars().collect()).collect();
        let names: Vec<&[char]> = names.iter().map(Vec::as_slice).collect();
        if path_matches(&wanted, &names) {
            files.push(if literal == 0 { inside.to_path_buf() } else { file });
        }
    })?;
    Ok(files)
}

/// Whether path components match those of a pattern; `**` stands for any number of them.
fn path_matches(pattern: &[&[char]], path: &[&[char]]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&['*', '*'], rest)) => {
            (0..=path.len()).any(|skipped| path_matches(rest, &path[skipped..]))
        }
        Some((first, rest)) => path
            .split_first()
            .is_some_and(|(name, others)| name_matches(first, name) && path_matches(rest, others)),
    }
}

/// Whether a name matches; `*` stands for any characters, `?` for one.
fn name_matches(pattern: &[char], name: &[char]) -> bool {
    // The greedy walk with one point to come back to: the last star.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&wanted| wanted == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        directory
    }

    fn names(root: &Path, spec: &str) -> Result<Vec<String>, DataError> {
        let files = expand(&format!("{}/{spec}", root.display()))?;
        Ok(files
            .iter()
            .map(|file| file.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"))
            .collect())
    }

    const FILES: [&str; 7] = [
        "b.txt",
        "a.jsonl",
        "README.md",
        "deep/er/c.parquet",
        "deep/d.txt",
        "e.bin",
        ".hidden/f.txt",
    ];

    #[test]
    fn a_directory_is_all_its_data_files_in_order() {
        let root = tree(&FILES);
        let found = names(root.path(), "").unwrap();
        assert_eq!(found, ["a.jsonl", "b.txt", "deep/d.txt", "deep/er/c.parquet"]);
    }

    #[test]
    fn patterns_match_within_and_across_directories() {
        let root = tree(&FILES);
        let cases = [
            ("*.txt", vec!["b.txt"]),
            ("?.txt", vec!["b.txt"]),
            ("**/*.txt", vec!["b.txt", "deep/d.txt"]),
            ("deep/**/c.*", vec!["deep/er/c.parquet"]),
            ("d*/*", vec!["deep/d.txt"]),
        ];
        for (pattern, expected) in cases {
            assert_eq!(names(root.path(), pattern).unwrap(), expected, "{pattern}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let root = tree(&["only.bin"]);
        let error = |spec: &str| names(root.path(), spec).unwrap_err();
        assert!(matches!(error("none.txt"), DataError::NotFound { .. }));
        assert!(matches!(error("*.txt"), DataError::NothingMatches { .. }));
        assert!(matches!(error("no/where/*.txt"), DataError::NothingMatches { .. }));
        assert!(matches!(error(""), DataError::EmptyDirectory { .. }));
    }

    #[test]
    fn stars_match_as_a_backtracking_search_would() {
        fn slow(pattern: &[char], name: &[char]) -> bool {
            match pattern.split_first() {
                None => name.is_empty(),
                Some(('*', rest)) => (0..=name.len()).any(|skip| slow(rest, &name[skip..])),
                Some((&wanted, rest)) => {
                    name.first().is_some_and(|&c| wanted == '?' || wanted == c)
                        && slow(rest, &name[1..])
                }
            }
        }
        proptest::proptest!(|(pattern in "[ab*?]{0,6}", name in "[ab]{0,8}")| {
            let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
            proptest::prop_assert_eq!(name_matches(&p, &n), slow(&p, &n));
        });
    }
}
