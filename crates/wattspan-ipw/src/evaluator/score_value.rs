//! Scores as evaluators write them.

use serde_json::Value;

/// Converts a score to a number from 0 to 1, as inspect-ai's `value_to_float` does.
///
/// # Errors
/// Why it is none.
pub fn score_value(value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Bool(is_right) => f64::from(u8::from(*is_right)),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
        Value::String(text) => match text.as_str() {
            "C" => 1.0,
            "P" => 0.5,
            "I" | "N" => 0.0,
            text if ["yes", "true"].iter().any(|word| text.eq_ignore_ascii_case(word)) => 1.0,
            text if ["no", "false"].iter().any(|word| text.eq_ignore_ascii_case(word)) => 0.0,
            text => text.parse().map_err(|_| format!("its score {text:?} is no number"))?,
        },
        Value::Null => return Err("the evaluator gave it no score".into()),
        Value::Array(_) | Value::Object(_) => {
            return Err("its score has several values: name one with --scorer".into());
        }
    };
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err(format!("its score {number} is not between 0 and 1"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_are_those_of_the_evaluators() {
        for (value, score) in [
            (json!("C"), 1.0),
            (json!("I"), 0.0),
            (json!("P"), 0.5),
            (json!("N"), 0.0),
            (json!(true), 1.0),
            (json!(0.25), 0.25),
            (json!("0.5"), 0.5),
            (json!("Yes"), 1.0),
        ] {
            assert_eq!(score_value(&value), Ok(score), "{value}");
        }
        for value in
            [json!(null), json!(7), json!(-1), json!("NaN"), json!("good"), json!({"a": 1}), json!([1])]
        {
            assert!(score_value(&value).is_err(), "{value}");
        }
    }
}
