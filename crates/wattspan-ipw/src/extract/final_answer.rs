//! The place in a reply that states the answer: `\boxed{}`, the text after "answer is" in several languages, or a line.

use super::reply_text::balanced;

/// Words for "answer". ASCII words are compared without case.
const ANSWER_WORDS: [&str; 26] = [
    "answer",
    "答案",
    "答え",
    "解答",
    "正解",
    "回答",
    "정답",
    "답",
    "ответ",
    "Ответ",
    "respuesta",
    "réponse",
    "reponse",
    "antwort",
    "lösung",
    "risposta",
    "resposta",
    "решение",
    "الإجابة",
    "الجواب",
    "उत्तर",
    "cevap",
    "odpowiedź",
    "antwoord",
    "svar",
    "vastaus",
];

/// Words before "answer" with which the text is about another answer than the stated one.
const OTHER_ANSWERS: [&str; 6] = ["wrong", "incorrect", "common", "tempting", "possible", "another"];

/// Words that may stand between "answer" and the connective: "the answer to this question is".
const FILLERS: [&str; 24] = [
    "to",
    "the",
    "this",
    "that",
    "question",
    "problem",
    "option",
    "choice",
    "here",
    "therefore",
    "thus",
    "so",
    "would",
    "should",
    "must",
    "will",
    "final",
    "correct",
    "above",
    "of",
    "letter",
    "then",
    "to be",
    "(final)",
];

/// Words and signs between "answer" and the answer. Words of Latin script end at a word boundary.
const CONNECTIVES: [&str; 21] = [
    ":", "=", "is", "are", "be", "equals", "ist", "lautet", "est", "es", "è", "é", "是", "为", "為", "は",
    "은", "는", "- ", "– ", "— ",
];

/// The answer that the reply marks: the content of the last `\boxed{}`, or the text after the last marker, whichever is
/// later. `is_hash_answer`: whether the text after "####" is an answer (GSM8K writes it so) and not a heading.
pub(super) fn marked_answer(reply: &str, is_hash_answer: impl Fn(&str) -> bool) -> Option<&str> {
    let lower = reply.to_ascii_lowercase();
    let words = ANSWER_WORDS.iter().flat_map(|word| lower.rmatch_indices(word));
    let after_word = words.filter_map(|(at, word)| after_marker(&lower, at, word)).max();
    let hashes = reply.match_indices("####").map(|(at, mark)| at + mark.len());
    let after_hash = hashes
        .filter(|at| !reply[*at..].starts_with('#') && is_hash_answer(first_line(&reply[*at..]).trim()))
        .max();
    let marker = after_word.max(after_hash);
    let boxed = last_boxed(reply).filter(|(at, _)| marker.is_none_or(|marker| marker <= *at));
    if let Some((_, inside)) = boxed {
        return Some(inside);
    }
    filled_lines(&reply[marker?..]).first().copied()
}

/// The offset after the marker that begins with the word at `at`; `None` if the word does not begin one.
fn after_marker(lower: &str, at: usize, word: &str) -> Option<usize> {
    let before = lower[..at].trim_end();
    let previous = before.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let is_part_of_word = word.is_ascii() && lower[..at].ends_with(|c: char| c.is_ascii_alphabetic());
    if is_part_of_word || OTHER_ANSWERS.contains(&previous) {
        return None;
    }
    let mut rest = &lower[at + word.len()..];
    loop {
        rest = rest.trim_start_matches([' ', '"', '\'', '*', '_']);
        if let Some(after) = CONNECTIVES.iter().find_map(|connective| strip_word(rest, connective)) {
            let after = after.trim_start_matches([' ', ':', '"', '\'', '*']);
            return Some(lower.len() - after.len());
        }
        match FILLERS.iter().find_map(|filler| strip_word(rest, filler)) {
            Some(after) => rest = after,
            None => break,
        }
    }
    // A heading: the answer stands in the next line.
    let heading = lower[..at].rsplit('\n').next().unwrap_or_default();
    let is_heading = heading.trim_matches([' ', '#', '*', '_']).is_empty()
        || ["final", "the", "my", "correct"].contains(&heading.trim_matches([' ', '#', '*', '_']));
    if is_heading && first_line(rest).trim().is_empty() && rest.contains('\n') {
        return Some(lower.len() - rest.len());
    }
    // "Answer B" without a connective: only if nothing else follows in the line.
    let line = first_line(rest).trim().trim_matches(['(', ')', '.', '*']);
    let is_bare = line.chars().count() == 1 || line.parse::<f64>().is_ok();
    (is_bare && !line.is_empty()).then(|| lower.len() - rest.len())
}

