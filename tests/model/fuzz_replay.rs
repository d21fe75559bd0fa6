//! What the fuzzer has found, and what it begins with, for ever: each input that is kept in `fuzz/corpus` goes through the same
//! checks here (`fuzz/checks`), without libFuzzer; then mutations of them, from a seed, the same each time.
//!
//! `FUZZ_INPUTS=1000000 cargo test --test model fuzz_replay` makes more of them, `FUZZ_FIRST` others. `scripts/fuzz.sh` is the real thing:
//! it learns what an input has reached.

use crate::checks::{self, random::Random};
use std::fs;
use std::path::{Path, PathBuf};

/// Mutated inputs of each target: a few seconds.
const DEFAULT_INPUTS: u64 = 20_000;

/// Longest mutated input, in bytes. Longer ones are the corpus' own.
const LONGEST: usize = 4096;

/// Mutations of one input.
const MUTATIONS: u64 = 5;

/// Where a new piece may be put with some hope: at the beginning of a line, half of the time.
const LINE_END: u8 = b'\n';

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The kept inputs of a target, always in the same order.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder("corpus").join(target)).expect("a folder of inputs");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("an input"))).collect()
}

/// Says which input it was when a check panics.
struct Telling<'a>(&'a str, &'a str, &'a [u8]);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}, {}: {}", self.0, self.1, self.2.escape_ascii());
        }
    }
}

fn check(target: &str, name: &str, input: &[u8]) {
    let _telling = Telling(target, name, input);
    checks::check(target, input);
}

#[test]
fn every_kept_input_passes() {
    for (target, _) in checks::TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 20, "{target} has only {} inputs", inputs.len());
        for (path, input) in inputs {
            check(target, &path.to_string_lossy(), &input);
        }
    }
}

fn mutations_pass(target: &str) {
    let inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
    let words = words();
    let first = number("FUZZ_FIRST").unwrap_or(1);
    for seed in first..first + number("FUZZ_INPUTS").unwrap_or(DEFAULT_INPUTS) {
        let mut random = Random::new(seed);
        let mut input = some(&inputs, &mut random).to_vec();
        for _ in 0..random.between(1, MUTATIONS) {
            mutate(&mut input, &inputs, &words, &mut random);
        }
        input.truncate(LONGEST);
        check(target, &format!("FUZZ_FIRST={seed} FUZZ_INPUTS=1"), &input);
    }
}

#[test]
fn mutations_of_http_pass() {
    mutations_pass("http");
}

#[test]
fn mutations_of_resp_pass() {
    mutations_pass("resp");
}

#[test]
fn mutations_of_cache_pass() {
    mutations_pass("cache");
}

#[test]
fn mutations_of_connection_pass() {
    mutations_pass("connection");
}

fn some<'a>(inputs: &'a [Vec<u8>], random: &mut Random) -> &'a [u8] {
    &inputs[random.below(inputs.len() as u64) as usize]
}

fn place(input: &[u8], random: &mut Random) -> usize {
    let place = random.between(0, input.len() as u64) as usize;
    if random.percent(50) {
        return place;
    }
    let line = input[place..].iter().position(|&byte| byte == LINE_END);
    line.map_or(place, |end| place + end + 1)
}

/// Changes one thing.
fn mutate(input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[Vec<u8>], random: &mut Random) {
    let at = place(input, random);
    let until = (at + random.between(1, 40) as usize).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] = random.next() as u8,
        1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 => _ = input.drain(at..until),
        3 => {
            let piece = input[at..until].to_vec();
            let to = place(input, random);
            _ = input.splice(to..to, piece);
        }
        4 => {
            let other = some(inputs, random);
            let from = place(other, random);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        5 | 6 => _ = input.splice(at..at, some(words, random).iter().copied()),
        // What is chosen beside the bytes stands in front.
        _ if input.len() > 4 => input[random.below(4) as usize] = random.next() as u8,
        _ => input.push(random.next() as u8),
    }
}

/// The words of libFuzzer's dictionaries.
fn words() -> Vec<Vec<u8>> {
    let texts = ["http.dict", "resp.dict"].map(|name| fs::read_to_string(folder("dictionaries").join(name)));
    let texts = texts.map(|text| text.expect("a dictionary"));
    let words = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix('"'));
    words.map(|word| unescape(word.trim_end_matches('"'))).collect()
}

/// Bytes that are no text stand as `\x` and two hexadecimal digits.
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
