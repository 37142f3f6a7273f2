//! What an import found missing or wrong.
//!
//! Owns the words. Each finding says what the harness's files lack, how many queries it concerns, and what was done about it,
//! so that nobody takes an old figure for more than it is.

use serde::Serialize;

/// What was found, in numbers of queries.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ImportFindings {
    /// The model whose answers were read.
    pub model: String,
    /// Records read.
    pub records: usize,
    /// Lines that are no records, or records without this model.
    pub broken: usize,
    /// Scores that the file itself held.
    pub scores_kept: usize,
    /// Scored here, by rule.
    pub scored: usize,
    /// Of those, right.
    pub right: usize,
    /// Only a judge can score them.
    pub for_judge: usize,
    /// Without an answer.
    pub unanswered: usize,
    /// Without the right answer, or without the question.
    pub without_question: usize,
    /// With an energy that can be used.
    pub metered: usize,
    /// No energy in the file.
    pub energy_absent: usize,
    /// 0 J, which is what the harness writes when it saw one sample.
    pub energy_zero: usize,
    /// Below 0, or more than a machine can use.
    pub energy_absurd: usize,
    /// `total_joules` is the query's energy again.
    pub total_copied: usize,
    /// Queries whose power samples, times their seconds, are more than a fifth off their joules.
    pub power_disagrees: usize,
    /// Queries of which both are known.
    pub power_known: usize,
    /// The median of samples × seconds / joules.
    pub power_ratio: Option<f64>,
    /// Longer than the 30 s of power samples that the harness keeps.
    pub longer_than_samples: usize,
    /// No duration.
    pub without_duration: usize,
    /// A first token after 0.0 s, which means that it is not known.
    pub first_token_zero: usize,
    /// Token counts of 0, which mean that they are not known.
    pub tokens_zero: usize,
    /// Queries whose beginning the file tells.
    pub with_beginning: usize,
    /// Queries with a guaranteed error.
    pub with_error: usize,
    /// How the energy was come by, where the file says.
    pub mechanism: Option<String>,
}

impl ImportFindings {
    /// In sentences.
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut push_if = |count: usize, text: String| {
            if count > 0 {
                all.push(text);
            }
        };
        let of = |count: usize| format!("{count} of {}", self.records);
        push_if(
            self.broken,
            format!("{} lines are no records of {}, and were passed over", self.broken, self.model),
        );
        push_if(
            self.scored + self.for_judge,
            format!(
                "accuracy: the file has none (lm_correctness is false throughout); scored here by rule: {} right of {}{}",
                self.right,
                self.scored,
                match self.for_judge {
                    0 => String::new(),
                    count => format!("; {count} answers need a judge (wattspan ipw score RUN --judge)"),
                }
            ),
        );
        push_if(self.scores_kept, format!("accuracy: {} scores are those of the file", of(self.scores_kept)));
        push_if(
            self.unanswered,
            format!("answers: {} are empty, and count as failed, not as wrong", of(self.unanswered)),
        );
        push_if(
            self.without_question,
            format!("questions: {} lack the question or its right answer", of(self.without_question)),
        );
        self.energy_sentences(&mut push_if);
        push_if(
            self.first_token_zero,
            format!(
                "first token: {} stand at 0.0 s, which the harness writes when none was seen; they are absent here",
                of(self.first_token_zero)
            ),
        );
        push_if(
            self.tokens_zero,
            format!(
                "tokens: {} counts are 0, which stands for unknown; they are absent here",
                self.tokens_zero
            ),
        );
        push_if(
            self.without_duration,
            format!(
                "durations: {} have none; without it there is no power, and they are in no figure",
                of(self.without_duration)
            ),
        );
        push_if(
            self.records - self.with_beginning,
            "times: the file does not say when a query began; they stand one after the other here".into(),
        );
        all
    }

    fn energy_sentences(&self, push_if: &mut impl FnMut(usize, String)) {
        let of = |count: usize| format!("{count} of {}", self.records);
        let without = self.energy_absent + self.energy_zero + self.energy_absurd;
        push_if(
            without,
            format!(
                "energy: {} queries have none that can be used ({} absent, {} at 0 J, {} impossible); they are in no figure, and are not cheap",
                of(without),
                self.energy_absent,
                self.energy_zero,
                self.energy_absurd
            ),
        );
        let unguaranteed = self.metered - self.with_error.min(self.metered);
        push_if(
            unguaranteed,
            format!(
                "energy: {unguaranteed} figures have no guaranteed error and no idle part; each is a difference of samples since the query \
                 before, so that pauses between queries are billed to the next one"
            ),
        );
        push_if(
            self.metered,
            match &self.mechanism {
                Some(mechanism) => format!("grade: {mechanism}"),
                None => {
                    "grade: unknown unless a row has its own; the file does not say what was metered".into()
                }
            },
        );
        push_if(
            self.total_copied,
            format!(
                "total_joules: repeats per_query_joules in {}, and was passed over",
                of(self.total_copied)
            ),
        );
        if let Some(ratio) = self.power_ratio {
            push_if(
                self.power_disagrees,
                format!(
                    "power: samples times seconds is more than a fifth off the joules in {} of {} queries (in the middle {ratio:.2} times); \
                     power here is energy over time",
                    self.power_disagrees, self.power_known
                ),
            );
        }
        push_if(
            self.longer_than_samples,
            format!(
                "power: {} queries lasted longer than the 30 s of samples that the harness keeps",
                of(self.longer_than_samples)
            ),
        );
    }
}
