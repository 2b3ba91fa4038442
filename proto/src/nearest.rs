//! The name that a misspelt one stands for.

/// The candidate that `word` most likely means: one that fewer than half of its letters, and at most three, set apart.
/// Upper and lower case and underscores make no difference.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = folded(word);
    candidates
        .iter()
        .map(|candidate| (edits(&word, &folded(candidate)), *candidate))
        .filter(|(edits, candidate)| *edits <= 3 && edits * 2 < candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// No name is longer, and comparing takes time by the product of two lengths.
const LONGEST: usize = 100;

fn folded(word: &str) -> Vec<char> {
    word.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// Least number of letters inserted, removed or replaced that turns one word into the other (Levenshtein).
fn edits(one: &[char], other: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, counterpart) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != counterpart);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_is_near() {
        let known = ["headers", "headerMatches", "ingressPerPortPolicies", "port"];
        for (word, expected) in [
            ("header", Some("headers")),
            ("header_matchs", Some("headerMatches")),
            ("ingress_per_port_policy", Some("ingressPerPortPolicies")),
            ("prot", None),
            ("Port", Some("port")),
            ("path", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), expected, "{word}");
        }
        assert_eq!(nearest(&"h".repeat(1 << 20), &known), None);
    }
}
