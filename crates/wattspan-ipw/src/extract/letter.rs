//! The option that a reply chooses: a letter that stands alone, or the text of exactly one option.
//!
//! Invariant: a reply that names two options as its answer names none.

use super::super::answer_format::{last_option_letter, normalize_words};
use super::final_answer::{filled_lines, first_sentence, is_refusal, marked_answer};

/// The letter that the reply states, in plain text; `None` if it states none or several.
pub(super) fn extract_letter(reply: &str, choices: &[String]) -> Option<char> {
    let last = char::from(last_option_letter(choices));
    let is_bare = |text: &str| bare_letter(text, last).is_some();
    if let Some(answer) = marked_answer(reply, is_bare) {
        if let Some(letter) = option_with_letter(answer, choices, last) {
            return Some(letter);
        }
        let stated = match Choice::of(&mentions(answer, last, true), answer, Pick::First) {
            Choice::One(letter) => Some(letter),
            Choice::Several => return None,
            Choice::None => {
                option_by_text(first_sentence(answer), choices).or_else(|| option_by_text(answer, choices))
            }
        };
        if stated.is_some() {
            return stated;
        }
    }
    unmarked_letter(reply, choices, last)
}

/// The letter of a reply without a marker: a first line that is only an option, a statement such as "B is correct" or
/// "I choose B", the last line, then any line.
fn unmarked_letter(reply: &str, choices: &[String], last: char) -> Option<char> {
    if is_refusal(reply) {
        return None;
    }
    let lines = filled_lines(reply);
    let labels = lines.iter().filter(|line| labelled_option(line, last).is_some()).count();
    let first = *lines.first()?;
    if let Some(letter) = bare_letter(first, last) {
        return Some(letter);
    }
    if labels == 1
        && let Some(letter) = labelled_option(first, last)
    {
        return Some(letter);
    }
    // An echo of the options is no answer.
    let is_echo = |line: &&str| labels > 2 && labelled_option(line, last).is_some();
    let own: Vec<&str> = lines.into_iter().filter(|line| !is_echo(line)).collect();
    if let Some(letter) = own.iter().rev().find_map(|line| stated_letter(line, last)) {
        return Some(letter);
    }
    let last_line = *own.last()?;
    if let Some(letter) = leading_letter(own[0], last).filter(|_| own.len() == 1 || labels == 0) {
        return Some(letter);
    }
    match Choice::of(&mentions(last_line, last, false), last_line, Pick::Last) {
        Choice::One(letter) => return Some(letter),
        Choice::Several => return None,
        Choice::None => {}
    }
    let any_line = |line: &&str| match Choice::of(&mentions(line, last, false), line, Pick::Last) {
        Choice::One(letter) => Some(letter),
        _ => None,
    };
    option_by_text(last_line, choices)
        .or_else(|| own.iter().rev().find_map(any_line))
        .or_else(|| option_by_text(&own.join("\n"), choices))
}

/// A letter that is named in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mention {
    begin: usize,
    end: usize,
    letter: char,
    /// "not B", "B is wrong".
    negated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    First,
    Last,
}

/// What the mentions of a text amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    None,
    One(char),
    Several,
}

impl Choice {
    fn of(mentions: &[Mention], text: &str, pick: Pick) -> Self {
        let asserted: Vec<&Mention> = mentions.iter().filter(|mention| !mention.negated).collect();
        let picked = match pick {
            Pick::First => 0,
            Pick::Last => asserted.len().saturating_sub(1),
        };
        let Some(chosen) = asserted.get(picked) else { return Choice::None };
        let other = match pick {
            Pick::First => asserted.get(1).map(|next| (*chosen, *next)),
            Pick::Last => picked.checked_sub(1).map(|before| (asserted[before], *chosen)),
        };
        match other {
            Some((one, two)) if one.letter != two.letter && are_joined(&text[one.end..two.begin]) => {
                Choice::Several
            }
            _ => Choice::One(chosen.letter),
        }
    }
}

