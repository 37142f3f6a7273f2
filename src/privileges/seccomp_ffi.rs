//! System calls that the daemon blocks after discovery (seccomp(2)).
//!
//! Owns the list and the filter. A service manager's filter that forbids capset(2), as that of the packaged
//! unit, prevents dropping CAP_PERFMON; blocking perf_event_open makes that capability useless. A filter
//! cannot be removed.
#![allow(unsafe_code)]

use std::io;

/// Blocked with EPERM: opening counters, starting programs, and inspecting other processes.
const DENIED_SYSCALLS: &[(&str, libc::c_long)] = &[
    ("perf_event_open", libc::SYS_perf_event_open),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("bpf", libc::SYS_bpf),
];

/// System call numbers of the x32 ABI start here. They could bypass a list of numbers.
const X32_SYSCALL_BIT: u32 = 0x4000_0000;

/// Offsets into `struct seccomp_data`.
const NR_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;

/// AUDIT_ARCH_* of this architecture (linux/audit.h); `None` if it is not supported.
fn audit_arch() -> Option<u32> {
    match std::env::consts::ARCH {
        "x86_64" => Some(0xC000_003E),
        "aarch64" => Some(0xC000_00B7),
        "riscv64" => Some(0xC000_00F3),
        _ => None,
    }
}

/// Applies the filter to all threads, including those of libraries. Without it, only the calling thread and
/// its children have the filter.
pub(super) const ALL_THREADS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_TSYNC;

/// Installs the filter and returns the names of the blocked calls. The thread must have no_new_privs set.
/// With `ALL_THREADS`, the kernel sets it for the others too.
///
/// # Errors
/// The kernel does not support filters, or this architecture is not supported.
pub(super) fn install_filter(flags: libc::c_ulong) -> io::Result<Vec<&'static str>> {
    let architecture = audit_arch().ok_or(io::ErrorKind::Unsupported)?;
    let mut instructions = bpf_program(architecture);
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `filter`, which is valid during the call, and keeps
    // no pointer.
    let status =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match status {
        0 => {}
        -1 => return Err(io::Error::last_os_error()),
        // The id of a thread with a different filter, which prevents synchronization.
        _ => return Err(io::ErrorKind::PermissionDenied.into()),
    }
    Ok(DENIED_SYSCALLS.iter().map(|(name, _)| *name).collect())
}

/// Blocks the calls of the list and all calls of another architecture, and allows the others, subject to
/// other filters.
fn bpf_program(architecture: u32) -> Vec<libc::sock_filter> {
    let stmt = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |offset| stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let ret = |action| stmt(libc::BPF_RET | libc::BPF_K, action);
    let jump = |op: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | op | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let mut instructions = vec![load(ARCH_OFFSET)];
    // Number of comparisons that follow. Each match jumps to the last instruction.
    let comparisons = DENIED_SYSCALLS.len() as u8 + 1;
    instructions.push(jump(libc::BPF_JEQ, architecture, 0, comparisons + 2));
    instructions.push(load(NR_OFFSET));
    instructions.push(jump(libc::BPF_JGE, X32_SYSCALL_BIT, comparisons, 0));
    for (index, (_, number)) in DENIED_SYSCALLS.iter().enumerate() {
        instructions.push(jump(libc::BPF_JEQ, *number as u32, comparisons - 1 - index as u8, 0));
    }
    instructions.push(ret(libc::SECCOMP_RET_ALLOW));
    instructions.push(ret(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    instructions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_on_the_errno_return() {
        let program = bpf_program(7);
        let refusal = program.len() - 1;
        for (at, instruction) in program.iter().enumerate().skip(1) {
            let target = |offset: u8| at + 1 + usize::from(offset);
            if instruction.code == (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16 && instruction.k == 7
            {
                assert_eq!((target(instruction.jt), target(instruction.jf)), (at + 1, refusal));
            } else if u32::from(instruction.code) & 7 == libc::BPF_JMP {
                assert_eq!((target(instruction.jt), target(instruction.jf)), (refusal, at + 1));
            }
        }
    }

    #[test]
    fn a_filtered_thread_cannot_open_counters_or_start_programs() {
        let refused = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            let refused = match install_filter(0) {
                Ok(refused) => refused,
                Err(cause) => {
                    println!("skipped: this system takes no filter: {cause}");
                    return None;
                }
            };
            assert!(refused.contains(&"perf_event_open"));
            // SAFETY: the filter rejects the call before its arguments are read; without it, the null pointer
            // causes EFAULT.
            let status = unsafe { libc::syscall(libc::SYS_perf_event_open, 0, 0, -1, -1, 0) };
            assert_eq!((status, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
            Some(std::process::Command::new("true").status().is_err())
        });
        if refused.join().unwrap() == Some(false) {
            panic!("a program was started");
        }
        assert!(std::process::Command::new("true").status().is_ok());
    }
}
