//! `checkpoints/<name>/<run id>/`: where everything of a run lies.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use distill_recipe::Recipe;
use distill_train::{TrainError, checkpoint};
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// The recipe with every default.
pub const RESOLVED: &str = "resolved.toml";
/// The recipe as written.
pub const RECIPE: &str = "recipe.toml";
/// What was typed.
pub const COMMAND: &str = "command.txt";

/// Makes the directory of a new run and writes the recipe into it.
pub fn create(recipe: &Recipe, written: &str) -> Result<PathBuf, Failure> {
    let parent = recipe.output.join(&recipe.name);
    fs::create_dir_all(&parent).map_err(|source| unwritable(&parent, source))?;
    let id = timestamp().replace(':', "-").trim_end_matches('Z').to_string();
    let mut run = parent.join(&id);
    let mut twin = 1;
    while run.exists() {
        twin += 1;
        run = parent.join(format!("{id}-{twin}"));
    }
    fs::create_dir(&run).map_err(|source| unwritable(&run, source))?;
    write(&run.join(RECIPE), written)?;
    write(&run.join(RESOLVED), &resolved(recipe)?)?;
    write(&run.join(COMMAND), &command(std::env::args().skip(1)))?;
    Ok(run)
}

/// The newest run of this recipe, which must not have changed since.
pub fn newest(recipe: &Recipe) -> Result<PathBuf, Failure> {
    let parent = recipe.output.join(&recipe.name);
    let mut runs: Vec<PathBuf> = fs::read_dir(&parent)
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    runs.retain(|run| run.join(RESOLVED).is_file());
    runs.sort();
    // A later trial with other settings must not hide the run that was interrupted.
    let now = resolved(recipe)?;
    // By value: a version that knew fewer keys wrote the same recipe with fewer lines.
    let same = |run: &&PathBuf| {
        Recipe::from_path(&run.join(RESOLVED), &[]).is_ok_and(|(_, before)| before == *recipe)
    };
    let same: Vec<&PathBuf> = runs.iter().rev().filter(same).collect();
    // Neither must one that failed before it computed anything.
    let begun = |run: &&&PathBuf| checkpoint::newest(run).is_ok_and(|found| found.is_some());
    if let Some(run) = same.iter().find(begun).or(same.first()) {
        return Ok(run.to_path_buf());
    }
    let run = runs.pop().ok_or_else(|| Failure::NotARun {
        path: parent,
        problem: "holds no run to resume; start one without --resume".into(),
    })?;
    let path = run.join(RESOLVED);
    let before = fs::read_to_string(&path).map_err(Failure::io("reading", &path))?;
    let changed = before.lines().zip(now.lines()).find(|(a, b)| a != b);
    let difference = changed
        .map_or("a line was added or removed".into(), |(a, b)| format!("was `{a}`, is `{b}`"));
    Err(TrainError::RecipeChanged { path, difference }.into())
}

/// The recipe that a run was made with.
pub fn recipe(run: &Path) -> Result<Recipe, Failure> {
    let path = run.join(RESOLVED);
    if !path.is_file() {
        return Err(Failure::NotARun {
            path: run.to_path_buf(),
            problem: format!("is not a run directory: it has no {RESOLVED}"),
        });
    }
    Ok(Recipe::from_path(&path, &[])?.1)
}

/// Now, UTC, as `2026-11-22T20:15:00Z`.
pub fn timestamp() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

/// Writes a value as JSON, whole or not at all.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|e| {
        Failure::Usage(format!("{}: not to be written as JSON: {e}", path.display()))
    })?;
    write(path, &json)
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let partial = path.with_extension("tmp");
    let mut file = fs::File::create(&partial).map_err(Failure::io("creating", &partial))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Failure::io("writing", &partial))?;
    fs::rename(&partial, path).map_err(Failure::io("renaming", &partial))
}

/// Arguments as a POSIX shell takes them, after `distill`.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let mut line = String::from("distill");
    for argument in arguments {
        line.push(' ');
        match !argument.is_empty() && argument.chars().all(plain) {
            true => line.push_str(&argument),
            false => line.push_str(&format!("'{}'", argument.replace('\'', "'\\''"))),
        }
    }
    line
}

/// SHA-256 of a file, hexadecimal.
pub fn sha256(path: &Path) -> Result<String, Failure> {
    let mut file = fs::File::open(path).map_err(Failure::io("reading", path))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(Failure::io("reading", path))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The recipe with every default, as TOML.
pub fn resolved(recipe: &Recipe) -> Result<String, Failure> {
    recipe.to_toml().map_err(|e| Failure::Usage(format!("the recipe has no TOML form: {e}")))
}

fn unwritable(path: &Path, source: std::io::Error) -> Failure {
    TrainError::Io { action: "creating the run directory", path: path.to_path_buf(), source }.into()
}

/// Days since 1970-01-01 as a Gregorian date (Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::{civil, command};

    #[test]
    fn a_command_can_be_typed_again() {
        let arguments = ["run", "my recipe.toml", "--set", "eval.prompts=[\"it's\"]", "a=1"];
        let line = command(arguments.into_iter().map(str::to_owned));
        assert_eq!(line, r#"distill run 'my recipe.toml' --set 'eval.prompts=["it'\''s"]' a=1"#);
    }

    #[test]
    fn days_become_dates_across_leap_years() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_779), (2026, 11, 22));
    }
}
