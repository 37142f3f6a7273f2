//! The parser of the kernel's CPU lists.
//!
//! Rejects lists that are longer than any machine's.

/// Largest accepted CPU number; the kernel supports at most 8,192 CPUs.
const MAX_CPUS: usize = 65_536;

/// Parses a list such as `0-3,8,64-67`, as in a PMU's `cpumask`.
pub fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut ranges = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if last < first || last >= MAX_CPUS {
            return None;
        }
        ranges.push((first, last));
    }
    ranges.sort_unstable();
    let mut cpus: Vec<usize> = Vec::new();
    for (first, last) in ranges {
        // A range that is listed often takes no memory again.
        let next = cpus.last().map_or(0, |cpu| cpu + 1);
        cpus.extend(first.max(next)..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_of_all_shapes_are_read() {
        assert_eq!(parse_cpu_list("0\n"), Some(vec![0]));
        assert_eq!(parse_cpu_list("0,64"), Some(vec![0, 64]));
        assert_eq!(parse_cpu_list("2-4,0-1,3"), Some(vec![0, 1, 2, 3, 4]));
        assert_eq!(parse_cpu_list(""), Some(vec![]));
    }

    #[test]
    fn overlapping_ranges_take_no_more_memory_than_all_cpus() {
        let cpus = parse_cpu_list(&"0-65535,".repeat(200)).unwrap();
        assert!(cpus.len() == 65_536 && cpus.capacity() < 1 << 18, "{}", cpus.capacity());
        assert_eq!(parse_cpu_list("5,1-3,2-6,3"), Some(vec![1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn what_is_no_cpu_list_is_refused_without_using_memory() {
        for text in ["all", "3-1", "0-99999999999", "0-4294967295", "-1", "1-", "0x3"] {
            assert_eq!(parse_cpu_list(text), None, "{text:?}");
        }
    }
}
