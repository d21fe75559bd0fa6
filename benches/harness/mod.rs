//! Harness shared by the benchmarks that compare hits with and without a fault: CPU pinning,
//! alternating rounds, and the table of results.

use crate::common::client::percentile;
use std::process::Command;
use std::time::Duration;

pub const ROUNDS: usize = 5;
pub const ROUND: Duration = Duration::from_secs(2);

/// Percentiles of each round.
const PERCENTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Percentiles of the hits in all rounds: first of the baseline, then of those with the fault.
#[derive(Default)]
pub struct Rounds([[Vec<Duration>; 4]; 2]);

impl Rounds {
    /// Adds the latencies of a pair of rounds.
    pub fn push(&mut self, baseline: Vec<Duration>, disturbed: Vec<Duration>) {
        for (figures, mut hits) in self.0.iter_mut().zip([baseline, disturbed]) {
            for (figure, share) in figures.iter_mut().zip(PERCENTILES) {
                figure.push(percentile(&mut hits, share));
            }
        }
    }

    /// Formats the cells of one row, below the titles in [`COLUMNS`].
    ///
    /// Percentiles are medians of all rounds. Each ratio is the median of the ratios of the pairs.
    /// The last cell compares the fastest baseline round with the fastest disturbed round.
    pub fn format_columns(&self) -> String {
        let micros = |share: f64| {
            let select = |mut figure: Vec<Duration>| percentile(&mut figure, share).as_nanos() as f64 / 1000.0;
            self.0.clone().map(|figures| figures.map(select))
        };
        let (median, fastest) = (micros(0.5), micros(0.0));
        let [baseline, disturbed] =
            median.map(|[p50, p90, p99, p999]| format!("{p50:.0} / {p90:.0} / {p99:.0} / {p999:.0}"));
        let ratio = |index: usize| {
            let pairs = self.0[1][index].iter().zip(&self.0[0][index]);
            let mut ratios: Vec<f64> =
                pairs.map(|(disturbed, baseline)| disturbed.as_secs_f64() / baseline.as_secs_f64()).collect();
            ratios.sort_by(f64::total_cmp);
            ratios[ratios.len() / 2]
        };
        let (p99, p999) = (ratio(2), ratio(3));
        let [fastest_p99, fastest_p999] = [2, 3].map(|index| fastest[1][index] / fastest[0][index]);
        format!("{baseline} | {disturbed} | {p99:.2} | {p999:.2} | {fastest_p99:.2} / {fastest_p999:.2}")
    }
}

/// Titles of the columns.
pub const COLUMNS: &str = "baseline hits, us: p50 / p90 / p99 / p99.9 | with the fault | p99 ratio | p99.9 ratio \
     | both ratios of the fastest rounds";

/// Returns the command that runs a program on one CPU, or anywhere if that CPU is not available.
pub fn pinned(cpu: usize, program: &str) -> Command {
    let cpu = cpu.to_string();
    if !Command::new("taskset").args(["-c", &cpu, "true"]).status().is_ok_and(|status| status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu, program]);
    command
}

/// Calls `measure` for each row with the first argument in its name, or for all rows.
///
/// Restarts the benchmark on the second CPU: the first belongs to the proxy.
pub fn run<T>(title: &str, rows: impl IntoIterator<Item = (&'static str, T)>, measure: impl Fn(&str, T)) {
    if std::env::var_os("BENCH_PINNED").is_none() {
        let this = std::env::current_exe().expect("path of this executable");
        let mut command = pinned(1, this.to_str().expect("path in UTF-8"));
        let status = command.args(std::env::args().skip(1)).env("BENCH_PINNED", "1").status();
        assert!(status.expect("restart on the second CPU").success());
        return;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!("{title}");
    println!("|{}", "---|".repeat(title.matches('|').count() - 1));
    for (name, row) in rows.into_iter().filter(|(name, _)| name.contains(&filter)) {
        measure(name, row);
    }
}
