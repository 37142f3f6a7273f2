//! The number that a reply states, with the notations of texts and of LaTeX.
//!
//! Reads grouped thousands, fractions, mixed numbers, powers of ten, percentages, currencies, any dash as a minus, and
//! numerals of words. Invariant: an exponent of a unit (`m/s^2`) and a digit within a word (`H2O`) are no numbers, and
//! every value is finite.

use super::final_answer::{filled_lines, first_line, first_sentence, is_refusal, is_remark, marked_answer};
use super::reply_text::plain_text;

/// A number in a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StatedNumber {
    pub value: f64,
    /// It is followed by "%" or "percent".
    pub is_percent: bool,
    begin: usize,
    end: usize,
}

impl StatedNumber {
    /// Whether it states the expected number. A percentage equals the number with the same digits and the fraction:
    /// which of them a question wants is not known here.
    pub(super) fn equals(&self, expected: &Self) -> bool {
        let equal = |a, b| approximately_equal(a, b);
        equal(self.value, expected.value)
            || (self.is_percent && !expected.is_percent && equal(self.value / 100.0, expected.value))
            || (expected.is_percent && !self.is_percent && equal(self.value, expected.value / 100.0))
    }
}

/// Compares two numbers up to floating-point rounding.
pub(super) fn approximately_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

/// The number of an expected answer.
pub(super) fn expected_number(answer: &str) -> Option<StatedNumber> {
    let plain = plain_text(answer);
    numbers(&plain).first().copied()
}

/// The number that a reply in plain text states; `None` if it states none or several. `emphasized`: the last text in bold
/// of the reply's last line.
pub(super) fn extract_number(reply: &str, emphasized: Option<&str>) -> Option<StatedNumber> {
    let is_number = |text: &str| {
        let text = text.trim_start_matches(|c: char| !c.is_alphanumeric());
        text.starts_with(|c: char| c.is_ascii_digit())
    };
    if let Some(answer) = marked_answer(reply, is_number) {
        match number_of_answer(answer) {
            Reading::One(number) => return Some(number),
            Reading::Several => return None,
            Reading::None => {}
        }
    }
    if is_refusal(reply) {
        return None;
    }
    let lines = filled_lines(reply);
    if let Some(first) = lines.first()
        && lines.len() > 1
        && is_only_a_number(first)
    {
        return numbers(first).first().copied();
    }
    if let Some(number) = emphasized.and_then(|text| numbers(text).last().copied()) {
        return Some(number);
    }
    let is_result = |line: &&&str| !is_remark(line) && !numbers(line).is_empty();
    let last_line = lines.iter().rev().find(is_result).or(lines.last())?;
    match number_of_line(last_line) {
        Reading::One(number) => Some(number),
        Reading::Several | Reading::None => None,
    }
}

/// What a text says.
enum Reading {
    None,
    One(StatedNumber),
    Several,
}

/// The number of a marked answer: after the last "=", or the one with which the answer begins, or the last one before an
/// explanation.
fn number_of_answer(answer: &str) -> Reading {
    let corrected = answer.strip_prefix("not ").and_then(|rest| Some(rest.split_once(" but ")?.1));
    let answer = corrected.unwrap_or(answer);
    let stated = strip_explanation(first_sentence(answer));
    if let Some((_, result)) = stated.rsplit_once(['=', '≈'])
        && let Some(number) = numbers(result).first()
    {
        return Reading::One(*number);
    }
    let found = numbers(stated);
    if are_alternatives(stated, &found) {
        return Reading::Several;
    }
    let begins = found.first().filter(|number| !stated[..number.begin].contains(char::is_alphabetic));
    match begins.or(found.last()).copied().or_else(|| number_in_words(stated)) {
        Some(number) => Reading::One(number),
        // "because 12": all of the answer is an explanation.
        None => numbers(answer).last().map_or(Reading::None, |number| Reading::One(*number)),
    }
}

