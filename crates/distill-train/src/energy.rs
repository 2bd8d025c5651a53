//! What the processor draws, where the machine tells: the counters of Linux's power capping
//! framework (Documentation/power/powercap), one a package, in microjoules, which begin at zero again
//! after a range that they name.

use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux keeps the counters.
const COUNTERS: &str = "/sys/class/powercap";

/// Counters, and what they stood at.
#[derive(Clone, Debug)]
pub struct EnergyMeter {
    packages: Vec<Package>,
}

#[derive(Clone, Debug)]
struct Package {
    counter: PathBuf,
    range: u64,
    last: u64,
}

impl EnergyMeter {
    /// The machine's; `None` where it has none, or they are not for everyone to read.
    pub fn new() -> Option<Self> {
        Self::of(Path::new(COUNTERS))
    }

    fn of(directory: &Path) -> Option<Self> {
        let entries = fs::read_dir(directory).ok()?.flatten();
        let mut packages = Vec::new();
        for zone in entries.map(|entry| entry.path()) {
            let name = zone.file_name()?.to_string_lossy().into_owned();
            // `intel-rapl:0` is a package, of AMD's too; `intel-rapl:0:0` a part of it.
            if name.matches(':').count() != 1 || !name.starts_with("intel-rapl:") {
                continue;
            }
            // A zone beside the packages may be the whole platform, with them in it.
            let what = fs::read_to_string(zone.join("name")).unwrap_or_default();
            if !what.starts_with("package") {
                continue;
            }
            let counter = zone.join("energy_uj");
            let last = read(&counter)?;
            packages.push(Package {
                range: read(&zone.join("max_energy_range_uj"))?,
                counter,
                last,
            });
        }
        (!packages.is_empty()).then_some(Self { packages })
    }

    /// Joules since the last call, or since the meter was made; `None` if a counter is gone.
    pub fn joules(&mut self) -> Option<f64> {
        let mut sum = 0;
        for package in &mut self.packages {
            let now = read(&package.counter)?;
            sum += match now.checked_sub(package.last) {
                Some(drawn) => drawn,
                None => package.range.saturating_sub(package.last).saturating_add(now),
            };
            package.last = now;
        }
        Some(sum as f64 * 1e-6)
    }
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(directory: &Path, zone: &str, file: &str, value: impl std::fmt::Display) {
        fs::create_dir_all(directory.join(zone)).unwrap();
        fs::write(directory.join(zone).join(file), format!("{value}\n")).unwrap();
    }

    #[test]
    fn packages_are_summed_parts_left_out_and_counters_begin_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let zones = [
            ("intel-rapl:0", "package-0", 1_000_000),
            ("intel-rapl:1", "package-1", 9_000_000),
            ("intel-rapl:2", "psys", 0),
        ];
        for (zone, name, start) in zones {
            set(path, zone, "name", name);
            set(path, zone, "energy_uj", start);
            set(path, zone, "max_energy_range_uj", 10_000_000);
        }
        set(path, "intel-rapl:0:0", "energy_uj", 5);
        let mut meter = EnergyMeter::of(path).unwrap();
        set(path, "intel-rapl:2", "energy_uj", 8_000_000);
        set(path, "intel-rapl:0", "energy_uj", 3_500_000);
        set(path, "intel-rapl:1", "energy_uj", 500_000);
        set(path, "intel-rapl:0:0", "energy_uj", 7_000_000);
        assert_eq!(meter.joules(), Some(2.5 + 1.5));
        assert_eq!(meter.joules(), Some(0.0));
    }

    #[test]
    fn a_machine_without_counters_has_no_meter() {
        let directory = tempfile::tempdir().unwrap();
        assert!(EnergyMeter::of(directory.path()).is_none());
        assert!(EnergyMeter::of(&directory.path().join("none")).is_none());
    }
}
