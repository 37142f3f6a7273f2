//! System calls that the daemon refuses itself from some point on (seccomp(2)).
//!
//! Owns the list and the filter, a dozen instructions. Where the service manager's filter forbids capset(2), as the
//! packaged unit's does, CAP_PERFMON cannot be put down; without perf_event_open it is good for nothing, and that can be
//! put down. The filter can never be taken off again.
#![allow(unsafe_code)]

use std::io;

/// What is refused, with EPERM: opening counters, starting programs, and looking into other processes.
const DENIED_SYSCALLS: &[(&str, libc::c_long)] = &[
    ("perf_event_open", libc::SYS_perf_event_open),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("bpf", libc::SYS_bpf),
];

/// From here on the numbers of x86's 32-bit pointers begin, by which a list of numbers could be gone round.
const X32_SYSCALL_BIT: u32 = 0x4000_0000;

/// Offsets into `struct seccomp_data`.
const NR_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;

/// The kernel's name for this architecture (linux/audit.h); `None` where nobody has looked it up.
fn audit_arch() -> Option<u32> {
    match std::env::consts::ARCH {
        "x86_64" => Some(0xC000_003E),
        "aarch64" => Some(0xC000_00B7),
        "riscv64" => Some(0xC000_00F3),
        _ => None,
    }
}

/// Every thread there is refuses, those included that a library started; without it the calling one does, and what it starts.
pub(super) const ALL_THREADS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_TSYNC;

/// Refuses them from now on; gives their names. The thread must be unable to gain privileges (no_new_privs), and the others
/// are made so too.
///
/// # Errors
/// The kernel has no such filters, or this architecture is not known here.
pub(super) fn install_filter(flags: libc::c_ulong) -> io::Result<Vec<&'static str>> {
    let architecture = audit_arch().ok_or(io::ErrorKind::Unsupported)?;
    let mut instructions = bpf_program(architecture);
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `filter`, which live through the call, and keeps nothing.
    let status =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match status {
        0 => {}
        -1 => return Err(io::Error::last_os_error()),
        // The number of a thread that has a filter of its own, which nobody here has made.
        _ => return Err(io::ErrorKind::PermissionDenied.into()),
    }
    Ok(DENIED_SYSCALLS.iter().map(|(name, _)| *name).collect())
}

/// Another architecture's calls and those of the list are refused, the rest goes on to whatever other filters there are.
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
    // How many looks at the number follow; each that hits goes to the last instruction.
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
            // SAFETY: the call is refused before its arguments are looked at; without the filter null is EFAULT.
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