/// Words of a sentence that is not about the result.
const ASIDES: [&str; 6] = ["started with", "originally", "initially", "at first", "wrong answer", "mistake"];

/// The sentence of a line that states its result: the first one if the line begins with a number, else the last one with
/// a number that is no aside and no negation.
fn concluding_sentence(line: &str) -> &str {
    let mut sentences = Vec::new();
    let mut rest = line;
    loop {
        let sentence = first_sentence(rest);
        if !numbers(sentence).is_empty() {
            sentences.push(sentence);
        }
        rest = rest[sentence.len()..].trim_start_matches(['.', '!', '?', ';', '。', '！', '？', ' ', '\n']);
        if rest.is_empty() {
            break;
        }
    }
    let states_result = |sentence: &&&str| {
        let lower = sentence.to_lowercase();
        !lower.starts_with("not ") && !ASIDES.iter().any(|words| lower.contains(words))
    };
    let Some(first) = sentences.first() else { return line };
    let begins =
        numbers(first).first().is_some_and(|number| !first[..number.begin].contains(char::is_alphanumeric));
    // A sum begins with a number too: "3 + 4 = 7. So ...".
    if begins && !first.contains(['=', '≈', '+', '×', '/']) {
        return first;
    }
    sentences.iter().rev().find(states_result).unwrap_or(first)
}

/// The number of a line without a marker: the first one after the last "=", else the one with which it begins before an
/// explanation, else the last one.
fn number_of_line(line: &str) -> Reading {
    let line = concluding_sentence(line);
    let bare = strip_explanation(line);
    if is_only_a_number(bare)
        && let Some(number) = numbers(bare).first()
    {
        return Reading::One(*number);
    }
    if let Some((_, result)) = line.rsplit_once(['=', '≈'])
        && let Some(number) = numbers(result).first()
    {
        return Reading::One(*number);
    }
    let found = numbers(line);
    if are_alternatives(line, &found) {
        return Reading::Several;
    }
    match found.last().copied().or_else(|| number_in_words(line)) {
        Some(number) => Reading::One(number),
        None => Reading::None,
    }
}

/// Whether a text names the last two numbers as alternatives: "5 or 6", "between 3 and 4", "3–4".
fn are_alternatives(text: &str, found: &[StatedNumber]) -> bool {
    let [.., one, two] = found else { return false };
    let between = text[one.end..two.begin].trim().to_lowercase();
    let is_range = text[..one.begin].trim_end().to_lowercase().ends_with("between") && between == "and";
    let alternatives = ["or", "to", "und", "oder", "或", "–", "—"];
    let is_interval = [",", ";"].contains(&between.as_str())
        && text[..one.begin].ends_with(['(', '['])
        && text[two.end..].starts_with([')', ']']);
    one.value != two.value && (is_range || is_interval || alternatives.contains(&between.as_str()))
}

/// Whether a line is a number with at most a short unit: "42", "$3.50", "24 cm^2".
fn is_only_a_number(line: &str) -> bool {
    let found = numbers(line);
    let [number] = found.as_slice() else { return false };
    let rest = line[number.end..].trim_matches([' ', '.', '*', '$', ')']);
    !line[..number.begin].contains(char::is_alphanumeric)
        && rest.split_whitespace().count() <= 2
        && rest.len() <= 16
}

/// Cuts an answer where its explanation begins: "12 (3 groups of 4)", "12 because ...", "42, not 41". A bracket within an
/// equation is not an explanation.
fn strip_explanation(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let words = [
        " because",
        " since",
        ", not ",
        " and not ",
        " not ",
        " rather than",
        " instead of",
        " as ",
        ", which",
        ", as ",
        ", so ",
        " but ",
    ];
    let reason = words.iter().filter_map(|word| lower.find(word)).min();
    let text = &text[..reason.unwrap_or(text.len())];
    match text.find(" (") {
        Some(at) if !text[at..].split_once(')').is_some_and(|(_, after)| after.contains('=')) => &text[..at],
        _ => text,
    }
}