/// The text after `word`, if the text begins with it as a whole word.
fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(word)?;
    let is_latin = word.ends_with(|c: char| c.is_ascii_alphabetic() || matches!(c, 'è' | 'é'));
    let ends = !is_latin || !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '\'');
    ends.then_some(rest)
}

/// The text up to the end of the line.
pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The lines that contain a letter or digit.
pub(super) fn filled_lines(text: &str) -> Vec<&str> {
    let lines = text.split('\n').filter(|line| line.chars().any(char::is_alphanumeric));
    lines.map(|line| line.trim_end_matches('\r')).collect()
}

/// Whether a line comes after the answer: a check of the result, a remark, an offer of help.
pub(super) fn is_remark(line: &str) -> bool {
    const BEGINS: [&str; 20] = [
        "just to",
        "to check",
        "check:",
        "to verify",
        "verify",
        "verification",
        "you can verify",
        "you can check",
        "sanity",
        "note",
        "hope ",
        "let me know",
        "feel free",
        "if you",
        "since ",
        "as a check",
        "double-check",
        "quick check",
        "fun fact",
        "would you",
    ];
    let line = line.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    BEGINS.iter().any(|begin| line.starts_with(begin))
}

/// Whether the reply says that it gives no answer.
pub(super) fn is_refusal(reply: &str) -> bool {
    const PHRASES: [&str; 16] = [
        "not able to answer",
        "unable to answer",
        "unable to determine",
        "cannot determine",
        "can't determine",
        "cannot be determined",
        "can't be determined",
        "cannot answer",
        "can't answer",
        "not enough information",
        "doesn't state",
        "does not state",
        "isn't given",
        "is not given",
        "no diagram was",
        "could you give me",
    ];
    let lower = reply.to_lowercase().replace('’', "'");
    PHRASES.iter().any(|phrase| lower.contains(phrase))
}

/// The offset and content of the last complete `\boxed{...}` with balanced braces.
fn last_boxed(reply: &str) -> Option<(usize, &str)> {
    const OPEN: &str = "\\boxed{";
    reply.rmatch_indices(OPEN).find_map(|(at, _)| Some((at, balanced(&reply[at + OPEN.len()..])?)))
}

/// The first sentence of a text.
pub(super) fn first_sentence(text: &str) -> &str {
    let ends = [". ", "! ", "? ", "; ", "。", "！", "？", "\n"];
    let end = ends.iter().filter_map(|end| text.find(end)).min().unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_of_an_answer_are_found_in_several_languages() {
        for (reply, text) in [
            ("Answer: B", Some("B")),
            ("the answer is: B", Some("B")),
            ("The correct answer to this question is option B", Some("option B")),
            ("{\"answer\": \"B\"}", Some("B\"}")),
            ("答案是B。", Some("B。")),
            ("答えはBです", Some("Bです")),
            ("Ответ: B", Some("B")),
            ("La réponse est B", Some("B")),
            ("Answer B", Some("B")),
            ("Answer: A. Wait. Answer: C", Some("C")),
            ("A common answer is C", None),
            ("I answered it", None),
            ("\\boxed{7}", Some("7")),
            ("#### 7", Some("7")),
            ("Answer: 3\n#### Why", Some("3")),
        ] {
            let found = marked_answer(reply, |text| text.parse::<u8>().is_ok());
            assert_eq!(found.map(str::trim), text, "{reply}");
        }
    }

    #[test]
    fn a_sentence_ends_at_its_full_stop_but_a_number_does_not() {
        assert_eq!(first_sentence("3.5 m. Then"), "3.5 m");
        assert_eq!(first_sentence("no end"), "no end");
    }
}
