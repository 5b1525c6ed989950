//! The workload's system call filter: socket families by allow-list, and no way to make a socket, a namespace or a
//! program behind the filter's or the kernel hooks' back. Installed right before execve; inherited by everything.
//! INVARIANT: a call through another ABI (i386, x32) never reaches the kernel under another call's number.

use rustix::io::Errno;

use super::step::check;

/// `AUDIT_ARCH_*` of the one ABI that may be used.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
/// `AUDIT_ARCH_*` of the one ABI that may be used.
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// x32 calls carry the x86_64 architecture and this bit in their number.
const X32_BIT: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; the low halves of the arguments, since the kernel's own types are 32 bits wide.
const NR: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARG0: u32 = 16;
const ARG1: u32 = 24;

const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];
/// `SOCK_PACKET`: the kernel turns `socket(AF_INET, SOCK_PACKET)` into a packet socket.
const SOCK_PACKET: u32 = 10;
const SOCK_TYPE_MASK: u32 = 0xF;
/// Puts a character into the terminal's input queue, as if the operator had typed it.
const TIOCSTI: u32 = 0x5412;
/// Among others, pastes into a virtual console.
const TIOCLINUX: u32 = 0x541C;
/// open_tree_attr(2), Linux 6.15; not in libc yet.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Refused with EPERM: what a workload could use to leave, or to have another process do it.
const REFUSED: &[libc::c_long] = &[
    // other processes' memory and descriptors
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // programs in the kernel
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    // other namespaces and the mounts that hide things
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    SYS_OPEN_TREE_ATTR,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    // keys of the session that started us
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Answered with ENOSYS, so that programs take the older way: clone, whose flags can be seen; epoll instead of io_uring,
/// whose operations make sockets past this filter.
const UNKNOWN: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// A filter, assembled and ready to install.
#[derive(Debug)]
pub(super) struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// The filter of every workload.
    pub(super) fn workload() -> Filter {
        let mut program = Filter(Vec::with_capacity(160));
        program.load(ARCHITECTURE);
        program.unless_equal(ARCH, libc::SECCOMP_RET_KILL_PROCESS);
        program.load(NR);
        if cfg!(target_arch = "x86_64") {
            program.jump(libc::BPF_JGE, X32_BIT, 0, 1);
            program.answer(errno(libc::ENOSYS));
        }
        for call in REFUSED {
            program.refuse(*call, libc::EPERM);
        }
        for call in UNKNOWN {
            program.refuse(*call, libc::ENOSYS);
        }
        program.refuse_flag(libc::SYS_clone, libc::CLONE_NEWUSER);
        program.refuse_flag(libc::SYS_unshare, libc::CLONE_NEWUSER);
        program.only_families(libc::SYS_socket);
        program.only_families(libc::SYS_socketpair);
        program.refuse_values(libc::SYS_ioctl, ARG1, &[TIOCSTI, TIOCLINUX]);
        program.answer(libc::SECCOMP_RET_ALLOW);
        program
    }

    /// Installs it in this process. Needs no_new_privs.
    pub(super) fn install(&self) -> Result<(), Errno> {
        let length = u16::try_from(self.0.len()).map_err(|_| Errno::TOOBIG)?;
        let program = libc::sock_fprog {
            len: length,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the program outlives the call, which copies it; the kernel only reads it.
        check(unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0_u32,
                &raw const program,
            )
        })
    }

    fn refuse(&mut self, call: libc::c_long, error: i32) {
        self.jump(libc::BPF_JEQ, number(call), 0, 1);
        self.answer(errno(error));
    }

    fn refuse_flag(&mut self, call: libc::c_long, flag: i32) {
        self.jump(libc::BPF_JEQ, number(call), 0, 4);
        self.load(ARG0);
        self.jump(libc::BPF_JSET, flag.cast_unsigned(), 0, 1);
        self.answer(errno(libc::EPERM));
        self.answer(libc::SECCOMP_RET_ALLOW);
    }

    fn refuse_values(&mut self, call: libc::c_long, argument: u32, values: &[u32]) {
        let block = u8::try_from(2 + 2 * values.len()).unwrap_or(u8::MAX);
        self.jump(libc::BPF_JEQ, number(call), 0, block);
        self.load(argument);
        for value in values {
            self.jump(libc::BPF_JEQ, *value, 0, 1);
            self.answer(errno(libc::EPERM));
        }
        self.answer(libc::SECCOMP_RET_ALLOW);
    }

    /// `socket(family, type, ..)`: a family that is not listed does not exist, nor does the packet type of AF_INET.
    fn only_families(&mut self, call: libc::c_long) {
        const KNOWN: u8 = FAMILIES.len() as u8;
        // load, one comparison per family, refusal; then load, mask, comparison, refusal, allow.
        self.jump(libc::BPF_JEQ, number(call), 0, KNOWN + 7);
        self.load(ARG0);
        for (index, family) in (0_u8..).zip(FAMILIES) {
            self.jump(libc::BPF_JEQ, family.cast_unsigned(), KNOWN - index, 0);
        }
        self.answer(errno(libc::EAFNOSUPPORT));
        self.load(ARG1);
        self.push(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            SOCK_TYPE_MASK,
            0,
            0,
        );
        self.jump(libc::BPF_JEQ, SOCK_PACKET, 0, 1);
        self.answer(errno(libc::EAFNOSUPPORT));
        self.answer(libc::SECCOMP_RET_ALLOW);
    }

    fn unless_equal(&mut self, value: u32, answer: u32) {
        self.jump(libc::BPF_JEQ, value, 1, 0);
        self.answer(answer);
    }

    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }

    fn jump(&mut self, comparison: u32, value: u32, when_true: u8, when_false: u8) {
        self.push(
            libc::BPF_JMP | comparison | libc::BPF_K,
            value,
            when_true,
            when_false,
        );
    }

    fn answer(&mut self, answer: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, answer, 0, 0);
    }

    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        // Every BPF opcode fits 16 bits; seccomp refuses a program with one it does not know.
        self.0.push(libc::sock_filter {
            code: u16::try_from(code).unwrap_or(u16::MAX),
            jt,
            jf,
            k,
        });
    }
}

