//! What a workload may ask the kernel for: nearly everything, but no way out and no socket past the hooks.
//! An unmodified program runs under it, so that only what would undo the walls is refused.
//! INVARIANT: families by allow-list; no user namespace, in which a process would have capabilities again.

use super::{ARG0, ARG2, Filter, SOCK_PACKET, errno};

const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

impl Filter {
    /// The filter of every workload.
    pub(in super::super) fn workload() -> Filter {
        let mut program = Filter::new();
        program.refuse(libc::SYS_bpf, libc::EPERM);
        for call in [libc::SYS_clone, libc::SYS_unshare] {
            program.on(call, |block| {
                block.load(ARG0);
                let flag = libc::CLONE_NEWUSER.cast_unsigned();
                block.answer_if(libc::BPF_JSET, flag, errno(libc::EPERM));
            });
        }
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            program.on(call, |block| {
                block.only_sockets(&FAMILIES, &[SOCK_PACKET]);
                block.only_route_netlink();
            });
        }
        program.otherwise_allowed()
    }

    /// Inside a block of `socket(family, type, protocol)`: of netlink only routing, which the C library asks for addresses.
    /// Others reach the audit, firewall and IPsec parts of the kernel.
    fn only_route_netlink(&mut self) {
        self.load(ARG0);
        // Another family: past the next three.
        self.jump(libc::BPF_JEQ, libc::AF_NETLINK.cast_unsigned(), 0, 3);
        self.load(ARG2);
        self.jump(libc::BPF_JEQ, libc::NETLINK_ROUTE.cast_unsigned(), 1, 0);
        self.answer(errno(libc::EPROTONOSUPPORT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(nr: libc::c_long, arguments: [u64; 2]) -> u32 {
        Filter::workload().call(nr, [arguments[0], arguments[1], 0])
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
    fn of_netlink_only_routing_passes() {
        for protocol in 0..32_u64 {
            let wanted = if protocol == libc::NETLINK_ROUTE as u64 {
                libc::SECCOMP_RET_ALLOW
            } else {
                errno(libc::EPROTONOSUPPORT)
            };
            let netlink = [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, protocol];
            assert_eq!(Filter::workload().call(libc::SYS_socket, netlink), wanted);
            let inet = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, protocol];
            let passes = Filter::workload().call(libc::SYS_socket, inet);
            assert_eq!(passes, libc::SECCOMP_RET_ALLOW);
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
    fn programs_can_be_executed_and_none_loaded_into_the_kernel() {
        assert_eq!(call(libc::SYS_execve, [0, 0]), libc::SECCOMP_RET_ALLOW);
        for command in 0..40 {
            assert_eq!(call(libc::SYS_bpf, [command, 0]), errno(libc::EPERM));
        }
    }
}
