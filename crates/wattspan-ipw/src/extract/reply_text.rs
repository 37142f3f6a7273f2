//! The text of a reply that states the answer: without reasoning, end tokens and markup.
//!
//! Models write their reasoning in channels or between tags, and servers sometimes pass on tokens that end a turn.
//! Invariant: reasoning that was cut off leaves an empty text, since no answer was given.

/// Begin and end of reasoning, as models write them.
const REASONING_TAGS: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<analysis>", "</analysis>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
];

/// The channels of the harmony format: the answer is in the last one named `final`.
const FINAL_CHANNEL: &str = "<|channel|>final";
const CHANNEL: &str = "<|channel|>";
const CHANNEL_TEXT: &str = "<|message|>";

/// Tokens with which a turn begins.
const BEGIN_TOKENS: [&str; 4] = [
    "<|im_start|>assistant",
    "<|start_header_id|>assistant<|end_header_id|>",
    "<|start|>assistant<|message|>",
    "<start_of_turn>model",
];

/// Tokens that end a turn; the text after them is not part of the reply.
const END_TOKENS: [&str; 11] = [
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|return|>",
    "<|end|>",
    "<eos>",
    "<|eom_id|>",
    "<｜end▁of▁sentence｜>",
];

/// Removes the reasoning of a model, and the tokens around a turn. Reasoning without an end was cut off by the token
/// limit and leaves an empty text.
pub(crate) fn strip_reasoning(reply: &str) -> &str {
    let mut rest = reply;
    if let Some(at) = rest.rfind(FINAL_CHANNEL) {
        rest = rest[at..].split_once(CHANNEL_TEXT).map_or("", |(_, text)| text);
    } else if rest.contains(CHANNEL) {
        return "";
    }
    for (open, close) in REASONING_TAGS {
        rest = rest.rsplit_once(close).map_or(rest, |(_, after)| after);
        rest = rest.split_once(open).map_or(rest, |(before, _)| before);
    }
    for token in BEGIN_TOKENS {
        rest = rest.trim_start().strip_prefix(token).unwrap_or(rest);
    }
    let end = END_TOKENS.iter().filter_map(|token| rest.find(token)).min();
    &rest[..end.unwrap_or(rest.len())]
}

/// Commands of LaTeX whose content is text.
const TEXT_COMMANDS: [&str; 10] = [
    "\\text{",
    "\\textbf{",
    "\\textit{",
    "\\textrm{",
    "\\mathbf{",
    "\\mathrm{",
    "\\mathit{",
    "\\mathsf{",
    "\\mbox{",
    "\\operatorname{",
];

const FRACTIONS: [&str; 4] = ["\\frac", "\\dfrac", "\\tfrac", "\\cfrac"];

/// Markup and what a reader sees in its place, applied in this order.
const REPLACEMENTS: [(&str, &str); 34] = [
    ("\\infty", "∞"),
    ("<answer>", "Answer: "),
    ("</answer>", "\n"),
    ("**", ""),
    ("__", ""),
    ("`", ""),
    ("\u{a0}", " "),
    ("\u{2009}", " "),
    ("\u{202f}", " "),
    ("\\displaystyle", ""),
    ("\\left", ""),
    ("\\right", ""),
    ("\\times", "×"),
    ("\\cdot", "×"),
    ("\\approx", "≈"),
    ("\\pi", "π"),
    ("\\sqrt", "√"),
    ("^{\\circ}", "°"),
    ("^\\circ", "°"),
    ("\\circ", "°"),
    ("\\degree", "°"),
    ("\\%", "%"),
    ("\\$", "$"),
    ("\\#", "#"),
    ("\\,", " "),
    ("\\;", " "),
    ("\\:", " "),
    ("\\!", ""),
    ("\\ ", " "),
    ("{,}", ","),
    ("\\(", " "),
    ("\\)", " "),
    ("\\[", " "),
    ("\\]", " "),
];