/// Whether the text between two letters names both: "A and B", "A, B", "A or option B".
fn are_joined(between: &str) -> bool {
    let words = between.trim_matches([' ', '(', ')', '*', '"', '\'', '.']).to_lowercase();
    let words = words.trim_end_matches("option").trim_end_matches("choice").trim();
    let words = words.trim_start_matches(')').trim().trim_end_matches('(').trim();
    let words = words.strip_prefix(',').map_or(words, str::trim);
    ["", "and", "or", "and/or", "&", "/", "和", "或", "、", "und", "oder", "y", "o", "et", "ou", "и", "или"]
        .contains(&words)
        && !between.trim().is_empty()
}

/// Whether the letters are the labels of a list of options: "A) Mars ... B) Venus ... C) Jupiter".
fn are_labels(found: &[Mention], text: &str) -> bool {
    let labels = found.iter().filter(|mention| text[mention.end..].starts_with([')', '.', ':']));
    let letters: Vec<char> = labels.map(|mention| mention.letter).collect();
    letters.len() > 2 && letters.len() == found.len() && letters.windows(2).all(|pair| pair[0] < pair[1])
}

/// The letters that stand alone in a text. `marked`: the text follows a marker, so that it may begin with a small letter
/// and with a letter that is a word elsewhere.
fn mentions(text: &str, last: char, marked: bool) -> Vec<Mention> {
    let mut found = Vec::new();
    for (at, character) in text.char_indices() {
        let letter = character.to_ascii_uppercase();
        let end = at + character.len_utf8();
        if !('A'..=last).contains(&letter) || !stands_alone(text, at, end) {
            continue;
        }
        let is_first = !text[..at].contains(char::is_alphanumeric);
        let accepted = if character.is_ascii_lowercase() {
            text[end..].starts_with(')') || (marked && is_first && ends_clause(&text[end..]))
        } else {
            !is_word(text, at, end, marked && is_first)
        };
        if accepted {
            found.push(Mention { begin: at, end, letter, negated: is_negated(text, at, end) });
        }
    }
    if are_labels(&found, text) { Vec::new() } else { found }
}

/// Whether the characters beside a letter are no part of its word. Chinese and Japanese are written without spaces.
fn stands_alone(text: &str, at: usize, end: usize) -> bool {
    let is_word_character = |c: char| (c.is_alphanumeric() && !is_ideographic(c)) || c == '\'' || c == '’';
    let mut before = text[..at].chars().rev();
    let previous = before.next();
    let is_abbreviation = previous == Some('.') && before.next().is_some_and(char::is_alphanumeric);
    let mut after = text[end..].chars();
    let next = after.next();
    let is_compound = |c: Option<char>, beyond: Option<char>| {
        matches!(c, Some('-' | '_' | '^' | '=' | '+' | '/'))
            && beyond.is_some_and(is_word_character)
            && c != Some('/')
    };
    !previous.is_some_and(is_word_character)
        && !next.is_some_and(is_word_character)
        && !is_abbreviation
        && !is_compound(next, after.next())
        && !is_compound(previous, text[..at].chars().rev().nth(1))
}

fn is_ideographic(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{f900}'..='\u{faff}')
}

/// Whether a clause ends here.
fn ends_clause(rest: &str) -> bool {
    rest.trim_start_matches(['"', '\'', '*', ')']).chars().next().is_none_or(|c| ".,;:)}]$\n。，".contains(c))
}

/// Words that follow an answer letter but no article or pronoun: "Answer: A because ...".
const EXPLANATION_WORDS: [&str; 12] =
    ["because", "since", "as", "is", "and", "but", "for", "so", "that", "which", "due", "it"];

/// Words before a letter that make it an option, whatever follows.
const OPTION_WORDS: [&str; 10] =
    ["option", "choice", "answer", "letter", "choose", "chose", "select", "pick", "with", "statement"];

