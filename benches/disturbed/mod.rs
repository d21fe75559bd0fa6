//! What benchmarks of disturbed hits share: processors, and rounds that alternate.

use crate::common::asking::percentile;
use std::process::Command;
use std::time::Duration;

pub const ROUNDS: usize = 5;
pub const ROUND: Duration = Duration::from_secs(2);

/// What is told of each round.
const SHARES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Times of hits, undisturbed and meanwhile, by turns.
#[derive(Default)]
pub struct Rounds([[Vec<Duration>; 4]; 2]);

impl Rounds {
    /// A pair of rounds.
    pub fn add(&mut self, undisturbed: Vec<Duration>, meanwhile: Vec<Duration>) {
        for (metrics, mut hits) in self.0.iter_mut().zip([undisturbed, meanwhile]) {
            for (figure, share) in metrics.iter_mut().zip(SHARES) {
                figure.push(percentile(&mut hits, share));
            }
        }
    }

    /// Columns of a table: medians of the rounds' percentiles in microseconds; the ratios of the p99 and of the p99.9, of each pair of
    /// rounds, and of those the median; and the ratios of what was quietest of all rounds.
    pub fn columns(&self) -> String {
        let micros = |share: f64| {
            let of = |mut figure: Vec<Duration>| percentile(&mut figure, share).as_nanos() as f64 / 1000.0;
            self.0.clone().map(|metrics| metrics.map(of))
        };
        let (median, quietest) = (micros(0.5), micros(0.0));
        let [before, during] =
            median.map(|[p50, p90, p99, p999]| format!("{p50:.0} / {p90:.0} / {p99:.0} / {p999:.0}"));
        let ratio = |place: usize| {
            let pairs = self.0[1][place].iter().zip(&self.0[0][place]);
            let mut ratios: Vec<f64> =
                pairs.map(|(during, before)| during.as_secs_f64() / before.as_secs_f64()).collect();
            ratios.sort_by(f64::total_cmp);
            ratios[ratios.len() / 2]
        };
        let (p99, p999) = (ratio(2), ratio(3));
        let [quiet_p99, quiet_p999] = [2, 3].map(|place| quietest[1][place] / quietest[0][place]);
        format!("{before} | {during} | {p99:.2} | {p999:.2} | {quiet_p99:.2} / {quiet_p999:.2}")
    }
}

/// The titles of these columns.
pub const COLUMNS: &str = "hits undisturbed, us: p50 / p90 / p99 / p99.9 | hits meanwhile | p99 ratio | p99.9 ratio | both of the \
     quietest rounds";

/// A program on one processor, if that can be had.
pub fn pinned(processor: usize, program: &str) -> Command {
    let processor = processor.to_string();
    if !Command::new("taskset").args(["-c", &processor, "true"]).status().is_ok_and(|status| status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &processor, program]);
    command
}

/// Runs `measure` for the rows that the first argument names, all without one, on the second processor: the first is the
/// proxy's.
pub fn run<T>(title: &str, rows: impl IntoIterator<Item = (&'static str, T)>, measure: impl Fn(&str, T)) {
    if std::env::var_os("BENCH_PINNED").is_none() {
        let this = std::env::current_exe().expect("a program knows its path");
        let mut command = pinned(1, this.to_str().expect("a path that is text"));
        let status = command.args(std::env::args().skip(1)).env("BENCH_PINNED", "1").status();
        assert!(status.expect("it can be started again").success());
        return;
    }
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!("{title}");
    println!("|{}", "---|".repeat(title.matches('|').count() - 1));
    for (name, row) in rows.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        measure(name, row);
    }
}
