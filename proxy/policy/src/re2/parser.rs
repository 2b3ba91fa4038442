//! RE2's grammar. Greediness and groups are read and dropped: neither changes which whole values match.

use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, Look, Repetition};

use super::class::{self, CharSet};
use super::{MAX_DEPTH, MAX_REPEAT};

pub(super) fn parse(pattern: &str) -> Result<Hir, String> {
    let mut parser = Parser { rest: pattern, flags: Flags::default(), depth: 0 };
    let whole = parser.alternation()?;
    match parser.rest {
        "" => Ok(whole.hir),
        _ => Err("unexpected `)`".into()),
    }
}

#[derive(Clone, Copy, Default)]
struct Flags {
    ignore_case: bool,
    multi_line: bool,
    dot_newline: bool,
}

struct Parser<'p> {
    rest: &'p str,
    flags: Flags,
    depth: u32,
}

/// An operand and how often counted repetitions copy it.
struct Node {
    hir: Hir,
    copies: u32,
}

impl Node {
    const fn once(hir: Hir) -> Self {
        Self { hir, copies: 1 }
    }
}

/// What stands alone in an expression.
enum Atom {
    /// Matches itself.
    Character(char),
    Other(Hir),
}

/// The operands of one branch. Characters that follow each other are one operand, until an operator takes the last of
/// them: most of an expression is such text, and an operand for each character would be most of the cost of reading it.
#[derive(Default)]
struct Sequence {
    nodes: Vec<Node>,
    /// Text behind `nodes`.
    text: String,
}

impl Sequence {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.text.is_empty()
    }

    fn push(&mut self, node: Node) {
        self.end_text();
        self.nodes.push(node);
    }

    fn push_atom(&mut self, atom: Atom) {
        match atom {
            Atom::Character(c) => self.text.push(c),
            Atom::Other(hir) => self.push(Node::once(hir)),
        }
    }

    /// Takes what an operator stands behind.
    fn pop(&mut self) -> Option<Node> {
        match self.text.pop() {
            Some(c) => Some(Node::once(Hir::literal(c.encode_utf8(&mut [0; 4]).as_bytes()))),
            None => self.nodes.pop(),
        }
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.nodes.push(Node::once(Hir::literal(text.into_bytes())));
        }
    }

    fn into_node(mut self) -> Node {
        self.end_text();
        let copies = self.nodes.iter().map(|node| node.copies).fold(1, u32::max);
        Node { hir: Hir::concat(self.nodes.into_iter().map(|node| node.hir).collect()), copies }
    }
}

impl<'p> Parser<'p> {
    fn eat(&mut self, prefix: &str) -> bool {
        self.rest.strip_prefix(prefix).is_some_and(|rest| {
            self.rest = rest;
            true
        })
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// Up to the end or the `)` that closes the group.
    fn alternation(&mut self) -> Result<Node, String> {
        let mut branches = Vec::new();
        let mut copies = 1;
        loop {
            let mut sequence = Sequence::default();
            let mut last = Last::Nothing;
            while !self.rest.is_empty() && !self.rest.starts_with(['|', ')']) {
                last = self.piece(&mut sequence, last)?;
            }
            let branch = sequence.into_node();
            copies = copies.max(branch.copies);
            branches.push(branch.hir);
            if !self.eat("|") {
                break;
            }
        }
        Ok(Node { hir: Hir::alternation(branches), copies })
    }

    /// One operand, operator or flag setting.
    fn piece(&mut self, sequence: &mut Sequence, last: Last) -> Result<Last, String> {
        let before = self.rest;
        if let Some((min, max)) = self.repetition()? {
            let operator = &before[..before.len() - self.rest.len()];
            match (last, sequence.pop()) {
                (Last::Operand, Some(operand)) => sequence.push(repeat(operand, min, max, operator)?),
                (Last::Repetition, _) => {
                    return Err(format!("bad repetition operator: repeated `{operator}`"));
                }
                (Last::FlagsAfterOperand, _) => {
                    return Err(format!("`{operator}` after a flag group is not supported; put it before"));
                }
                _ => return Err(format!("no argument for repetition operator: `{operator}`")),
            }
            return Ok(Last::Repetition);
        }
        if self.eat(r"\Q") {
            let (quoted, rest) = self.rest.split_once(r"\E").unwrap_or((self.rest, ""));
            self.rest = rest;
            for c in quoted.chars() {
                sequence.push_atom(self.literal(c)?);
            }
            return Ok(match last {
                // Nothing was quoted, but a further repetition no longer stands directly behind the one before.
                Last::Repetition => Last::Operand,
                last if quoted.is_empty() => last,
                _ => Last::Operand,
            });
        }
        if self.eat("(") {
            return match self.group()? {
                Some(node) => {
                    sequence.push(node);
                    Ok(Last::Operand)
                }
                None if sequence.is_empty() => Ok(Last::Nothing),
                None => Ok(Last::FlagsAfterOperand),
            };
        }
        let atom = self.atom()?;
        sequence.push_atom(atom);
        Ok(Last::Operand)
    }

    /// After `(`: a group, or `None` for flags that hold from here on.
    fn group(&mut self) -> Result<Option<Node>, String> {
        let outer = self.flags;
        if self.eat("?P<") || (!self.rest.starts_with("?<=") && !self.rest.starts_with("?<!") && self.eat("?<")) {
            self.group_name()?;
        } else if self.eat("?") && !self.set_flags()? {
            return Ok(None);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("groups are nested deeper than {MAX_DEPTH}"));
        }
        let node = self.alternation()?;
        self.depth -= 1;
        self.flags = outer;
        if !self.eat(")") {
            return Err("missing `)`".into());
        }
        Ok(Some(node))
    }