/// Whether a capital letter is the article "A" or the pronoun "I".
fn is_word(text: &str, at: usize, end: usize, is_answer_begin: bool) -> bool {
    let next = text[end..].strip_prefix(' ').unwrap_or_default();
    if !text[at..].starts_with(['A', 'I']) || !next.starts_with(|c: char| c.is_ascii_lowercase() || c == '\'')
    {
        return false;
    }
    let word = next.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    // "A and B", "A or C".
    let is_joined = ["and ", "or "].iter().any(|joint| {
        let other = next.strip_prefix(joint).unwrap_or_default().trim_start_matches('(');
        let mut characters = other.chars();
        characters.next().is_some_and(|c| c.is_ascii_uppercase())
            && !characters.next().is_some_and(char::is_alphanumeric)
    });
    let is_option = OPTION_WORDS.contains(&previous_word(&text[..at]).as_str());
    !(is_option || is_joined || (is_answer_begin && EXPLANATION_WORDS.contains(&word)) || is_judged(next))
}

/// "is correct", "is the right answer": the words after a letter that is an option.
fn is_judged(next: &str) -> bool {
    let rest = ["is ", "are ", "must be ", "would be "].iter().find_map(|verb| next.strip_prefix(verb));
    let rest = rest.map(|rest| rest.trim_start_matches("the ").trim_start_matches("definitely "));
    rest.is_some_and(|rest| {
        ["correct", "right", "best", "true", "answer", "wrong", "incorrect", "false", "not "]
            .iter()
            .any(|word| rest.starts_with(word))
    })
}

fn previous_word(before: &str) -> String {
    let before = before.trim_end_matches([' ', '(', '"', '\'', '*']);
    before.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase()
}

/// Whether the text says that the option is not the answer.
fn is_negated(text: &str, at: usize, end: usize) -> bool {
    const BEFORE: [&str; 14] = [
        "not",
        "isn't",
        "isn’t",
        "n't",
        "than",
        "instead of",
        "neither",
        "nor",
        "except",
        "eliminate",
        "exclude",
        "reject",
        "unlike",
        "不是",
    ];
    const AFTER: [&str; 9] = [
        "is wrong",
        "is incorrect",
        "is false",
        "is not",
        "isn't",
        "are wrong",
        "are incorrect",
        "does not",
        "can be ruled out",
    ];
    let before = text[..at].trim_end_matches([' ', '(', '"', '\'', '*']).to_lowercase();
    let before = OPTION_WORDS.iter().find_map(|word| before.strip_suffix(word)).unwrap_or(&before).trim_end();
    let after = text[end..].trim_start_matches([')', '.', '*', ' ']);
    BEFORE.iter().any(|word| ends_with_word(before, word))
        || AFTER.iter().any(|words| after.starts_with(words))
}

fn ends_with_word(text: &str, word: &str) -> bool {
    text.strip_suffix(word).is_some_and(|rest| {
        !word.is_ascii() || word == "n't" || !rest.ends_with(|c: char| c.is_ascii_alphanumeric())
    })
}

/// The letter of a text that is nothing but an option letter: "B", "(b)", "B.", "Option B".
fn bare_letter(text: &str, last: char) -> Option<char> {
    let text =
        text.trim().trim_matches(['(', ')', '[', ']', '.', ':', '$', '"', '\'', '*', ' ', '{', '}', '。']);
    let text = ["option ", "Option ", "choice ", "Choice "]
        .iter()
        .find_map(|word| text.strip_prefix(word))
        .unwrap_or(text);
    let mut characters = text.chars();
    let letter = characters.next()?.to_ascii_uppercase();
    (characters.next().is_none() && ('A'..=last).contains(&letter)).then_some(letter)
}

/// The letter with which a line labels an option: "B) London", "(b) London", "B. London", "- B: London".
fn labelled_option(line: &str, last: char) -> Option<char> {
    let line = line.trim_start_matches([' ', '-', '*', '(', '[', '|']);
    let mut characters = line.chars();
    let letter = characters.next()?;
    let rest = characters.as_str();
    let is_label =
        rest.starts_with(") ") || rest.starts_with(". ") || rest.starts_with(": ") || rest.starts_with("] ");
    let upper = letter.to_ascii_uppercase();
    (is_label && ('A'..=last).contains(&upper)).then_some(upper)
}

