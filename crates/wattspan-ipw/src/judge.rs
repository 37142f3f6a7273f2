//! Scoring by a judge model for answers that no rule can score.
//!
//! Builds the prompt (`judge_prompt.txt`), parses verdicts, and stores them (`verdicts.jsonl`) by a key over judge,
//! prompt, question and reply, so that scoring again sends no request. Unreadable verdicts are stored, too, but
//! requested again; the last one counts. Invariant: the judge's energy is stored with its verdict and never added to
//! the run's; an unreadable verdict gives no score.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};
use wattspan_system::private_file;

use super::extract::{parse_number, strip_reasoning};
use super::question::Question;

pub const PROMPT_TEMPLATE: &str = include_str!("judge_prompt.txt");

/// A judge's verdict on a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgeVerdict {
    /// The key: a hash of judge, prompt, question and reply.
    pub on: String,
    /// Score from 0 (incorrect) to 1 (correct); absent if the verdict was unreadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The judge's reply.
    pub said: String,
    /// Energy of the judge's query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_uj: Option<u64>,
}

/// Builds the judge's prompt.
pub fn render_prompt(question: &Question, reply: &str) -> String {
    // One pass over the template: braces within a reply are not placeholders.
    let mut text = String::new();
    let mut rest = PROMPT_TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        text.push_str(match name {
            "question" => &question.prompt,
            "answer" => &question.answer,
            "reply" => reply,
            _ => "",
        });
        rest = after;
    }
    text + rest
}

/// Parses the score from the last line after the reasoning that begins with "Verdict:". A reply that was cut off
/// (`finish` is "length") has no verdict.
pub fn parse_verdict(reply: &str, finish: Option<&str>) -> Option<f64> {
    if finish == Some("length") {
        return None;
    }
    let reply = strip_reasoning(reply);
    let lower = reply.to_ascii_lowercase();
    let (_, after) = lower.rsplit_once("verdict:")?;
    let word = after.trim_start_matches([' ', '*', '"', '\n']);
    if word.starts_with("incorrect") || word.starts_with("wrong") {
        Some(0.0)
    } else if word.starts_with("correct") || word.starts_with("right") {
        Some(1.0)
    } else {
        let (value, _) = parse_number(word)?;
        (0.0..=1.0).contains(&value).then_some(value)
    }
}

/// Returns the key of a verdict as a 128-bit hash in hexadecimal: two FNV-1a hashes of the same text with different
/// initial values.
pub fn verdict_key(judge: &str, question: &Question, reply: &str) -> String {
    let prompt = render_prompt(question, reply);
    let hash = |mut hasher: FnvHasher| {
        hasher.write(judge.as_bytes());
        hasher.write(&[0xFF]);
        hasher.write(prompt.as_bytes());
        hasher.finish()
    };
    let second = FnvHasher::with_key(0x6c62_272e_07bb_0142);
    format!("{:016x}{:016x}", hash(FnvHasher::default()), hash(second))
}

/// The stored verdicts of a run.
#[derive(Debug)]
pub struct VerdictCache {
    path: PathBuf,
    file: File,
    entries: HashMap<String, JudgeVerdict>,
}

impl VerdictCache {
    /// Reads the stored verdicts and opens the file for appending.
    ///
    /// # Errors
    /// The run's directory cannot be read or written.
    pub fn open(run: &Path) -> io::Result<Self> {
        let path = run.join("verdicts.jsonl");
        let mut file = private_file::append(&path)?;
        let mut known = HashMap::new();
        let mut all_lines_valid = true;
        for line in BufReader::new(File::open(&path)?).split(b'\n') {
            let line = line?;
            match serde_json::from_slice::<JudgeVerdict>(&line) {
                Ok(verdict) => _ = known.insert(verdict.on.clone(), verdict),
                Err(_) => all_lines_valid = false,
            }
        }
        if !all_lines_valid {
            file.write_all(b"\n")?;
        }
        Ok(Self { path, file, entries: known })
    }

    /// Returns a stored verdict; `None` for an unreadable one.
    pub fn get(&self, on: &str) -> Option<&JudgeVerdict> {
        self.entries.get(on).filter(|verdict| verdict.score.is_some())
    }

    /// Stores a verdict.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn insert(&mut self, verdict: JudgeVerdict) -> io::Result<()> {
        let line = serde_json::to_string(&verdict)? + "\n";
        self.file.write_all(line.as_bytes())?;
        self.entries.insert(verdict.on.clone(), verdict);
        Ok(())
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer_format::AnswerFormat;
    use super::*;

    fn question() -> Question {
        Question {
            id: "q".into(),
            subject: "s".into(),
            format: AnswerFormat::Judge,
            prompt: "Why is the sky blue? {{reply}}".into(),
            answer: "Scattering".into(),
            choices: Vec::new(),
        }
    }

