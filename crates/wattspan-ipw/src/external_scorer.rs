//! Scoring by an external command, in any language.
//!
//! The command reads one JSON object a line from its standard input ([`ScorerRequest`]) and writes one for each to its
//! standard output ([`ScorerReply`]), in any order. It ends after its input has ended. Invariant: each reply is passed
//! on as soon as it is read, so that a command that dies, hangs or writes garbage loses no score it has given.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use serde::{Deserialize, Serialize};
use wattspan_http::line_decoder::{DecodedLine, LineDecoder};

use super::answer_format::AnswerFormat;
use super::llm_api::reply::one_line;

/// The longest line of a scorer that is read.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The number of invalid lines that are quoted in full.
const MAX_QUOTED: usize = 5;

/// An answer to score: a line of the command's input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScorerRequest<'a> {
    /// The id of the question.
    pub id: &'a str,
    /// The repeat of the question.
    pub repeat: u32,
    /// The subject of the question.
    pub subject: &'a str,
    /// The answer format of the question.
    pub format: AnswerFormat,
    /// The prompt that was sent.
    pub prompt: &'a str,
    /// The correct answer.
    pub answer: &'a str,
    /// The options, if the question has any.
    pub choices: &'a [String],
    /// The complete reply of the model.
    pub reply: &'a str,
}

/// A score: a line of the command's output. Other fields are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ScorerReply {
    /// The id of the question.
    pub id: String,
    /// The repeat of the question.
    #[serde(default)]
    pub repeat: u32,
    /// From 0 (wrong) to 1 (right), or a boolean; null for no score.
    pub score: Option<ScoreValue>,
}

/// A score as a number or a boolean.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum ScoreValue {
    /// Right or wrong.
    Flag(bool),
    /// From 0 to 1.
    Number(f64),
}

impl ScoreValue {
    fn value(self) -> f64 {
        match self {
            Self::Flag(right) => f64::from(u8::from(right)),
            Self::Number(value) => value,
        }
    }
}

/// What a command did.
#[derive(Debug, Default, PartialEq)]
pub struct ScorerOutcome {
    /// Answers with a score.
    pub scored: usize,
    /// Answers that the command left without one (`"score": null`).
    pub unscored: usize,
    /// Answers without any reply.
    pub missing: usize,
    /// What is wrong, one message each; empty if the command answered everything and ended well.
    pub problems: Vec<String>,
}

/// The command cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalScorerError {
    /// The command cannot be started.
    #[error("the scorer {command:?} cannot be started: {cause}")]
    Start { command: String, cause: io::Error },
    /// A score cannot be stored.
    #[error(transparent)]
    Store(#[from] super::run_dir::RunDirError),
}

/// Runs `command` with a shell and passes each score of `requests` to `on_score` with the request's index.
///
/// `timeout` is the longest time between two lines of the command while answers are missing.
///
/// # Errors
/// The command cannot be started, or `on_score` fails. What the command does wrong is in the outcome.
pub fn score_answers(
    command: &str,
    requests: &[ScorerRequest<'_>],
    timeout: Duration,
    mut on_score: impl FnMut(usize, f64) -> Result<(), super::run_dir::RunDirError>,
) -> Result<ScorerOutcome, ExternalScorerError> {
    // A group of its own, so that the timeout ends what the shell started, too.
    let child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = ScorerProcess(
        child.map_err(|cause| ExternalScorerError::Start { command: command.to_owned(), cause })?,
    );
    let input: Vec<String> = requests
        .iter()
        .map(|request| serde_json::to_string(request).expect("a request is plain data") + "\n")
        .collect();
    let (mut stdin, mut stdout) = (child.0.stdin.take(), child.0.stdout.take());
    let (sender, lines) = bounded(64);
    // Both pipes are served at once: a command may write before it has read everything. A command that ends early
    // closes its input, which ends the writing thread; the reading thread ends with the output or the receiver.
    std::thread::spawn(move || {
        let stdin = stdin.as_mut();
        stdin.map(|stdin| input.iter().try_for_each(|line| stdin.write_all(line.as_bytes())))
    });
    std::thread::spawn(move || {
        stdout.as_mut().map(|stdout| read_lines(stdout, |line| sender.send(line).is_ok()))
    });
    let mut pending = PendingAnswers::new(requests);
    let end = pending.receive(&lines, timeout, &mut on_score)?;
    let status = match end {
        OutputEnd::Silent => {
            pending.problem(format!("the scorer wrote nothing for {timeout:?} and was ended"));
            None
        }
        // A command that has closed its output may take its time, but not more than that.
        OutputEnd::Closed => child.wait(timeout),
    };
    drop(child);
    if let Some(status) = status.filter(|status| !status.success()) {
        pending.problem(format!("the scorer ended with {}", describe_status(status)));
    }
    Ok(pending.finish())
}

/// A command, which is ended with all that it started when this is dropped.
struct ScorerProcess(Child);

impl ScorerProcess {
    /// Waits for the end of the command; `None` if it does not end in time.
    fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return None,
            }
        }
    }
}

