//! Orders domains as a tree: a parent comes before its children.
//!
//! A daemon's reply may contain a cycle of parents or an unknown parent; no row is dropped.

use wattspan_client::protocol::DomainStatus;

use super::table::TableCell;

/// Whether a domain is part of the machine's total.
pub fn counted_cell(counted: bool) -> TableCell {
    if counted { "counted" } else { "not counted" }.into()
}

/// A domain's name, indented by its depth among the shown domains.
pub fn indented_name(name: &str, depth: usize) -> TableCell {
    format!("{}{name}", "  ".repeat(depth)).into()
}

/// All `rows` in the order of the tree of `all`, each with its depth: the number of rows that contain it.
pub fn order_rows<'a, T>(
    rows: &'a [T],
    name: impl Fn(&T) -> &str,
    all: &[DomainStatus],
) -> Vec<(usize, &'a T)> {
    let position = |ancestor: &str| rows.iter().position(|row| name(row) == ancestor);
    let parents: Vec<Option<usize>> =
        rows.iter().map(|row| ancestors(name(row), all).into_iter().find_map(position)).collect();
    let mut ordered = Vec::with_capacity(rows.len());
    let mut stack: Vec<(usize, usize)> =
        (0..rows.len()).rev().filter(|&at| parents[at].is_none()).map(|at| (0, at)).collect();
    while let Some((depth, index)) = stack.pop() {
        ordered.push((depth, index));
        let children = (0..rows.len()).rev().filter(|&other| parents[other] == Some(index));
        stack.extend(children.map(|other| (depth + 1, other)));
    }
    // Rows in a cycle of parents.
    let missing: Vec<usize> =
        (0..rows.len()).filter(|at| !ordered.iter().any(|(_, other)| other == at)).collect();
    ordered.extend(missing.into_iter().map(|at| (0, at)));
    ordered.into_iter().map(|(depth, at)| (depth, &rows[at])).collect()
}

/// The ancestors of a domain, nearest first.
fn ancestors<'a>(name: &str, all: &'a [DomainStatus]) -> Vec<&'a str> {
    let parent = |name: &str| {
        all.iter().find(|domain| domain.name == name).and_then(|domain| domain.parent.as_deref())
    };
    std::iter::successors(parent(name), |name| parent(name)).take(all.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(domains: &[(&str, Option<&str>)], row_names: &[&str]) -> Vec<(usize, String)> {
        let status = |(name, parent): &(&str, Option<&str>)| {
            let value = serde_json::json!({
                "name": name, "parent": parent, "kind": "package", "source": "replay", "counted": true,
                "grade": "measured", "liveness": "live"
            });
            serde_json::from_value::<DomainStatus>(value).unwrap()
        };
        let all: Vec<DomainStatus> = domains.iter().map(status).collect();
        order_rows(row_names, |name| name, &all)
            .into_iter()
            .map(|(depth, name)| (depth, (*name).to_owned()))
            .collect()
    }

    #[test]
    fn a_domain_follows_its_nearest_listed_ancestor() {
        let machine = [("core", Some("package")), ("dram", None), ("package", Some("psys")), ("psys", None)];
        let row = |depth: usize, name: &str| (depth, name.to_owned());
        let whole = ordered(&machine, &["core", "dram", "package", "psys"]);
        assert_eq!(whole, [row(0, "dram"), row(0, "psys"), row(1, "package"), row(2, "core")]);
        assert_eq!(ordered(&machine, &["core", "psys"]), [row(0, "psys"), row(1, "core")]);
        assert_eq!(ordered(&machine, &["core", "gone"]), [row(0, "core"), row(0, "gone")]);
    }

    #[test]
    fn a_parent_cycle_drops_no_row() {
        let machine = [("a", Some("b")), ("b", Some("a")), ("c", Some("c"))];
        assert_eq!(ordered(&machine, &["a", "b", "c"]).len(), 3);
    }
}
