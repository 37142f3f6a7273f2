//! The number of a group, from the C library (`getgrnam_r`, getgrnam(3)), which includes LDAP and systemd groups.
//!
//! A name service may block, so this is called at startup and reload only, not for a client.
#![allow(unsafe_code)]

use std::ffi::CString;

/// The number of a group; `None` if there is no such group or the look-up fails.
pub fn gid_by_name(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0 as libc::c_char; 1024];
    loop {
        let mut found = std::ptr::null_mut();
        // SAFETY: all-zero bytes are a valid `group` (null pointers and a number), written to before it is read.
        let mut group: libc::group = unsafe { std::mem::zeroed() };
        // SAFETY: the name ends with NUL, and `group`, the buffer of the length given, and `found` live through
        // the call; what `group` points at afterwards lies in the buffer and is not looked at.
        let status = unsafe {
            libc::getgrnam_r(name.as_ptr(), &raw mut group, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        if status == libc::ERANGE && buffer.len() < 1 << 20 {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        }
        return (status == 0 && !found.is_null()).then_some(group.gr_gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_group_is_found_and_a_missing_one_is_not() {
        assert!(gid_by_name("daemon").is_some());
        assert_eq!(gid_by_name("no such group here"), None);
        assert_eq!(gid_by_name("nul\0inside"), None);
    }
}