impl Drop for ScorerProcess {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // The group may be gone already.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// A line of the command; `Err` with the beginning of one that is too long.
type ScorerLine = Result<Vec<u8>, Vec<u8>>;

/// Reads lines until the end of the output, or until `on_line` returns `false`.
fn read_lines(output: &mut impl Read, mut on_line: impl FnMut(ScorerLine) -> bool) {
    let mut decoder = LineDecoder::new(MAX_LINE_BYTES);
    let mut buffer = vec![0; 64 << 10];
    let mut goes_on = true;
    while goes_on {
        let length = match output.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(length) if length > 0 => length,
            _ => break,
        };
        decoder.feed(&buffer[..length], |line| {
            goes_on = goes_on
                && on_line(match line {
                    DecodedLine::Complete(line) => Ok(line.to_vec()),
                    DecodedLine::Truncated(line) => Err(line.to_vec()),
                });
        });
    }
    if let Some(rest) = decoder.finish().filter(|_| goes_on) {
        on_line(Ok(rest));
    }
}

/// How the output of a command ended.
enum OutputEnd {
    Closed,
    Silent,
}

/// The answers that have no reply yet.
struct PendingAnswers {
    indices: HashMap<(String, u32), usize>,
    lines: usize,
    invalid: usize,
    outcome: ScorerOutcome,
}

impl PendingAnswers {
    fn new(requests: &[ScorerRequest<'_>]) -> Self {
        let indices =
            requests.iter().enumerate().map(|(index, it)| ((it.id.to_owned(), it.repeat), index)).collect();
        Self { indices, lines: 0, invalid: 0, outcome: ScorerOutcome::default() }
    }

    fn receive(
        &mut self,
        lines: &Receiver<ScorerLine>,
        timeout: Duration,
        on_score: &mut impl FnMut(usize, f64) -> Result<(), super::run_dir::RunDirError>,
    ) -> Result<OutputEnd, super::run_dir::RunDirError> {
        loop {
            let line = match lines.recv_timeout(timeout) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return Ok(OutputEnd::Closed),
                // A command that has answered everything may stay silent until it ends.
                Err(RecvTimeoutError::Timeout) if self.indices.is_empty() => return Ok(OutputEnd::Closed),
                Err(RecvTimeoutError::Timeout) => return Ok(OutputEnd::Silent),
            };
            self.lines += 1;
            if line.as_ref().is_ok_and(|line| line.iter().all(u8::is_ascii_whitespace)) {
                continue;
            }
            match self.parse(&line) {
                Ok((index, Some(score))) => {
                    self.outcome.scored += 1;
                    on_score(index, score)?;
                }
                Ok((_, None)) => self.outcome.unscored += 1,
                Err(reason) => {
                    let (Ok(text) | Err(text)) = &line;
                    let text = one_line(&String::from_utf8_lossy(text));
                    self.invalid += 1;
                    if self.invalid <= MAX_QUOTED {
                        self.problem(format!("line {} of the scorer {reason}: {text}", self.lines));
                    }
                }
            }
        }
    }

    /// Returns the index and the score of a line; what is wrong with it otherwise.
    fn parse(&mut self, line: &ScorerLine) -> Result<(usize, Option<f64>), String> {
        let line = line.as_ref().map_err(|_| format!("is longer than {MAX_LINE_BYTES} bytes"))?;
        let reply: ScorerReply = serde_json::from_slice(line)
            .map_err(|cause| format!("is no object with \"id\" and \"score\" ({cause})"))?;
        let score = reply.score.map(ScoreValue::value);
        if score.is_some_and(|score| !(0.0..=1.0).contains(&score)) {
            return Err("has a score that is not from 0 to 1".into());
        }
        match self.indices.remove(&(reply.id, reply.repeat)) {
            Some(index) => Ok((index, score)),
            None => Err("is for no answer that was sent, or for one that has its score".into()),
        }
    }

    fn problem(&mut self, text: String) {
        self.outcome.problems.push(text);
    }

    fn finish(mut self) -> ScorerOutcome {
        self.outcome.missing = self.indices.len();
        if self.invalid > MAX_QUOTED {
            self.problem(format!("{} further lines are invalid", self.invalid - MAX_QUOTED));
        }
        if self.outcome.missing > 0 {
            self.problem(format!("{} answers got no reply of the scorer", self.outcome.missing));
        }
        self.outcome
    }
}

