//! A model as a judge of answers that no rule can score.
//!
//! Owns the prompt (`judge.txt`), how a verdict is read, and the verdicts of a run (`verdicts.jsonl`): a verdict once given is
//! kept under what it was given on (judge, prompt, question, reply), so that scoring again repeats it and asks nobody. Words that
//! could not be read are kept too, but are no verdict: the judge is asked again, and its last word counts.
//! Invariant: what the judge used is kept with its verdict and never added to the run's energies; a judge whose words cannot be
//! read gives no score.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::extract::after_thinking;
use super::fnv::{self, fnv1a};
use super::question::Question;
use crate::private_file;

/// What the judge is told.
pub const PROMPT: &str = include_str!("judge.txt");

/// A verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What it was given on.
    pub on: String,
    /// Right 1, wrong 0, or between; absent: the judge's words could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The judge's words.
    pub said: String,
    /// What the judge used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_uj: Option<u64>,
}

/// The question to the judge.
pub fn prompt(question: &Question, reply: &str) -> String {
    // One pass over the template, so that braces in a reply are only braces.
    let mut out = String::new();
    let mut rest = PROMPT;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        out.push_str(match name {
            "question" => &question.prompt,
            "answer" => &question.answer,
            "reply" => reply,
            _ => "",
        });
        rest = after;
    }
    out + rest
}

/// The score in a judge's words: the last line behind its thoughts that says "Verdict:". A judge that was cut off (`finish` is
/// "length") has not come to its verdict, whatever it said on the way.
pub fn read(said: &str, finish: Option<&str>) -> Option<f64> {
    if finish == Some("length") {
        return None;
    }
    let said = after_thinking(said);
    let lower = said.to_ascii_lowercase();
    let (_, after) = lower.rsplit_once("verdict:")?;
    let word = after.trim_start_matches([' ', '*', '"', '\n']);
    if word.starts_with("incorrect") || word.starts_with("wrong") {
        Some(0.0)
    } else if word.starts_with("correct") || word.starts_with("right") {
        Some(1.0)
    } else {
        let (value, _) = super::number::number(word)?;
        (0.0..=1.0).contains(&value).then_some(value)
    }
}

/// What a verdict is given on, as a 128-bit hash in hexadecimal: two FNV-1a over the same text with different beginnings.
pub fn on(judge: &str, question: &Question, reply: &str) -> String {
    let prompt = prompt(question, reply);
    let hash = |begin| fnv1a(begin, judge.bytes().chain([0xFF]).chain(prompt.bytes()));
    format!("{:016x}{:016x}", hash(fnv::BEGIN), hash(0x6c62_272e_07bb_0142))
}

/// The verdicts of a run.
#[derive(Debug)]
pub struct Verdicts {
    path: PathBuf,
    file: File,
    known: HashMap<String, Verdict>,
}

impl Verdicts {
    /// Those that are there, and room for more.
    ///
    /// # Errors
    /// The run's directory cannot be read or written.
    pub fn open(run: &Path) -> io::Result<Self> {
        let path = run.join("verdicts.jsonl");
        let mut file = private_file::append(&path)?;
        let mut known = HashMap::new();
        let mut whole = true;
        for line in BufReader::new(File::open(&path)?).split(b'\n') {
            let line = line?;
            match serde_json::from_slice::<Verdict>(&line) {
                Ok(verdict) => _ = known.insert(verdict.on.clone(), verdict),
                Err(_) => whole = false,
            }
        }
        if !whole {
            file.write_all(b"\n")?;
        }
        Ok(Self { path, file, known })
    }

    /// A verdict that was given before; one that could not be read is none.
    pub fn known(&self, on: &str) -> Option<&Verdict> {
        self.known.get(on).filter(|verdict| verdict.score.is_some())
    }

    /// Keeps one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self, verdict: Verdict) -> io::Result<()> {
        let line = serde_json::to_string(&verdict)? + "\n";
        self.file.write_all(line.as_bytes())?;
        self.known.insert(verdict.on.clone(), verdict);
        Ok(())
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::super::question::Format;
    use super::*;

