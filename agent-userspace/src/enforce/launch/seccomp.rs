//! The system call filters: one builder, one list of what nobody gets, and a file for each kind of process.
//! A workload's is installed right before execve, the proxy process's before its first thread; both are inherited.
//! INVARIANT: a call through another ABI (i386, x32) never reaches the kernel under another call's number.

mod proxy;
mod workload;

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
const ARG2: u32 = 32;

/// `SOCK_PACKET`: the kernel turns `socket(AF_INET, SOCK_PACKET)` into a packet socket.
const SOCK_PACKET: u32 = 10;
const SOCK_TYPE_MASK: u32 = 0xF;
/// Puts a character into the terminal's input queue, as if the operator had typed it.
const TIOCSTI: u32 = 0x5412;
/// Among others, pastes into a virtual console.
const TIOCLINUX: u32 = 0x541C;
/// open_tree_attr(2), Linux 6.15; not in libc yet.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Refused to everybody with EPERM: ways into other processes, other namespaces and the kernel.
const REFUSED: &[libc::c_long] = &[
    // other processes' memory and descriptors
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // programs in the kernel
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
    /// What every filter begins with: the one ABI, and the calls that nobody gets.
    fn new() -> Filter {
        let mut program = Filter(Vec::with_capacity(256));
        program.load(ARCHITECTURE);
        program.jump(libc::BPF_JEQ, ARCH, 1, 0);
        program.answer(libc::SECCOMP_RET_KILL_PROCESS);
        program.load(NR);
        if cfg!(target_arch = "x86_64") {
            program.answer_if(libc::BPF_JGE, X32_BIT, errno(libc::ENOSYS));
        }
        for call in REFUSED {
            program.refuse(*call, libc::EPERM);
        }
        for call in UNKNOWN {
            program.refuse(*call, libc::ENOSYS);
        }
        program.on(libc::SYS_ioctl, |block| {
            block.load(ARG1);
            for keystroke in [TIOCSTI, TIOCLINUX] {
                block.answer_if(libc::BPF_JEQ, keystroke, errno(libc::EPERM));
            }
        });
        program
    }

    /// What is not refused is allowed.
    fn otherwise_allowed(mut self) -> Filter {
        self.answer(libc::SECCOMP_RET_ALLOW);
        self
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

    /// What to say about one call, by its arguments; what the block does not answer is allowed.
    fn on(&mut self, call: libc::c_long, block: impl FnOnce(&mut Filter)) {
        let mut inner = Filter(Vec::new());
        block(&mut inner);
        inner.answer(libc::SECCOMP_RET_ALLOW);
        // A block of more than 255 instructions would be skipped in part only; none has 30.
        let length = u8::try_from(inner.0.len()).unwrap_or(u8::MAX);
        self.jump(libc::BPF_JEQ, number(call), 0, length);
        self.0.append(&mut inner.0);
    }

    /// Inside a block: an argument that has none of these values is refused.
    fn only(&mut self, argument: u32, values: &[u32], error: i32) {
        self.load(argument);
        let count = u8::try_from(values.len()).unwrap_or(u8::MAX);
        for (index, value) in (0_u8..).zip(values) {
            // Past the comparisons that remain, and the refusal.
            self.jump(libc::BPF_JEQ, *value, count.saturating_sub(index), 0);
        }
        self.answer(errno(error));
    }

    /// Inside a block of `socket(family, type, ..)`: what is not listed does not exist.
    fn only_sockets(&mut self, families: &[i32], refused_types: &[u32]) {
        let families: Vec<u32> = families
            .iter()
            .map(|family| family.cast_unsigned())
            .collect();
        self.only(ARG0, &families, libc::EAFNOSUPPORT);
        self.load(ARG1);
        self.and(SOCK_TYPE_MASK);
        for kind in refused_types {
            self.answer_if(libc::BPF_JEQ, *kind, errno(libc::EAFNOSUPPORT));
        }
    }

    fn answer_if(&mut self, comparison: u32, value: u32, answer: u32) {
        self.jump(comparison, value, 0, 1);
        self.answer(answer);
    }

    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }

    fn and(&mut self, mask: u32) {
        self.push(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0);
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

    impl Filter {
        /// What the filter answers to a call, by running its program as the kernel does.
        pub(super) fn run(&self, arch: u32, nr: u32, arguments: [u64; 3]) -> u32 {
            let word = |offset: u32| match offset {
                NR => nr,
                ARCHITECTURE => arch,
                ARG0 => arguments[0] as u32,
                ARG1 => arguments[1] as u32,
                ARG2 => arguments[2] as u32,
                other => panic!("loads from offset {other}"),
            };
            let (mut at, mut value) = (0_usize, 0_u32);
            loop {
                let instruction = self.0[at];
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

        pub(super) fn call(&self, nr: libc::c_long, arguments: [u64; 3]) -> u32 {
            self.run(ARCH, number(nr), arguments)
        }
    }

    fn both() -> [Filter; 2] {
        [Filter::workload(), Filter::proxy()]
    }

    #[test]
    fn keystrokes_cannot_be_put_into_the_terminal() {
        for filter in both() {
            for keystroke in [TIOCSTI, TIOCLINUX] {
                assert_eq!(
                    filter.call(libc::SYS_ioctl, [0, keystroke.into(), 0]),
                    errno(libc::EPERM)
                );
            }
            assert_eq!(
                filter.call(libc::SYS_ioctl, [0, libc::TIOCGWINSZ, 0]),
                libc::SECCOMP_RET_ALLOW
            );
        }
    }

    #[test]
    fn what_nobody_gets_is_refused_and_ordinary_calls_pass() {
        for filter in both() {
            for refused in REFUSED {
                assert_eq!(
                    filter.call(*refused, [0; 3]),
                    errno(libc::EPERM),
                    "{refused}"
                );
            }
            for unknown in UNKNOWN {
                assert_eq!(
                    filter.call(*unknown, [0; 3]),
                    errno(libc::ENOSYS),
                    "{unknown}"
                );
            }
            for ordinary in [
                libc::SYS_read,
                libc::SYS_connect,
                libc::SYS_exit_group,
                libc::SYS_futex,
            ] {
                assert_eq!(
                    filter.call(ordinary, [0; 3]),
                    libc::SECCOMP_RET_ALLOW,
                    "{ordinary}"
                );
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn other_abis_do_not_pass_under_other_numbers() {
        const I386: u32 = 0x4000_0003;
        for filter in both() {
            assert_eq!(
                filter.run(I386, 359, [16, 3, 0]),
                libc::SECCOMP_RET_KILL_PROCESS
            );
            let x32_socket = X32_BIT | number(libc::SYS_socket);
            assert_eq!(
                filter.run(ARCH, x32_socket, [libc::AF_PACKET as u64, 3, 0]),
                errno(libc::ENOSYS)
            );
            assert_eq!(filter.run(ARCH, X32_BIT, [0; 3]), errno(libc::ENOSYS));
        }
    }

    #[test]
    fn both_fit_what_the_kernel_takes() {
        for filter in both() {
            assert!(filter.0.len() < 4096, "BPF_MAXINSNS");
        }
    }
}
