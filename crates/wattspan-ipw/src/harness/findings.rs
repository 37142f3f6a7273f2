//! Findings of an import: what is missing or wrong in the harness's files.
//!
//! Each finding states the defect, the number of queries it affects, and how the import handles it.

use serde::Serialize;

/// The harness's own figures, computed by its arithmetic from the energies that can be used: accuracy over the judged
/// records, means over those of them with an energy, power as energy / time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HarnessFigures {
    /// Evaluated records.
    pub scored: usize,
    /// Fraction of them that are correct.
    pub accuracy: f64,
    /// Mean energy, joules.
    pub energy_j: Option<f64>,
    /// Mean power, watts.
    pub power_w: Option<f64>,
    /// IPJ.
    pub per_joule: Option<f64>,
    /// IPW.
    pub per_watt: Option<f64>,
}

/// Why a record has no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordReason {
    /// The id of the question.
    pub id: String,
    pub reason: String,
}

impl RecordReason {
    /// The reason for one record.
    pub fn new(id: &str, reason: &str) -> Self {
        Self { id: id.to_owned(), reason: reason.to_owned() }
    }
}

/// Counts of findings, in queries.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ImportFindings {
    /// The model whose answers were read.
    pub model: String,
    pub records: usize,
    /// Lines that are not records, or records without this model.
    pub broken: usize,
    /// Scores taken from the file.
    pub scores_kept: usize,
    /// Scores taken from the file that are 1.
    pub scores_right: usize,
    /// Records without a score in results that were judged, each with the reason.
    pub without_score: Vec<RecordReason>,
    /// Scores computed by rule.
    pub scored: usize,
    /// Answers scored by rule as correct.
    pub right: usize,
    /// Answers that need a judge.
    pub for_judge: usize,
    /// Records without an answer.
    pub unanswered: usize,
    /// Records without a question or correct answer.
    pub without_question: usize,
    /// Records with a valid energy.
    pub metered: usize,
    /// Records without an energy.
    pub energy_absent: usize,
    /// Energies of 0 J, which the harness writes if it saw a single sample.
    pub energy_zero: usize,
    /// Energies below 0 or above what a machine can use.
    pub energy_absurd: usize,
    /// Energies that end with the sample buffer, which is shorter than the query.
    pub energy_cut: usize,
    /// Records without a usable energy, each with the reason.
    pub without_energy: Vec<RecordReason>,
    /// What the harness's figures count: "gpu", "soc", or "cpu", where it has none itself.
    pub basis: String,
    /// The harness's own figures; absent if no record was judged.
    pub harness: Option<HarnessFigures>,
    /// Records whose `total_joules` repeats the query's energy.
    pub total_copied: usize,
    /// Queries whose mean power times duration differs from their energy by more than a fifth.
    pub power_disagrees: usize,
    /// Queries with both power and energy.
    pub power_known: usize,
    /// The median of power × duration / energy.
    pub power_ratio: Option<f64>,
    /// Queries longer than the 30 s of power samples that the harness keeps.
    pub longer_than_samples: usize,
    /// Records without a duration.
    pub without_duration: usize,
    /// Times to first token of 0.0 s, which mean "unknown".
    pub first_token_zero: usize,
    /// Token counts of 0, which mean "unknown".
    pub tokens_zero: usize,
    /// Queries with a start time.
    pub with_beginning: usize,
    /// Queries with a guaranteed error.
    pub with_error: usize,
    /// The measuring mechanism, if the file names it.
    pub mechanism: Option<String>,
}

impl ImportFindings {
    /// Returns the findings as sentences.
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
        self.accuracy_sentences(&mut push_if);
        push_if(
            self.unanswered,
            format!("answers: {} are empty or failed, and count as wrong", of(self.unanswered)),
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

    fn accuracy_sentences(&self, push_if: &mut impl FnMut(usize, String)) {
        let of = |count: usize| format!("{count} of {}", self.records);
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
        push_if(
            self.scores_kept,
            format!(
                "accuracy: {} scores are those of the file, {} of them right",
                of(self.scores_kept),
                self.scores_right
            ),
        );
        push_if(
            self.without_score.len(),
            format!(
                "accuracy: {} have no score, since the harness did not evaluate them or its evaluation failed; they are in no \
                 figure",
                of(self.without_score.len())
            ),
        );
        push_if(usize::from(self.harness.is_some()), self.harness_sentence());
    }

    fn harness_sentence(&self) -> String {
        let Some(figures) = &self.harness else { return String::new() };
        let number =
            |value: Option<f64>| value.map_or_else(|| "unknown".into(), |value| format!("{value:.9}"));
        format!(
            "the harness's own figures (basis {}): accuracy {:.9} over {}, {} J, {} W, IPJ {}, IPW {}",
            self.basis,
            figures.accuracy,
            figures.scored,
            number(figures.energy_j),
            number(figures.power_w),
            number(figures.per_joule),
            number(figures.per_watt)
        )
    }

    fn energy_sentences(&self, push_if: &mut impl FnMut(usize, String)) {
        let of = |count: usize| format!("{count} of {}", self.records);
        let without = self.without_energy.len();
        push_if(
            without,
            format!(
                "energy: {} queries have none that can be used ({} absent, {} at 0 J, {} impossible, {} cut off by the sample buffer); they are in no figure, and are not cheap",
                of(without),
                self.energy_absent,
                self.energy_zero,
                self.energy_absurd,
                self.energy_cut
            ),
        );
        let unguaranteed = self.metered - self.with_error.min(self.metered);
        push_if(
            unguaranteed,
            format!(
                "energy: {unguaranteed} figures have no guaranteed error and no idle part; each is a difference of samples, in the \
                 harness's first version since the query before, so that pauses between queries are billed to the next one"
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
            usize::from(self.basis == "cpu") * self.metered,
            "basis: no record has an accelerator's energy, so the processors' is counted; the harness itself reports none"
                .into(),
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
                "power: {} queries lasted longer than the samples that the harness keeps (30 s unless its summary says otherwise)",
                of(self.longer_than_samples)
            ),
        );
    }
}