    fn question() -> Question {
        Question {
            id: "q".into(),
            subject: "s".into(),
            format: Format::Judge,
            prompt: "Why is the sky blue? {{reply}}".into(),
            answer: "Scattering".into(),
            choices: Vec::new(),
        }
    }

    #[test]
    fn the_judge_sees_question_answer_and_reply_and_braces_in_them_do_nothing() {
        let prompt = prompt(&question(), "Because {{answer}} of Rayleigh");
        for part in
            ["Why is the sky blue? {{reply}}", "Scattering", "Because {{answer}} of Rayleigh", "Verdict:"]
        {
            assert!(prompt.contains(part), "{part}");
        }
    }

    #[test]
    fn a_verdict_is_read_from_its_last_line_or_not_at_all() {
        for (said, score) in [
            ("Verdict: correct", Some(1.0)),
            ("It is not correct.\n**Verdict:** incorrect", None),
            ("Verdict: CORRECT? No.\nVerdict: Incorrect.", Some(0.0)),
            ("verdict: 0.5", Some(0.5)),
            ("verdict: 7", None),
            ("correct", None),
            ("", None),
        ] {
            let got = read(said, Some("stop"));
            let bold = said.contains("**");
            assert_eq!(got, if bold { Some(0.0) } else { score }, "{said}");
        }
    }

    #[test]
    fn a_judge_that_was_cut_off_gave_no_verdict() {
        let musing = "I must end with exactly \"Verdict: correct\" or \"Verdict: incorrect\". Hm";
        for (said, finish, score) in [
            (format!("<think>{musing}"), "stop", None),
            (format!("<think>{musing}"), "length", None),
            (musing.to_owned(), "length", None),
            (format!("<think>{musing}</think>Wrong sky.\nVerdict: incorrect"), "stop", Some(0.0)),
            (format!("<think>{musing}</think>It claims"), "stop", None),
        ] {
            assert_eq!(read(&said, Some(finish)), score, "{said}");
        }
        assert_eq!(read("Verdict: correct", None), Some(1.0), "not every server says why it ended");
    }

    #[test]
    fn a_verdict_that_could_not_be_read_is_none_and_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let given = |score, said: &str| Verdict { on: "x".into(), score, said: said.into(), energy_uj: None };
        let mut verdicts = Verdicts::open(dir.path()).unwrap();
        verdicts.keep(given(None, "Hm")).unwrap();
        assert_eq!(verdicts.known("x"), None);
        assert_eq!(Verdicts::open(dir.path()).unwrap().known("x"), None);
        verdicts.keep(given(Some(0.0), "Verdict: incorrect")).unwrap();
        verdicts.keep(given(Some(1.0), "Verdict: correct")).unwrap();
        assert_eq!(Verdicts::open(dir.path()).unwrap().known("x").unwrap().score, Some(1.0));
    }

    #[test]
    fn a_verdict_is_remembered_under_what_it_was_given_on() {
        let dir = tempfile::tempdir().unwrap();
        let one = on("judge", &question(), "reply");
        assert_ne!(one, on("judge", &question(), "Reply"));
        assert_ne!(one, on("another", &question(), "reply"));
        let verdict = Verdict {
            on: one.clone(),
            score: Some(1.0),
            said: "Verdict: correct".into(),
            energy_uj: Some(5),
        };
        Verdicts::open(dir.path()).unwrap().keep(verdict.clone()).unwrap();
        let path = dir.path().join("verdicts.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text += "{\"on\":\"cut";
        std::fs::write(&path, text).unwrap();
        let mut again = Verdicts::open(dir.path()).unwrap();
        assert_eq!(again.known(&one), Some(&verdict));
        again.keep(Verdict { on: "two".into(), ..verdict }).unwrap();
        assert!(Verdicts::open(dir.path()).unwrap().known("two").is_some());
    }
}
