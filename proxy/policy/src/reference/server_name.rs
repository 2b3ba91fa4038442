//! Section 1.7: patterns for TLS server names, compared label by label.

/// A pattern in lower case.
pub(super) struct Pattern(Vec<Label>);

enum Label {
    /// `**`, or a pattern that is nothing but `*`: one or more whole labels.
    Labels,
    /// Anything else: `*` in it stands for zero or more characters.
    One(Vec<u8>),
}

impl Pattern {
    /// `None` when the text is no pattern.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.len() > 255 {
            return None;
        }
        if text == "*" {
            return Some(Self(vec![Label::Labels]));
        }
        text.split('.').map(|label| Label::read(label.as_bytes())).collect::<Option<_>>().map(Self)
    }

    /// A pattern without `*` equals the name; `*` and `**` stand for characters and labels of a host name only.
    pub(super) fn accepts(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        accepts_labels(&self.0, &labels)
    }
}

impl Label {
    fn read(label: &[u8]) -> Option<Self> {
        if label == b"**" {
            return Some(Self::Labels);
        }
        let known = !label.is_empty() && label.iter().all(|b| is_host(b.to_ascii_lowercase()) || *b == b'*');
        let doubled = label.windows(2).any(|pair| pair == b"**");
        (known && !doubled).then(|| Self::One(label.to_ascii_lowercase()))
    }
}

const fn is_host(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')
}

/// Whether `pattern` accepts all of `labels`, worked out from the end of both: `accepted[j]` is about the labels from `j`
/// on and the part of the pattern looked at so far.
fn accepts_labels(pattern: &[Label], labels: &[&[u8]]) -> bool {
    let mut accepted = vec![false; labels.len() + 1];
    accepted[labels.len()] = true;
    for part in pattern.iter().rev() {
        let rest = accepted;
        accepted = vec![false; labels.len() + 1];
        for (j, label) in labels.iter().enumerate().rev() {
            accepted[j] = match part {
                Label::One(text) => accepts_characters(text, label) && rest[j + 1],
                // This label, and then either no further ones or some.
                Label::Labels => {
                    !label.is_empty() && label.iter().copied().all(is_host) && (rest[j + 1] || accepted[j + 1])
                }
            };
        }
    }
    accepted[0]
}

/// The same for the characters of one label.
fn accepts_characters(pattern: &[u8], label: &[u8]) -> bool {
    let mut accepted = vec![false; label.len() + 1];
    accepted[label.len()] = true;
    for part in pattern.iter().rev() {
        let rest = accepted;
        accepted = vec![false; label.len() + 1];
        accepted[label.len()] = *part == b'*' && rest[label.len()];
        for (j, byte) in label.iter().enumerate().rev() {
            accepted[j] = match part {
                b'*' => rest[j] || (is_host(*byte) && accepted[j + 1]),
                expected => expected == byte && rest[j + 1],
            };
        }
    }
    accepted[0]
}
