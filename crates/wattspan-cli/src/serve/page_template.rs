//! The page in the program: its template with the style of the report and its script.

use wattspan_page::STYLE;

const PAGE: &str = include_str!("page.html");
const LOCKED_PAGE: &str = include_str!("locked_page.html");
const PAGE_STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page, whose script and style have this nonce.
pub fn page(nonce: &str) -> String {
    fill(PAGE, nonce)
}

/// The page for a visitor without the token. It has the token of this tab if the page was open there.
pub fn locked_page(nonce: &str) -> String {
    fill(LOCKED_PAGE, nonce)
}

fn fill(template: &str, nonce: &str) -> String {
    let style = format!("{STYLE}{PAGE_STYLE}");
    template.replace("{{nonce}}", nonce).replace("{{style}}", &style).replace("{{script}}", SCRIPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_small_and_loads_nothing() {
        for (page, scripts) in [(page("abc"), 1), (locked_page("abc"), 1)] {
            assert!(!page.contains("{{"), "a part is missing");
            assert_eq!(page.matches("<script nonce=\"abc\">").count(), scripts);
            assert_eq!(page.matches("<style nonce=\"abc\">").count(), 1);
            assert_eq!(page.matches("<script").count(), scripts);
            assert!(page.len() < 60_000, "{}", page.len());
            for sign in ["http://", "https://", " src=", "@import", "url(", "style=\"", "innerHTML", "eval("]
            {
                assert!(!page.contains(sign), "{sign}");
            }
        }
    }
}
