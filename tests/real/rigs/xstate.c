/* Preloaded for Debian 12's linux.uml on a processor with AMX: linux.uml writes the first part of the extended
   state of a process (NT_X86_XSTATE), and the host's kernel takes only all of it (EFAULT; Linux 6.18,
   arch/x86/kernel/fpu/regset.c).  So put that part over the state that the process has, and write all. */
#define _GNU_SOURCE
#include <linux/elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

long ptrace(enum __ptrace_request request, ...)
{
    static char state[1 << 16] __attribute__((aligned(64)));
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    if (request == PTRACE_SETREGSET && (long) address == NT_X86_XSTATE) {
        struct iovec *part = data, all = {state, sizeof state};
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &all) < 0)
            return -1;
        memcpy(state, part->iov_base, part->iov_len < all.iov_len ? part->iov_len : all.iov_len);
        return syscall(SYS_ptrace, request, pid, address, &all);
    }
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long word;      /* which the C library returns, and the system call stores */
        return syscall(SYS_ptrace, request, pid, address, &word) < 0 ? -1 : word;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
