//! What the proxy process may ask the kernel for: sockets, files, memory and threads of its own.
//! A list of refusals, not of permissions: the C library and the host's name service modules, which the process loads,
//! choose their calls anew with each upgrade, and a call that an allow-list misses stops every agent of the host.
//! INVARIANT: it executes nothing, makes no process, enters no namespace, and has only UNIX, TCP and UDP sockets.

use super::{ARG0, ARG2, Filter, SOCK_PACKET, errno};

/// getaddrinfo asks AF_NETLINK for the host's addresses only to sort answers, and does without.
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
const SOCK_RAW: u32 = libc::SOCK_RAW.cast_unsigned();
/// No MPTCP, SCTP, UDP-Lite or ping: nothing that the proxy speaks, and less kernel to attack.
const PROTOCOLS: [u32; 3] = [
    0,
    libc::IPPROTO_TCP.cast_unsigned(),
    libc::IPPROTO_UDP.cast_unsigned(),
];
/// `BPF_MAP_LOOKUP_ELEM`, by which original destinations are read from the two maps that it was given.
const BPF_LOOKUP: u32 = 1;
const PROT_WRITE_EXEC: u32 = (libc::PROT_WRITE | libc::PROT_EXEC).cast_unsigned();
const NAMESPACES: u32 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS)
    .cast_unsigned();

/// Refused with EPERM, beside what nobody gets.
const REFUSED: &[libc::c_long] = &[
    // other programs and namespaces
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_unshare,
    // other users
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // files by handle, devices, and what watches other processes' files
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
    // other processes, and memory that exploits are built with
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_process_madvise,
    libc::SYS_remap_file_pages,
    libc::SYS_shmat,
    libc::SYS_userfaultfd,
    // the machine
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// The same under the older numbers that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_vfork,
];
/// The same under the older numbers that only x86_64 has.
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

impl Filter {
    /// The filter of the proxy process.
    pub(in super::super) fn proxy() -> Filter {
        let mut program = Filter::new();
        for call in REFUSED.iter().chain(REFUSED_HERE) {
            program.refuse(*call, libc::EPERM);
        }
        program.on(libc::SYS_bpf, |block| {
            block.only(ARG0, &[BPF_LOOKUP], libc::EPERM);
        });
        program.on(libc::SYS_clone, |block| {
            block.load(ARG0);
            block.answer_if(libc::BPF_JSET, NAMESPACES, errno(libc::EPERM));
            let thread = libc::CLONE_THREAD.cast_unsigned();
            block.answer_if(libc::BPF_JSET, thread, libc::SECCOMP_RET_ALLOW);
            block.answer(errno(libc::EPERM));
        });
        program.on(libc::SYS_socket, |block| {
            block.only_sockets(&FAMILIES, &[SOCK_RAW, SOCK_PACKET]);
            block.only(ARG2, &PROTOCOLS, libc::EPROTONOSUPPORT);
        });
        program.on(libc::SYS_socketpair, |block| {
            block.only_sockets(&FAMILIES, &[SOCK_RAW, SOCK_PACKET]);
        });
        // Name service modules are mapped from files, executable and read-only at once: that stays possible.
        program.on(libc::SYS_mmap, |block| {
            block.load(ARG2);
            block.and(PROT_WRITE_EXEC);
            block.answer_if(libc::BPF_JEQ, PROT_WRITE_EXEC, errno(libc::EPERM));
        });
        for call in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
            program.on(call, |block| {
                block.load(ARG2);
                let executable = libc::PROT_EXEC.cast_unsigned();
                block.answer_if(libc::BPF_JSET, executable, errno(libc::EPERM));
            });
        }
        program.otherwise_allowed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(nr: libc::c_long, arguments: [u64; 3]) -> u32 {
        Filter::proxy().call(nr, arguments)
    }

    #[test]
    fn its_own_refusals_hold() {
        for refused in REFUSED.iter().chain(REFUSED_HERE) {
            assert_eq!(call(*refused, [0; 3]), errno(libc::EPERM), "{refused}");
        }
    }

    #[test]
    fn sockets_are_unix_tcp_and_udp() {
        let (stream, datagram) = (libc::SOCK_STREAM as u64, libc::SOCK_DGRAM as u64);
        for family in 0..64_u64 {
            let listed = FAMILIES.iter().any(|known| *known as u64 == family);
            for (kind, protocol) in [(stream, 0), (stream, 6), (datagram, 17)] {
                let flagged = kind | (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
                let wanted = if listed {
                    libc::SECCOMP_RET_ALLOW
                } else {
                    errno(libc::EAFNOSUPPORT)
                };
                assert_eq!(
                    call(libc::SYS_socket, [family, flagged, protocol]),
                    wanted,
                    "family {family}"
                );
            }
        }
        let inet = libc::AF_INET as u64;
        for kind in [SOCK_RAW, SOCK_PACKET] {
            assert_eq!(
                call(libc::SYS_socket, [inet, kind.into(), 6]),
                errno(libc::EAFNOSUPPORT)
            );
        }
        for protocol in [1, 132, 136, 262] {
            assert_eq!(
                call(libc::SYS_socket, [inet, stream, protocol]),
                errno(libc::EPROTONOSUPPORT),
                "protocol {protocol}"
            );
        }
    }

    #[test]
    fn threads_can_be_made_and_processes_cannot() {
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
        assert_eq!(
            call(libc::SYS_clone, [thread, 0, 0]),
            libc::SECCOMP_RET_ALLOW
        );
        for flags in [
            libc::SIGCHLD as u64,
            (libc::CLONE_VM | libc::CLONE_VFORK) as u64,
            thread | libc::CLONE_NEWNET as u64,
            thread | libc::CLONE_NEWUSER as u64,
        ] {
            assert_eq!(
                call(libc::SYS_clone, [flags, 0, 0]),
                errno(libc::EPERM),
                "{flags:#x}"
            );
        }
    }

    #[test]
    fn maps_can_be_read_and_nothing_else_be_done_with_bpf() {
        for command in 0..40_u64 {
            let wanted = if command == u64::from(BPF_LOOKUP) {
                libc::SECCOMP_RET_ALLOW
            } else {
                errno(libc::EPERM)
            };
            assert_eq!(call(libc::SYS_bpf, [command, 0, 0]), wanted, "{command}");
        }
    }

    #[test]
    fn memory_is_writable_or_executable() {
        let (read, write, execute) = (
            libc::PROT_READ as u64,
            libc::PROT_WRITE as u64,
            libc::PROT_EXEC as u64,
        );
        let mmap = |protection| call(libc::SYS_mmap, [0, 4096, protection]);
        assert_eq!(mmap(read | write), libc::SECCOMP_RET_ALLOW);
        assert_eq!(mmap(read | execute), libc::SECCOMP_RET_ALLOW);
        assert_eq!(mmap(read | write | execute), errno(libc::EPERM));
        for syscall in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
            assert_eq!(
                call(syscall, [0, 4096, read | write]),
                libc::SECCOMP_RET_ALLOW
            );
            assert_eq!(call(syscall, [0, 4096, read | execute]), errno(libc::EPERM));
        }
    }
}