    fn group_name(&mut self) -> Result<(), String> {
        let (name, rest) = self.rest.split_once('>').ok_or("group name without `>`")?;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("group name {name:?}: only ASCII letters, digits and `_` are supported"));
        }
        self.rest = rest;
        Ok(())
    }

    /// After `(?`: reads flags; `true` when a group follows them, `false` when they stand alone.
    fn set_flags(&mut self) -> Result<bool, String> {
        let (mut value, mut pending) = (true, false);
        loop {
            let c = self.next().ok_or("missing `)`")?;
            let flag = match c {
                'i' => &mut self.flags.ignore_case,
                'm' => &mut self.flags.multi_line,
                's' => &mut self.flags.dot_newline,
                // Swaps greediness, which whole matches do not depend on.
                'U' => &mut false,
                '-' if value => {
                    (value, pending) = (false, true);
                    continue;
                }
                ':' if !pending => return Ok(true),
                ')' if !pending => return Ok(false),
                _ => return Err(format!("invalid or unsupported group syntax near `(?…{c}`")),
            };
            *flag = value;
            pending = false;
        }
    }

    /// `*`, `+`, `?` or a counted repetition, with a `?` behind it. A brace that is not a valid count is a literal.
    fn repetition(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        let (min, max) = if self.eat("*") {
            (0, None)
        } else if self.eat("+") {
            (1, None)
        } else if self.eat("?") {
            (0, Some(1))
        } else if let Some((count, rest)) = counted(self.rest) {
            self.rest = rest;
            count?
        } else {
            return Ok(None);
        };
        self.eat("?");
        Ok(Some((min, max)))
    }

    /// Anything that is not an operator or a group.
    fn atom(&mut self) -> Result<Atom, String> {
        let Some(c) = self.next() else {
            return Ok(Atom::Other(Hir::empty()));
        };
        Ok(Atom::Other(match c {
            '^' if self.flags.multi_line => Hir::look(Look::StartLF),
            '^' => Hir::look(Look::Start),
            '$' if self.flags.multi_line => Hir::look(Look::EndLF),
            '$' => Hir::look(Look::End),
            '.' if self.flags.dot_newline => CharSet::empty().negate().to_hir(),
            '.' => CharSet::of(&[('\n', '\n')]).negate().to_hir(),
            '[' => self.class()?.to_hir(),
            '\\' => return self.escape(),
            c => return self.literal(c),
        }))
    }

    fn literal(&self, c: char) -> Result<Atom, String> {
        if self.flags.ignore_case && (c.is_ascii_alphabetic() || !c.is_ascii()) {
            return Ok(Atom::Other(CharSet::of(&[(c, c)]).fold()?.to_hir()));
        }
        Ok(Atom::Character(c))
    }

    /// After `\`, outside a class.
    fn escape(&mut self) -> Result<Atom, String> {
        let letter = self.rest.chars().next().ok_or("trailing `\\`")?;
        let simple = match letter {
            'A' => Some(Hir::look(Look::Start)),
            'z' => Some(Hir::look(Look::End)),
            'b' => Some(Hir::look(Look::WordAscii)),
            'B' => Some(Hir::look(Look::WordAsciiNegate)),
            'C' => Some(Hir::class(Class::Bytes(ClassBytes::new([ClassBytesRange::new(0, 255)])))),
            _ => None,
        };
        if let Some(hir) = simple {
            self.next();
            return Ok(Atom::Other(hir));
        }
        match self.class_escape()? {
            Some(set) => Ok(Atom::Other(set.to_hir())),
            None => {
                let c = self.character_escape()?;
                self.literal(c)
            }
        }
    }

    /// After `\`: one of the letters that stand for a set, with the case folded when flags say so.
    fn class_escape(&mut self) -> Result<Option<CharSet>, String> {
        let Some(letter) = self.rest.chars().next() else {
            return Ok(None);
        };
        if letter == 'p' || letter == 'P' {
            return Err(format!("Unicode classes (`\\{letter}`) are not supported; list the characters"));
        }
        let Some(set) = class::perl(letter.to_ascii_lowercase()) else {
            return Ok(None);
        };
        self.next();
        self.signed(set, letter.is_ascii_uppercase()).map(Some)
    }

    fn signed(&self, set: CharSet, negated: bool) -> Result<CharSet, String> {
        let set = if self.flags.ignore_case { set.fold()? } else { set };
        Ok(if negated { set.negate() } else { set })
    }

    /// After `\`: the escape of one character.
    fn character_escape(&mut self) -> Result<char, String> {
        let c = self.next().ok_or("trailing `\\`")?;
        let bad = || format!("invalid escape sequence: `\\{c}`");
        match c {
            'a' => Ok('\x07'),
            'f' => Ok('\x0c'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'v' => Ok('\x0b'),
            // A single digit other than 0 would be a back-reference.
            '1'..='7' if !self.rest.starts_with(|c: char| ('0'..='7').contains(&c)) => Err(bad()),
            '0'..='7' => {
                let mut value = c.to_digit(8).ok_or_else(bad)?;
                for _ in 0..2 {
                    let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    self.next();
                    value = value * 8 + digit;
                }
                char::from_u32(value).ok_or_else(bad)
            }
            'x' => {
                let number = self.hexadecimal().ok_or_else(bad)?;
                match char::from_u32(number) {
                    Some(c) => Ok(c),
                    None if number <= u32::from(char::MAX) => {
                        Err(format!("`\\x{{{number:x}}}`: surrogates are not supported"))
                    }
                    None => Err(bad()),
                }
            }
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c),
            _ => Err(bad()),
        }
    }

    /// After `\x`: two digits, or any number in braces.
    fn hexadecimal(&mut self) -> Option<u32> {
        let digits = if self.eat("{") {
            let (digits, rest) = self.rest.split_once('}')?;
            self.rest = rest;
            digits
        } else {
            let digits = self.rest.get(..2)?;
            self.rest = &self.rest[2..];
            digits
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u32::from_str_radix(digits, 16).ok()
    }

    /// After `[`.
    fn class(&mut self) -> Result<CharSet, String> {
        let mut parts = Vec::new();
        let negated = self.eat("^");
        let mut first = true;
        while first || !self.rest.starts_with(']') {
            first = false;
            parts.push(self.class_part()?);
        }
        self.eat("]");
        let set = CharSet::union(&parts);
        Ok(if negated { set.negate() } else { set })
    }

    fn class_part(&mut self) -> Result<CharSet, String> {
        if self.rest.is_empty() {
            return Err("missing `]`".into());
        }
        if let Some(rest) = self.rest.strip_prefix("[:")
            && let Some((name, rest)) = rest.split_once(":]")
        {
            self.rest = rest;
            let (bare, negated) = name.strip_prefix('^').map_or((name, false), |bare| (bare, true));
            let set = class::posix(bare).ok_or_else(|| format!("invalid character class: `[:{name}:]`"))?;
            return self.signed(set, negated);
        }
        if let Some(rest) = self.rest.strip_prefix('\\') {
            let before = std::mem::replace(&mut self.rest, rest);
            if let Some(set) = self.class_escape()? {
                return Ok(set);
            }
            self.rest = before;
        }
        let first = self.class_character()?;
        let mut last = first;
        if self.rest.starts_with('-') && !self.rest.starts_with("-]") && self.rest.len() > 1 {
            self.eat("-");
            last = self.class_character()?;
            if last < first {
                return Err(format!("invalid character class range: `{first}-{last}`"));
            }
        }
        self.signed(CharSet::of(&[(first, last)]), false)
    }

    fn class_character(&mut self) -> Result<char, String> {
        if self.eat("\\") {
            return self.character_escape();
        }
        self.next().ok_or_else(|| "missing `]`".into())
    }
}

