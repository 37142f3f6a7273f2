#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wattspan_fuzz::sysfs_text::check(bytes));