/// All numbers of a text, in order.
fn numbers(text: &str) -> Vec<StatedNumber> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(offset) =
        text[at..].find(|c: char| c.is_ascii_digit() || c == '.' || vulgar_fraction(c).is_some())
    {
        let begin = at + offset;
        match number_at(text, begin) {
            Some((number, end)) => {
                found.extend(number);
                at = end;
            }
            None => at = begin + text[begin..].chars().next().map_or(1, char::len_utf8),
        }
    }
    found
}

/// The number at an offset, and where the text goes on; the number is `None` where its digits have another meaning.
fn number_at(text: &str, begin: usize) -> Option<(Option<StatedNumber>, usize)> {
    let mut rest = &text[begin..];
    let magnitude = read_magnitude(&mut rest)?;
    let end_of_digits = text.len() - rest.len();
    if has_other_meaning(&text[..begin], rest) {
        return Some((None, end_of_digits));
    }
    let (sign, sign_begin) = read_sign(text, begin);
    let mut value = sign * magnitude * read_scale(&mut rest);
    let mut is_percent = false;
    let after_space = rest.trim_start_matches(' ');
    for unit in ["%", "percent", "per cent", "٪"] {
        if let Some(after) = after_space.strip_prefix(unit) {
            (is_percent, rest) = (true, after);
        }
    }
    if value == 0.0 {
        value = 0.0;
    }
    let end = text.len() - rest.len();
    let number = StatedNumber { value, is_percent, begin: sign_begin, end };
    Some((value.is_finite().then_some(number), end))
}

/// Whether digits between these texts are part of a word, a unit's exponent, a root, a multiple of pi, a time of day or a
/// date.
fn has_other_meaning(before: &str, after: &str) -> bool {
    is_continuation(before) || is_begin_of_other(before, after)
}

/// Whether digits after this text are part of a word, an exponent, a root, a deviation, a bound, a date or a time.
fn is_continuation(before: &str) -> bool {
    let mut backwards = before.chars().rev();
    let (previous, further) = (backwards.next(), backwards.next());
    let is_word =
        previous.is_some_and(|c| (c.is_alphabetic() && c.is_ascii()) || matches!(c, '_' | '√' | '^'));
    let is_group = ["^-", "^(", "√{"].iter().any(|open| before.ends_with(open));
    let is_bound = before.trim_end_matches(' ').ends_with(['<', '>', '≤', '≥', '±']);
    let is_date_or_time = matches!(previous, Some('/' | ':')) && further.is_some_and(|c| c.is_ascii_digit());
    is_word || is_group || is_bound || is_date_or_time
}

/// Whether digits between these texts begin something else than a number: a multiple of pi or of an unknown, a time, a
/// division by zero, an unbounded interval.
fn is_begin_of_other(before: &str, after: &str) -> bool {
    let next = after.trim_start_matches(' ');
    let is_multiple = next.starts_with(['π', '√', '∞']);
    let is_undefined = next.starts_with("/0") && !next.starts_with("/0.");
    let mut following = after.chars();
    let (first, second) = (following.next(), following.next());
    let is_clock = first == Some(':') && second.is_some_and(|c| c.is_ascii_digit());
    let is_power_of_ten = after.get(1..).is_some_and(|rest| rest.trim_start_matches(' ').starts_with("10"));
    let is_unknown = matches!(first, Some('x' | 'y' | 'z' | 'n'))
        && !second.is_some_and(char::is_alphanumeric)
        && !is_power_of_ten;
    let is_unbounded = matches!(first, Some(']' | ')')) && before.contains('∞');
    is_multiple || is_undefined || is_clock || is_unknown || is_unbounded
}