/// The letter with which a line begins, before its explanation: "C, because ...", "C - the liver".
fn leading_letter(line: &str, last: char) -> Option<char> {
    let line = line.trim_start_matches([' ', '(', '*', '"']);
    let mut characters = line.chars();
    let letter = characters.next().filter(|letter| ('A'..=last).contains(letter))?;
    let rest = characters.as_str();
    let explained = [", ", " because", " since", " - ", " – ", " — ", ") because", "), "];
    explained.iter().any(|begin| rest.starts_with(begin)).then_some(letter)
}

/// The option that a text quotes, if a letter is a word of that option: "vitamin C".
fn option_with_letter(text: &str, choices: &[String], last: char) -> Option<char> {
    let has_letter = |choice: &String| choice.len() > 1 && !mentions(choice, last, false).is_empty();
    if !choices.iter().any(has_letter) {
        return None;
    }
    let letter = option_by_text(first_sentence(text), choices)?;
    let choice = choices.get(usize::try_from(u32::from(letter) - u32::from('A')).ok()?)?;
    has_letter(choice).then_some(letter)
}

/// The letter of a statement: "B is correct", "the correct option is B", "I choose B".
fn stated_letter(line: &str, last: char) -> Option<char> {
    let all = mentions(line, last, false);
    let stated = all.iter().rev().filter(|mention| !mention.negated).find(|mention| {
        let next = line[mention.end..].trim_start_matches([')', '*', ' ', ',']);
        let is_positive = is_judged(next)
            && !["wrong", "incorrect", "false", "not "].iter().any(|word| next.contains(word));
        let before = previous_word(&line[..mention.begin]);
        let chosen = ["choose", "chose", "select", "selected", "pick", "with", "选", "選", "択", "應該選"];
        let named = line[..mention.begin].to_lowercase();
        let named = named.trim_end_matches([' ', ':', '(', '*', '"']);
        let is_named = [
            "option is",
            "choice is",
            "option is option",
            "statement is",
            "it is",
            "it's",
            "must be",
            "so",
            "therefore",
            "thus",
            "hence",
            "选",
            "選",
            "应选",
            "應選",
        ]
        .iter()
        .any(|words| named.ends_with(words));
        is_positive || chosen.contains(&before.as_str()) || is_named
    })?;
    let others = all.iter().filter(|other| !other.negated && other.letter != stated.letter);
    let joined = others.into_iter().any(|other| {
        let (one, two) = if other.begin < stated.begin { (other, stated) } else { (stated, other) };
        are_joined(&line[one.end..two.begin])
    });
    (!joined).then_some(stated.letter)
}

/// The option whose text the reply mentions, if it is the only one. A mention within a longer one, or after "not", does
/// not count.
fn option_by_text(text: &str, choices: &[String]) -> Option<char> {
    let text = format!(" {} ", normalize_words(text));
    let wanted: Vec<String> = choices.iter().map(|choice| format!(" {} ", normalize_words(choice))).collect();
    let is_within = |at: usize, length: usize, other: &String| {
        other.len() > length
            && text
                .match_indices(other.as_str())
                .any(|(from, found)| from <= at && at + length <= from + found.len())
    };
    let is_mentioned = |choice: &String| {
        choice.trim() != ""
            && text.match_indices(choice.as_str()).any(|(at, found)| {
                let before = &text[..at];
                let negated =
                    [" not", " than", " isn t", " instead of"].iter().any(|word| before.ends_with(word));
                !negated && !wanted.iter().any(|other| is_within(at, found.len(), other))
            })
    };
    let mut mentioned = wanted.iter().enumerate().filter(|(_, choice)| is_mentioned(choice));
    let (index, _) = mentioned.next()?;
    if mentioned.next().is_some() {
        return None;
    }
    u8::try_from(index).ok().map(|index| char::from(b'A' + index))
}