/// The reply in plain text: full-width characters as ASCII, without emphasis, LaTeX as a reader would write it in a
/// line. `\boxed{}` and other braces stay.
pub(super) fn plain_text(reply: &str) -> String {
    let mut text: String = reply.chars().map(half_width).collect();
    for (markup, plain) in REPLACEMENTS {
        if text.contains(markup) {
            text = text.replace(markup, plain);
        }
    }
    for command in TEXT_COMMANDS {
        while let Some(at) = text.find(command) {
            let Some(content) = balanced(&text[at + command.len()..]).map(str::to_owned) else { break };
            text.replace_range(at..at + command.len() + content.len() + 1, &content);
        }
    }
    for command in FRACTIONS {
        while let Some((at, end, plain)) = find_fraction(&text, command) {
            text.replace_range(at..end, &plain);
        }
    }
    // Exponents in braces: `10^{6}`.
    while let Some(at) = text.find("^{") {
        let Some(content) = balanced(&text[at + 2..]).map(str::to_owned) else { break };
        text.replace_range(at..at + 2 + content.len() + 1, &format!("^{content}"));
    }
    text
}

/// The ASCII character for a full-width one (Unicode block Halfwidth and Fullwidth Forms).
fn half_width(character: char) -> char {
    match character {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(character) - 0xff01 + 0x21).unwrap_or(character),
        '\u{3000}' => ' ',
        _ => character,
    }
}

/// The text up to the brace that closes one opened before it.
pub(super) fn balanced(text: &str) -> Option<&str> {
    let mut depth = 1;
    let end = text.bytes().position(|byte| {
        depth += match byte {
            b'{' => 1,
            b'}' => -1,
            _ => 0,
        };
        depth == 0
    })?;
    Some(&text[..end])
}

/// The first fraction written with `command`: its begin, its end, and how it is written in a line.
fn find_fraction(text: &str, command: &str) -> Option<(usize, usize, String)> {
    text.match_indices(command).find_map(|(at, _)| {
        let mut rest = &text[at + command.len()..];
        let numerator = take_argument(&mut rest)?;
        let denominator = take_argument(&mut rest)?;
        let is_plain = |part: &str| part.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | '-'));
        let part = |part: &str| if is_plain(part) { part.to_owned() } else { format!("({})", part.trim()) };
        // After a digit it is a mixed number.
        let space = if text[..at].ends_with(|c: char| c.is_ascii_digit()) { " " } else { "" };
        let plain = format!("{space}{}/{}", part(numerator.trim()), part(denominator.trim()));
        Some((at, text.len() - rest.len(), plain))
    })
}

/// An argument of a LaTeX command: a group in braces, or one digit.
fn take_argument<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text: &'a str = rest.trim_start();
    if let Some(inside) = text.strip_prefix('{') {
        let content = balanced(inside)?;
        *rest = &inside[content.len() + 1..];
        return Some(content);
    }
    let digit = text.get(..1).filter(|digit| digit.bytes().all(|byte| byte.is_ascii_digit()))?;
    *rest = &text[1..];
    Some(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_and_the_tokens_of_a_turn_are_removed() {
        for (reply, text) in [
            ("<think>A? C?</think>\nB", "\nB"),
            ("[THINK]A[/THINK]B", "B"),
            ("<think>A", ""),
            ("B so far <think>A", "B so far "),
            (
                "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>",
                "B",
            ),
            ("<|channel|>analysis<|message|>The answer is A", ""),
            ("<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC", "\nB"),
            ("B</s>", "B"),
            ("plain", "plain"),
        ] {
            assert_eq!(strip_reasoning(reply), text, "{reply}");
        }
    }

    #[test]
    fn markup_becomes_what_a_reader_sees() {
        for (reply, text) in [
            (r"\boxed{\frac{3}{4}}", r"\boxed{3/4}"),
            (r"3\frac{1}{2}", "3 1/2"),
            (r"-\dfrac12", "-1/2"),
            (r"\frac{x+1}{2}", "(x+1)/2"),
            (r"\frac{\text{3}}{4}", "3/4"),
            (r"70{,}000 and 70\,000", "70,000 and 70 000"),
            (r"24 \text{ cm}^{2}", "24  cm^2"),
            (r"1.2 \times 10^{3}", "1.2 × 10^3"),
            ("**Answer：** Ｂ", "Answer: B"),
            (r"\frac{1", r"\frac{1"),
            (r"\text{open", r"\text{open"),
        ] {
            assert_eq!(plain_text(reply), text, "{reply}");
        }
    }
}