/// The sign before a number, and where the number begins with it. A dash after another number is a subtraction or a
/// range.
fn read_sign(text: &str, begin: usize) -> (f64, usize) {
    const CURRENCIES: [char; 5] = ['$', '€', '£', '¥', '₹'];
    const DASHES: [char; 5] = ['-', '−', '–', '—', '‐'];
    let before = text[..begin].trim_end_matches(CURRENCIES);
    let Some(dash) = before.chars().next_back().filter(|c| DASHES.contains(c)) else {
        let lower = before.trim_end().to_ascii_lowercase();
        let is_negative = ["minus", "negative"].iter().any(|word| lower.ends_with(word));
        return (if is_negative { -1.0 } else { 1.0 }, begin);
    };
    let sign_begin = before.len() - dash.len_utf8();
    let left = text[..sign_begin].trim_end_matches(CURRENCIES);
    let touching = left.chars().next_back();
    let previous = left.trim_end().chars().next_back();
    let is_word = touching.is_some_and(char::is_alphabetic);
    let is_operator = previous.is_some_and(|c| c.is_ascii_digit() || matches!(c, '%' | ')'));
    // A long dash after a word separates clauses: "the result — 5".
    if is_word || is_operator { (1.0, begin) } else { (-1.0, sign_begin) }
}

/// Reads digits: a decimal, a fraction of two integers, a mixed number, or a power of integers.
fn read_magnitude(rest: &mut &str) -> Option<f64> {
    if let Some(fraction) = rest.chars().next().and_then(vulgar_fraction) {
        *rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
        return Some(fraction);
    }
    let start = *rest;
    let whole = read_decimal(rest)?;
    let is_integer = start[..start.len() - rest.len()].bytes().all(|byte| byte.is_ascii_digit());
    if !is_integer {
        return Some(whole);
    }
    if let Some(fraction) = rest.trim_start_matches(' ').chars().next().and_then(vulgar_fraction) {
        let after = rest.trim_start_matches(' ');
        *rest = &after[after.chars().next().map_or(0, char::len_utf8)..];
        return Some(whole + fraction);
    }
    if let Some(denominator) = read_denominator(rest) {
        return Some(whole / denominator);
    }
    let mut mixed = rest.strip_prefix(' ').unwrap_or("");
    if mixed.starts_with(|c: char| c.is_ascii_digit())
        && let Some(numerator) = read_decimal(&mut mixed)
        && let Some(denominator) = read_denominator(&mut mixed)
        && numerator < denominator
    {
        *rest = mixed;
        return Some(whole + numerator / denominator);
    }
    if let Some(exponent) = read_exponent(rest) {
        return Some(whole.powi(exponent));
    }
    Some(whole)
}

/// Reads "/4" or " / 4" after a numerator, unless it is part of a date.
fn read_denominator(rest: &mut &str) -> Option<f64> {
    let mut after = rest.trim_start_matches(' ').strip_prefix('/')?.trim_start_matches(' ');
    if !after.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let denominator = read_decimal(&mut after).filter(|denominator| *denominator != 0.0)?;
    if after.starts_with('/') {
        return None;
    }
    *rest = after;
    Some(denominator)
}

/// Reads "^6" or superscript digits.
fn read_exponent(rest: &mut &str) -> Option<i32> {
    if let Some(after) = rest.strip_prefix('^') {
        let after = after.strip_prefix('(').unwrap_or(after);
        let (sign, digits) = match after.strip_prefix(['-', '−']) {
            Some(digits) => (-1, digits),
            None => (1, after),
        };
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let exponent: i32 = digits[..end].parse().ok()?;
        *rest = digits[end..].strip_prefix(')').unwrap_or(&digits[end..]);
        return Some(sign * exponent);
    }
    let digits: Vec<(i32, usize)> =
        rest.chars().map_while(|c| Some((superscript(c)?, c.len_utf8()))).collect();
    let (sign, digits) = match digits.split_first() {
        Some(((-1, _), rest)) => (-1, rest),
        _ => (1, digits.as_slice()),
    };
    if digits.is_empty() || digits.len() > 3 || digits.iter().any(|(digit, _)| *digit < 0) {
        return None;
    }
    let length: usize =
        digits.iter().map(|(_, length)| length).sum::<usize>() + if sign < 0 { '⁻'.len_utf8() } else { 0 };
    *rest = &rest[length..];
    Some(sign * digits.iter().fold(0, |value, (digit, _)| value * 10 + digit))
}

