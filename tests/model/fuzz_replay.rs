//! Tests that replay the fuzz corpus, and mutations of it, without libFuzzer.
//!
//! Each input in `fuzz/corpus` runs through its check in `fuzz/checks`. Mutations depend on a seed
//! only, so a failure can be repeated.
//!
//! `FUZZ_INPUTS=1000000 cargo test --test model fuzz_replay` runs more mutations, `FUZZ_FIRST` sets
//! the first seed. `scripts/fuzz.sh` runs libFuzzer, which is guided by coverage.

use crate::checks::{self, random::Random};
use std::fs;
use std::path::{Path, PathBuf};

/// Default number of mutated inputs for each target, which take a few seconds.
const DEFAULT_INPUTS: u64 = 20_000;

/// Length limit of a mutated input. The corpus has longer inputs.
const MAX_MUTATED_BYTES: usize = 4096;

/// Limit of mutations of one input.
const MAX_MUTATIONS: u64 = 5;

fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn fuzz_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// Returns the corpus of a target with the path of each input, in a fixed order.
fn read_corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(fuzz_path("corpus").join(target)).expect("a directory of inputs");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("an input"))).collect()
}

/// Guard that prints the input if the check panics.
struct PrintOnPanic<'a> {
    target: &'a str,
    name: &'a str,
    input: &'a [u8],
}

impl Drop for PrintOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}, {}: {}", self.target, self.name, self.input.escape_ascii());
        }
    }
}

fn check(target: &str, name: &str, input: &[u8]) {
    let _guard = PrintOnPanic { target, name, input };
    checks::check(target, input);
}

/// Every input of the corpus passes its check.
#[test]
fn corpus_passes() {
    for &(target, _) in checks::TARGETS {
        let inputs = read_corpus(target);
        assert!(inputs.len() >= 20, "{target} has only {} inputs", inputs.len());
        for (path, input) in inputs {
            check(target, &path.to_string_lossy(), &input);
        }
    }
}

/// Checks mutated inputs of a target.
fn check_mutations(target: &str) {
    let inputs: Vec<Vec<u8>> = read_corpus(target).into_iter().map(|(_, input)| input).collect();
    let words = read_words();
    let first = env_number("FUZZ_FIRST").unwrap_or(1);
    for seed in first..first + env_number("FUZZ_INPUTS").unwrap_or(DEFAULT_INPUTS) {
        let mut random = Random::new(seed);
        let mut input = pick(&inputs, &mut random).to_vec();
        for _ in 0..random.between(1, MAX_MUTATIONS) {
            mutate(&mut input, &inputs, &words, &mut random);
        }
        input.truncate(MAX_MUTATED_BYTES);
        check(target, &format!("FUZZ_FIRST={seed} FUZZ_INPUTS=1"), &input);
    }
}

/// Mutated request heads and bodies pass their check.
#[test]
fn http_mutations_pass() {
    check_mutations("http");
}

/// Mutated commands of the Redis protocol pass their check.
#[test]
fn resp_mutations_pass() {
    check_mutations("resp");
}

/// Mutated sequences of cache operations pass their check.
#[test]
fn cache_mutations_pass() {
    check_mutations("cache");
}

/// Mutated inputs of whole connections pass their check.
#[test]
fn connection_mutations_pass() {
    check_mutations("connection");
}

/// Mutated inputs of TLS sessions pass their check.
#[cfg(feature = "tls")]
#[test]
fn tls_mutations_pass() {
    check_mutations("tls");
}

fn pick<'a>(inputs: &'a [Vec<u8>], random: &mut Random) -> &'a [u8] {
    &inputs[random.below(inputs.len() as u64) as usize]
}

/// Returns a random position. Half of the positions are moved to the start of the next line, where
/// mutations reach more code.
fn pick_position(input: &[u8], random: &mut Random) -> usize {
    let at = random.between(0, input.len() as u64) as usize;
    if random.percent(50) {
        return at;
    }
    let line_end = input[at..].iter().position(|&byte| byte == b'\n');
    line_end.map_or(at, |end| at + end + 1)
}

/// Applies one random mutation.
fn mutate(input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[Vec<u8>], random: &mut Random) {
    let at = pick_position(input, random);
    let until = (at + random.between(1, 40) as usize).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] = random.next_u64() as u8,
        1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 => _ = input.drain(at..until),
        3 => {
            let piece = input[at..until].to_vec();
            let to = pick_position(input, random);
            _ = input.splice(to..to, piece);
        }
        4 => {
            let other = pick(inputs, random);
            let from = pick_position(other, random);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        5 | 6 => _ = input.splice(at..at, pick(words, random).iter().copied()),
        // The first four bytes are the choices of an input.
        _ if input.len() > 4 => input[random.below(4) as usize] = random.next_u64() as u8,
        _ => input.push(random.next_u64() as u8),
    }
}

/// Returns the words of the dictionaries of libFuzzer.
fn read_words() -> Vec<Vec<u8>> {
    let texts = ["http.dict", "resp.dict"].map(|name| fs::read_to_string(fuzz_path("dictionaries").join(name)));
    let texts = texts.map(|text| text.expect("a dictionary"));
    let words = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix('"'));
    words.map(|word| unescape(word.trim_end_matches('"'))).collect()
}

/// Decodes a word, in which `\x` and two hexadecimal digits stand for a byte.
fn unescape(word: &str) -> Vec<u8> {
    let mut parts = word.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}