/// What stands before an operator.
#[derive(Clone, Copy)]
enum Last {
    Nothing,
    Operand,
    Repetition,
    /// RE2 would reach through the flags to the operand before them.
    FlagsAfterOperand,
}

type Count = (u32, Option<u32>);

/// `{n}`, `{n,}` or `{n,m}` at the front of `text`, and what follows it.
fn counted(text: &str) -> Option<(Result<Count, String>, &str)> {
    let (inside, rest) = text.strip_prefix('{')?.split_once('}')?;
    let (min, max) = inside.split_once(',').unwrap_or((inside, inside));
    let number = |digits: &str| {
        let leading_zero = digits.len() > 1 && digits.starts_with('0');
        let digits_only = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // RE2 reads no number of more than nine digits: the brace is a literal then.
        let readable = digits_only && !leading_zero && digits.len() <= 9;
        readable.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let min = number(min)?;
    let max = if max.is_empty() { None } else { Some(number(max)?) };
    let fits = min <= MAX_REPEAT && max.is_none_or(|max| (min..=MAX_REPEAT).contains(&max));
    let count = if fits {
        Ok((min, max))
    } else {
        Err(format!("invalid repetition size: `{{{inside}}}` (at most {MAX_REPEAT})"))
    };
    Some((count, rest))
}

fn repeat(operand: Node, min: u32, max: Option<u32>, operator: &str) -> Result<Node, String> {
    let mut copies = operand.copies;
    if operator.starts_with('{') {
        copies = copies.saturating_mul(max.unwrap_or(min).max(1));
        if copies > MAX_REPEAT {
            return Err(format!("invalid repetition size: `{operator}` inside others gives more than {MAX_REPEAT}"));
        }
    }
    let hir = Hir::repetition(Repetition { min, max, greedy: true, sub: Box::new(operand.hir) });
    Ok(Node { hir, copies })
}