/// The digit of a superscript; -1 for a minus.
fn superscript(c: char) -> Option<i32> {
    match c {
        '⁻' => Some(-1),
        '⁰' => Some(0),
        '¹' => Some(1),
        '²' => Some(2),
        '³' => Some(3),
        '⁴'..='⁹' => i32::try_from(u32::from(c) - u32::from('⁴')).ok().map(|digit| digit + 4),
        _ => None,
    }
}

/// Reads a factor after a number: "× 10^3", "million", "万".
fn read_scale(rest: &mut &str) -> f64 {
    let after = rest.trim_start_matches(' ');
    let times = ["×", "x", "*", "·", "⋅", "∙"].iter().find_map(|sign| after.strip_prefix(sign));
    if let Some(mut power) =
        times.map(|power| power.trim_start_matches(' ')).and_then(|power| power.strip_prefix("10"))
        && let Some(exponent) = read_exponent(&mut power)
    {
        *rest = power;
        return 10_f64.powi(exponent);
    }
    const WORDS: [(&str, f64); 10] = [
        ("thousand", 1e3),
        ("million", 1e6),
        ("billion", 1e9),
        ("trillion", 1e12),
        ("万", 1e4),
        ("萬", 1e4),
        ("亿", 1e8),
        ("億", 1e8),
        ("만", 1e4),
        ("억", 1e8),
    ];
    let lower = after.get(..8).unwrap_or(after).to_ascii_lowercase();
    for (word, factor) in WORDS {
        if lower.starts_with(word) {
            *rest = &after[word.len()..];
            return factor;
        }
    }
    1.0
}

/// Reads a decimal number without a sign. Thousands may be grouped by commas, spaces, apostrophes or underscores, or by
/// full stops before a decimal comma.
fn read_decimal(rest: &mut &str) -> Option<f64> {
    read_decimal_with(rest, european_decimal)
}

/// As [`read_decimal`]; `is_decimal_comma`: whether a comma after these digits is a decimal comma.
fn read_decimal_with(rest: &mut &str, is_decimal_comma: fn(&str, &str) -> bool) -> Option<f64> {
    let mut digits = String::new();
    take_digits(rest, &mut digits);
    let has_integer = !digits.is_empty();
    if has_integer && digits.len() <= 3 {
        let is_european = european_length(rest).is_some();
        while let Some(group) =
            next_group(rest, if is_european { &['.'] } else { &[',', ' ', '\'', '’', '_'] })
        {
            digits.push_str(group);
            *rest = &rest[rest.chars().next().map_or(0, char::len_utf8) + 3..];
        }
    }
    let decimal_sign = match is_decimal_comma(rest, &digits) {
        true => ',',
        false => '.',
    };
    if let Some(mut after) =
        rest.strip_prefix(decimal_sign).filter(|after| after.starts_with(|c: char| c.is_ascii_digit()))
    {
        digits.push('.');
        take_digits(&mut after, &mut digits);
        *rest = after;
    } else if !has_integer {
        return None;
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        let unsigned = after.strip_prefix(['-', '+', '−']).unwrap_or(after);
        if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
            digits.push_str(if after.starts_with(['-', '−']) { "e-" } else { "e" });
            let mut after = unsigned;
            take_digits(&mut after, &mut digits);
            *rest = after;
        }
    }
    digits.parse().ok()
}

fn take_digits(rest: &mut &str, digits: &mut String) {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    digits.push_str(&rest[..end]);
    *rest = &rest[end..];
}

