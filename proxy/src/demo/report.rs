//! Steps and how they are shown: a table for people, JSON lines for programs.

use std::io::{self, Write};
use std::time::Instant;

use serde_json::json;

/// Widths of the columns `step` and `expected`; what is longer pushes the rest to the right.
const STEP: usize = 34;
const EXPECTED: usize = 28;

/// What was seen in a step, in the words of its expectation, and what else is worth knowing about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) text: String,
    pub(super) notes: Vec<String>,
}

impl From<&str> for Seen {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<String> for Seen {
    fn from(text: String) -> Self {
        Self { text, notes: Vec::new() }
    }
}

/// How steps are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table; with colours or without.
    Text {
        /// Whether the reader is a terminal that shows colours.
        colour: bool,
    },
    /// One JSON object per line.
    Json,
}

/// Prints steps as they happen and counts them.
pub(super) struct Report<W> {
    out: W,
    form: Form,
    started: Instant,
    steps: usize,
    failed: usize,
}

impl<W: Write> Report<W> {
    pub(super) fn new(out: W, form: Form) -> Self {
        Self { out, form, started: Instant::now(), steps: 0, failed: 0 }
    }

    /// Text that only people read.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        match self.form {
            Form::Text { .. } => self.write(text),
            Form::Json => Ok(()),
        }
    }

    /// Begins a part of the story.
    pub(super) fn chapter(&mut self, title: &str) -> io::Result<()> {
        let title = self.paint("1", title);
        self.say(&format!("{}{title}\n", if self.steps == 0 { "" } else { "\n" }))
    }

    /// Names the columns.
    pub(super) fn columns(&mut self) -> io::Result<()> {
        let line = format!("  {:4}  {:STEP$}  {:EXPECTED$}  got", "", "step", "expected");
        let line = self.paint("2", &line);
        self.say(&format!("\n{line}\n"))
    }

    /// A step is fine when what was seen reads exactly as expected. Nothing seen is an error, shown in its place.
    pub(super) fn step<E: std::fmt::Display>(
        &mut self,
        name: &str,
        expected: &str,
        seen: Result<Seen, E>,
    ) -> io::Result<()> {
        let seen = seen.unwrap_or_else(|error| Seen::from(error.to_string()));
        let ok = seen.text == expected;
        self.steps += 1;
        self.failed += usize::from(!ok);
        match self.form {
            Form::Text { .. } => self.row(name, expected, &seen, ok),
            Form::Json => {
                let mut object = json!({ "name": name, "expected": expected, "got": seen.text, "ok": ok });
                if !seen.notes.is_empty() {
                    object["notes"] = json!(seen.notes);
                }
                self.write(&format!("{object}\n"))
            }
        }
    }

    /// The last line; whether every step was as expected.
    pub(super) fn end(&mut self) -> io::Result<bool> {
        let seconds = self.started.elapsed().as_secs_f64();
        let line = match self.failed {
            0 => self.paint("1;32", &format!("All {} steps as expected", self.steps)),
            failed => self.paint("1;31", &format!("{failed} of {} steps not as expected", self.steps)),
        };
        self.say(&format!("\n{line}, in {seconds:.1} s.\n"))?;
        Ok(self.failed == 0)
    }

    fn row(&mut self, name: &str, expected: &str, seen: &Seen, ok: bool) -> io::Result<()> {
        let (mark, got) = match ok {
            true => (self.paint("32", "ok  "), seen.text.clone()),
            false => (self.paint("1;31", "FAIL"), self.paint("31", &seen.text)),
        };
        let mut text = format!("  {mark}  {name:STEP$}  {expected:EXPECTED$}  {got}\n");
        for note in &seen.notes {
            text += &self.paint("2", &format!("          {note}"));
            text.push('\n');
        }
        self.write(&text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        match self.form {
            Form::Text { colour: true } => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }

    /// A reader that closed the pipe has seen enough: the story goes on without words, and the exit code tells its end.
    fn write(&mut self, text: &str) -> io::Result<()> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{Form, Report, Seen};

    fn printed(form: Form, story: impl Fn(&mut Report<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        story(&mut Report::new(&mut out, form));
        String::from_utf8(out).unwrap()
    }

    fn seen(text: &str, notes: &[&str]) -> Result<Seen, Infallible> {
        Ok(Seen { text: text.to_owned(), notes: notes.iter().map(|&note| note.to_owned()).collect() })
    }

    #[test]
    fn a_step_that_reads_otherwise_differs() {
        for form in [Form::Json, Form::Text { colour: false }] {
            printed(form, |report| {
                report.step("a", "200", seen("200", &[])).unwrap();
                assert!(report.end().unwrap());
                report.step("b", "200", seen("403", &[])).unwrap();
                assert!(!report.end().unwrap());
            });
        }
    }

    #[test]
    fn json_is_one_object_per_step_and_nothing_else() {
        let text = printed(Form::Json, |report| {
            report.chapter("1").unwrap();
            report.columns().unwrap();
            report.step("a", "200", seen("200", &[])).unwrap();
            report.step("b", "reset", Err::<Seen, _>("refused")).unwrap();
            report.step("c", "403", seen("403", &["why"])).unwrap();
            report.end().unwrap();
        });
        assert_eq!(
            text,
            "{\"name\":\"a\",\"expected\":\"200\",\"got\":\"200\",\"ok\":true}\n\
             {\"name\":\"b\",\"expected\":\"reset\",\"got\":\"refused\",\"ok\":false}\n\
             {\"name\":\"c\",\"expected\":\"403\",\"got\":\"403\",\"ok\":true,\"notes\":[\"why\"]}\n"
        );
    }

    /// Like a pipe whose reader is gone.
    struct Closed;

    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn without_a_reader_the_steps_still_count() {
        let mut report = Report::new(Closed, Form::Json);
        report.step("a", "200", seen("200", &[])).unwrap();
        assert!(report.end().unwrap());
        report.step("b", "200", seen("403", &[])).unwrap();
        assert!(!report.end().unwrap());
    }

    #[test]
    fn only_a_terminal_gets_colours() {
        let story = |report: &mut Report<&mut Vec<u8>>| report.step("a", "200", seen("403", &["n"])).unwrap();
        assert!(!printed(Form::Text { colour: false }, story).contains('\u{1b}'));
        assert!(printed(Form::Text { colour: true }, story).contains("\u{1b}[1;31mFAIL"));
    }
}
