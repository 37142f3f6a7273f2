//! The answer in a model's reply, for each format of question; a judge's verdict; numbers.

use wattspan_ipw::answer_format::AnswerFormat;
use wattspan_ipw::extract::{extract_answer, parse_number, score_reply};
use wattspan_ipw::judge::parse_verdict;

use super::{first_byte, first_line};

/// The first byte selects the number of options, the first line is the expected answer, the rest the reply.
pub fn check(bytes: &[u8]) {
    let (selector, rest) = first_byte(bytes);
    let (expected, reply) = first_line(rest);
    let (expected, reply) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(reply));
    let count = usize::from(selector) % 11;
    let choices: Vec<String> = ["Paris", "London", "Berlin", "4", "yes", "A and B", "none", "x", "y", "z"]
        .iter()
        .take(count)
        .map(|choice| (*choice).to_owned())
        .collect();
    for format in [AnswerFormat::Letter, AnswerFormat::Numeric, AnswerFormat::Exact, AnswerFormat::Judge] {
        let extracted = extract_answer(format, &choices, &reply);
        let score = score_reply(format, &choices, &expected, &reply);
        assert_eq!(score.is_none(), format == AnswerFormat::Judge);
        let Some(extracted) = extracted else { continue };
        match format {
            AnswerFormat::Letter => {
                let letter = extracted.bytes().next().expect("a letter");
                let last = if count == 0 { b'Z' } else { b'A' + count as u8 - 1 };
                assert!(extracted.len() == 1 && (b'A'..=last).contains(&letter), "{extracted} of {count}");
                // The reply is right if its own answer was expected.
                assert_eq!(score_reply(format, &choices, &extracted, &reply), Some(true), "{extracted}");
            }
            AnswerFormat::Numeric => {
                let value: f64 = extracted.parse().expect("a number");
                assert!(value.is_finite(), "{extracted}");
            }
            AnswerFormat::Exact | AnswerFormat::Judge => assert!(!extracted.is_empty()),
        }
    }
    check_number(&expected);
    assert!(parse_verdict(&reply, None).is_none_or(|score| (0.0..=1.0).contains(&score)));
}

/// A plain decimal number is the number that the standard library reads.
fn check_number(text: &str) {
    let Some((value, rest)) = parse_number(text) else { return };
    assert!(value.is_finite() && text.ends_with(rest) && rest.len() < text.len(), "{text}");
    let plain = &text[..text.len() - rest.len()];
    if plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-')
        && let Ok(expected) = plain.parse::<f64>()
    {
        assert!((value - expected).abs() <= expected.abs() * 1e-12, "{plain}: {value}");
    }
}