/// The next group of exactly three digits after one of the separators.
fn next_group<'a>(rest: &'a str, separators: &[char]) -> Option<&'a str> {
    let after = rest.strip_prefix(separators)?;
    let group = after.get(..3).filter(|group| group.bytes().all(|byte| byte.is_ascii_digit()))?;
    (!after[3..].starts_with(|c: char| c.is_ascii_digit())).then_some(group)
}

/// The length of ".000.000" before a decimal comma: European grouping.
fn european_length(rest: &str) -> Option<usize> {
    let mut after = rest;
    while next_group(after, &['.']).is_some() {
        after = &after[4..];
    }
    let length = rest.len() - after.len();
    let is_decimal =
        after.strip_prefix(',').is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit()));
    (length > 0 && is_decimal).then_some(length)
}

/// Whether a comma here is a decimal comma: digits follow that form no group of three, and no list of numbers.
fn european_decimal(rest: &str, digits: &str) -> bool {
    let Some(after) = rest.strip_prefix(',') else { return false };
    let length = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let is_list = after[length..].starts_with(',');
    length > 0 && (length < 3 || digits.len() > 3) && !is_list
}

fn vulgar_fraction(c: char) -> Option<f64> {
    match c {
        '½' => Some(0.5),
        '¼' => Some(0.25),
        '¾' => Some(0.75),
        '⅓' => Some(1.0 / 3.0),
        '⅔' => Some(2.0 / 3.0),
        '⅕' => Some(0.2),
        '⅛' => Some(0.125),
        _ => None,
    }
}

/// The number that a short text states in English words: "twelve", "minus four", "twenty-one".
fn number_in_words(text: &str) -> Option<StatedNumber> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let value_of = |word: &str| {
        let small = SMALL.iter().position(|small| *small == word).map(|value| value as f64);
        small.or_else(|| TENS.iter().position(|tens| *tens == word).map(|value| (value as f64 + 2.0) * 10.0))
    };
    let mut values = words.iter().enumerate().filter_map(|(at, word)| Some((at, value_of(word)?)));
    let (at, first) = values.next()?;
    let second = values.next();
    if values.next().is_some() || words.len() > 8 {
        return None;
    }
    let next = words.get(at + 1).copied().unwrap_or_default();
    let value = match second {
        Some((second_at, unit)) if second_at == at + 1 && first >= 20.0 && unit < 10.0 => first + unit,
        Some(_) => return None,
        None if ["hundred", "thousand", "million", "billion", "half", "third", "quarter"].contains(&next) => {
            return None;
        }
        None => first,
    };
    let is_negative = at > 0 && ["minus", "negative"].contains(&words[at - 1]);
    Some(StatedNumber {
        value: if is_negative { -value } else { value },
        is_percent: next == "percent",
        begin: 0,
        end: text.len(),
    })
}

/// The last text in bold of a reply's last line that has any.
pub(super) fn emphasized(reply: &str) -> Option<&str> {
    let lines = filled_lines(reply);
    let line = lines.iter().rev().find(|line| !is_remark(line))?;
    let (before, _) = line.rsplit_once("**")?;
    let (_, bold) = before.rsplit_once("**")?;
    (!first_line(bold).is_empty()).then_some(bold)
}

/// Parses the number at the start of a text; returns its value and the rest. Commas may group thousands, and a fraction
/// of two integers gives its value. A full stop at the end of a sentence and a percent sign stay in the rest. The value
/// is finite.
pub fn parse_number(text: &str) -> Option<(f64, &str)> {
    let (sign, mut rest) = match text.strip_prefix(['-', '\u{2212}']) {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    if !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let value = read_decimal_with(&mut rest, |_, _| false)?;
    let divided = read_denominator(&mut rest).map_or(value, |denominator| value / denominator);
    divided.is_finite().then_some((sign * divided, rest))
}