    #[test]
    fn the_prompt_is_rendered_in_one_pass() {
        let prompt = render_prompt(&question(), "Because {{answer}} of Rayleigh");
        for part in
            ["Why is the sky blue? {{reply}}", "Scattering", "Because {{answer}} of Rayleigh", "Verdict:"]
        {
            assert!(prompt.contains(part), "{part}");
        }
    }

    #[test]
    fn parses_the_last_verdict_line() {
        for (said, score) in [
            ("Verdict: correct", Some(1.0)),
            ("It is not correct.\n**Verdict:** incorrect", None),
            ("Verdict: CORRECT? No.\nVerdict: Incorrect.", Some(0.0)),
            ("verdict: 0.5", Some(0.5)),
            ("verdict: 7", None),
            ("correct", None),
            ("", None),
        ] {
            let got = parse_verdict(said, Some("stop"));
            let is_bold = said.contains("**");
            assert_eq!(got, if is_bold { Some(0.0) } else { score }, "{said}");
        }
    }

    #[test]
    fn a_truncated_reply_has_no_verdict() {
        let musing = "I must end with exactly \"Verdict: correct\" or \"Verdict: incorrect\". Hm";
        for (said, finish, score) in [
            (format!("<think>{musing}"), "stop", None),
            (format!("<think>{musing}"), "length", None),
            (musing.to_owned(), "length", None),
            (format!("<think>{musing}</think>Wrong sky.\nVerdict: incorrect"), "stop", Some(0.0)),
            (format!("<think>{musing}</think>It claims"), "stop", None),
        ] {
            assert_eq!(parse_verdict(&said, Some(finish)), score, "{said}");
        }
        assert_eq!(parse_verdict("Verdict: correct", None), Some(1.0), "not every server says why it ended");
    }

    #[test]
    fn the_verdict_of_a_reasoning_model_is_in_its_final_channel() {
        for (said, score) in [
            (
                "<|channel|>analysis<|message|>Verdict: correct? No.<|end|><|start|>assistant\
                 <|channel|>final<|message|>It says Mars.\nVerdict: incorrect<|return|>",
                Some(0.0),
            ),
            ("<|channel|>analysis<|message|>So I write \"Verdict: correct\"", None),
            ("[THINK]Verdict: incorrect[/THINK]The same.\nVerdict: correct", Some(1.0)),
            ("<think>Verdict: incorrect</think>\n\n**Verdict: correct**<|im_end|>", Some(1.0)),
            ("Verdict: incorrect, no, wait.</think>Verdict: correct", Some(1.0)),
        ] {
            assert_eq!(parse_verdict(said, Some("stop")), score, "{said}");
        }
    }

    #[test]
    fn unparsable_verdicts_are_not_cached() {
        let dir = tempfile::tempdir().unwrap();
        let given =
            |score, said: &str| JudgeVerdict { on: "x".into(), score, said: said.into(), energy_uj: None };
        let mut verdicts = VerdictCache::open(dir.path()).unwrap();
        verdicts.insert(given(None, "Hm")).unwrap();
        assert_eq!(verdicts.get("x"), None);
        assert_eq!(VerdictCache::open(dir.path()).unwrap().get("x"), None);
        verdicts.insert(given(Some(0.0), "Verdict: incorrect")).unwrap();
        verdicts.insert(given(Some(1.0), "Verdict: correct")).unwrap();
        assert_eq!(VerdictCache::open(dir.path()).unwrap().get("x").unwrap().score, Some(1.0));
    }

    #[test]
    fn verdicts_are_cached_by_their_key() {
        let dir = tempfile::tempdir().unwrap();
        let one = verdict_key("judge", &question(), "reply");
        assert_eq!(one, "96dfe94cc4faf06e103a3ab7a1548dfd", "the keys in users' files stay valid");
        assert_ne!(one, verdict_key("judge", &question(), "Reply"));
        assert_ne!(one, verdict_key("another", &question(), "reply"));
        let verdict = JudgeVerdict {
            on: one.clone(),
            score: Some(1.0),
            said: "Verdict: correct".into(),
            energy_uj: Some(5),
        };
        VerdictCache::open(dir.path()).unwrap().insert(verdict.clone()).unwrap();
        let path = dir.path().join("verdicts.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text += "{\"on\":\"cut";
        std::fs::write(&path, text).unwrap();
        let mut again = VerdictCache::open(dir.path()).unwrap();
        assert_eq!(again.get(&one), Some(&verdict));
        again.insert(JudgeVerdict { on: "two".into(), ..verdict }).unwrap();
        assert!(VerdictCache::open(dir.path()).unwrap().get("two").is_some());
    }
}