fn errno(error: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | (error.cast_unsigned() & libc::SECCOMP_RET_DATA)
}

fn number(call: libc::c_long) -> u32 {
    // No call has a number beyond 32 bits; one that had would be refused by matching none of ours and all of theirs.
    u32::try_from(call).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a call, by running its program as the kernel does.
    fn answer(arch: u32, nr: u32, arguments: [u64; 2]) -> u32 {
        let program = Filter::workload().0;
        let word = |offset: u32| match offset {
            NR => nr,
            ARCHITECTURE => arch,
            ARG0 => arguments[0] as u32,
            ARG1 => arguments[1] as u32,
            other => panic!("loads from offset {other}"),
        };
        let (mut at, mut value) = (0_usize, 0_u32);
        loop {
            let instruction = program[at];
            at += 1;
            let take = |condition: bool| {
                usize::from(if condition {
                    instruction.jt
                } else {
                    instruction.jf
                })
            };
            match u32::from(instruction.code) {
                0x20 => value = word(instruction.k),
                0x54 => value &= instruction.k,
                0x15 => at += take(value == instruction.k),
                0x35 => at += take(value >= instruction.k),
                0x45 => at += take(value & instruction.k != 0),
                0x06 => return instruction.k,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn call(nr: libc::c_long, arguments: [u64; 2]) -> u32 {
        answer(ARCH, number(nr), arguments)
    }

    #[test]
    fn the_families_of_the_list_pass_and_no_others() {
        for syscall in [libc::SYS_socket, libc::SYS_socketpair] {
            for family in 0..64_u64 {
                let listed = FAMILIES.iter().any(|known| *known as u64 == family);
                let wanted = if listed {
                    libc::SECCOMP_RET_ALLOW
                } else {
                    errno(libc::EAFNOSUPPORT)
                };
                assert_eq!(
                    call(syscall, [family, libc::SOCK_STREAM as u64]),
                    wanted,
                    "family {family}"
                );
            }
        }
    }

    #[test]
    fn bits_above_the_kernels_int_do_not_help() {
        let dressed_up = (1 << 32) | libc::AF_PACKET as u64;
        assert_eq!(
            call(libc::SYS_socket, [dressed_up, 3]),
            errno(libc::EAFNOSUPPORT)
        );
        let flags = (7 << 32) | libc::CLONE_NEWUSER as u64;
        assert_eq!(call(libc::SYS_unshare, [flags, 0]), errno(libc::EPERM));
    }

    #[test]
    fn the_packet_type_of_inet_is_a_packet_socket() {
        let typed = u64::from(SOCK_PACKET) | libc::SOCK_CLOEXEC as u64;
        assert_eq!(
            call(libc::SYS_socket, [libc::AF_INET as u64, typed]),
            errno(libc::EAFNOSUPPORT)
        );
    }

    #[test]
    fn user_namespaces_are_refused_and_threads_are_not() {
        for syscall in [libc::SYS_clone, libc::SYS_unshare] {
            assert_eq!(
                call(syscall, [libc::CLONE_NEWUSER as u64, 0]),
                errno(libc::EPERM)
            );
            assert_eq!(
                call(syscall, [(libc::CLONE_VM | libc::CLONE_FILES) as u64, 0]),
                libc::SECCOMP_RET_ALLOW
            );
        }
        assert_eq!(call(libc::SYS_clone3, [0, 0]), errno(libc::ENOSYS));
    }

    #[test]
    fn keystrokes_cannot_be_put_into_the_terminal() {
        assert_eq!(
            call(libc::SYS_ioctl, [0, TIOCSTI.into()]),
            errno(libc::EPERM)
        );
        assert_eq!(
            call(libc::SYS_ioctl, [0, TIOCLINUX.into()]),
            errno(libc::EPERM)
        );
        assert_eq!(
            call(libc::SYS_ioctl, [0, libc::TIOCGWINSZ]),
            libc::SECCOMP_RET_ALLOW
        );
    }

    #[test]
    fn every_listed_call_is_refused_and_ordinary_ones_pass() {
        for refused in REFUSED {
            assert_eq!(call(*refused, [0, 0]), errno(libc::EPERM), "{refused}");
        }
        for unknown in UNKNOWN {
            assert_eq!(call(*unknown, [0, 0]), errno(libc::ENOSYS), "{unknown}");
        }
        for ordinary in [
            libc::SYS_read,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_exit_group,
            libc::SYS_futex,
        ] {
            assert_eq!(
                call(ordinary, [0, 0]),
                libc::SECCOMP_RET_ALLOW,
                "{ordinary}"
            );
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn other_abis_do_not_pass_under_other_numbers() {
        const I386: u32 = 0x4000_0003;
        assert_eq!(answer(I386, 359, [16, 3]), libc::SECCOMP_RET_KILL_PROCESS);
        let x32_socket = X32_BIT | number(libc::SYS_socket);
        assert_eq!(
            answer(ARCH, x32_socket, [libc::AF_PACKET as u64, 3]),
            errno(libc::ENOSYS)
        );
        let x32_read = X32_BIT;
        assert_eq!(answer(ARCH, x32_read, [0, 0]), errno(libc::ENOSYS));
    }
}