fn describe_status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 4] = ["a", "b", "c", "d"];

    fn score(command: &str, timeout_ms: u64) -> (Vec<(usize, f64)>, ScorerOutcome) {
        let requests = IDS.map(|id| ScorerRequest {
            id,
            repeat: 0,
            subject: "s",
            format: AnswerFormat::Judge,
            prompt: "p",
            answer: "4",
            choices: &[],
            reply: "It is\n\"four\".",
        });
        let mut scores = Vec::new();
        let outcome = score_answers(command, &requests, Duration::from_millis(timeout_ms), |index, score| {
            scores.push((index, score));
            Ok(())
        });
        (scores, outcome.unwrap())
    }

    fn reply(id: &str, score: &str) -> String {
        format!("echo '{{\"id\":\"{id}\",\"score\":{score},\"more\":1}}'; ")
    }

    #[test]
    fn scores_come_in_any_order_and_form() {
        let command =
            reply("c", "0.25") + &reply("a", "true") + "echo; " + &reply("b", "false") + &reply("d", "null");
        let (scores, outcome) = score(&(command + "cat > /dev/null"), 60_000);
        assert_eq!(scores, [(2, 0.25), (0, 1.0), (1, 0.0)]);
        assert_eq!(outcome, ScorerOutcome { scored: 3, unscored: 1, ..ScorerOutcome::default() });
    }

    #[test]
    fn every_answer_is_sent_whole_on_one_line() {
        let command = r#"while read -r line; do case $line in
            *'"id":"a"'*'"reply":"It is\n\"four\"."'*) echo '{"id":"a","score":1}';;
            *) n=$((n+1)); echo "{\"id\":\"$(echo bcd | cut -c$n)\",\"score\":0}";; esac; done"#;
        let (scores, outcome) = score(command, 60_000);
        assert_eq!((scores, outcome.problems.len()), (vec![(0, 1.0), (1, 0.0), (2, 0.0), (3, 0.0)], 0));
    }

    #[test]
    fn a_scorer_that_dies_loses_no_score_it_gave() {
        let (scores, outcome) = score(&(reply("b", "1") + "exit 3"), 60_000);
        assert_eq!((scores, outcome.missing), (vec![(1, 1.0)], 3));
        assert_eq!(
            outcome.problems,
            ["the scorer ended with status 3", "3 answers got no reply of the scorer"]
        );
        let (_, outcome) = score("kill -9 $$", 60_000);
        assert_eq!(outcome.problems[0], "the scorer ended with signal 9");
        let (_, outcome) = score("/nonexistent/scorer 2>/dev/null", 60_000);
        assert_eq!(outcome.problems[0], "the scorer ended with status 127");
    }

    #[test]
    fn a_silent_scorer_is_ended_with_what_it_started() {
        // The shell starts within this time, also on a busy machine.
        let (scores, outcome) = score(&(reply("a", "1") + "sleep 3600 & wait"), 5_000);
        assert_eq!((scores, outcome.missing), (vec![(0, 1.0)], 3));
        assert!(outcome.problems[0].contains("wrote nothing for 5s"), "{outcome:?}");
    }

    #[test]
    fn invalid_lines_are_quoted_and_the_others_count() {
        let lines = [
            "hello \u{1b}[2J".to_owned(),
            r#"{"id":"b"}"#.into(),
            r#"{"id":"z","score":1}"#.into(),
            r#"{"id":"a","score":7}"#.into(),
            r#"{"id":"a","score":"x"}"#.into(),
            r#"{"id":"a","score":1}"#.into(),
            r#"{"id":"a","score":0}"#.into(),
        ];
        let command: String = lines.iter().map(|line| format!("printf '%s\\n' '{line}'; ")).collect();
        let (scores, outcome) = score(&command, 60_000);
        assert_eq!(scores, [(0, 1.0)], "the first score of an answer counts");
        let text = outcome.problems.join("\n");
        for part in [
            "line 1 of the scorer is no object",
            "line 3 of the scorer is for no answer",
            "line 4 of the scorer has a score that is not from 0 to 1",
            "hello [2J",
            "answers got no reply",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let (scores, outcome) =
            score(&("head -c 2000000 /dev/zero; echo; ".to_owned() + &reply("a", "1")), 60_000);
        assert!(
            scores == [(0, 1.0)] && outcome.problems[0].contains("longer than 1048576 bytes"),
            "{outcome:?}"
        );
    }
}
