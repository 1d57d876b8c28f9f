//! Names for jobs that are given none: two words that people can say and type.

use std::hash::{BuildHasher, Hasher, RandomState};

const ADJECTIVES: [&str; 48] = [
    "amber", "bold", "brave", "brisk", "calm", "clever", "cosmic", "crisp", "daring", "deft", "eager",
    "early", "fair", "fleet", "gentle", "glad", "golden", "happy", "hardy", "humble", "jolly", "keen",
    "kind", "lively", "loyal", "lucid", "mellow", "merry", "mighty", "modest", "nimble", "noble", "patient",
    "plucky", "polite", "proud", "quick", "quiet", "ready", "serene", "sharp", "silver", "steady", "sunny",
    "swift", "tidy", "vivid", "wise",
];

const SURNAMES: [&str; 48] = [
    "abel", "avogadro", "babbage", "bell", "bohr", "boole", "brahe", "cantor", "carson", "cerf", "curie",
    "darwin", "dijkstra", "dirac", "edison", "euclid", "euler", "faraday", "fermat", "fermi", "galilei",
    "galois", "gauss", "germain", "goodall", "gould", "hamilton", "hopper", "hypatia", "kepler", "knuth",
    "lamarr", "liskov", "lovelace", "mendel", "meitner", "newton", "noether", "pascal", "pasteur", "perlman",
    "planck", "ride", "shannon", "tesla", "turing", "volta", "wu",
];

/// How many draws are made before a number goes behind the name.
const DRAWS_MAX: usize = 32;

/// A name that is not taken.
pub fn draw(is_taken: impl Fn(&str) -> bool) -> String {
    let mut name = String::new();
    for _ in 0..DRAWS_MAX {
        name = format!("{}_{}", pick(&ADJECTIVES), pick(&SURNAMES));
        if !is_taken(&name) {
            return name;
        }
    }
    let numbered = (2u32..).map(|number| format!("{name}{number}"));
    numbered.into_iter().find(|name| !is_taken(name)).unwrap_or(name)
}

fn pick<'a>(words: &[&'a str]) -> &'a str {
    // The keys of a fresh hasher are random, which is all the chance that a name needs.
    let drawn = usize::try_from(RandomState::new().build_hasher().finish() % 1009).unwrap_or(0);
    words.iter().cycle().nth(drawn).copied().unwrap_or("job")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_two_words_and_not_taken() {
        let name = draw(|_| false);
        let (adjective, surname) = name.split_once('_').expect("two words");
        assert!(
            ADJECTIVES.contains(&adjective) && SURNAMES.contains(&surname),
            "{name}"
        );
        // All plain names taken, and the first numbered one too.
        let name = draw(|name| !name.ends_with('3'));
        assert!(name.ends_with('3') && name.contains('_'), "{name}");
        let names: std::collections::BTreeSet<String> = (0..64).map(|_| draw(|_| false)).collect();
        assert!(names.len() > 1, "they are drawn");
    }
}
